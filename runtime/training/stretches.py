"""From elements to stretches of a file: what to read or write at once when a part of a tensor moves.

A :class:`Piece` here has its ``here`` end in a tensor of a file and its ``there`` end in memory. Pieces of one tensor
become blocks: a stretch of elements, repeated along outer axes, and the pieces that lie in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from crosswalk.runtime.files.runs import LONGEST_TOGETHER
from crosswalk.runtime.plan.affine import Axis, Piece, PieceOf, clip, span

#: Shorter holes are read along: out of the page cache, these bytes take as long as another call. Nothing more is read,
#: since all ranks together would read it several times.
GAP = 4 << 10
#: Most bytes read for every byte that is needed.
WASTE = 4


class Block(NamedTuple):
    """Elements ``start`` to ``start + length`` of a tensor in a file, again at every step of the axes ``outer``
    (extent, stride). Put one after the other they are the buffer that the ``here`` ends of ``placements`` count in.
    ``together``: along the last of these axes they stand so close that what is between them is read, and left out."""

    start: int
    length: int
    outer: tuple[tuple[int, int], ...]
    placements: tuple[PieceOf, ...]
    together: bool = False

    @property
    def elements(self) -> int:
        """Elements of all stretches."""
        return math.prod(extent for extent, _ in self.outer) * self.length

    @property
    def needed(self) -> int:
        """Elements that the pieces move."""
        return sum(piece.elements for _, piece in self.placements)

    def runs(self) -> list[int]:
        """Where each stretch begins, in the order of the buffer."""
        begins = [self.start]
        for extent, stride in self.outer:
            begins = [begin + index * stride for begin in begins for index in range(extent)]
        return begins


def blocks(placements: Iterable[PieceOf], limit: int, gap: int, exact: bool) -> Iterator[Block]:
    """Blocks of at most ``limit`` elements that hold all the pieces (of one tensor, no element twice).

    Holes of up to ``gap`` elements are part of a stretch, but never more than ``WASTE`` times what is needed; with
    ``exact`` there is no hole, so that a block can be written.
    """
    for block in _grouped(list(placements), gap):
        if exact and block.needed != block.elements and gap:
            yield from blocks(_original(block), limit, 0, exact)
        elif block.elements <= limit:
            yield block
        else:
            for part in _split(block, limit):
                yield from blocks(part, limit, gap, exact)


def without_holes(block: Block, gap: int) -> Iterator[Block]:
    """The same as blocks whose holes are read and left out of the buffer, where they are all alike, as between columns
    of a matrix; else the block as it is."""
    axes = block.placements[0].piece.axes
    outer = axes[: len(axes) - _fold(axes, 0)]
    regular = len(block.placements) == 1 and block.needed != block.elements
    if not regular or (len(outer) > 1 and outer[-1][0] * outer[-1][1] < LONGEST_TOGETHER * gap):
        yield block
        return
    for part in blocks(_original(block), block.elements, 0, True):
        close = bool(part.outer) and part.outer[-1][1] - part.length <= gap
        yield part._replace(together=close and part.length <= LONGEST_TOGETHER * gap)


def _grouped(placements: Sequence[PieceOf], gap: int) -> Iterator[Block]:
    """One block for all pieces that repeat along the same outer axes and whose stretches are near each other."""
    folded: dict[tuple[tuple[int, int], ...], list[tuple[int, int, PieceOf]]] = {}
    for placed in placements:
        piece = placed.piece
        inner = _fold(piece.axes, gap)
        outer = tuple((extent, stride) for extent, stride, _ in piece.axes[: len(piece.axes) - inner])
        end = piece.here + span(piece.axes[len(piece.axes) - inner :])
        folded.setdefault(outer, []).append((piece.here, end, placed))
    for outer, entries in sorted(folded.items(), key=lambda item: min(entry[0] for entry in item[1])):
        entries.sort(key=lambda entry: entry[:2])
        reach = outer[-1][1] if outer else None
        group = [entries[0]]
        start, end = entries[0][:2]
        useful = entries[0][2].piece.elements // math.prod(extent for extent, _ in outer)
        for entry in entries[1:]:
            more = entry[2].piece.elements // math.prod(extent for extent, _ in outer)
            longer = max(end, entry[1])
            fits = reach is None or longer - start <= reach
            if fits and entry[0] - end <= gap and longer - start <= WASTE * (useful + more):
                end, useful = longer, useful + more
                group.append(entry)
                continue
            yield _block(start, end - start, outer, group)
            group, (start, end), useful = [entry], entry[:2], more
        yield _block(start, end - start, outer, group)


def _fold(axes: tuple[Axis, ...], gap: int) -> int:
    """How many of the inner axes make one stretch."""
    stretch = useful = 1
    for number, (extent, stride, _) in enumerate(reversed(axes)):
        longer = stretch + (extent - 1) * stride
        if stride != stretch and (stride - stretch > gap or longer > WASTE * useful * extent):
            return number
        stretch, useful = longer, useful * extent
    return len(axes)


def _block(
    start: int, length: int, outer: tuple[tuple[int, int], ...], group: Sequence[tuple[int, int, PieceOf]]
) -> Block:
    strides, size = [], length
    for extent, _ in reversed(outer):
        strides.append(size)
        size *= extent
    placed = []
    for here, _, (memory, piece) in group:
        compact = tuple(
            (extent, stride, other)
            for (extent, _, other), stride in zip(piece.axes[: len(outer)], reversed(strides), strict=True)
        )
        placed.append(PieceOf(memory, Piece(here - start, piece.there, compact + piece.axes[len(outer) :])))
    return Block(start, length, outer, tuple(placed))


def _original(block: Block) -> list[PieceOf]:
    """The pieces as they were before they were put into the block."""
    count = len(block.outer)
    return [
        PieceOf(
            placed.number,
            Piece(
                placed.piece.here + block.start,
                placed.piece.there,
                tuple(
                    (extent, stride, axis[2])
                    for (extent, stride), axis in zip(block.outer, placed.piece.axes[:count], strict=True)
                )
                + placed.piece.axes[count:],
            ),
        )
        for placed in block.placements
    ]


def _split(block: Block, limit: int) -> Iterator[list[PieceOf]]:
    """Cut a block that is too large: along its outermost axis, or if it is one stretch, into shorter ones."""
    placements = _original(block)
    if block.outer:
        extent, stride = block.outer[0]
        step = max(1, limit // (block.elements // extent))
        for begin in range(0, extent, step):
            count = min(step, extent - begin)
            part = []
            for memory, (here, there, axes) in placements:
                other = axes[0][2]
                kept = ((count, stride, other), *axes[1:]) if count > 1 else axes[1:]
                part.append(PieceOf(memory, Piece(here + begin * stride, there + begin * other, kept)))
            yield part
        return
    strides = [stride for placed in placements for _, stride, _ in placed.piece.axes if stride <= limit]
    unit = max(strides, default=1)
    step = limit // unit * unit
    for begin in range(block.start, block.start + block.length, step):
        yield [PieceOf(memory, part) for memory, piece in placements for part in clip(piece, begin, begin + step)]
