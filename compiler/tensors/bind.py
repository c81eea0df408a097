"""A mapping bound to one native config: the tensors of both sides with their shapes, before there are files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from crosswalk.compiler.config.dialects import rename
from crosswalk.compiler.config.taken import Cases
from crosswalk.compiler.layout.cells import Box
from crosswalk.compiler.layout.limit import WITHOUT_FILES, Limit
from crosswalk.compiler.layout.natives import Native, natives_of
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.mapping.model import TensorEntry
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail
from crosswalk.runtime.records import Record, field, replace

from .pieces import Related, Repeated
from .weights import relate_weights


class Bound(Record, frozen=True):
    """A mapping bound to one native config: both sides' tensors with shapes, before there are dtypes or files.

    ``hf``: name -> shape of every tensor that is stored; ``duplicates``: name -> the tensor that it is a copy of,
    if a file stores it; ``ignored``: names that may be in a file and are not needed; ``native``: name -> shape;
    ``padding``: name -> the elements of a native tensor that the hf side does not have, as disjoint boxes. ``cases``:
    what speaks for each object of the native config.
    """

    mapping: CompiledMapping
    native: Mapping[str, tuple[int, ...]]
    hf: Mapping[str, tuple[int, ...]]
    duplicates: Mapping[str, str]
    ignored: Mapping[str, TensorEntry]
    groups: Sequence[Repeated]
    padding: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    cases: Cases = field(default_factory=dict)

    def renamed(self, moves: Sequence[tuple[str, str]]) -> Bound:
        """The same with prefixes of their names replaced: pairs of old and new."""
        if not moves:
            return self

        def new(name: str) -> str:
            return rename(name, moves)

        return replace(
            self,
            hf={new(name): shape for name, shape in self.hf.items()},
            duplicates={new(name): new(owner) for name, owner in self.duplicates.items()},
            ignored={new(name): line for name, line in self.ignored.items()},
            groups=[_renamed(group, moves) for group in self.groups],
        )

    def lines(self) -> dict[str, TensorEntry]:
        """The line of every hf tensor that is stored."""
        return {
            hf + entry.tensor.name: entry.line
            for group in self.groups
            for _, hf in group.places
            for entry in group.related
        }


def bind(
    mapping: CompiledMapping,
    native: Mapping[str, Any],
    cases: Cases,
    lengths: Mapping[str, int] = MappingProxyType({}),
    limit: Limit = WITHOUT_FILES,
) -> Bound:
    """Bind a mapping to a complete native config, with the ``cases`` that reading or writing it took. ``lengths``: axes
    that are shorter on the hf side; what is beyond is padding (:mod:`~crosswalk.compiler.layout.padded_axes`).
    ``limit``: of the tensors on the hf side.

    Raises ``CrosswalkError`` if a parameter has no tensor, a tensor has two lines, or there are too many.
    """
    scope = Scope(mapping.layout, mapping.root.type, native)
    natives = natives_of(scope, lengths, Limit(found=limit.found))
    weights = relate_weights(scope, cases, lengths, limit)
    groups, duplicates = _without_tied(natives, weights.groups)
    hf = _shapes(groups)
    stored = {name: native for name, native in natives.items() if native.tied_to is None}
    shapes = {name: native.shape for name, native in stored.items()}
    padding = {name: native.padding for name, native in stored.items() if native.padding}
    return Bound(mapping, shapes, hf, duplicates, weights.ignored, groups, padding, cases)


def _renamed(group: Repeated, moves: Sequence[tuple[str, str]]) -> Repeated:
    """A module that a prefix ends in, or below, has names that change in more than what they begin with."""
    if any(f"{old}.".startswith(hf) for _, hf in group.places for old, _ in moves):
        return Repeated(
            [
                entry._replace(
                    tensor=entry.tensor._replace(name=rename(entry.tensor.name, moves)),
                    encoded=entry.encoded and entry.encoded._replace(name=rename(entry.encoded.name, moves)),
                )
                for entry in group.alone
            ]
        )
    return Repeated(group.related, [(native, rename(hf, moves)) for native, hf in group.places])


def _shapes(groups: Sequence[Repeated]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every hf tensor. Raises ``CrosswalkError`` for each that two rules make."""
    result: dict[str, tuple[int, ...]] = {}
    for group in groups:
        shapes = [(entry.tensor.name, entry.tensor.shape) for entry in group.related]
        for _, hf in group.places:
            result.update([(hf + name, shape) for name, shape in shapes])
    if len(result) == sum(len(group.related) * len(group.places) for group in groups):
        return result
    found: set[str] = set()
    problems = []
    for name, line in ((entry.tensor.name, entry.line) for group in groups for entry in group.alone):
        if name in found:
            problems.append(Diagnostic("plan/name-twice", f"two rules make the tensor `{name}`", line.position))
        found.add(name)
    raise CrosswalkError(problems)


def _without_tied(
    natives: Mapping[str, Native], groups: Sequence[Repeated]
) -> tuple[Sequence[Repeated], dict[str, str]]:
    """Tensors that are stored, and those of tied parameters with the hf tensor that has the storage."""
    ties = {name: native.tied_to for name, native in natives.items() if native.tied_to is not None}
    if not ties:
        return groups, {}
    owners: dict[str, str] = {}
    tied: list[tuple[str, str]] = []
    result: list[Repeated] = []
    concerned = (*ties, *ties.values())
    for group in groups:
        if not any(name.startswith(native) for native, _ in group.places for name in concerned):
            result.append(group)
            continue
        alone = list(group.alone)
        owners |= {piece.parameter: entry.tensor.name for entry in alone for piece in entry.tensor.pieces}
        pairs = [(entry, _owner(entry, ties)) for entry in alone]
        tied += [(entry.tensor.name, owner) for entry, owner in pairs if owner is not None]
        result.append(Repeated([entry for entry, owner in pairs if owner is None]))
    return result, {name: owners[of] for name, of in tied}


def _owner(entry: Related, ties: Mapping[str, str]) -> str | None:
    """The native parameter that an hf tensor is a copy of. Raises ``CrosswalkError`` if only a part of it is."""
    found = {piece.parameter: ties.get(piece.parameter) for piece in entry.tensor.pieces}
    owners = set(found.values()) or {None}
    if len(owners) > 1:
        tied = " and ".join(f"`{name}` (tied to `{owner}`)" for name, owner in found.items() if owner is not None)
        message = f"`{entry.tensor.name}` is to hold {' and '.join(found)}, of which {tied} has no storage of its own"
        raise fail("mapping/one-sided", message, entry.line.position, "write a line for each")
    (owner,) = owners
    return owner
