"""Moving bytes between files and tensors, bucket by bucket, on any device.

A bucket is what fits a buffer: runs of files, and the strided copies between the buffer and tensors. Each worker
owns a slot: a host buffer. When the tensors are on an accelerator it is pinned, there may be two that take turns, and
a buffer and a stream on the device, where all element work happens, belong to the slot too. While one worker reads or
writes, the copies of another are under way; nobody waits for the device as a whole. On a CPU the same code runs without
the device buffer, and bytes that stand together on both ends go straight between file and tensor.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.zeros import Zeros
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.files import kernels
from crosswalk.runtime.files.pool import work_through
from crosswalk.runtime.files.runs import STEP, SourceBlock, StridedRuns
from crosswalk.runtime.files.schedule import in_file
from crosswalk.runtime.files.workers import one_torch_thread
from crosswalk.runtime.kept import WORKERS
from crosswalk.runtime.plan.affine import Piece, PieceOf
from crosswalk.runtime.records import Record, field

from .stretches import GAP, Block, blocks, without_holes

#: Bytes of a bucket.
BUCKET = 16 << 20
#: Where a block begins in a bucket, so that its elements can be viewed with any dtype.
_ALIGNMENT = 64
#: What a worker takes: a bucket, or one with what belongs to it.
Item = TypeVar("Item")


class Memory(Record, frozen=True):
    """The whole storage behind a tensor as bytes, and the safetensors name of the tensor's dtype."""

    flat: torch.Tensor
    dtype: str

    @staticmethod
    def of(tensor: torch.Tensor, dtype: str) -> Memory:
        """The memory behind a tensor that has the dtype of this name."""
        with torch.no_grad():
            flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
        return Memory(flat, dtype)


class Direct(NamedTuple):
    """Bytes that stand together in a file and in a tensor, and need no buffer."""

    tensor: int
    offset: int
    memory: int
    start: int
    nbytes: int


class Buffered(NamedTuple):
    """One piece of tensor ``tensor``, ``here`` in the buffer, counted from byte ``position`` on, and ``there`` in the
    memory of its number."""

    tensor: int
    position: int
    placed: PieceOf


class TransferBucket(Record):
    """What moves at once; ``nbytes`` of the buffer are used. ``blocks`` are read into it, or written from it; ``zeros``
    are bytes that no file holds."""

    nbytes: int = 0
    blocks: list[SourceBlock] = field(default_factory=list)
    copies: list[Buffered] = field(default_factory=list)
    direct: list[Direct] = field(default_factory=list)
    direct_bytes: int = 0
    zeros: int = 0

    @property
    def moved(self) -> int:
        """Bytes read from or written to files."""
        return sum(block.bytes_read for block in self.blocks) + self.direct_bytes - self.zeros


