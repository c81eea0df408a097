"""What a class of transformers knows of its config, held against what a mapping says of it.

Needs transformers, and no weights: a tiny model is made. Nothing here prints.
"""
