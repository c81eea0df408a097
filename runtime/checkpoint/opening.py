"""Opening files that others have put there: regular ones only, and none that a link leads out of the checkpoint to."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from crosswalk.runtime.errors import Position, fail

#: How a file begins that Git LFS puts in the place of one that was not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def open_regular(path: Path) -> int:
    """A descriptor for reading; OSError unless ``path`` is (a link to) a regular file, so that no pipe can block, and
    ``CrosswalkError`` if Git LFS did not fetch the file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(0, "it is not a regular file")
    if os.pread(descriptor, len(LFS_POINTER), 0) == LFS_POINTER:
        os.close(descriptor)
        text = "this is a pointer of Git LFS, which stands in for the file"
        raise fail("source/lfs", text, Position(str(path)), "fetch the file itself: git lfs pull")
    return descriptor


def read_inside(path: Path, home: Path, limit: int) -> bytes:
    """At most ``limit`` bytes of a file of the checkpoint ``home``; OSError for what is not one, or cannot be read."""
    outside = leads_out(path, home)
    if outside is not None:
        raise OSError(0, outside)
    with os.fdopen(open_regular(path), "rb") as stream:
        return stream.read(limit)


def leads_out(path: Path, home: Path) -> str | None:
    """What is wrong with a link that leads out of the checkpoint ``home``; None for what stays in it, or leads to the
    ``blobs`` that a snapshot in the cache of the Hugging Face hub is made of."""
    if path.parent == home and path.name != ".." and not path.is_symlink():
        return None
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(home))
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if any(allowed in real.parents for allowed in roots):
        return None
    return f"it is a link that leads out of the checkpoint, to {real}"
