"""Copies that the system makes without moving data through this machine's memory, where it can.

Files share extents on XFS and btrfs. ``copy_file_range`` makes them only for whole blocks on both ends, and copies
everything otherwise; so the blocks in the middle of a range are shared by name, and only its edges are left to copy. A
file server copies by itself what ``copy_file_range`` asks it to. On a local disk that call is slower than reading and
writing through a buffer that stays in the cache (docs/performance.md).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

#: Extents begin and end at multiples of this on the file systems that share them.
BLOCK = 4096
#: ``FICLONERANGE`` of linux/fs.h.
_CLONE_RANGE = 0x4020940D
#: The two files will not share, whatever the range.
_NEVER = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.EBADF}
#: File systems whose servers copy by themselves.
_SERVERS = {"nfs4", "cifs", "smb3", "ceph"}


def is_served(descriptor: int) -> bool:
    """Whether a file lies on a server that copies by itself."""
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            lines = [line.split() for line in mounts]
    except OSError:
        return False
    return any(line[2] == number and line[line.index("-") + 1] in _SERVERS for line in lines)


def share(source: int, source_offset: int, target: int, target_offset: int, nbytes: int) -> tuple[int, int]:
    """Let bytes of the file ``target`` be those of the file ``source``: ``(start, stop)`` within the ``nbytes`` from
    the offsets on. They are empty where blocks do not meet, or too few do. Raises ``OSError`` if these files cannot
    share at all; only those of Linux can."""
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    start = -source_offset % BLOCK
    stop = nbytes - (source_offset + nbytes) % BLOCK
    if (source_offset - target_offset) % BLOCK or stop <= start:
        return 0, 0
    request = struct.pack("qQQQ", source, source_offset + start, stop - start, target_offset + start)
    try:
        fcntl.ioctl(target, _CLONE_RANGE, request)
    except OSError as error:
        if error.errno in _NEVER:
            raise
        return 0, 0  # larger blocks, or a range that this file system keeps for itself
    return start, stop
