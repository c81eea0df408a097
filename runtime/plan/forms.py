"""What copies look like, but for the tensors that they are between: layers and experts repeat, and so do the forms of
their copies and the tilings of their tensors. A proof works each out once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .affine import Axis, Piece, is_nested, make_piece, span, tiling_faults
from .model import Copy


class End(NamedTuple):
    """One end of copies of one form: its axes, and the elements from the first to the last; -1 if axes interlock."""

    axes: tuple[Axis, ...]
    reach: int


class Forms:
    """The forms of one plan, as they are met."""

    def __init__(self) -> None:
        self._ends: dict[tuple[tuple[int, ...], ...], tuple[Copy, End, End]] = {}
        self._tiled: set[tuple[object, ...]] = set()

    def known(self, copy: Copy) -> tuple[End, End] | None:
        """The ends of a copy, if its extents and strides are the very numbers of one that was :meth:`learnt`."""
        found = self._ends.get((copy.extents, copy.source_strides, copy.target_strides))
        if found is None:
            return None
        first, source, target = found
        # Equal numbers may be of other types, as true is 1.
        same = first.extents is copy.extents and first.source_strides is copy.source_strides
        return (source, target) if same and first.target_strides is copy.target_strides else None

    def learnt(self, copy: Copy) -> tuple[End, End]:
        """The ends of a well-formed copy, for those that follow it."""
        ends = _end(copy.extents, copy.source_strides), _end(copy.extents, copy.target_strides)
        self._ends[copy.extents, copy.source_strides, copy.target_strides] = (copy, *ends)
        return ends

    def tile(self, pieces: Sequence[Piece], size: int) -> bool:
        """Whether every element of a tensor is in one of the pieces, and in one only."""
        tiling: tuple[object, ...] = (size, *[(piece.here, piece.axes) for piece in pieces])
        if tiling in self._tiled:
            return True
        if any(True for _ in tiling_faults(pieces, 0, size)):
            return False
        self._tiled.add(tiling)
        return True


def _end(extents: tuple[int, ...], strides: tuple[int, ...]) -> End:
    axes = make_piece(0, strides, 0, (0,) * len(extents), extents).axes
    return End(axes, span(axes) if is_nested(axes) else -1)
