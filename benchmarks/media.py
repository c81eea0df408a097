"""Files on a disk: written to it, and dropped from the page cache."""

from __future__ import annotations

import os
from pathlib import Path


def sync(directory: Path) -> None:
    """Wait until the files of a directory are on the disk."""
    for path in directory.glob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def evict(directory: Path) -> None:
    """Drop the files of a directory from the page cache."""
    sync(directory)
    for path in directory.glob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
