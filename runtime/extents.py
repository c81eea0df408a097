"""Files that share extents (XFS, btrfs): a copy within one file system that moves no data.

``copy_file_range`` does it only for whole blocks on both ends, and copies everything otherwise. So the blocks in the
middle of a range are shared by name, and only its edges are left to copy.
"""

from __future__ import annotations

import errno
import fcntl
import struct

#: Extents begin and end at multiples of this on the file systems that share them.
BLOCK = 4096
#: ``FICLONERANGE`` of linux/fs.h.
_CLONE_RANGE = 0x4020940D
#: The two files will not share, whatever the range.
NEVER = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.EBADF}


def share(source: int, source_offset: int, target: int, target_offset: int, nbytes: int) -> tuple[int, int]:
    """Let bytes of the file ``target`` be those of the file ``source``: ``(start, stop)`` within the ``nbytes`` from
    the offsets on. They are empty where blocks do not meet, or too few do. OSError with an ``errno`` in ``NEVER`` if
    these files cannot share at all."""
    start = -source_offset % BLOCK
    stop = nbytes - (source_offset + nbytes) % BLOCK
    if (source_offset - target_offset) % BLOCK or stop <= start:
        return 0, 0
    request = struct.pack("qQQQ", source, source_offset + start, stop - start, target_offset + start)
    try:
        fcntl.ioctl(target, _CLONE_RANGE, request)
    except OSError as error:
        if error.errno in NEVER:
            raise
        return 0, 0  # larger blocks, or a range that this file system keeps for itself
    return start, stop
