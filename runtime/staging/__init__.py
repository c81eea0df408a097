"""Output that appears at its destination complete, or not at all, whatever the disk and the process come to.

A file system is hostile too: it may take a part of what it is given, and lose what it took.
"""
