"""A tensor of a plan as blocks: rows and columns, and what of which other tensor they are.

A tensor is seen as a matrix: its first dimension are the rows, all others together the columns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from crosswalk.compiler.layout.modules import parameters, walk
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.notation.templates import join
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.plan.affine import Axis, merge
from crosswalk.runtime.plan.model import Copy, Plan, TensorSpec
from crosswalk.runtime.records import Record

#: Most blocks of one copy that are listed.
MOST = 64


class Span(Record, frozen=True):
    """Indices from ``start`` on: ``count`` of them, every ``step``."""

    start: int
    count: int
    step: int = 1

    @property
    def stop(self) -> int:
        """One past the last index."""
        return self.start + (self.count - 1) * self.step + 1

    def __str__(self) -> str:
        text = f"{self.start}" if self.count == 1 else f"{self.start}-{self.stop - 1}"
        return text + (f" every {self.step}" if self.step != 1 and self.count > 1 else "")


class Tile(Record, frozen=True):
    """``rows`` and ``columns`` of a tensor are ``other_rows`` and ``other_columns`` of the tensor ``other``, rows as
    columns if ``transposed``. ``rule``: the index of the line of the mapping."""

    rows: Span
    columns: Span
    other: TensorSpec
    other_rows: Span
    other_columns: Span
    transposed: bool
    rule: int


class Picture(Record, frozen=True):
    """A tensor with its blocks from the first row on. ``more``: blocks that are left out; ``scattered``: tensors whose
    elements are in no such blocks."""

    tensor: TensorSpec
    blocks: Sequence[Tile]
    more: int = 0
    scattered: Sequence[str] = ()


def columns_of(spec: TensorSpec) -> int:
    """The elements of one row, if all but the first dimension are one."""
    return math.prod(spec.shape[1:])


def picture(plan: Plan, name: str) -> Picture | None:
    """The blocks of a target, or of a source that is no target; None if the plan moves nothing of that tensor. One that
    is stored for an encoded tensor is shown as that one."""
    name = next((e.tensor for e in plan.encodings for part in e.stored if part.name == name), name)
    target = plan.target_index.get(name)
    source = plan.source_index.get(name) if target is None else None
    own = plan.targets[target] if target is not None else plan.sources[source] if source is not None else None
    if own is None:
        return None
    blocks: list[Tile] = []
    scattered: dict[str, None] = {}
    more = 0
    for copy in plan.copies:
        if copy.target == target if target is not None else copy.source == source:
            other = plan.sources[copy.source] if target is not None else plan.targets[copy.target]
            found = _blocks(copy, target is not None, own, other)
            if found is None:
                scattered[other.name] = None
            else:
                listed = list(itertools.islice(found[1], MOST))
                blocks += listed
                more += found[0] - len(listed)
    blocks.sort(key=lambda block: (block.rows.start, block.columns.start))
    return Picture(own, blocks, more, tuple(scattered)) if blocks or scattered else None


def _blocks(copy: Copy, of_target: bool, own: TensorSpec, other: TensorSpec) -> tuple[int, Iterator[Tile]] | None:
    """How many blocks a copy has, and these; None if its axes do not follow rows and columns."""
    piece = copy.piece if of_target else copy.piece.swapped
    width, far = columns_of(own), columns_of(other)
    axes = sorted((part for axis in piece.axes for part in _split(axis, width, far)), key=lambda axis: -axis[1])
    rows = [axis for axis in axes if axis[1] >= width]
    columns = merge(axis for axis in axes if axis[1] < width)
    if len(columns) > 1 or any(axis[1] % width for axis in rows):
        return None
    rows = list(merge(rows))
    inner = rows.pop() if rows else (1, width, far)
    column = columns[0] if columns else (1, 1, 1)
    if inner[1] % width or not _apart(inner[2], column[2], far):
        return None
    transposed = inner[0] > 1 and inner[2] < far

    def made() -> Iterator[Tile]:
        for indices in itertools.product(*(range(extent) for extent, _, _ in rows)):
            at = piece.here + sum(i * axis[1] for i, axis in zip(indices, rows, strict=True))
            away = piece.there + sum(i * axis[2] for i, axis in zip(indices, rows, strict=True))
            down = Span(at // width, inner[0], inner[1] // width)
            across = Span(at % width, column[0], column[1])
            lengths = [(inner[0], inner[2]), (column[0], column[2])]
            if transposed:
                lengths.reverse()
            (height, down_step), (breadth, across_step) = lengths
            yield Tile(
                down, across, other,
                Span(away // far, height, max(1, down_step // far)),
                Span(away % far, breadth, max(1, across_step)),
                transposed, copy.rule,
            )  # fmt: skip

    return math.prod(axis[0] for axis in rows), made()


def _split(axis: Axis, width: int, far: int) -> Iterator[Axis]:
    """An axis that runs on over the end of a row, on either side, as one of rows and one of columns."""
    extent, own, other = axis
    for stride, row in ((own, width), (other, far)):
        if stride and stride < row and row % stride == 0 and extent > row // stride and extent % (row // stride) == 0:
            part = row // stride
            yield from _split((extent // part, own * part, other * part), width, far)
            yield from _split((part, own, other), width, far)
            return
    yield extent, own, other


def _apart(down: int, across: int, far: int) -> bool:
    """Whether two strides on the other side are one of rows and one of columns."""
    return down % far == 0 or across % far == 0 or far == 1


def axes_of_natives(mapping: CompiledMapping, config: Mapping[str, object], names: Sequence[str]) -> dict[str, str]:
    """The named axes of native parameters, as the layout declares them, of those in ``names``."""
    wanted, found = set(names), dict[str, str]()
    for prefix, scope in walk(Scope(mapping.layout, mapping.root.type, config)):
        for present in parameters(scope):
            name = str(join(prefix, present.name))
            if name in wanted:
                found[name] = str(present.pattern)
    return found
