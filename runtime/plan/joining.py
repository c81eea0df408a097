"""Fewer copies for the same elements: copies that are rows of a larger one, or that continue one another, become one.

What goes through another layout comes out in the pieces of that layout: a stack of experts that is one file an expert
between two trainers is a copy an expert. Where the pieces line up again on both ends, they are one copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from .affine import Axis, Piece, continued, is_nested, make_piece, merge
from .parts import RawCopy, raw_copy


class _Ordered(NamedTuple):
    """A copy whose order is by what has to be equal first, then by place: a piece whose ``here`` end is in the
    target."""

    source: str
    target: str
    rule: int
    axes: tuple[Axis, ...]
    here: int
    there: int

    @property
    def piece(self) -> Piece:
        return Piece(self.here, self.there, self.axes)

    @property
    def strides(self) -> list[tuple[int, int]]:
        return [axis[1:] for axis in self.axes]

    def along(self, axes: tuple[Axis, ...]) -> _Ordered:
        """The copy along these axes from the same place on."""
        return self._replace(axes=merge(sorted(axes, key=lambda axis: -axis[1])))


def join(copies: Iterable[RawCopy]) -> list[RawCopy]:
    """The same relation in as many copies or fewer; copies of different rules stay apart, and axes stay nested."""
    parts = [_part(copy) for copy in copies]
    while True:
        joined = list(_lengthened(_stacked(parts)))
        if len(joined) == len(parts):
            return [raw_copy(part.source, part.target, part.piece, part.rule) for part in joined]
        parts = joined


def _part(copy: RawCopy) -> _Ordered:
    source, target, extents, source_offset, source_strides, target_offset, target_strides, rule = copy
    piece = make_piece(target_offset, target_strides, source_offset, source_strides, extents)
    return _Ordered(source, target, rule, piece.axes, piece.here, piece.there)


def _stacked(parts: Iterable[_Ordered]) -> Iterator[_Ordered]:
    """Equal copies at equal distances, on both ends, become one with an axis more."""
    for _, group in groupby(sorted(parts), key=lambda part: part[:4]):
        equal = list(group)
        start = 0
        while start < len(equal):
            stop, axes = start + 1, equal[start].axes
            step = _gap(equal[start], equal[stop]) if stop < len(equal) else (0, 0)
            while stop < len(equal) and _gap(equal[stop - 1], equal[stop]) == step and min(step) > 0:
                longer = (*equal[start].axes, (stop + 1 - start, *step))
                if not _is_nested(longer):
                    break
                stop, axes = stop + 1, longer
            yield equal[start].along(axes)
            start = stop


def _lengthened(parts: Iterable[_Ordered]) -> Iterator[_Ordered]:
    """A copy that begins where another ends along one of its axes, on both ends, is the rest of it."""

    def place(part: _Ordered) -> tuple[str, str, int, list[tuple[int, int]], int]:
        return (part.source, part.target, part.rule, part.strides, part.here)

    last: _Ordered | None = None
    for part in sorted(parts, key=place):
        longer = _continued(last, part) if last is not None else None
        if last is not None and longer is None:
            yield last
        last = longer or part
    if last is not None:
        yield last


def _continued(first: _Ordered, second: _Ordered) -> _Ordered | None:
    if first[:3] != second[:3]:
        return None
    longer = continued(first.piece, second.piece)
    return first._replace(axes=longer.axes) if longer is not None and _is_nested(longer.axes) else None


def _gap(first: _Ordered, second: _Ordered) -> tuple[int, int]:
    return second.here - first.here, second.there - first.there


def _is_nested(axes: tuple[Axis, ...]) -> bool:
    """Whether the axes are nested on both ends."""
    ordered = Piece(0, 0, tuple(sorted(axes, key=lambda axis: -axis[1])))
    return is_nested(ordered.axes) and is_nested(ordered.swapped.axes)
