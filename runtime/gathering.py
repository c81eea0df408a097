"""Many short runs of a file in one system call.

A call for each run gives up the interpreter's lock and takes it back each time, so that two workers who do that take
longer than one. ``process_vm_readv`` copies from many places of memory: here, from a mapping of the file that nobody
else touches. Where such a file is cut, or its disk fails, that call falls short; it ends no process with a signal, as
reading a mapping would.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import sys
from collections.abc import Sequence

#: Most runs of a call: with the pages around each of them, which the system maps too, they are 16 MiB.
MOST = 256
#: Fewer runs, or longer ones, take no longer with a call for each.
_FEWEST, _LONGEST = 16, 32 << 10


def gather(descriptor: int, starts: Sequence[int], length: int, view: memoryview) -> int:
    """Fill ``view`` with at most ``MOST`` runs of ``length`` bytes of a file, one after the other, that start at these
    bytes of it. Returns how many were read; the one after them cannot be read like this, or not at all."""
    if not AVAILABLE or len(starts) < _FEWEST or length > _LONGEST:
        return 0
    first = min(starts) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    size = max(starts) + length - first
    mapped = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, first)
    if mapped == ctypes.c_void_p(-1).value:
        return 0
    try:
        count = _copy([mapped - first + start for start in starts], length, view) // length
        # What a mapping has after the end of a file is zeros.
        return count if os.fstat(descriptor).st_size >= first + size else 0
    finally:
        _libc.munmap(mapped, size)


def _copy(addresses: Sequence[int], length: int, view: memoryview) -> int:
    """Fill ``view`` with ``length`` bytes from each of these addresses of this process: how many bytes were copied."""
    places = array.array("Q", (length,)) * (2 * len(addresses))
    places[::2] = array.array("Q", addresses)
    target = array.array("Q", (ctypes.addressof(ctypes.c_char.from_buffer(view)), len(addresses) * length))
    vectors = target.buffer_info()[0], 1, places.buffer_info()[0], len(addresses)
    return max(0, int(_libc.process_vm_readv(os.getpid(), *vectors, 0)))


def _is_available() -> bool:
    """Whether this is a Linux that lets a process do this to itself; some containers do not."""
    if sys.maxsize < 2**32 or not hasattr(_libc, "process_vm_readv"):
        return False
    place, size, number, count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_ulong
    _libc.mmap.restype, _libc.mmap.argtypes = place, (place, size, number, number, number, ctypes.c_long)
    _libc.munmap.argtypes = (place, size)
    _libc.process_vm_readv.restype = ctypes.c_ssize_t
    _libc.process_vm_readv.argtypes = (number, place, count, place, count, count)
    words, copied = array.array("Q", (1, 2)), bytearray(16)
    address = words.buffer_info()[0]
    return _copy((address + 8, address), 8, memoryview(copied)) == 16 and copied[8:] + copied[:8] == words.tobytes()


_libc = ctypes.CDLL(None, use_errno=True)
#: Whether ``gather`` reads anything on this system.
AVAILABLE = _is_available()
