"""Configs both ways: folds of the tree of relations that read one side and write the other.

Nothing here knows tensors.
"""
