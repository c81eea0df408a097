"""Strided copies between a parameter of ours and a tensor of theirs, and how neighbours become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crosswalk.runtime.plan.model import merge_axes


@dataclass(frozen=True, slots=True)
class Piece:
    """One strided copy between the parameter ``parameter`` of ours and a tensor of theirs. Offsets and strides are in
    elements of the flattened row-major tensors; no extent is 1, and a single element has no extents."""

    parameter: str
    extents: tuple[int, ...]
    ours_offset: int
    ours_strides: tuple[int, ...]
    theirs_offset: int
    theirs_strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of theirs: its pieces are disjoint and cover it."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A piece before the axes in the name have values; ``steps`` are the strides of their atoms on our end."""

    piece: Piece
    steps: Mapping[str, int]


def piece_of(parameter: str, axes: list[tuple[int, int, int]], ours_offset: int, theirs_offset: int) -> Piece:
    """``axes`` as merged: (extent, stride of theirs, stride of ours)."""
    extents, theirs_strides, ours_strides = zip(*axes, strict=True) if axes else ((), (), ())
    return Piece(parameter, extents, ours_offset, ours_strides, theirs_offset, theirs_strides)


def coalesced(drafts: list[Unplaced]) -> list[Unplaced]:
    """Neighbours that continue each other on both ends become one, as gate and up do in a stack that keeps them."""
    result: list[Unplaced] = []
    for draft in sorted(drafts, key=lambda d: (d.piece.parameter, d.piece.ours_offset)):
        if result and (piece := _continued(result[-1], draft)):
            result[-1] = Unplaced(piece, draft.steps)
        else:
            result.append(draft)
    return result


def _continued(first: Unplaced, second: Unplaced) -> Piece | None:
    a, b = first.piece, second.piece
    same = (a.parameter, a.ours_strides, a.theirs_strides) == (b.parameter, b.ours_strides, b.theirs_strides)
    if not same or first.steps != second.steps:
        return None
    gap = (b.ours_offset - a.ours_offset, b.theirs_offset - a.theirs_offset)
    for index, extent in enumerate(a.extents):
        others_equal = a.extents[:index] + a.extents[index + 1 :] == b.extents[:index] + b.extents[index + 1 :]
        if others_equal and gap == (extent * a.ours_strides[index], extent * a.theirs_strides[index]):
            extents = (*a.extents[:index], extent + b.extents[index], *a.extents[index + 1 :])
            axes = merge_axes(extents, a.theirs_strides, a.ours_strides)
            return piece_of(a.parameter, axes, a.ours_offset, a.theirs_offset)
    return None
