"""A folder of torch.distributed.checkpoint: what is in it, where the bytes of each tensor lie, and one to be written.

Everything read here is hostile input, pickles among it: they are read as data, and nothing in them is run.
"""
