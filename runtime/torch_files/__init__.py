"""What ``torch.save`` writes, read as data: pickles, and the archives that they stand in.

Nothing here knows what a checkpoint is, and no torch is needed.
"""
