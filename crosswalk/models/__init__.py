"""What the class of transformers makes of a checkpoint, beside what the reference makes of its conversion.

Needs transformers; nothing here prints.
"""
