"""A checkpoint on disk: headers, tensors by name, the bytes of each, and output that appears complete or not at all.

Everything read here is hostile input; nothing here knows how a plan is scheduled.
"""
