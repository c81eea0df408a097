"""Live parameters as the tensors of a checkpoint, again and again: planned once, whole or as what has changed.

Nothing here knows formats, configs or who receives them.
"""
