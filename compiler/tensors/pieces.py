"""Strided copies between a native parameter and an hf tensor, and how neighbours become one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from crosswalk.compiler.layout.cells import AxisTable, atom_size, atoms_of
from crosswalk.compiler.mapping.model import TensorEntry
from crosswalk.runtime.plan.affine import Piece, continued
from crosswalk.runtime.records import Record, field, replace

from .dims import Source


class TensorPiece(NamedTuple):
    """One strided copy between the native ``parameter``, where the piece is ``here``, and an hf tensor, where it is
    ``there``."""

    parameter: str
    piece: Piece


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

    def at(self, native: str, hf: str) -> Related:
        """The same in a module whose names begin with these."""
        encoded = None if self.encoded is None else _prefixed(self.encoded, native, hf)
        return Related(_prefixed(self.tensor, native, hf), self.line, self.mapping, encoded)


def _prefixed(tensor: Tensor, native: str, hf: str) -> Tensor:
    name, shape, pieces = tensor
    return Tensor(hf + name, shape, tuple([TensorPiece(native + parameter, piece) for parameter, piece in pieces]))


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
        every = [(native + own, hf + other) for native, hf in places for own, other in self.places]
        return Repeated(self.related, every)


class Unplaced(Record, frozen=True):
    """A piece before the axes in the name have values; ``steps`` are the strides of their atoms on the native end.

    ``source`` is the parameter if that has axes in its name too; ``apart`` are their atoms with their strides on the hf
    end, 0 where they are in the name there."""

    piece: TensorPiece
    steps: Mapping[str, int]
    source: Source | None = None
    apart: Mapping[str, int] = field(default_factory=dict)

    def placed(self, sizes: AxisTable, given: Mapping[str, int]) -> Iterator[TensorPiece]:
        """The piece with the indices of some atoms ``given``: one for each native tensor that it stands for."""
        parameter, (here, there, axes) = self.piece
        here += sum(step * given[atom] for atom, step in self.steps.items())
        if self.source is None or self.source.template is None:
            yield TensorPiece(parameter, Piece(here, there, axes))
            return
        free = [atom for atom in self.apart if atom not in given]
        for indices in itertools.product(*(range(atom_size(atom, sizes)) for atom in free)):
            every = {**given, **dict(zip(free, indices, strict=True))}
            values = {axis: _index(axis, sizes, every) for axis in self.source.axes}
            offset = there + sum(self.apart[atom] * every[atom] for atom in free)
            yield TensorPiece(str(self.source.template.render(values)), Piece(here, offset, axes))


def _index(axis: str, sizes: AxisTable, given: Mapping[str, int]) -> int:
    """The index of an axis, from those of its atoms."""
    index = 0
    for atom in atoms_of(axis, sizes):
        index = index * atom_size(atom, sizes) + given[atom]
    return index


def coalesced(drafts: list[Unplaced]) -> list[Unplaced]:
    """Neighbours that continue each other on both ends become one, as gate and up do in a stack that keeps them."""
    result: list[Unplaced] = []
    for draft in sorted(drafts, key=lambda d: (d.piece.parameter, d.piece.piece.here)):
        if result and (piece := _continued(result[-1], draft)):
            result[-1] = replace(draft, piece=piece)
        else:
            result.append(draft)
    return result


def _continued(first: Unplaced, second: Unplaced) -> TensorPiece | None:
    (parameter, a), (other, b) = first.piece, second.piece
    if parameter != other or (first.steps, first.apart) != (second.steps, second.apart):
        return None
    longer = continued(a, b)
    return None if longer is None else TensorPiece(parameter, longer)
