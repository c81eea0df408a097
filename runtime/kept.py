"""Memory on the host that is kept and used again: the first touch of a page takes longer than what is copied into it.

Pinned memory is not kept here: torch's allocator for it does that.
"""

from __future__ import annotations

import threading

import torch


class KeptMemory:
    """Buffers of bytes that are given back and handed out again; the largest ``count`` of them are kept."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free: list[torch.Tensor] = []
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> torch.Tensor:
        """At least ``nbytes`` bytes, whatever is in them. One that is never given back is freed like any other."""
        with self._lock:
            for number, buffer in enumerate(self._free):
                if buffer.numel() >= nbytes:
                    return self._free.pop(number)
            self._free.clear()  # what is too small now would be beside what is made
        return torch.empty(nbytes, dtype=torch.uint8)

    def give_back(self, buffer: torch.Tensor) -> None:
        """The caller does not use the buffer any more."""
        with self._lock:
            self._free = sorted([*self._free, buffer], key=lambda kept: kept.numel())[-self._count :]

    def free(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._free.clear()


#: Buffers of workers, one of a bucket each.
WORKERS = KeptMemory(4)
#: What is saved in the background: as much as this rank writes.
SNAPSHOT = KeptMemory(1)
