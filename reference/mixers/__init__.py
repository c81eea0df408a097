"""Mixers: what carries information from one element of a sequence to another. Nothing here is an MLP or a block."""
