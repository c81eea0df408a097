"""Elements of one tensor that no copy meets, by declaration: those of a target that are zeros, and those of a source
that are not read. A region is one end of a copy, in the same canonical form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .affine import Piece, make_piece


@dataclass(frozen=True, slots=True)
class Region:
    """The elements ``offset + sum(i_k * strides[k])`` of the flattened (row-major) tensor ``tensor``, for ``i_k`` below
    ``extents[k]``. ``tensor`` and ``rule`` are indices into the lists of the plan.

    Axes are outermost (largest stride) first; contiguous neighbours are merged, and an axis of extent 1 never appears.
    """

    tensor: int
    extents: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    rule: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.extents)

    @property
    def piece(self) -> Piece:
        """The elements as a piece whose other end is nowhere."""
        return make_piece(self.offset, self.strides, 0, (0,) * len(self.extents), self.extents)


#: A region before it has its place in a plan: tensor name, extents, offset, strides, rule index.
RawRegion = tuple[str, tuple[int, ...], int, tuple[int, ...], int]


def make_regions(regions: Iterable[RawRegion], index: Mapping[str, int]) -> tuple[Region, ...]:
    """The regions in canonical form, sorted by tensor and offset. ``index``: tensor name -> place in its list."""
    made = []
    for name, extents, offset, strides, rule in regions:
        axes = make_piece(offset, strides, offset, strides, extents).axes
        kept, steps = tuple(axis[0] for axis in axes), tuple(axis[1] for axis in axes)
        made.append(Region(index[name], kept, offset, steps, rule))
    return tuple(sorted(made, key=lambda r: (r.tensor, r.offset, r.extents, r.strides, r.rule)))


def encode(regions: Iterable[Region]) -> list[list[Any]]:
    """As JSON has them, rule last."""
    return [[r.tensor, list(r.extents), r.offset, list(r.strides), r.rule] for r in regions]


def decode(entries: Iterable[Any]) -> tuple[Region, ...]:
    """The inverse of :func:`encode`. Raises ``TypeError`` or ``ValueError`` for what is not such a list."""
    return tuple(Region(tensor, tuple(e), offset, tuple(s), rule) for tensor, e, offset, s, rule in entries)
