"""What each rank has of each tensor of the checkpoint, as boxes: for transports that move pieces themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from crosswalk.runtime.plan.affine import Piece, dense
from crosswalk.runtime.plan.algebra import Box
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.training.ranks import Table

from .pieces import moves_of


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


class Chunks(NamedTuple):
    """A tensor cut along ``dim`` as ``torch.chunk`` cuts it, over ranks that are a row-major ``mesh`` of two axes:
    along ``axis`` of it each has the chunk of its number, along the other all have the same."""

    mesh: tuple[int, int]
    axis: int
    dim: int

    def box(self, shape: Sequence[int], rank: int) -> Box:
        """What a rank has, which may be nothing."""
        number = divmod(rank, self.mesh[1])[self.axis]
        size = shape[self.dim]
        step = -(-size // self.mesh[self.axis])
        start, stop = min(number * step, size), min((number + 1) * step, size)
        return tuple((start, stop) if dim == self.dim else (0, n) for dim, n in enumerate(shape))


def chunks(shape: Sequence[int], held: Sequence[ShardRegion] | None, size: int) -> Chunks | None:
    """How a tensor is cut over all of ``size`` ranks; None if it is not, or in another way."""
    if held is None or len(held) > size or size == 1:
        return None
    found = {region.rank: region.box for region in held}
    ways = (
        Chunks((size // count, count) if axis else (count, size // count), axis, dim)
        for count in range(size, 1, -1)
        if size % count == 0
        for axis in (1, 0)
        for dim in range(len(shape))
    )
    for way in ways:
        boxes = {rank: way.box(shape, rank) for rank in range(size)}
        if len(found) == len(held) and found == {r: box for r, box in boxes.items() if all(a < b for a, b in box)}:
            return way
    return None


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
