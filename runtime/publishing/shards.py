"""What each rank has of each tensor of the checkpoint, as boxes: for transports that move pieces themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from crosswalk.runtime.plan.affine import Piece
from crosswalk.runtime.plan.algebra import Box
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.training.ranks import Table

from .pieces import dense, moves_of


class ShardRegion(NamedTuple):
    """What ``rank`` has of a tensor of the checkpoint: the elements in ``box`` of the tensor. They lie in the box
    ``held`` of ``parameter``, which is what the rank holds of it, counted in a row-major tensor of that shape: element
    ``(i, j, ...)`` of the box at ``offset + i * strides[0] + j * strides[1] + ...``."""

    rank: int
    box: Box
    parameter: str
    held: Box
    offset: int
    strides: tuple[int, ...]


def regions(plan: Plan, tables: Sequence[Table], targets: Sequence[int]) -> dict[str, tuple[ShardRegion, ...] | None]:
    """By tensor of the checkpoint, the regions of all ranks, with what several have listed for each; None where a piece
    is no box of it (rows that alternate), so that the tensor goes whole."""
    moves = moves_of(plan, dict(enumerate(tables)))
    result: dict[str, tuple[ShardRegion, ...] | None] = {}
    for target in targets:
        spec = plan.targets[target]
        found = []
        for move in moves.get(target, ()):
            placed = _box(spec.shape, move.piece)
            if placed is None:
                break
            name = plan.sources[move.source].name
            found.append(ShardRegion(move.rank, placed[0], name, move.box, move.piece.there, placed[1]))
        complete = len(found) == len(moves.get(target, ())) and target not in {r.tensor for r in plan.padded}
        result[spec.name] = tuple(found) if complete else None
    return result


def _box(shape: Sequence[int], piece: Piece) -> tuple[Box, tuple[int, ...]] | None:
    """The box of a tensor that a piece is, and the strides of its dimensions on the other end; None if it is none."""
    axes = {stride: (extent, other) for extent, stride, other in piece.axes}
    box: list[tuple[int, int]] = []
    strides: list[int] = []
    rest = piece.here
    starts = []
    for step, size in zip(dense(shape), shape, strict=True):
        starts.append(rest // step % max(size, 1))
    for step, size, start in zip(reversed(dense(shape)), reversed(shape), reversed(starts), strict=True):
        extent, other = axes.pop(step, (1, 0)) if size > 1 else (1, 0)
        if extent > size:  # with the dimension outside of it
            if start or extent % size:
                return None
            axes[step * size] = (extent // size, other * size)
            extent = size
        if start + extent > size:
            return None
        box.append((start, start + extent))
        strides.append(other)
    return None if axes else (tuple(reversed(box)), tuple(reversed(strides)))
