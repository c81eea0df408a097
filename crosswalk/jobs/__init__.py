"""What a user asks for, as functions: convert, check, verify, load, save, stream, and plans without files.

Nothing here prints.
"""
