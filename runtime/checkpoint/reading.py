"""Reading the tensors of a checkpoint by position, from several threads."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from crosswalk.runtime.errors import CrosswalkError, Position, fail
from crosswalk.runtime.gathering import MOST, gather

from .descriptors import Descriptors
from .header import ContentInFiles, ContentOfRuns, SourceFile, StoredTensor
from .opening import open_regular

#: Most bytes that are asked for in one call: macOS takes no more than 2 GiB.
_MOST = 1 << 30


class Reader:
    """Reads the tensors of a checkpoint by position. A file that is not what its header was read from is an error."""

    def __init__(self, names: Sequence[str], tensors: Sequence[StoredTensor], files: Mapping[Path, SourceFile]):
        self.names, self.tensors = names, tensors
        self._files = files
        self._descriptors = Descriptors(self._open, self._check)
        self._advised: set[tuple[int, Path]] = set()

    @contextlib.contextmanager
    def opened(self, source: int) -> Iterator[int]:
        """The open file that holds the tensor; there is none for a tensor whose bytes are made."""
        path = self.tensors[source].file
        descriptor = self._acquire(source, path)
        try:
            yield descriptor
        finally:
            self._descriptors.release(path)

    def _acquire(self, source: int, path: Path) -> int:
        try:
            return self._descriptors.acquire(path)
        except OSError as error:
            raise self._failed(source, path, error.strerror or str(error)) from error

    def _open(self, path: Path) -> int:
        descriptor = open_regular(path)
        try:
            self._check(path, descriptor)
        except CrosswalkError:
            os.close(descriptor)
            raise
        return descriptor

    def read(self, source: int, offset: int, view: memoryview) -> None:
        """Fill ``view`` from byte ``offset`` of the file that holds the tensor."""
        stored = self.tensors[source]
        if stored.content is not None:
            stored.content.fill(offset - stored.offset, view, functools.partial(self._read, source))
        else:
            self._read(source, stored.file, offset, view)

    def bytes_of(self, source: int) -> bytes:
        """All bytes of a small tensor."""
        stored = self.tensors[source]
        found = bytearray(stored.nbytes)
        self.read(source, stored.offset, memoryview(found))
        return bytes(found)

    def _read(self, source: int, path: Path, offset: int, view: memoryview) -> None:
        descriptor = self._acquire(source, path)
        try:
            while view:
                count = os.preadv(descriptor, (view[:_MOST],), offset)
                if not count:
                    raise self._failed(source, path, f"it ends at byte {offset}")
                view, offset = view[count:], offset + count
        except OSError as error:
            raise self._failed(source, path, error.strerror or str(error)) from error
        finally:
            self._descriptors.release(path)

    def read_runs(self, source: int, starts: Iterable[int], length: int, view: memoryview) -> None:
        """Fill ``view`` with runs of ``length`` bytes, one after the other, that start at these bytes of the file.
        Raises ``CrosswalkError`` for what cannot be read."""
        stored = self.tensors[source]
        content = stored.content
        if content is None:
            self._read_runs(source, stored.file, (stored.offset, stored.nbytes), starts, length, view)
            return
        begins = (start - stored.offset for start in starts)
        if isinstance(content, ContentOfRuns):
            content.fill_runs(begins, length, view, functools.partial(self._read, source))
            return
        if not isinstance(content, ContentInFiles):
            for begin in begins:
                self.read(source, stored.offset + begin, view[:length])
                view = view[length:]
            return
        for file, places in content.runs_in_files(begins, length):
            part, view = view[: len(places) * length], view[len(places) * length :]
            if file is not None:
                soon = places[0], places[-1] + length - places[0]
                self._read_runs(source, file, soon, places, length, part)
                continue
            for number, begin in enumerate(places):
                self.read(source, stored.offset + begin, part[number * length : (number + 1) * length])

    def _read_runs(
        self, source: int, path: Path, soon: tuple[int, int], starts: Iterable[int], length: int, view: memoryview
    ) -> None:
        """The same from one file, of which all of ``soon`` (offset, size) will be read."""
        place = 0
        descriptor = self._acquire(source, path)
        try:
            if (source, path) not in self._advised:
                # Short runs far apart defeat the kernel's readahead.
                self._advised.add((source, path))
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, *soon, os.POSIX_FADV_WILLNEED)
            preadv, left = os.preadv, iter(starts)
            while batch := list(itertools.islice(left, MOST)):
                gathered = gather(descriptor, batch, length, view[place : place + len(batch) * length])
                place += gathered * length
                for start in batch[gathered:]:
                    part = view[place : place + length]
                    if preadv(descriptor, (part,), start) != length:
                        self._read(source, path, start, part)
                    place += length
        except OSError as error:
            raise self._failed(source, path, error.strerror or str(error)) from error
        finally:
            self._descriptors.release(path)

    def check(self) -> None:
        """Raise ``CrosswalkError`` if a file that was read has changed since its header was."""
        self._descriptors.each(self._check)

    def close(self) -> None:
        """Close the files."""
        self._descriptors.close()

    def _check(self, path: Path, descriptor: int) -> None:
        known = self._files[path]
        if SourceFile.of(os.fstat(descriptor), known.metadata) != known:
            raise fail("read/changed", "the file was changed after the conversion began", Position(str(path)))

    def _failed(self, source: int, path: Path, reason: str) -> CrosswalkError:
        return fail("read/failed", f"reading tensor `{self.names[source]}`: {reason}", Position(str(path)))
