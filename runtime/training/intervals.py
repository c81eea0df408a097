"""Which indices along one dimension are held: intervals in the order in which they stand in the local memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: ``[start, stop)`` along one dimension.
Interval = tuple[int, int]


def chunk(intervals: Sequence[Interval], index: int, count: int) -> list[Interval]:
    """Part ``index`` of ``count`` of some intervals, taken one after the other and cut as ``torch.chunk`` cuts a
    dimension: the last parts may be empty."""
    total = sum(stop - start for start, stop in intervals)
    step = -(-total // count)
    return _slice(intervals, min(index * step, total), min((index + 1) * step, total))


def joined(intervals: Iterable[Interval]) -> list[Interval]:
    """The intervals without empty ones; one that begins where the one before ends continues it."""
    result: list[Interval] = []
    for start, stop in intervals:
        if start >= stop:
            continue
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], stop)
        else:
            result.append((start, stop))
    return result


def within(outer: Iterable[Interval], inner: Sequence[Interval], size: int) -> list[Interval]:
    """The intervals ``inner``, of ``size`` indices in all, in every index of the intervals ``outer``: a product of two
    dimensions as one, row-major."""
    if joined(inner) == [(0, size)]:
        return joined((start * size, stop * size) for start, stop in outer)
    places = (index * size for start, stop in outer for index in range(start, stop))
    return joined((place + start, place + stop) for place in places for start, stop in inner)


def _slice(intervals: Sequence[Interval], start: int, stop: int) -> list[Interval]:
    kept = []
    position = 0
    for begin, end in intervals:
        low, high = max(start, position), min(stop, position + end - begin)
        if low < high:
            kept.append((begin + low - position, begin + high - position))
        position += end - begin
    return joined(kept)
