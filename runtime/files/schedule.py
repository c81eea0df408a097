"""From a plan to byte ranges and panels, before anything is read.

Operations (:mod:`.tasks`) are made when a worker asks for them, so that the memory needed does not grow with the model.
The plan must have passed ``Plan.verify``.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.plan import affine
from crosswalk.runtime.plan.model import Copy, Plan

from .runs import LONGEST_TOGETHER, MIB, SEEK, SourceBlock, StridedRuns
from .tasks import Panel, Range, Segment, Stripe, Task, TaskPiece, consecutive

#: Bytes of output in one task.
TASK = 8 * MIB
#: A strided copy moves as ranges if its contiguous runs have at least this many bytes on average.
RANGE_RUN = 32 << 10
#: The smallest panel, which stays in a core's second-level cache.
SMALLEST_PANEL = 1 * MIB
#: Bytes of a panel that are rearranged and written together.
STRIPE = 4 * MIB


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
                size += segment.nbytes
                if size >= TASK:
                    yield task
                    task, size = [], 0
        if task:
            yield task

    def _segments(self, target: int) -> Iterator[Segment]:
        itemsize = size_of(self.plan.targets[target].dtype)
        start = position = 0
        operations: list[Range | Panel] = []
        for group in interleaved(self.copies(target)):
            assert group[0].offset * itemsize == position
            tiles = self._tiles(target, group)
            if tiles is not None:
                if operations:
                    yield consecutive(target, start, position - start, operations)
                yield from tiles
                start = position = position + math.prod(group[0].extents) * itemsize
                operations = []
                continue
            for operation in self._operations(target, group, position):
                operations.append(operation)
                position += operation.nbytes
                if position % TASK == 0 or position - start >= TASK:
                    yield consecutive(target, start, position - start, operations)
                    start, operations = position, []
        if operations:
            yield consecutive(target, start, position - start, operations)
        assert position == self.plan.targets[target].nbytes, f"`{self.plan.targets[target].name}` is not covered"

    def _operations(self, target: int, group: Sequence[TaskPiece], position: int) -> Iterator[Range | Panel]:
        """What fills a stretch of a target tensor from byte ``position`` on, in the order of its bytes."""
        if not self._moves_as_ranges(target, group):
            yield from self._panels(target, group)
            return
        for operation in self._ranges(group, size_of(self.plan.targets[target].dtype)):
            while operation.nbytes:  # cut where tasks end
                part = min(operation.nbytes, TASK - position % TASK)
                yield Range(operation.source, operation.offset, part)
                operation = Range(operation.source, operation.offset + part, operation.nbytes - part)
                position += part

    def _moves_as_ranges(self, target: int, group: Sequence[TaskPiece]) -> bool:
        dtype = self.plan.targets[target].dtype
        if any(self.plan.sources[piece.source].dtype != dtype for piece in group):
            return False
        runs, elements = 0, 0
        for piece in group:
            count = math.prod(piece.extents)
            elements += count
            runs += count // run_length(piece)
        return runs == len(group) or elements * size_of(dtype) >= runs * RANGE_RUN

    def _ranges(self, group: Sequence[TaskPiece], itemsize: int) -> Iterator[Range]:
        streams = (self._runs(piece, itemsize) for piece in group)
        for _, operation in heapq.merge(*streams) if len(group) > 1 else itertools.chain(*streams):
            yield operation

    def _runs(self, piece: TaskPiece, itemsize: int) -> Iterator[tuple[int, Range]]:
        """``(target offset, range)`` of every contiguous run of a piece, in the order of the target."""
        run = run_length(piece)
        outer = len(piece.extents) - (run > 1)
        base = self.sources[piece.source].offset
        for index in itertools.product(*map(range, piece.extents[:outer])):
            start = piece.source_offset + dot(index, piece.source_strides)
            place = piece.offset + dot(index, piece.strides)
            yield place, Range(piece.source, base + start * itemsize, run * itemsize)

    def _widest(self, target: int, group: Sequence[TaskPiece]) -> int:
        """Bytes that an element of a panel takes at most in a buffer."""
        widths = {size_of(self.plan.sources[piece.source].dtype) for piece in group}
        # Blocks are aligned to their elements; where sizes are mixed, the gaps take less than the blocks.
        return max(size_of(self.plan.targets[target].dtype), *widths) * (1 if len(widths) == 1 else 2)

    def _panels(self, target: int, group: Sequence[TaskPiece]) -> Iterator[Panel]:
        """Cut a stretch of the target that ``group`` fills completely into panels."""
        first, last = group[0].offset, max(piece.offset + piece.span for piece in group)
        step, _ = self._panel_step(group, first, last, self._widest(target, group))
        for start in range(first, last, step):
            stop = min(start + step, last)
            boxes = [box for piece in group for box in clip(piece, start, stop)]
            yield self._panel(target, [box._replace(offset=box.offset - start) for box in boxes], stop - start)

    def _panel(self, target: int, boxes: Sequence[TaskPiece], length: int) -> Panel:
        """The panel of ``length`` elements that the boxes fill."""
        assert sum(math.prod(box.extents) for box in boxes) == length, "a panel is not covered"
        itemsize = size_of(self.plan.targets[target].dtype)
        share = self.panel // length
        blocks: list[SourceBlock] = []
        staged: list[TaskPiece] = []
        at = 0
        for box in boxes:
            width = size_of(self.plan.sources[box.source].dtype)
            at = -(-at // width) * width
            runs, strides, together = stage(box, share * math.prod(box.extents) // width, SEEK // width)
            together &= self.sources[box.source].content is None  # what is made takes longer to make than to call for
            staged.append(box._replace(source=len(blocks), source_offset=0, source_strides=strides))
            runs = in_file(runs, self.sources[box.source].offset, width)
            blocks.append(SourceBlock(box.source, runs, at, together))
            at += runs.nbytes
        step = whole_steps(boxes, STRIPE // itemsize, length)
        stripes = []
        for begin in range(0, length, step):
            end = min(begin + step, length)
            moves = [move._replace(offset=move.offset - begin) for box in staged for move in clip(box, begin, end)]
            stripes.append(Stripe((end - begin) * itemsize, moves))
        return Panel(length * itemsize, blocks, stripes)

    def _panel_step(self, group: Sequence[TaskPiece], first: int, last: int, widest: int) -> tuple[int, float]:
        """Elements in a panel: the smallest size that reads nearly as fast as the best one; and what reading one of
        them then costs, in elements read at full speed."""
        sizes = []
        size = min(SMALLEST_PANEL, self.panel)
        while size <= self.panel:
            step = whole_steps(group, size // widest, last - first)
            limit = self.panel // widest
            cost = 0
            for box in (box for piece in group for box in clip(piece, first, first + step)):
                runs, _, together = stage(box, limit // step * math.prod(box.extents), SEEK // widest)
                cost += runs.number * (runs.length + (runs.axes[-1][1] if together else SEEK // widest))
            sizes.append((cost / step, step))
            size *= 2
        best = min(cost for cost, _ in sizes)
        return next((step, cost) for cost, step in sizes if cost <= 1.25 * best)

    def _tiles(self, target: int, group: Sequence[TaskPiece]) -> Iterator[Segment] | None:
        """A transpose in square tiles, which are read and written in runs of the same length; None for what is none,
        or moves faster in panels. Only the panels of a very tall matrix have shorter runs than tiles."""
        piece = group[0]
        if len(group) > 1 or len(piece.extents) < 2:
            return None
        (rows, columns), (step, one) = piece.extents[-2:], piece.strides[-2:]
        if (one, step, piece.source_strides[-2]) != (1, columns, 1):
            return None
        widest = self._widest(target, group)
        if rows * columns * widest <= self.panel:
            return None  # one panel holds it
        edge = math.isqrt(self.panel // widest)
        height = min(rows, max(edge, self.panel // widest // columns))
        width = min(columns, self.panel // widest // height)
        seek = SEEK // widest
        _, in_panels = self._panel_step(group, piece.offset, piece.offset + piece.span, widest)
        in_tiles = (height + seek) / height + (width + seek) / width
        return self._cut_into_tiles(target, piece, height, width) if in_tiles < in_panels + 1 else None

    def _cut_into_tiles(self, target: int, piece: TaskPiece, height: int, width: int) -> Iterator[Segment]:
        itemsize = size_of(self.plan.targets[target].dtype)
        (rows, columns), skip = piece.extents[-2:], piece.source_strides[-1]
        for index in itertools.product(*map(range, piece.extents[:-2])):
            offset = piece.offset + dot(index, piece.strides)
            origin = piece.source_offset + dot(index, piece.source_strides)
            for top, left in itertools.product(range(0, rows, height), range(0, columns, width)):
                extents = min(height, rows - top), min(width, columns - left)
                box = TaskPiece(piece.source, extents, origin + top + left * skip, (1, skip), 0, (extents[1], 1))
                panel = self._panel(target, [box], math.prod(extents))
                start = (offset + top * columns + left) * itemsize
                yield Segment(target, start, panel.nbytes, [panel], extents[1] * itemsize, columns * itemsize)


def interleaved(copies: Iterable[Copy]) -> Iterator[list[TaskPiece]]:
    """Copies into one tensor, grouped so that each group fills a stretch of it that no other group touches."""
    group: list[TaskPiece] = []
    end = 0
    for c in copies:
        piece = TaskPiece(c.source, c.extents, c.source_offset, c.source_strides, c.target_offset, c.target_strides)
        if group and piece.offset >= end:
            yield group
            group = []
        group.append(piece)
        end = max(end, piece.offset + piece.span)
    if group:
        yield group


def clip(piece: TaskPiece, start: int, stop: int) -> Iterator[TaskPiece]:
    """The boxes of a piece that lie in ``[start, stop)`` of the target, in its order."""
    axes = tuple(zip(piece.extents, piece.strides, piece.source_strides, strict=True))
    for here, there, kept in sorted(affine.clip(affine.Piece(piece.offset, piece.source_offset, axes), start, stop)):
        extents, strides, steps = (tuple(axis[end] for axis in kept) for end in range(3))
        yield TaskPiece(piece.source, extents, there, steps, here, strides)


def whole_steps(group: Sequence[TaskPiece], limit: int, length: int) -> int:
    """At most ``limit`` and ``length`` elements, in whole steps of the outermost axis that has smaller ones: so cut,
    the boxes of a target stay few."""
    if length <= limit:
        return length
    unit = max((stride for piece in group for stride in piece.strides if stride <= limit), default=1)
    return max(limit, 1) // unit * unit


def stage(box: TaskPiece, limit: int, seek: int) -> tuple[StridedRuns, tuple[int, ...], bool]:
    """How to read all of a box: the runs, the strides of the box in the runs put one after the other, and whether those
    along the innermost axis are read together (see ``Block``). Axes whose parts stand close are read in one stretch, as
    long as at most ``limit`` elements are kept in all; ``seek`` is the number of elements that take as long to read as
    one call."""
    order = sorted(range(len(box.extents)), key=lambda axis: box.source_strides[axis])
    total = math.prod(box.extents)
    strides = [0] * len(order)
    stretch = useful = 1
    inner = 0
    together = False
    for axis in order:
        extent, step = box.extents[axis], box.source_strides[axis]
        longer = stretch + (extent - 1) * step
        close = longer <= extent * (stretch + seek)
        if not close or longer * (total // (useful * extent)) > limit:
            together = close and stretch <= LONGEST_TOGETHER * seek
            break
        stretch, useful, inner, strides[axis] = longer, useful * extent, inner + 1, step
    size = stretch
    for axis in order[inner:]:
        strides[axis] = size
        size *= box.extents[axis]
    axes = tuple((box.extents[axis], box.source_strides[axis]) for axis in reversed(order[inner:]))
    return StridedRuns(box.source_offset, stretch, axes), tuple(strides), together


def in_file(runs: StridedRuns, offset: int, width: int) -> StridedRuns:
    """Runs of elements of a tensor as bytes of the file, where it begins at ``offset``."""
    axes = tuple((extent, step * width) for extent, step in runs.axes)
    return StridedRuns(offset + runs.start * width, runs.length * width, axes)


def run_length(piece: TaskPiece) -> int:
    """Elements that stand together on both ends."""
    return piece.extents[-1] if piece.extents and piece.strides[-1] == 1 == piece.source_strides[-1] else 1


def dot(index: Iterable[int], strides: Iterable[int]) -> int:
    """The offset of an index: the sum of each number times its stride."""
    return sum(i * stride for i, stride in zip(index, strides, strict=False))
