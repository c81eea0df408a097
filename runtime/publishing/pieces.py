"""Which elements of a checkpoint's tensors each rank has: the copies of a plan, cut to boxes of parameters."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from crosswalk.runtime.plan.affine import Piece, dense, intersect, make_piece
from crosswalk.runtime.plan.algebra import Box, Cut, box_cuts, cut
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.training.ranks import Table, share_out


class Move(NamedTuple):
    """Elements of a target that ``rank`` has in ``box`` of the parameter ``source``. ``piece`` counts ``here`` in the
    target and ``there`` in the box, both flat and row-major; its axes are in the order of the target."""

    rank: int
    source: int
    box: Box
    piece: Piece
    elements: int


class Strided(NamedTuple):
    """One strided copy between two tensors: where it reads relative to the first element of the one, and where it
    writes in the other, in elements."""

    extents: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    out_strides: tuple[int, ...]
    out_offset: int


class _Held(NamedTuple):
    first: int
    stop: int
    rank: int
    box: Box
    cuts: list[Cut]


def moves_of(plan: Plan, shares: Mapping[int, Mapping[str, Sequence[Box]]]) -> dict[int, list[Move]]:
    """By target, what the ranks move of their boxes (rank -> parameter -> boxes), sorted by rank and place in the
    target: the order in which a rank packs it."""
    held: dict[int, list[_Held]] = defaultdict(list)
    for rank, boxes in shares.items():
        for name, mine in boxes.items():
            source = plan.source_index[name]
            held[source] += [_held(plan.sources[source].shape, rank, box) for box in mine]
    for found in held.values():
        found.sort(key=lambda one: (one.first, one.stop))
    reach = {source: list(accumulate((one.stop for one in found), max)) for source, found in held.items()}
    starts = {source: [one.first for one in found] for source, found in held.items()}
    result: dict[int, list[Move]] = defaultdict(list)
    for copy in plan.copies:
        source = copy.source
        if source not in held:
            continue
        piece = copy.piece.swapped
        begin, end = bisect_right(reach[source], piece.here), bisect_left(starts[source], piece.stop)
        for one in held[source][begin:end]:
            for inside in cut(piece, one.cuts):
                moved = inside.swapped
                result[copy.target].append(Move(one.rank, source, one.box, moved, moved.elements))
    for moves in result.values():
        moves.sort(key=lambda move: (move.rank, move.piece.here))
    return result


def _held(shape: tuple[int, ...], rank: int, box: Box) -> _Held:
    strides = dense(shape)
    first = sum(start * stride for (start, _), stride in zip(box, strides, strict=True))
    last = sum((stop - 1) * stride for (_, stop), stride in zip(box, strides, strict=True))
    return _Held(first, last + 1, rank, box, box_cuts(shape, box))


def owners(
    tables: Sequence[Table], specs: Iterable[TensorSpec], nearest: int | None = None
) -> list[dict[str, list[Box]]]:
    """Which rank gives which boxes away, by rank: every element once, replicas evenly. What rank ``nearest`` has is its
    own to give. Raises ``CrosswalkError`` for what no rank has."""
    if nearest is None:
        return share_out(tables, specs)
    its = tables[nearest]
    preferred = [
        table
        if rank == nearest
        else {name: [b for b in boxes if b not in its.get(name, ())] for name, boxes in table.items()}
        for rank, table in enumerate(tables)
    ]
    return share_out(preferred, specs)


def whole_box(shape: Sequence[int]) -> Box:
    """The box that is all of a tensor."""
    return tuple((0, size) for size in shape)


def packed(move: Move, position: int = 0) -> Piece:
    """A move into the memory where its elements stand one after the other, from ``position`` on, in the order of the
    target, instead of into the target."""
    extents, _, own = move.piece.columns
    return Piece(position, move.piece.there, tuple(zip(extents, dense(extents), own, strict=True)))


def out_of(piece: Piece, tensor: torch.Tensor) -> list[Strided]:
    """A piece of a box, as copies out of the memory of the tensor of the box's shape."""
    if tensor.is_contiguous():
        extents, out, own = piece.columns
        return [Strided(extents, own, piece.there, out, piece.here)]
    shape = tuple(tensor.shape)
    result = []
    for part in intersect(piece.swapped, make_piece(0, dense(shape), 0, tensor.stride(), shape)):
        extents, out, own = part.columns
        result.append(Strided(extents, own, part.there, out, part.here))
    return result


def into(move: Move, position: int = 0) -> Strided:
    """From packed memory, at ``position``, into the target."""
    extents, out, _ = move.piece.columns
    return Strided(extents, dense(extents), position, out, move.piece.here)


def is_run(copy: Strided) -> bool:
    """Whether elements that stand together stay together."""
    return not copy.extents or (len(copy.extents) == 1 and copy.strides == copy.out_strides == (1,))
