"""What the workers do, task by task: stretches of a target tensor, and what they are made from.

Every target tensor is written as *operations*, each of which makes the bytes that follow those of the one before. A
``Range`` is bytes that stand together in a source file. Everything else (transposes, interleaves, casts) is a
``Panel``: a part of the target small enough for a worker's buffers, and the pieces of source tensors that fill it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crosswalk.runtime.plan.affine import PieceOf

from .runs import SourceBlock


class Range(NamedTuple):
    """``nbytes`` bytes at ``offset`` of the file that holds source tensor ``source``, copied as they are."""

    source: int
    offset: int
    nbytes: int


class Stripe(NamedTuple):
    """``nbytes`` bytes of the target, filled completely by ``moves``: a piece counts ``here`` in the stripe and
    ``there`` in elements of the staging buffer, from the start of the block of its number."""

    nbytes: int
    moves: Sequence[PieceOf]


class Panel(NamedTuple):
    """``nbytes`` bytes of the target: what to read, then consecutive stripes."""

    nbytes: int
    blocks: Sequence[SourceBlock]
    stripes: Sequence[Stripe]


class Segment(NamedTuple):
    """``nbytes`` bytes of target tensor ``target``, as operations in order: from byte ``start`` on, in runs of ``run``
    bytes that begin ``step`` bytes apart. Bytes that stand together are one run."""

    target: int
    start: int
    nbytes: int
    operations: Sequence[Range | Panel]
    run: int
    step: int

    def places(self, first: int, nbytes: int) -> Iterator[tuple[int, int]]:
        """``(offset in the target, length)`` of each stretch that ``nbytes`` bytes from the ``first`` one on fill."""
        while nbytes:
            row, column = divmod(first, self.run)
            count = min(nbytes, self.run - column)
            yield self.start + row * self.step + column, count
            first, nbytes = first + count, nbytes - count


def consecutive(target: int, start: int, nbytes: int, operations: Sequence[Range | Panel]) -> Segment:
    """A segment whose bytes stand together."""
    return Segment(target, start, nbytes, operations, nbytes, nbytes)


Task = Sequence[Segment]
