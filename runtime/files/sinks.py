"""What is done with the bytes that the workers bring: write, compare, or only hash them."""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from crosswalk.runtime.checkpoint.checksum import Checksums, Stream
from crosswalk.runtime.checkpoint.descriptors import Descriptors
from crosswalk.runtime.checkpoint.extents import is_served, share
from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.errors import Diagnostic, Position, fail
from crosswalk.runtime.staging.writing import copy_between, write_at

from .runs import STEP
from .tasks import Panel, Range, Segment
from .workers import Worker

#: Ranges of at least this many bytes are left to the system, if it shares or copies extents of the files.
_LONG = 64 << 10
_NO_KERNEL_COPY = {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF, errno.EPERM}


class HashSink:
    """Only the checksums."""

    def __init__(self, checksums: Checksums):
        self._checksums = checksums

    def take(self, segment: Segment, worker: Worker) -> Iterator[int]:
        """Add the bytes of a segment to the checksums, yielding the number of bytes after every step."""
        stream = self._checksums.stream(segment.target, segment.start, segment.start + segment.nbytes)
        for block in worker.blocks(segment.target, segment.operations):
            stream.update(block)
            yield len(block)
        assert not stream.parts


class CompareSink:
    """Compares with bytes that are stored already; ``differing`` collects the targets that are not the same."""

    def __init__(self, stored: Reader):
        self._stored = stored
        self.differing: dict[int, int] = {}

    def take(self, segment: Segment, worker: Worker) -> Iterator[int]:
        """Compare a segment with what is stored, yielding the number of bytes after every step."""
        other, done = worker.other, 0
        base = self._stored.tensors[segment.target].offset
        for block in worker.blocks(segment.target, segment.operations):
            place = 0
            for offset, length in segment.places(done, len(block)):
                for begin in range(0, length, STEP):
                    part = block[place + begin : place + min(begin + STEP, length)]
                    self._stored.read(segment.target, base + offset + begin, other[: len(part)])
                    if not _equal(part, other[: len(part)]):
                        unequal = (i for i, (a, b) in enumerate(zip(part, other, strict=False)) if a != b)
                        first = offset + begin + next(unequal)
                        self.differing[segment.target] = min(first, self.differing.get(segment.target, first))
                place += length
            done += len(block)
            yield len(block)


