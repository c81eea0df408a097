"""Files that are open at the same time: few, however many shards a checkpoint has."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from crosswalk.runtime.records import Record

#: Most files that one side of a conversion keeps open.
_MOST = 128
_NO_MORE = {errno.EMFILE, errno.ENFILE}


class _Open(Record):
    descriptor: int
    users: int = 0


class Descriptors:
    """Open files by path, those used last. ``opening`` makes a descriptor; ``closing`` is called with one that has to
    make room for another. Safe to use from several threads."""

    def __init__(
        self, opening: Callable[[Path], int], closing: Callable[[Path, int], None], most: int | None = None
    ) -> None:
        self._opening, self._closing = opening, closing
        # A conversion has a few such sets, and the process has files of its own.
        self._most = most or max(1, min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8))
        self._open: dict[Path, _Open] = {}
        self._lock = threading.Lock()

    def acquire(self, path: Path) -> int:
        """A descriptor that stays open until ``release``. Raises ``OSError`` as opening does."""
        with self._lock:
            found = self._open.pop(path, None)
            if found is None:
                self._make_room(self._most - 1)
                try:
                    found = _Open(self._opening(path))
                except OSError as error:
                    if error.errno not in _NO_MORE or not self._make_room(0):
                        raise
                    found = _Open(self._opening(path))
            found.users += 1
            self._open[path] = found
            return found.descriptor

    def release(self, path: Path) -> None:
        """The end of one use."""
        with self._lock:
            if path in self._open:  # else all were closed, after an interrupt
                self._open[path].users -= 1

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        """``acquire`` and ``release`` around a block."""
        descriptor = self.acquire(path)
        try:
            yield descriptor
        finally:
            self.release(path)

    def each(self, check: Callable[[Path, int], None]) -> None:
        """Call ``check`` with every file that is open."""
        with self._lock:
            for path, found in self._open.items():
                check(path, found.descriptor)

    def close(self) -> None:
        """Close all files; none may be in use."""
        with self._lock:
            for found in self._open.values():
                os.close(found.descriptor)
            self._open.clear()

    def _make_room(self, left: int) -> int:
        """Close files that are not in use, the longest unused first, until ``left`` are open: how many were closed."""
        idle = [path for path, found in self._open.items() if not found.users]
        leaving = idle[: max(0, len(self._open) - left)]
        for path in leaving:
            descriptor = self._open.pop(path).descriptor
            try:
                self._closing(path, descriptor)
            finally:
                os.close(descriptor)
        return len(leaving)
