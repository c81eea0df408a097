"""What a checkpoint directory is: one file for each kind of directory.

Nothing here plans a conversion.
"""
