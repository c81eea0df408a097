"""A checkpoint on disk: headers, tensors by name, the bytes of each, and how an output is laid out.

Everything read here is hostile input; nothing here knows how a plan is scheduled.
"""
