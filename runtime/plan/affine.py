"""Strided index sets of one tensor, each carrying where its elements go on the other end.

A :class:`Piece` is the set ``here + sum(i_k * stride_k)`` over ``0 <= i_k < extent_k``, in elements of a flattened
tensor, with the place ``there + sum(i_k * other_k)`` of each element on the other end. Pieces are *nested*: each stride
steps over everything that the finer axes reach, as the digits of a mixed-radix number do. That is what lets every
function here work on axes and never on elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

#: Extent, stride on this end, stride on the other end.
Axis = tuple[int, int, int]

#: Parts that a check of a tiling may make, in all and for each piece: pieces whose strides share a grid make few.
_PARTS, _PARTS_EACH = 20_000, 200


class Piece(NamedTuple):
    """``axes`` are outermost first on this end, without extents of 1."""

    here: int
    there: int
    axes: tuple[Axis, ...]

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.here + span(self.axes)

    @property
    def elements(self) -> int:
        """How many elements it moves."""
        return math.prod([extent for extent, _, _ in self.axes])

    @property
    def run(self) -> int:
        """Elements that stand together on both ends."""
        return self.axes[-1][0] if self.axes and self.axes[-1][1:] == (1, 1) else 1

    @property
    def columns(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The extents, and the strides on this end and on the other."""
        extents, strides, others = zip(*self.axes, strict=True) if self.axes else ((), (), ())
        return extents, strides, others

    @property
    def swapped(self) -> Piece:
        """The same elements seen from the other end."""
        axes = [(extent, other, stride) for extent, stride, other in self.axes]
        if len(axes) > 1:
            axes.sort(key=lambda axis: -axis[1])
        return Piece(self.there, self.here, tuple(axes))


class PieceOf(NamedTuple):
    """A piece, and the ``number`` of what its other end is in: a tensor of a file, a block of a buffer, a memory."""

    number: int
    piece: Piece


