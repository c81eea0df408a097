"""From a plan to byte ranges and panels, before anything is read.

Every target tensor is written as consecutive *operations* in the order of its bytes. A ``Range`` is bytes that stand
together in a source file. Everything else (transposes, interleaves, casts) is a ``Panel``: a stretch of the target
small enough for a worker's buffers, and the pieces of source tensors that fill it. Operations are made when a worker
asks for them, so that the memory needed does not grow with the model. The plan must have passed ``Plan.verify``.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .dtypes import size_of
from .header import StoredTensor
from .plan import Copy, Plan

MIB = 1 << 20
#: Bytes of output in one task.
TASK = 8 * MIB
#: A strided copy moves as ranges if its contiguous runs have at least this many bytes on average.
RANGE_RUN = 32 << 10
#: Reading this many bytes takes as long as one system call: closer runs are read together with what is between them.
SEEK = 16 << 10
#: Runs of more than this many times ``SEEK`` are worth a call each, however close they stand.
_LONGEST_TOGETHER = 4
#: The smallest panel, which stays in a core's second-level cache.
SMALLEST_PANEL = 1 * MIB
#: Bytes of a panel that are rearranged and written together.
STRIPE = 4 * MIB


class Piece(NamedTuple):
    """A copy into one target, or a box of one; fields are as in ``Copy``."""

    source: int
    extents: tuple[int, ...]
    source_offset: int
    source_strides: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements of the target from the first to the last written, inclusive."""
        return 1 + sum((extent - 1) * stride for extent, stride in zip(self.extents, self.strides, strict=True))


class Range(NamedTuple):
    """``nbytes`` bytes at ``offset`` of the file that holds source tensor ``source``, copied as they are."""

    source: int
    offset: int
    nbytes: int


class Runs(NamedTuple):
    """Runs of ``length`` elements each, the first at ``start``, one for each index over ``axes``: ``(extent, step)``,
    outermost first."""

    start: int
    length: int
    axes: tuple[tuple[int, int], ...]

    @property
    def number(self) -> int:
        return product(extent for extent, _ in self.axes)

    def starts(self) -> Iterator[int]:
        """Where each run begins. There can be many: they are never listed."""
        if not self.axes:
            yield self.start
            return
        *outer, (extent, step) = self.axes
        for offsets in itertools.product(*(range(0, n * s, s) for n, s in outer)):
            begin = self.start + sum(offsets)
            yield from range(begin, begin + extent * step, step)


class Block(NamedTuple):
    """Parts of a source tensor, and where a worker keeps them: ``runs`` in elements of the tensor, to stand one after
    the other from byte ``at`` of its staging buffer. ``together``: runs along the innermost axis stand so close that
    reading what is between them, and leaving it out of the buffer, is faster than a call for each."""

    source: int
    runs: Runs
    at: int
    together: bool


class Stripe(NamedTuple):
    """``nbytes`` bytes of the target, filled completely by ``moves``. The ``source`` of a move is the index of a block,
    its source offset and strides count elements of the staging buffer from the start of the block."""

    nbytes: int
    moves: Sequence[Piece]


class Panel(NamedTuple):
    """``nbytes`` bytes of the target: what to read, then consecutive stripes."""

    nbytes: int
    blocks: Sequence[Block]
    stripes: Sequence[Stripe]


class Segment(NamedTuple):
    """Bytes ``start`` to ``stop`` of target tensor ``target``, as operations in order."""

    target: int
    start: int
    stop: int
    operations: Sequence[Range | Panel]


Task = Sequence[Segment]


