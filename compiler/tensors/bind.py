"""A mapping bound to one native config: the tensors of both sides with their shapes, before there are files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from crosswalk.compiler.config.taken import Cases
from crosswalk.compiler.layout.cells import Box
from crosswalk.compiler.layout.limit import WITHOUT_FILES, Limit
from crosswalk.compiler.layout.natives import Native, natives_of
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.mapping.model import TensorEntry
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.errors import CrosswalkError, Diagnostic

from .weights import Related, relate_weights


@dataclass(frozen=True)
class Bound:
    """A mapping bound to one native config: both sides' tensors with shapes, before there are dtypes or files.

    ``theirs``: name -> shape of every tensor that is stored; ``duplicates``: name -> the tensor that it is a copy of,
    if a file stores it; ``ignored``: names that may be in a file and are not needed; ``ours``: name -> shape;
    ``padding``: name -> the elements of a native tensor that the hf side does not have, as disjoint boxes. ``cases``:
    what speaks for each object of the native config.
    """

    mapping: CompiledMapping
    ours: Mapping[str, tuple[int, ...]]
    theirs: Mapping[str, tuple[int, ...]]
    duplicates: Mapping[str, str]
    ignored: Mapping[str, TensorEntry]
    related: Sequence[Related] = field(repr=False)
    padding: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    cases: Cases = field(default_factory=dict, repr=False)


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
    weights = relate_weights(mapping.layout, scope, cases, lengths, limit)
    related, duplicates = _split_ties(natives, weights.related)
    theirs: dict[str, tuple[int, ...]] = {}
    problems = []
    for entry in related:
        if entry.tensor.name in theirs:
            problems.append(
                Diagnostic("plan/name-twice", f"two rules make the tensor `{entry.tensor.name}`", entry.line.position)
            )
        theirs[entry.tensor.name] = entry.tensor.shape
    if problems:
        raise CrosswalkError(problems)
    stored = {name: native for name, native in natives.items() if native.tied_to is None}
    shapes = {name: native.shape for name, native in stored.items()}
    padding = {name: native.padding for name, native in stored.items() if native.padding}
    return Bound(mapping, shapes, theirs, duplicates, weights.ignored, related, padding, cases)


def _split_ties(natives: Mapping[str, Native], weights: Sequence[Related]) -> tuple[list[Related], dict[str, str]]:
    """Tensors that are stored, and those of tied parameters with the hf tensor that has the storage."""
    if all(native.tied_to is None for native in natives.values()):
        return list(weights), {}
    owners = {piece.parameter: r.tensor.name for r in weights for piece in r.tensor.pieces}
    related, duplicates = [], {}
    for entry in weights:
        ties = {natives[piece.parameter].tied_to for piece in entry.tensor.pieces}
        if ties == {None} or not ties:
            related.append(entry)
        else:
            (owner,) = ties
            assert owner is not None
            duplicates[entry.tensor.name] = owners[owner]
    return related, duplicates