class WriteSink:
    """Writes the targets to their ``places`` in files, which ``descriptors`` opens.

    ``completed`` is called, by a worker, with each file once all its bytes are written.
    """

    def __init__(
        self,
        names: Sequence[str],
        places: Mapping[int, StoredTensor],
        files: Sequence[Path],
        descriptors: Descriptors,
        checksums: Checksums | None,
        completed: Callable[[Path], None],
    ):
        self._names, self._places, self._descriptors = names, places, descriptors
        self._checksums, self._completed = checksums, completed
        self._left = dict.fromkeys(files, 0)
        for place in places.values():
            self._left[place.file] += place.nbytes
        self._shares = True
        self._kernel_copies = False
        if checksums is None and files:
            with descriptors.opened(files[0]) as descriptor:  # all lie in one directory
                self._kernel_copies = is_served(descriptor)
        self._lock = threading.Lock()
        for path, left in self._left.items():
            if not left:
                completed(path)

    def take(self, segment: Segment, worker: Worker) -> Iterator[int]:
        """Write a segment to its file, yielding the number of bytes after every step. Raises ``CrosswalkError``."""
        place = self._places[segment.target]
        try:
            with self._descriptors.opened(place.file) as descriptor:
                yield from self._write(segment, place, descriptor, worker)
        except OSError as error:
            reason = error.strerror or str(error)
            where = Position(str(place.file))
            raise fail("write/failed", f"writing tensor `{self._names[segment.target]}`: {reason}", where) from error
        with self._lock:
            self._left[place.file] -= segment.nbytes
            complete = self._left[place.file] == 0
        if complete:
            self._completed(place.file)

    def _write(self, segment: Segment, place: StoredTensor, descriptor: int, worker: Worker) -> Iterator[int]:
        base, done = place.offset, 0
        stream = None
        if self._checksums and segment.run == segment.nbytes:
            stream = self._checksums.stream(segment.target, segment.start, segment.start + segment.nbytes)
        is_long = functools.partial(self._is_long, worker.reader)
        for long, group in itertools.groupby(segment.operations, is_long):
            if long:
                for operation in group:
                    assert isinstance(operation, Range)
                    position = base + segment.start + done
                    yield from self._move(operation, descriptor, position, segment.target, stream, worker)
                    done += operation.nbytes
                continue
            for block in worker.blocks(segment.target, group):
                begin = 0
                for offset, length in segment.places(done, len(block)):
                    write_at(descriptor, block[begin : begin + length], base + offset)
                    begin += length
                if stream:
                    stream.update(block)
                done += len(block)
                yield len(block)
        if self._checksums:
            places = segment.places(0, segment.nbytes)
            parts = stream.parts if stream else self._checksums.touched(segment.target, places)
            self._hash_edges(segment.target, parts, descriptor, base, worker)
        if segment.run == segment.nbytes:
            start_writeback(descriptor, base + segment.start, segment.nbytes)

    def _is_long(self, reader: Reader, operation: Range | Panel) -> bool:
        """Whether to ask the system to share or copy the bytes, instead of reading and writing them."""
        if not isinstance(operation, Range) or operation.nbytes < _LONG or not (self._shares or self._kernel_copies):
            return False
        return reader.tensors[operation.source].content is None

    def _move(
        self, operation: Range, descriptor: int, position: int, target: int, stream: Stream | None, worker: Worker
    ) -> Iterator[int]:
        """Fill ``operation.nbytes`` bytes from ``position`` of the file on. Bytes that the files share are not written,
        and read only if they are to be hashed."""
        source, offset, nbytes = operation
        start, stop = self._share(operation, descriptor, position, worker)
        parts = [(0, nbytes)] if stream else [(0, start), (stop, nbytes)]
        yield nbytes - sum(last - first for first, last in parts)
        for first, last in parts:
            part = Range(source, offset + first, last - first)
            done = first + self._copy(part, descriptor, position + first, worker)
            yield done - first
            for block in worker.blocks(target, [Range(source, offset + done, last - done)]):
                end = done + len(block)
                for begin, until in ((done, min(end, start)), (max(done, stop), end)):
                    if begin < until:
                        write_at(descriptor, block[begin - done : until - done], position + begin)
                if stream:
                    stream.update(block)
                done = end
                yield len(block)

    def _share(self, operation: Range, descriptor: int, position: int, worker: Worker) -> tuple[int, int]:
        """The bytes of a range, counted from its start, that the files share from now on."""
        if self._shares:
            with worker.reader.opened(operation.source) as source:
                try:
                    return share(source, operation.offset, descriptor, position, operation.nbytes)
                except OSError:
                    self._shares = False
        return 0, 0

    def _copy(self, operation: Range, descriptor: int, position: int, worker: Worker) -> int:
        """Let the kernel copy; the number of bytes it did copy before it could not."""
        done = 0
        try:
            with worker.reader.opened(operation.source) as source:
                while done < operation.nbytes and self._kernel_copies:
                    left = operation.nbytes - done
                    count = copy_between(source, descriptor, left, operation.offset + done, position + done)
                    if not count:
                        break
                    done += count
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            self._kernel_copies = False
        return done

    def _hash_edges(
        self, target: int, parts: Iterable[tuple[int, int]], descriptor: int, base: int, worker: Worker
    ) -> None:
        """Chunks that two segments share are hashed by the one that is written last, from the page cache."""
        assert self._checksums
        for chunk, nbytes in parts:
            if self._checksums.part(target, chunk, nbytes):
                start, stop = self._checksums.bounds(target, chunk)
                hashed = self._checksums.new()
                for begin in range(start, stop, len(worker.step)):
                    view = worker.step[: stop - begin]
                    if os.preadv(descriptor, (view,), base + begin) != len(view):
                        raise OSError(errno.EIO, "the file does not give back what was written")
                    hashed.update(view)
                self._checksums.set(target, chunk, hashed.digest())
                start_writeback(descriptor, base + start, stop - start)


def differences(differing: Mapping[int, int], labels: Sequence[str], code: str, text: str) -> list[Diagnostic]:
    """A diagnostic for each target that a ``CompareSink`` found to differ."""
    return [
        Diagnostic(code, f"tensor {labels[target]} {text} from byte {first} on")
        for target, first in sorted(differing.items())
    ]


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the kernel begin to write out dirty pages, so that the final sync finds little left to do."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(nbytes), 2)  # SYNC_FILE_RANGE_WRITE


_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_libc, "sync_file_range", None)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _equal(one: memoryview, other: memoryview) -> bool:
    """Whether two writable buffers of the same length hold the same bytes; releases the interpreter lock."""
    addresses = (ctypes.addressof(ctypes.c_char.from_buffer(view)) for view in (one, other))
    return not one or _libc.memcmp(*addresses, len(one)) == 0
