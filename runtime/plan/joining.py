"""Fewer copies for the same elements: copies that are rows of a larger one, or that continue one another, become one.

What goes through another layout comes out in the pieces of that layout: a stack of experts that is one file an expert
between two trainers is a copy an expert. Where the pieces line up again on both ends, they are one copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from .affine import Axis, is_nested, merge_axes
from .parts import RawCopy


class _Ordered(NamedTuple):
    """A copy whose order is by what has to be equal first, then by place. ``axes`` are (extent, stride in the source,
    stride in the target), merged and outermost first."""

    source: str
    target: str
    rule: int
    axes: tuple[Axis, ...]
    target_offset: int
    source_offset: int

    @property
    def strides(self) -> list[tuple[int, int]]:
        return [axis[1:] for axis in self.axes]

    def along(self, axes: tuple[Axis, ...]) -> _Ordered:
        """The copy along these axes from the same place on."""
        return self._replace(axes=tuple(merge_axes(*zip(*axes, strict=True))) if axes else ())


def join(copies: Iterable[RawCopy]) -> list[RawCopy]:
    """The same relation in as many copies or fewer; copies of different rules stay apart, and axes stay nested."""
    parts = [_part(copy) for copy in copies]
    while True:
        joined = list(_lengthened(_stacked(parts)))
        if len(joined) == len(parts):
            return [_raw(part) for part in joined]
        parts = joined


def _part(copy: RawCopy) -> _Ordered:
    source, target, extents, source_offset, source_strides, target_offset, target_strides, rule = copy
    axes = tuple(merge_axes(extents, source_strides, target_strides))
    return _Ordered(source, target, rule, axes, target_offset, source_offset)


def _raw(part: _Ordered) -> RawCopy:
    extents, sources, targets = zip(*part.axes, strict=True) if part.axes else ((), (), ())
    return (part.source, part.target, extents, part.source_offset, sources, part.target_offset, targets, part.rule)


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
        return (part.source, part.target, part.rule, part.strides, part.target_offset)

    last: _Ordered | None = None
    for part in sorted(parts, key=place):
        longer = _continued(last, part) if last is not None else None
        if last is not None and longer is None:
            yield last
        last = longer or part
    if last is not None:
        yield last


def _continued(first: _Ordered, second: _Ordered) -> _Ordered | None:
    if first[:3] != second[:3] or first.strides != second.strides:
        return None
    gap = _gap(first, second)
    for index, (extent, *strides) in enumerate(first.axes):
        before, after = first.axes[:index], first.axes[index + 1 :]
        same = second.axes[:index] == before and second.axes[index + 1 :] == after
        if same and gap == tuple(extent * stride for stride in strides):
            axes = (*before, (extent + second.axes[index][0], strides[0], strides[1]), *after)
            if _is_nested(axes):
                return first.along(axes)
    return None


def _gap(first: _Ordered, second: _Ordered) -> tuple[int, int]:
    return second.source_offset - first.source_offset, second.target_offset - first.target_offset


def _is_nested(axes: tuple[Axis, ...]) -> bool:
    """Whether the axes are nested on both ends."""
    by_source = tuple(sorted(axes, key=lambda axis: -axis[1]))
    by_target = tuple(sorted(((extent, target, source) for extent, source, target in axes), key=lambda axis: -axis[1]))
    return is_nested(by_source) and is_nested(by_target)
