"""The plan as data: its text, its proof and its algebra.

Nothing here reads a file or imports torch.
"""
