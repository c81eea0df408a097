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
from crosswalk.runtime.plan.affine import Axis, Piece, PieceOf, clip
from crosswalk.runtime.plan.model import Copy, Plan

from .runs import LONGEST_TOGETHER, MIB, SEEK, SourceBlock, StridedRuns
from .tasks import Panel, Range, Segment, Stripe, Task, consecutive

#: Bytes of output in one task.
TASK = 8 * MIB
#: A strided copy moves as ranges if its contiguous runs have at least this many bytes on average.
RANGE_RUN = 32 << 10
#: The smallest panel, which stays in a core's second-level cache.
SMALLEST_PANEL = 1 * MIB
#: Writing a run, which takes a lock of the file and a call of its own, takes as long as this many bytes more.
WRITE = 32 << 10
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
            assert group[0].piece.here * itemsize == position
            tiles = self._tiles(target, group)
            if tiles is not None:
                if operations:
                    yield consecutive(target, start, position - start, operations)
                yield from tiles
                start = position = position + group[0].piece.elements * itemsize
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

    def _operations(self, target: int, group: Sequence[PieceOf], position: int) -> Iterator[Range | Panel]:
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

    def _moves_as_ranges(self, target: int, group: Sequence[PieceOf]) -> bool:
        dtype = self.plan.targets[target].dtype
        if any(self.plan.sources[source].dtype != dtype for source, _ in group):
            return False
        runs, elements = 0, 0
        for _, piece in group:
            count = piece.elements
            elements += count
            runs += count // piece.run
        return runs == len(group) or elements * size_of(dtype) >= runs * RANGE_RUN

    def _ranges(self, group: Sequence[PieceOf], itemsize: int) -> Iterator[Range]:
        streams = (self._runs(*placed, itemsize) for placed in group)
        for _, operation in heapq.merge(*streams) if len(group) > 1 else itertools.chain(*streams):
            yield operation

    def _runs(self, source: int, piece: Piece, itemsize: int) -> Iterator[tuple[int, Range]]:
        """``(target offset, range)`` of every contiguous run of a piece, in the order of the target."""
        run, base = piece.run, self.sources[source].offset
        for place, start in starts(piece, piece.axes[:-1] if run > 1 else piece.axes):
            yield place, Range(source, base + start * itemsize, run * itemsize)

    def _widest(self, target: int, group: Sequence[PieceOf]) -> int:
        """Bytes that an element of a panel takes at most in a buffer."""
        widths = {size_of(self.plan.sources[source].dtype) for source, _ in group}
        # Blocks are aligned to their elements; where sizes are mixed, the gaps take less than the blocks.
        return max(size_of(self.plan.targets[target].dtype), *widths) * (1 if len(widths) == 1 else 2)

    def _panels(self, target: int, group: Sequence[PieceOf]) -> Iterator[Panel]:
        """Cut a stretch of the target that ``group`` fills completely into panels."""
        first, last = group[0].piece.here, max(piece.stop for _, piece in group)
        step, _ = self._panel_step(group, first, last, self._widest(target, group))
        for start in range(first, last, step):
            stop = min(start + step, last)
            yield self._panel(target, list(inside(group, start, stop)), stop - start)

    def _panel(self, target: int, boxes: Sequence[PieceOf], length: int) -> Panel:
        """The panel of ``length`` elements that the boxes fill."""
        assert sum(box.elements for _, box in boxes) == length, "a panel is not covered"
        itemsize = size_of(self.plan.targets[target].dtype)
        share = self.panel // length
        blocks: list[SourceBlock] = []
        staged: list[PieceOf] = []
        at = 0
        for source, box in boxes:
            width = size_of(self.plan.sources[source].dtype)
            at = -(-at // width) * width
            runs, kept, together = stage(box, share * box.elements // width, SEEK // width)
            together &= self.sources[source].is_in_files  # what is made takes longer to make than to call for
            staged.append(PieceOf(len(blocks), kept))
            runs = in_file(runs, self.sources[source].offset, width)
            blocks.append(SourceBlock(source, runs, at, together))
            at += runs.nbytes
        step = whole_steps(boxes, STRIPE // itemsize, length)
        stripes = []
        for begin in range(0, length, step):
            end = min(begin + step, length)
            stripes.append(Stripe((end - begin) * itemsize, list(inside(staged, begin, end))))
        return Panel(length * itemsize, blocks, stripes)

    def _panel_step(self, group: Sequence[PieceOf], first: int, last: int, widest: int) -> tuple[int, float]:
        """Elements in a panel: the smallest size that reads nearly as fast as the best one; and what reading one of
        them then costs, in elements read at full speed."""
        sizes = []
        size = min(SMALLEST_PANEL, self.panel)
        while size <= self.panel:
            step = whole_steps(group, size // widest, last - first)
            limit = self.panel // widest
            cost = 0
            for _, box in inside(group, first, first + step):
                runs, _, together = stage(box, limit // step * box.elements, SEEK // widest)
                cost += runs.number * (runs.length + (runs.axes[-1][1] if together else SEEK // widest))
            sizes.append((cost / step, step))
            size *= 2
        best = min(cost for cost, _ in sizes)
        return next((step, cost) for cost, step in sizes if cost <= 1.25 * best)

    def _tiles(self, target: int, group: Sequence[PieceOf]) -> Iterator[Segment] | None:
        """A transpose in square tiles, which are read and written in runs of the same length; None for what is none,
        or moves faster in panels. Only the panels of a very tall matrix have shorter runs than tiles."""
        source, piece = group[0]
        if len(group) > 1 or len(piece.axes) < 2:
            return None
        (rows, step, along), (columns, one, _) = piece.axes[-2:]
        if (one, step, along) != (1, columns, 1):
            return None
        widest = self._widest(target, group)
        if rows * columns * widest <= self.panel:
            return None  # one panel holds it
        edge = math.isqrt(self.panel // widest)
        height = min(rows, max(edge, self.panel // widest // columns))
        width = min(columns, self.panel // widest // height)
        _, in_panels = self._panel_step(group, piece.here, piece.stop, widest)
        in_tiles = (height + SEEK // widest) / height + (width + WRITE // widest) / width
        return self._cut_into_tiles(target, source, piece, height, width) if in_tiles < in_panels + 1 else None

    def _cut_into_tiles(self, target: int, source: int, piece: Piece, height: int, width: int) -> Iterator[Segment]:
        itemsize = size_of(self.plan.targets[target].dtype)
        (rows, _, _), (columns, _, skip) = piece.axes[-2:]
        for offset, origin in starts(piece, piece.axes[:-2]):
            for top, left in itertools.product(range(0, rows, height), range(0, columns, width)):
                down, across = min(height, rows - top), min(width, columns - left)
                box = Piece(0, origin + top + left * skip, ((down, across, 1), (across, 1, skip)))
                panel = self._panel(target, [PieceOf(source, box)], down * across)
                start = (offset + top * columns + left) * itemsize
                yield Segment(target, start, panel.nbytes, [panel], across * itemsize, columns * itemsize)


def interleaved(copies: Iterable[Copy]) -> Iterator[list[PieceOf]]:
    """Copies into one tensor, grouped so that each group fills a stretch of it that no other group touches; ``here`` is
    in the target, the numbers are those of the sources."""
    group: list[PieceOf] = []
    end = 0
    for copy in copies:
        piece = copy.piece
        if group and piece.here >= end:
            yield group
            group = []
        group.append(PieceOf(copy.source, piece))
        end = max(end, piece.stop)
    if group:
        yield group


def inside(group: Iterable[PieceOf], start: int, stop: int) -> Iterator[PieceOf]:
    """The boxes of pieces that lie in ``[start, stop)`` of the target, counted from there on; those of one piece in the
    order of the target."""
    for number, piece in group:
        for here, there, axes in sorted(clip(piece, start, stop)):
            yield PieceOf(number, Piece(here - start, there, axes))


def starts(piece: Piece, axes: Sequence[Axis]) -> Iterator[tuple[int, int]]:
    """Where each element along some axes of a piece is, on both ends."""
    for index in itertools.product(*(range(extent) for extent, _, _ in axes)):
        here, there = piece.here, piece.there
        for number, (_, stride, other) in zip(index, axes, strict=True):
            here, there = here + number * stride, there + number * other
        yield here, there


def whole_steps(group: Sequence[PieceOf], limit: int, length: int) -> int:
    """At most ``limit`` and ``length`` elements, in whole steps of the outermost axis that has smaller ones: so cut,
    the boxes of a target stay few."""
    if length <= limit:
        return length
    unit = max((stride for _, piece in group for _, stride, _ in piece.axes if stride <= limit), default=1)
    return max(limit, 1) // unit * unit


def stage(box: Piece, limit: int, seek: int) -> tuple[StridedRuns, Piece, bool]:
    """How to read all of a box: the runs, the box as it is in the runs put one after the other, and whether those along
    the innermost axis are read together (see ``SourceBlock``). Axes whose parts stand close are read in one stretch, as
    long as at most ``limit`` elements are kept in all; ``seek`` is the number of elements that take as long to read as
    one call."""
    extents, own, others = box.columns
    order = sorted(range(len(extents)), key=lambda axis: others[axis])
    total = math.prod(extents)
    strides = [0] * len(order)
    stretch = useful = 1
    inner = 0
    together = False
    for axis in order:
        extent, step = extents[axis], others[axis]
        longer = stretch + (extent - 1) * step
        close = longer <= extent * (stretch + seek)
        if not close or longer * (total // (useful * extent)) > limit:
            together = close and stretch <= LONGEST_TOGETHER * seek
            break
        stretch, useful, inner, strides[axis] = longer, useful * extent, inner + 1, step
    size = stretch
    for axis in order[inner:]:
        strides[axis] = size
        size *= extents[axis]
    axes = tuple((extents[axis], others[axis]) for axis in reversed(order[inner:]))
    kept = Piece(box.here, 0, tuple(zip(extents, own, strides, strict=True)))
    return StridedRuns(box.there, stretch, axes), kept, together


def in_file(runs: StridedRuns, offset: int, width: int) -> StridedRuns:
    """Runs of elements of a tensor as bytes of the file, where it begins at ``offset``."""
    axes = tuple((extent, step * width) for extent, step in runs.axes)
    return StridedRuns(offset + runs.start * width, runs.length * width, axes)