def dense(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a row-major tensor."""
    return tuple([math.prod(shape[axis + 1 :]) for axis in range(len(shape))])


def span(axes: Iterable[Axis]) -> int:
    """Elements from the first to the last, both included."""
    total = 1
    for extent, stride, _ in axes:
        total += (extent - 1) * stride
    return total


def make_piece(
    here: int, strides: tuple[int, ...], there: int, others: tuple[int, ...], extents: tuple[int, ...]
) -> Piece:
    """A piece of the given extents; axes are sorted, extents of 1 left out, axes merged where both ends allow it."""
    axes = [axis for axis in zip(extents, strides, others, strict=True) if axis[0] != 1]
    if len(axes) > 1:
        axes.sort(key=lambda axis: (-axis[1], -axis[2]))
        return Piece(here, there, merge(axes))
    return Piece(here, there, tuple(axes))


def merge(axes: Iterable[Axis]) -> tuple[Axis, ...]:
    """Axes, outermost first, with those that run on from each other on both ends as one."""
    merged: list[Axis] = []
    for extent, stride, other in axes:
        if merged and merged[-1][1] == extent * stride and merged[-1][2] == extent * other:
            merged[-1] = (merged[-1][0] * extent, stride, other)
        else:
            merged.append((extent, stride, other))
    return tuple(merged)


def continued(first: Piece, second: Piece) -> Piece | None:
    """Both as one piece, if the second is the rest of the first along one of its axes, on both ends. Its axes need not
    be nested."""
    if [axis[1:] for axis in first.axes] != [axis[1:] for axis in second.axes]:
        return None
    gap = second.here - first.here, second.there - first.there
    for index, (extent, stride, other) in enumerate(first.axes):
        before, after = first.axes[:index], first.axes[index + 1 :]
        if gap == (extent * stride, extent * other) and second.axes == (*before, second.axes[index], *after):
            longer = (extent + second.axes[index][0], stride, other)
            return Piece(first.here, first.there, merge((*before, longer, *after)))
    return None


def is_nested(axes: tuple[Axis, ...]) -> bool:
    """Whether each stride steps over all that the finer axes reach. Then no element is met twice."""
    reach = 1
    for extent, stride, _ in reversed(axes):
        if stride < reach:
            return False
        reach += (extent - 1) * stride
    return True


def clip(piece: Piece, start: int, stop: int) -> list[Piece]:
    """The part of the piece inside ``[start, stop)``: at most two pieces per axis more than the whole rows."""
    here, there, axes = piece
    end = here + span(axes)
    if start <= here and end <= stop:
        return [piece]
    if end <= start or stop <= here:
        return []
    (extent, stride, other), inner = axes[0], axes[1:]
    width = span(inner)
    # Rows [first, last) touch the interval, rows [whole, rest) lie inside it.
    first, last = max(0, (start - here - width) // stride + 1), min(extent, -((here - stop) // stride))
    whole = min(last, max(first, -((here - start) // stride)))
    rest = max(whole, min(last, (stop - here - width) // stride + 1))
    pieces = []
    if whole < rest:
        body = ((rest - whole, stride, other), *inner) if rest - whole > 1 else inner
        pieces.append(Piece(here + whole * stride, there + whole * other, body))
    for row in chain(range(first, whole), range(rest, last)):
        pieces += clip(Piece(here + row * stride, there + row * other, inner), start, stop)
    return pieces


class _Tangled(Exception):
    """Pieces whose strides share no grid would have to be taken apart into too many parts."""


class _Work:
    """How many parts may still be made."""

    def __init__(self, parts: int) -> None:
        self.left = parts

    def spend(self, parts: int) -> None:
        self.left -= parts
        if self.left < 0:
            raise _Tangled


def split_rows(piece: Piece, period: int, work: _Work | None = None) -> list[tuple[Piece, Piece]]:
    """Cut at the multiples of ``period``, and factor each part into rows and a pattern repeated in each row.

    The first of a pair counts rows (``here`` and strides in units of ``period``), the second lies in ``[0, period)``.
    An element of the pair is at ``row * period + column``; on the other end, at the sum of both.
    """
    here, there, axes = piece
    first, last = here // period, (here + span(axes) - 1) // period
    if first == last:
        return [(Piece(first, 0, ()), Piece(here - first * period, there, axes))]
    (extent, stride, other), inner = axes[0], axes[1:]
    if stride % period == 0:
        axis = (extent, stride // period, other)
        return [
            (Piece(rows.here, rows.there, (axis, *rows.axes)), columns)
            for rows, columns in split_rows(Piece(here, there, inner), period, work)
        ]
    if stride > period:
        step = period // math.gcd(stride, period)
        parts = []
        if work:
            work.spend(min(step, extent))
        for phase in range(min(step, extent)):
            count = -((phase - extent) // step)
            outer = ((count, stride * step, other * step), *inner) if count > 1 else inner
            parts += split_rows(Piece(here + phase * stride, there + phase * other, outer), period, work)
        return parts
    if period % stride == 0:
        # All rows between the first and the last hold the same pattern, since the finer axes fit into one stride.
        runs = [(first, 1), (first + 1, last - first - 1), (last, 1)]
    else:
        if work:
            work.spend(last - first)
        runs = [(row, 1) for row in range(first, last + 1)]
    return [
        (
            Piece(row, 0, ((count, 1, other * (period // stride)),) if count > 1 else ()),
            Piece(part.here - row * period, part.there, part.axes),
        )
        for row, count in runs
        if count
        for part in clip(piece, row * period, (row + 1) * period)
    ]


def intersect(left: Piece, right: Piece) -> list[Piece]:
    """The elements in both pieces, as pieces from the other end of ``left`` (here) to the other end of ``right``."""
    if left.stop <= right.here or right.stop <= left.here:
        return []
    if not left.axes or (len(left.axes) == 1 and left.axes[0][1] == 1):
        factor = left.axes[0][2] if left.axes else 0
        return [
            Piece(
                left.there + (part.here - left.here) * factor,
                part.there,
                tuple((extent, stride * factor, other) for extent, stride, other in part.axes),
            )
            for part in clip(right, left.here, left.stop)
        ]
    if not right.axes or right.axes[0][1] > left.axes[0][1] or (len(right.axes) == 1 and right.axes[0][1] == 1):
        return [
            Piece(part.there, part.here, tuple((e, t, s) for e, s, t in part.axes)) for part in intersect(right, left)
        ]
    (extent, stride, other), inner = left.axes[0], left.axes[1:]
    if stride % right.axes[0][1]:
        return [
            part
            for row in range(extent)
            for part in intersect(Piece(left.here + row * stride, left.there + row * other, inner), right)
        ]
    parts = []
    for rows, columns in split_rows(right._replace(here=right.here - left.here), stride):
        for band in clip(rows, 0, extent):
            axes = tuple((count, other, step) for count, _, step in band.axes)
            row = Piece(0, left.there + band.here * other, inner)
            parts += [
                Piece(part.here, part.there, axes + part.axes)
                for part in intersect(row, columns._replace(there=columns.there + band.there))
            ]
    return parts


class Fault(NamedTuple):
    """``[start, stop)`` is in no piece, or in both of ``copies``; this is the first of ``places`` such places. Of
    none at all, nobody knows: the pieces are too tangled."""

    start: int
    stop: int
    places: int
    copies: tuple[int, ...]


def tiling_faults(pieces: Sequence[Piece], start: int, stop: int) -> Iterator[Fault]:
    """Where the pieces fail to tile ``[start, stop)``; nothing if each element is in exactly one.

    ``there`` must name the copy of a piece, with other strides of 0, and no piece may reach outside the interval.
    Pieces whose hulls do not meet are independent; those that do are cut into rows of the largest stride among them,
    and the patterns inside each band of equal rows must tile one row. Strides shrink at each level. The steps are
    bounded by the number of pieces: those that share no grid of strides are a fault with no places.
    """
    try:
        yield from _faults(pieces, start, stop, _Work(_PARTS + _PARTS_EACH * len(pieces)))
    except _Tangled:
        yield Fault(start, stop, 0, ())


def _faults(pieces: Sequence[Piece], start: int, stop: int, work: _Work) -> Iterator[Fault]:
    ordered = sorted(pieces)
    index, cursor = 0, start
    while index < len(ordered):
        begin, end = ordered[index].here, ordered[index].stop
        first, index = index, index + 1
        while index < len(ordered) and ordered[index].here < end:
            end = max(end, ordered[index].stop)
            index += 1
        if begin > cursor:
            yield Fault(cursor, begin, 1, ())
        axes = ordered[first].axes
        if index - first > 1 or (axes and axes[0][1] > 1):
            yield from _component_faults(ordered[first:index], begin, end, work)
        cursor = end
    if cursor < stop:
        yield Fault(cursor, stop, 1, ())


def _component_faults(pieces: list[Piece], begin: int, end: int, work: _Work) -> Iterator[Fault]:
    """Faults among pieces, sorted, whose hulls form the single interval ``[begin, end)``."""
    period = max(piece.axes[0][1] if piece.axes else 1 for piece in pieces)
    if period == 1:
        longest = pieces[0]
        for piece in pieces[1:]:
            yield Fault(piece.here, min(longest.stop, piece.stop), 1, (longest.there, piece.there))
            longest = max(longest, piece, key=lambda candidate: candidate.stop)
        return
    bands = []
    for piece in pieces:
        for rows, columns in split_rows(piece._replace(here=piece.here - begin), period, work):
            bands.append((rows.here, rows.stop, columns))
    bands.sort()
    # The last row ends where the component ends.
    full, rest = divmod(end - begin, period)
    cuts = sorted({full, full + (rest > 0), *(band[0] for band in bands), *(band[1] for band in bands)})
    active: list[tuple[int, int, Piece]] = []
    index = 0
    for row, next_row in pairwise(cuts):
        active = [band for band in active if band[1] > row]
        while index < len(bands) and bands[index][0] == row:
            active.append(bands[index])
            index += 1
        work.spend(len(active) + 1)
        for fault in _faults([columns for _, _, columns in active], 0, period if row < full else rest, work):
            shift = begin + row * period
            yield Fault(fault.start + shift, fault.stop + shift, fault.places * (next_row - row), fault.copies)