class Lowering:
    """The tasks of a plan whose source tensors are stored as given. ``panel`` is the size of a worker's buffers."""

    def __init__(self, plan: Plan, sources: Sequence[StoredTensor], panel: int):
        self.plan, self.sources, self.panel = plan, sources, panel
        self._copies: dict[int, tuple[int, int]] = {}
        start = 0
        for target, group in itertools.groupby(plan.copies, key=lambda copy: copy.target):
            stop = start + sum(1 for _ in group)
            self._copies[target] = (start, stop)
            start = stop

    def copies(self, target: int) -> Sequence[Copy]:
        """The copies that fill one target tensor, by target offset."""
        return self.plan.copies[slice(*self._copies.get(target, (0, 0)))]

    def tasks(self, targets: Iterable[int]) -> Iterator[Task]:
        """Tasks of about ``TASK`` bytes that fill the target tensors in the given order."""
        task: list[Segment] = []
        size = 0
        for target in targets:
            for segment in self._segments(target):
                task.append(segment)
                size += segment.stop - segment.start
                if size >= TASK:
                    yield task
                    task, size = [], 0
        if task:
            yield task

    def _segments(self, target: int) -> Iterator[Segment]:
        start = position = 0
        operations: list[Range | Panel] = []
        for operation in self._operations(target):
            operations.append(operation)
            position += operation.nbytes
            if position % TASK == 0 or position - start >= TASK:
                yield Segment(target, start, position, operations)
                start, operations = position, []
        if operations:
            yield Segment(target, start, position, operations)
        assert position == self.plan.targets[target].nbytes, f"`{self.plan.targets[target].name}` is not covered"

    def _operations(self, target: int) -> Iterator[Range | Panel]:
        """What fills a target tensor, in the order of its bytes."""
        itemsize = size_of(self.plan.targets[target].dtype)
        position = 0
        for group in interleaved(self.copies(target)):
            assert group[0].offset * itemsize == position
            if self._moves_as_ranges(target, group):
                for operation in self._ranges(group, itemsize):
                    while operation.nbytes:  # cut where tasks end
                        part = min(operation.nbytes, TASK - position % TASK)
                        yield Range(operation.source, operation.offset, part)
                        operation = Range(operation.source, operation.offset + part, operation.nbytes - part)
                        position += part
            else:
                for panel in self._panels(target, group):
                    yield panel
                    position += panel.nbytes

    def _moves_as_ranges(self, target: int, group: Sequence[Piece]) -> bool:
        dtype = self.plan.targets[target].dtype
        if any(self.plan.sources[piece.source].dtype != dtype for piece in group):
            return False
        runs, elements = 0, 0
        for piece in group:
            count = product(piece.extents)
            elements += count
            runs += count // run_length(piece)
        return runs == len(group) or elements * size_of(dtype) >= runs * RANGE_RUN

    def _ranges(self, group: Sequence[Piece], itemsize: int) -> Iterator[Range]:
        streams = (self._runs(piece, itemsize) for piece in group)
        for _, operation in heapq.merge(*streams) if len(group) > 1 else itertools.chain(*streams):
            yield operation

    def _runs(self, piece: Piece, itemsize: int) -> Iterator[tuple[int, Range]]:
        """``(target offset, range)`` of every contiguous run of a piece, in the order of the target."""
        run = run_length(piece)
        outer = len(piece.extents) - (run > 1)
        base = self.sources[piece.source].offset
        for index in itertools.product(*map(range, piece.extents[:outer])):
            start = piece.source_offset + dot(index, piece.source_strides)
            place = piece.offset + dot(index, piece.strides)
            yield place, Range(piece.source, base + start * itemsize, run * itemsize)

    def _panels(self, target: int, group: Sequence[Piece]) -> Iterator[Panel]:
        """Cut a stretch of the target that ``group`` fills completely into panels."""
        itemsize = size_of(self.plan.targets[target].dtype)
        widths = {size_of(self.plan.sources[piece.source].dtype) for piece in group}
        # Blocks are aligned to their elements; where sizes are mixed, the gaps take less than the blocks.
        widest = max(itemsize, *widths) * (1 if len(widths) == 1 else 2)
        first, last = group[0].offset, max(piece.offset + piece.span for piece in group)
        step = self._panel_step(group, first, last, widest)
        for start in range(first, last, step):
            stop = min(start + step, last)
            boxes = [box for piece in group for box in clip(piece, start, stop)]
            assert sum(product(box.extents) for box in boxes) == stop - start, "a panel is not covered"
            share = self.panel // (stop - start)
            blocks: list[Block] = []
            staged: list[Piece] = []
            at = 0
            for box in boxes:
                width = size_of(self.plan.sources[box.source].dtype)
                at = -(-at // width) * width
                runs, strides, together = stage(box, share * product(box.extents) // width, SEEK // width)
                staged.append(box._replace(source=len(blocks), source_offset=0, source_strides=strides))
                blocks.append(Block(box.source, runs, at, together))
                at += runs.number * runs.length * width
            inner = whole_steps(group, STRIPE // itemsize, stop - start)
            stripes = []
            for begin in range(start, stop, inner):
                end = min(begin + inner, stop)
                moves = [move._replace(offset=move.offset - begin) for box in staged for move in clip(box, begin, end)]
                stripes.append(Stripe((end - begin) * itemsize, moves))
            yield Panel((stop - start) * itemsize, blocks, stripes)

    def _panel_step(self, group: Sequence[Piece], first: int, last: int, widest: int) -> int:
        """Elements in a panel: the smallest size that reads nearly as fast as the best one."""
        sizes = []
        size = min(SMALLEST_PANEL, self.panel)
        while size <= self.panel:
            step = whole_steps(group, size // widest, last - first)
            limit = self.panel // widest
            cost = 0
            for box in (box for piece in group for box in clip(piece, first, first + step)):
                runs, _, together = stage(box, limit // step * product(box.extents), SEEK // widest)
                cost += runs.number * (runs.length + (runs.axes[-1][1] if together else SEEK // widest))
            sizes.append((cost / step, step))
            size *= 2
        best = min(cost for cost, _ in sizes)
        return next(step for cost, step in sizes if cost <= 1.25 * best)


def interleaved(copies: Iterable[Copy]) -> Iterator[list[Piece]]:
    """Copies into one tensor, grouped so that each group fills a stretch of it that no other group touches."""
    group: list[Piece] = []
    end = 0
    for c in copies:
        piece = Piece(c.source, c.extents, c.source_offset, c.source_strides, c.target_offset, c.target_strides)
        if group and piece.offset >= end:
            yield group
            group = []
        group.append(piece)
        end = max(end, piece.offset + piece.span)
    if group:
        yield group


def clip(piece: Piece, start: int, stop: int) -> Iterator[Piece]:
    """The boxes of a piece that lie in ``[start, stop)`` of the target."""
    span = piece.span
    if piece.offset >= stop or piece.offset + span <= start:
        return
    if start <= piece.offset and piece.offset + span <= stop:
        yield piece
        return
    extent, stride, step = piece.extents[0], piece.strides[0], piece.source_strides[0]
    inner = span - (extent - 1) * stride

    def box(begin: int, end: int) -> Piece:
        extents, strides, steps = piece.extents[1:], piece.strides[1:], piece.source_strides[1:]
        if end - begin > 1:
            extents, strides, steps = (end - begin, *extents), piece.strides, piece.source_strides
        offset, source_offset = piece.offset + begin * stride, piece.source_offset + begin * step
        return Piece(piece.source, extents, source_offset, steps, offset, strides)

    touched = max(0, (start - piece.offset - inner) // stride + 1), min(extent, -((piece.offset - stop) // stride))
    inside = max(0, -((piece.offset - start) // stride)), min(extent, (stop - piece.offset - inner) // stride + 1)
    if inside[0] >= inside[1]:
        inside = touched[1], touched[1]
    for index in range(touched[0], inside[0]):
        yield from clip(box(index, index + 1), start, stop)
    if inside[0] < inside[1]:
        yield box(*inside)
    for index in range(inside[1], touched[1]):
        yield from clip(box(index, index + 1), start, stop)


def whole_steps(group: Sequence[Piece], limit: int, length: int) -> int:
    """At most ``limit`` and ``length`` elements, in whole steps of the outermost axis that has smaller ones: so cut,
    the boxes of a target stay few."""
    if length <= limit:
        return length
    unit = max((stride for piece in group for stride in piece.strides if stride <= limit), default=1)
    return max(limit, 1) // unit * unit


def stage(box: Piece, limit: int, seek: int) -> tuple[Runs, tuple[int, ...], bool]:
    """How to read all of a box: the runs, the strides of the box in the runs put one after the other, and whether those
    along the innermost axis are read together (see ``Block``). Axes whose parts stand close are read in one stretch, as
    long as at most ``limit`` elements are kept in all; ``seek`` is the number of elements that take as long to read as
    one call."""
    order = sorted(range(len(box.extents)), key=lambda axis: box.source_strides[axis])
    total = product(box.extents)
    strides = [0] * len(order)
    stretch = useful = 1
    inner = 0
    together = False
    for axis in order:
        extent, step = box.extents[axis], box.source_strides[axis]
        longer = stretch + (extent - 1) * step
        close = longer <= extent * (stretch + seek)
        if not close or longer * (total // (useful * extent)) > limit:
            together = close and stretch <= _LONGEST_TOGETHER * seek
            break
        stretch, useful, inner, strides[axis] = longer, useful * extent, inner + 1, step
    size = stretch
    for axis in order[inner:]:
        strides[axis] = size
        size *= box.extents[axis]
    axes = tuple((box.extents[axis], box.source_strides[axis]) for axis in reversed(order[inner:]))
    return Runs(box.source_offset, stretch, axes), tuple(strides), together


def run_length(piece: Piece) -> int:
    """Elements that stand together on both ends."""
    return piece.extents[-1] if piece.extents and piece.strides[-1] == 1 == piece.source_strides[-1] else 1


def product(extents: Iterable[int]) -> int:
    result = 1
    for extent in extents:
        result *= extent
    return result


def dot(index: Iterable[int], strides: Iterable[int]) -> int:
    return sum(i * stride for i, stride in zip(index, strides, strict=False))
