"""Workers that execute the tasks of a plan between files.

The workers are alike: each takes the next task, reads, rearranges, and hands the bytes on in the order of the target.
A worker owns a few buffers, used again for every task, so that memory is bounded by construction: see ``peak_memory``.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import fail
from crosswalk.runtime.plan.affine import Piece
from crosswalk.runtime.plan.model import TensorSpec

from .pool import work_through
from .runs import MIB, STEP, read_block
from .schedule import SMALLEST_PANEL, STRIPE, TASK
from .tasks import Panel, Range, Segment, Task, consecutive

#: Bytes that a worker reads at a time for a panel: a transpose of a wide matrix reads runs of ``PANEL / rows`` bytes.
PANEL = 32 * MIB
#: What a worker needs besides its buffers: tiles of a transpose, ``decoding.SCRATCH``, and the allocator's slack.
_SLACK = 8 * MIB
#: What they need together: the tasks being made, and the self-test of the kernels.
_SHARED = 16 * MIB

Progress = Callable[[int, int, str], None]


def peak_memory(workers: int, panel: int = PANEL) -> int:
    """Most bytes that ``workers`` with panels of ``panel`` bytes allocate, whatever the model."""
    return _SHARED + workers * (2 * STEP + panel + STRIPE + _SLACK)


def fit_memory(workers: int, memory: int | None) -> tuple[int, int]:
    """Workers (at most those asked for) and bytes per panel that stay within ``memory`` bytes. Raises
    ``CrosswalkError`` if not even one worker does."""
    if memory is None:
        return workers, PANEL
    for count in range(workers, 0, -1):
        panel = PANEL
        while panel >= SMALLEST_PANEL:
            if peak_memory(count, panel) <= memory:
                return count, panel
            panel //= 2
    least = peak_memory(1, SMALLEST_PANEL)
    raise fail("options/memory", f"a conversion needs {least} bytes of memory, {memory} are allowed")


class Worker:
    """One worker's buffers, and what it does with them. ``with_torch``: to cast, and to rearrange what is no matrix."""

    def __init__(
        self,
        reader: Reader,
        sources: Sequence[TensorSpec],
        targets: Sequence[TensorSpec],
        panel: int,
        with_torch: bool = False,
    ):
        self.reader, self._sources, self._targets = reader, sources, targets
        self.step, self.other = memoryview(_anonymous(STEP)), memoryview(_anonymous(STEP))
        self._panel_size, self._with_torch = panel, with_torch
        self._buffers: tuple[memoryview, memoryview] | None = None

    def blocks(self, target: int, operations: Iterable[Range | Panel]) -> Iterator[memoryview]:
        """The bytes of consecutive operations, in order; each block is valid until the next is asked for."""
        step, filled = self.step, 0
        for operation in operations:
            if isinstance(operation, Panel):
                if filled:
                    yield step[:filled]
                    filled = 0
                yield from self._panel(target, operation)
                continue
            source, offset, left = operation
            while left:
                count = min(left, STEP - filled)
                self.reader.read(source, offset, step[filled : filled + count])
                filled, offset, left = filled + count, offset + count, left - count
                if filled == STEP:
                    yield step
                    filled = 0
        if filled:
            yield step[:filled]

    def _panel(self, target: int, panel: Panel) -> Iterator[memoryview]:
        """Read the blocks of a panel, then yield its stripes."""
        if self._buffers is None:
            self._buffers = memoryview(_anonymous(self._panel_size)), memoryview(_anonymous(STRIPE))
        staging, output = self._buffers
        dtype = self._targets[target].dtype
        if not self._with_torch or all(self._sources[block.source].dtype == dtype for block in panel.blocks):
            from .transposing import matrix_of, transposed  # with numpy, as below

            if (matrix := matrix_of(panel, size_of(dtype), STRIPE)) is not None:
                yield from transposed(self.reader, panel, matrix, staging, output, self.step)
                return
        staged = []
        for block in panel.blocks:
            read_block(self.reader, block, staging[block.at :], self.step)
            staged.append((staging[block.at :], self._sources[block.source].dtype))
        for stripe in panel.stripes:
            for number, piece in stripe.moves:
                self._move(*staged[number], output, dtype, piece)
            yield output[: stripe.nbytes]

    def _move(self, source: memoryview, source_dtype: str, target: memoryview, target_dtype: str, piece: Piece) -> None:
        if not self._with_torch:
            from .rearranging import move  # with numpy, which conversions that only copy ranges do without

            move(source, target, size_of(target_dtype), piece)
            return
        from .kernels import move_between

        move_between(source, source_dtype, target, target_dtype, piece)


class Sink(Protocol):
    """Takes the bytes of the targets."""

    def take(self, segment: Segment, worker: Worker) -> Iterator[int]:
        """Consume one segment, yielding the number of bytes after every step."""


def run(
    tasks: Iterator[Task],
    names: Sequence[str],
    sink: Sink,
    workers: Sequence[Worker],
    total: int,
    on_progress: Progress | None = None,
    done: int = 0,
) -> None:
    """Let the workers consume all tasks. ``on_progress(bytes done, bytes in total, target)`` is called from this thread
    about ten times a second. The first exception, of a worker or of ``on_progress``, stops all workers and is raised.
    """
    stopped = threading.Event()
    counts, current = [0] * len(workers), [""]

    def consume(number: int, task: Task) -> None:
        for segment in task:
            current[0] = names[segment.target]
            for count in sink.take(segment, workers[number]):
                counts[number] += count
                if stopped.is_set():
                    return

    def watch() -> None:
        if on_progress:
            on_progress(done + sum(counts), total, current[0])

    each = [functools.partial(consume, number) for number in range(len(workers))]
    work_through(tasks, each, stopped, watch=watch if on_progress else None)
    watch()


def whole(tensors: Sequence[StoredTensor], in_parts: bool = True) -> Iterator[Task]:
    """Tasks that read every tensor as it is stored, large ones ``in_parts`` or from end to end."""
    for target, stored in enumerate(tensors):
        size = TASK if in_parts else max(stored.nbytes, 1)
        for start in range(0, stored.nbytes, size):
            stop = min(start + size, stored.nbytes)
            yield [consecutive(target, start, stop - start, [Range(target, stored.offset + start, stop - start)])]


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """The workers are the parallelism: torch must not start a pool for each."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _anonymous(nbytes: int) -> mmap.mmap:
    """Zeroed private memory that takes no room until it is used."""
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
