"""One file for each kind of directory that a checkpoint may be: Hugging Face, or a trainer's, of any layout.

What all kinds share stands in the folder above; nothing here plans a conversion.
"""