def buckets(
    tensors: Sequence[StoredTensor],
    placements: Mapping[int, Sequence[PieceOf]],
    memories: Sequence[Memory],
    *,
    exact: bool,
    size: int = BUCKET,
    direct: bool = True,
) -> Iterator[TransferBucket]:
    """Buckets of at most ``size`` bytes that move the pieces between ``tensors`` and ``memories``, in the order of the
    files. ``exact``: blocks hold nothing but the pieces, as they must to be written. ``direct``: bytes that stand
    together on both ends may bypass the buffer (if the memory is on a CPU)."""
    bucket = TransferBucket()
    for number in sorted(placements, key=lambda n: (str(tensors[n].file), tensors[n].offset)):
        stored = tensors[number]
        width = size_of(stored.dtype)
        found = blocks(placements[number], max(1, size // width), GAP // width, exact)
        if not exact and stored.is_in_files:
            found = (part for block in found for part in without_holes(block, GAP // width))
        for block in found:
            nbytes = block.elements * width
            if bucket.nbytes + nbytes + _ALIGNMENT > size or bucket.direct_bytes >= size:
                yield bucket
                bucket = TransferBucket()
            if isinstance(stored.content, Zeros):
                bucket.zeros += nbytes
            beside = _direct(number, stored, block, memories) if direct else None
            if beside is not None:
                bucket.direct.append(beside)
                bucket.direct_bytes += nbytes
                continue
            _add(bucket, number, tensors, block)
    if bucket.blocks or bucket.direct:
        yield bucket


def _direct(number: int, stored: StoredTensor, block: Block, memories: Sequence[Memory]) -> Direct | None:
    if block.outer or len(block.placements) != 1:
        return None
    memory, piece = block.placements[0]
    flat, dtype = memories[memory].flat, memories[memory].dtype
    if piece.run != piece.elements or dtype != stored.dtype or not on_host(flat.device):
        return None
    width = size_of(stored.dtype)
    return Direct(number, stored.offset + block.start * width, memory, piece.there * width, block.elements * width)


def _add(bucket: TransferBucket, number: int, tensors: Sequence[StoredTensor], block: Block) -> None:
    stored = tensors[number]
    width = size_of(stored.dtype)
    nbytes = block.elements * width
    runs = in_file(StridedRuns(block.start, block.length, block.outer), stored.offset, width)
    last = bucket.blocks[-1] if bucket.blocks else None
    if (
        last is not None
        and tensors[last.source].content is stored.content is None
        and tensors[last.source].file == stored.file
        and last.runs.axes == runs.axes == ()
        and last.runs.start + last.runs.length == runs.start
        and bucket.nbytes % width == 0
    ):
        position = bucket.nbytes
        longer = last.runs._replace(length=last.runs.length + nbytes)
        bucket.blocks[-1] = last._replace(runs=longer)
    else:
        position = aligned(bucket.nbytes)
        bucket.blocks.append(SourceBlock(number, runs, position, block.together and stored.is_in_files))
    bucket.copies += [Buffered(number, position, placed) for placed in block.placements]
    bucket.nbytes = position + nbytes


class Slot:
    """The buffers of one worker. ``device`` is that of the tensors."""

    def __init__(self, device: torch.device, size: int = BUCKET, hosts: int = 1):
        """``hosts``: buffers on the host; none for buckets that bring their own, two to fill one from a file while the
        other is on its way to an accelerator. A CPU needs one."""
        count = min(hosts, 1) if on_host(device) else hosts
        self._kept = on_host(device)
        self._hosts = [WORKERS.take(size) if self._kept else host_buffer(size, device) for _ in range(count)]
        self._events: list[Any] = [None] * max(1, count)
        self._turn = 0
        self._step: memoryview | None = None
        self._staging: torch.Tensor | None = None
        self._stream: Any = None
        if not on_host(device):
            self._module = torch.get_device_module(device)
            self._stream = self._module.Stream(device)
            # The tensors may still be in the making on the stream of the caller.
            self._stream.wait_stream(self._module.current_stream(device))
            with self._on_stream():
                self._staging = torch.empty(size, dtype=torch.uint8, device=device)

    @property
    def host(self) -> torch.Tensor:
        """The host buffer whose turn it is."""
        return self._hosts[self._turn]

    @property
    def step(self) -> memoryview:
        """What is read passes through it where not all of it is kept."""
        if self._step is None:
            self._step = memoryview(bytearray(STEP))
        return self._step

    def turn(self) -> None:
        """The turn of the next host buffer, once no copy needs what is in it."""
        self._turn = (self._turn + 1) % len(self._hosts)
        if self._events[self._turn] is not None:
            self._events[self._turn].synchronize()

    def wait(self) -> None:
        """Until the copies no longer need the buffers, and have filled those that they fill."""
        for event in self._events:
            if event is not None:
                event.synchronize()

    def finish(self) -> None:
        """All buckets are done: what the caller puts on its stream from now on happens after the copies of this slot,
        whose buffers go to those who come next."""
        while self._kept and self._hosts:
            WORKERS.give_back(self._hosts.pop())
        if self._stream is not None:
            self._module.current_stream(self._stream.device).wait_stream(self._stream)

    def fill_tensors(self, bucket: TransferBucket, sources: Sequence[StoredTensor], memories: Sequence[Memory]) -> None:
        """From the host buffer into the tensors."""
        with self._on_stream():
            buffer = self.host
            if self._staging is not None:
                buffer = self._staging
                buffer[: bucket.nbytes].copy_(self.host[: bucket.nbytes], non_blocking=True)
            for tensor, position, (memory, piece) in bucket.copies:
                dtype, target = sources[tensor].dtype, memories[memory]
                _copy(buffer[position : bucket.nbytes], dtype, target.flat, target.dtype, piece.swapped)

    def fill_buffer(
        self, bucket: TransferBucket, targets: Sequence[StoredTensor], memories: Sequence[Memory], host: torch.Tensor
    ) -> None:
        """From the tensors into ``host``, which is complete after ``wait``."""
        with self._on_stream():
            buffer = host if self._staging is None else self._staging
            for tensor, position, (memory, piece) in bucket.copies:
                source, dtype = memories[memory], targets[tensor].dtype
                _copy(source.flat, source.dtype, buffer[position : bucket.nbytes], dtype, piece)
            if self._staging is not None:
                host[: bucket.nbytes].copy_(self._staging[: bucket.nbytes], non_blocking=True)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with self._module.stream(self._stream):
            yield
            self._events[self._turn] = self._stream.record_event()


def aligned(nbytes: int) -> int:
    """The next place where a block may begin."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def on_host(device: torch.device) -> bool:
    """Whether the host's threads read and write the memory of the device themselves."""
    return device.type == "cpu"


def host_buffer(size: int, device: torch.device) -> torch.Tensor:
    """Pinned bytes on the host, for an accelerator."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def host_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous ``uint8`` tensor on the host; the tensor must outlive the view."""
    if not tensor.numel():
        return memoryview(b"")
    return memoryview((ctypes.c_ubyte * tensor.numel()).from_address(tensor.data_ptr())).cast("B")


def _copy(source: torch.Tensor, source_dtype: str, target: torch.Tensor, target_dtype: str, piece: Piece) -> None:
    """Copy a piece between buffers of bytes; its ``here`` end is in ``target``, its ``there`` end in ``source``."""
    if on_host(source.device):
        kernels.move(source, source_dtype, target, target_dtype, piece)
        return
    extents, strides, others = piece.columns
    same = source_dtype == target_dtype
    reading, writing = kernels.elements(source, source_dtype, same), kernels.elements(target, target_dtype, same)
    writing.as_strided(extents, strides, writing.storage_offset() + piece.here).copy_(
        reading.as_strided(extents, others, reading.storage_offset() + piece.there), non_blocking=True
    )


def run(todo: Iterable[Item], slots: Sequence[Slot], work: Callable[[Slot, Item], int]) -> int:
    """Let one worker per slot take items until there are none; the sum of what ``work`` returns, the bytes that it
    moved to or from files. The first exception stops all and is raised."""
    moved = [0] * len(slots)

    def take(number: int, item: Item) -> None:
        with torch.no_grad():  # of this thread
            moved[number] += work(slots[number], item)

    with one_torch_thread():
        each = [functools.partial(take, number) for number in range(len(slots))]
        work_through(iter(todo), each, threading.Event(), here=True)
    for slot in slots:
        slot.finish()
    return sum(moved)


def worker_count(device: torch.device) -> int:
    """Threads that keep storage and the memory of the device busy, for one process on this machine. A thread reads at
    about 8 GB/s from the page cache: four are enough for the memory of a CPU, the link to an accelerator takes more."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(4 if on_host(device) else 8, math.ceil(available / local)))
