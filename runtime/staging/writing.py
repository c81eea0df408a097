"""Every byte that an output gets passes through here: all of it arrives, or an ``OSError`` says that it did not.

The system may take a part of what it is given (a disk that is full for a moment, a signal, a quota) and call that a
success.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
#: Most bytes that are given in one call: macOS takes no more than 2 GiB.
_MOST = 1 << 30
#: What macOS has for a sync that reaches the disk, on file systems that can do it.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of ``content`` from byte ``offset`` of the file on. Raises ``OSError``."""
    view = memoryview(content)
    while view:
        count = _uninterrupted(os.pwrite, descriptor, view[:_MOST], offset)
        if count <= 0:
            raise OSError(errno.EIO, "the file system takes no more bytes and gives no reason")
        view, offset = view[count:], offset + count


def write_runs(descriptor: int, view: memoryview, offsets: Iterable[int], length: int) -> None:
    """Write a view in runs of ``length`` bytes, one after the other, each from its offset of the file on. There can be
    ten thousands of them, so one that is taken whole costs no more than the call."""
    pwrite, begin = os.pwrite, 0
    for offset in offsets:
        run = view[begin : begin + length]
        try:
            count = pwrite(descriptor, run, offset)
        except InterruptedError:
            count = 0
        if count < length:
            write_at(descriptor, run[count:], offset + count)
        begin += length


def set_size(descriptor: int, nbytes: int) -> None:
    """Cut a file, or lengthen it by zeros that take no room yet."""
    _uninterrupted(os.ftruncate, descriptor, nbytes)


def sync(descriptor: int) -> None:
    """Wait until what was written to a file or directory is on the disk."""
    if _FULL_SYNC is not None:
        try:
            _uninterrupted(fcntl.fcntl, descriptor, _FULL_SYNC)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
                raise
    _uninterrupted(os.fsync, descriptor)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def copy_between(source: int, target: int, nbytes: int, source_offset: int, target_offset: int) -> int:
    """Let the kernel copy at most ``nbytes`` bytes from file to file: how many it did, 0 if it will not."""
    return _uninterrupted(os.copy_file_range, source, target, nbytes, source_offset, target_offset)


def _uninterrupted(call: Callable[..., _T], *arguments: object) -> _T:
    while True:
        try:
            return call(*arguments)
        except InterruptedError:
            continue
