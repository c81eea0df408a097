"""Strided copies between a native parameter and an hf tensor, and how neighbours become one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from crosswalk.compiler.layout.cells import AxisTable, atom_size, atoms_of
from crosswalk.compiler.mapping.model import TensorEntry
from crosswalk.runtime.plan.model import merge_axes

from .dims import Source


class TensorPiece(NamedTuple):
    """One strided copy between the native parameter ``parameter`` and an hf tensor. Offsets and strides are in
    elements of the flattened row-major tensors; no extent is 1, and a single element has no extents."""

    parameter: str
    extents: tuple[int, ...]
    ours_offset: int
    ours_strides: tuple[int, ...]
    theirs_offset: int
    theirs_strides: tuple[int, ...]


class Tensor(NamedTuple):
    """An hf tensor: its pieces are disjoint and cover it."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[TensorPiece, ...]


class Related(NamedTuple):
    """An hf tensor with the copies that relate it to native parameters, and the line that says so. ``encoded``:
    the same tensor as it is where it is stored encoded, if its dimensions are others then."""

    tensor: Tensor
    line: TensorEntry
    mapping: str
    encoded: Tensor | None = None

    def at(self, ours: str, theirs: str) -> Related:
        """The same in a module whose names begin with these."""
        encoded = None if self.encoded is None else _prefixed(self.encoded, ours, theirs)
        return Related(_prefixed(self.tensor, ours, theirs), self.line, self.mapping, encoded)


def _prefixed(tensor: Tensor, ours: str, theirs: str) -> Tensor:
    name, shape, pieces = tensor
    return Tensor(theirs + name, shape, tuple([TensorPiece(ours + piece.parameter, *piece[1:]) for piece in pieces]))


class Repeated(NamedTuple):
    """What is alike in several modules, written once: ``related`` with the names below a module, and for each module
    what its names begin with, native those and hf those."""

    related: Sequence[Related]
    places: Sequence[tuple[str, str]] = (("", ""),)

    @property
    def alone(self) -> Iterator[Related]:
        """The tensors of all modules, each by itself."""
        return (related.at(*place) for place in self.places for related in self.related)

    def below(self, places: Sequence[tuple[str, str]]) -> Repeated:
        """The same in all modules that begin with ``places``."""
        every = [(ours + own, theirs + other) for ours, theirs in places for own, other in self.places]
        return Repeated(self.related, every)


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A piece before the axes in the name have values; ``steps`` are the strides of their atoms on our end.

    ``source`` is the parameter if that has axes in its name too; ``apart`` are their atoms with their strides on the
    other end, 0 where they are in the name there."""

    piece: TensorPiece
    steps: Mapping[str, int]
    source: Source | None = None
    apart: Mapping[str, int] = field(default_factory=dict)

    def placed(self, sizes: AxisTable, given: Mapping[str, int]) -> Iterator[TensorPiece]:
        """The piece with the indices of some atoms ``given``: one for each native tensor that it stands for."""
        p = self.piece
        ours_offset = p.ours_offset + sum(step * given[atom] for atom, step in self.steps.items())
        if self.source is None or self.source.template is None:
            yield TensorPiece(p.parameter, p.extents, ours_offset, p.ours_strides, p.theirs_offset, p.theirs_strides)
            return
        free = [atom for atom in self.apart if atom not in given]
        for indices in itertools.product(*(range(atom_size(atom, sizes)) for atom in free)):
            every = {**given, **dict(zip(free, indices, strict=True))}
            values = {axis: _index(axis, sizes, every) for axis in self.source.axes}
            offset = p.theirs_offset + sum(self.apart[atom] * every[atom] for atom in free)
            name = str(self.source.template.render(values))
            yield TensorPiece(name, p.extents, ours_offset, p.ours_strides, offset, p.theirs_strides)


def _index(axis: str, sizes: AxisTable, given: Mapping[str, int]) -> int:
    """The index of an axis, from those of its atoms."""
    index = 0
    for atom in atoms_of(axis, sizes):
        index = index * atom_size(atom, sizes) + given[atom]
    return index


def piece_of(parameter: str, axes: list[tuple[int, int, int]], ours_offset: int, theirs_offset: int) -> TensorPiece:
    """``axes`` as merged: (extent, hf stride, native stride)."""
    extents, theirs_strides, ours_strides = zip(*axes, strict=True) if axes else ((), (), ())
    return TensorPiece(parameter, extents, ours_offset, ours_strides, theirs_offset, theirs_strides)


def coalesced(drafts: list[Unplaced]) -> list[Unplaced]:
    """Neighbours that continue each other on both ends become one, as gate and up do in a stack that keeps them."""
    result: list[Unplaced] = []
    for draft in sorted(drafts, key=lambda d: (d.piece.parameter, d.piece.ours_offset)):
        if result and (piece := _continued(result[-1], draft)):
            result[-1] = replace(draft, piece=piece)
        else:
            result.append(draft)
    return result


def _continued(first: Unplaced, second: Unplaced) -> TensorPiece | None:
    a, b = first.piece, second.piece
    same = (a.parameter, a.ours_strides, a.theirs_strides) == (b.parameter, b.ours_strides, b.theirs_strides)
    if not same or (first.steps, first.apart) != (second.steps, second.apart):
        return None
    gap = (b.ours_offset - a.ours_offset, b.theirs_offset - a.theirs_offset)
    for index, extent in enumerate(a.extents):
        others_equal = a.extents[:index] + a.extents[index + 1 :] == b.extents[:index] + b.extents[index + 1 :]
        if others_equal and gap == (extent * a.ours_strides[index], extent * a.theirs_strides[index]):
            extents = (*a.extents[:index], extent + b.extents[index], *a.extents[index + 1 :])
            axes = merge_axes(extents, a.theirs_strides, a.ours_strides)
            return piece_of(a.parameter, axes, a.ours_offset, a.theirs_offset)
    return None
