"""Every key of a Hugging Face config is claimed by a rule, at every depth; anything else would be lost in silence."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.keys import get, leaves, put
from crosswalk.compiler.relations.tree import (
    Carried,
    CompiledMapping,
    Entries,
    Layers,
    Nullable,
    PartNode,
    nodes_of,
    part_mapping,
    rules_of,
)
from crosswalk.compiler.text.documents import did_you_mean
from crosswalk.runtime.errors import CrosswalkError, Diagnostic

from .dialects import read_dialects


def unknown_keys(mapping: CompiledMapping, config: Mapping[str, Any], where: KeyPath = ()) -> list[Diagnostic]:
    """A problem for every key that no rule of the mapping (or of its parts) speaks of, and for every value in whose
    place rules look for an object. ``config`` is as in the file."""
    data = read_dialects(mapping, config)[0]
    claims = _Claims(mapping)
    checked = {node.theirs for node in nodes_of(mapping.root) if isinstance(node, (Nullable, Entries))}
    checked |= {node.overrides for node in nodes_of(mapping.root) if isinstance(node, Layers) and node.overrides}
    parts = {node.part.theirs: node for node in nodes_of(mapping.root) if isinstance(node, PartNode)}
    problems = []
    for path, value in _unclaimed(data, (), claims, parts):
        if claims.match(path, claims.prefixes):
            if not claims.match(path, checked):  # else importing reports it, with the rule
                path = (*where, *_as_written(mapping, config, path))
                message = f"`{'.'.join(path)}` must be an object, it is {_shown(value)}"
                problems.append(Diagnostic("config/type", message, path=path))
            continue
        if len(path) == 1 and path[0] in _bare_keys():
            continue
        near = did_you_mean(path[-1], claims.siblings(path[:-1]))
        path = _as_written(mapping, config, path)
        key = ".".join((*where, *path))
        problems.append(
            Diagnostic(
                "config/unknown-key",
                f"`{key}` = {_shown(value)} has no counterpart in mapping `{mapping.name}` ({mapping.source.file})",
                None,
                near
                or f"relate it to a field, or state what can be converted: `{path[-1]}: {{only: {_shown(value)}}}`",
                path=(*where, *path),
            )
        )
    for theirs, node in parts.items():
        value = get(data, theirs)
        if isinstance(value, Mapping):
            try:
                inner = part_mapping(node, value)
            except CrosswalkError:
                continue  # importing reports it, with the rule
            problems += unknown_keys(inner, value, (*where, *theirs))
    return problems


def _as_written(mapping: CompiledMapping, config: Mapping[str, Any], path: KeyPath) -> KeyPath:
    """The place in the file of what reading moved to ``path`` from the old place of a dialect."""
    moves = [move for dialect in mapping.source.dialects.values() for move in dialect.config]
    places = [(*move.old, *path[len(move.new) :]) for move in moves if path[: len(move.new)] == move.new]
    return next((place for place in (path, *places) if get(config, place) is not MISSING), path)


def kept_values(mapping: CompiledMapping, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config holds that means nothing to the trainer and is to be restored, in its own nesting."""
    data = read_dialects(mapping, config)[0]
    result: dict[str, Any] = {}
    kept = {rule.theirs for rule in rules_of(mapping.root) if isinstance(rule, Carried) and rule.kept}
    for path in kept | {(key,) for key in data if (key,) not in mapping.claims and key in _bare_keys()}:
        value = get(data, path)
        if value is not MISSING:
            put(result, path, value)
    for node in nodes_of(mapping.root):
        if isinstance(node, PartNode):
            value = get(data, node.part.theirs)
            if isinstance(value, Mapping):
                put(result, node.part.theirs, kept_values(part_mapping(node, value), value))
    return result


def restore_kept(mapping: CompiledMapping, config: dict[str, Any], old: Mapping[str, Any]) -> None:
    """Add to ``config`` what ``old`` holds that means nothing to the trainer; not below what is no object by now, such
    as a part that the model has no more."""
    for path, value in leaves(kept_values(mapping, old)):
        above = (get(config, path[:length]) for length in range(1, len(path)))
        if get(config, path) is MISSING and all(found is MISSING or isinstance(found, Mapping) for found in above):
            put(config, path, value)


class _Claims:
    """The claimed paths of a mapping, with those of single layers; a hole stands for any key."""

    def __init__(self, mapping: CompiledMapping) -> None:
        paths = {*mapping.claims, *(fact.theirs for fact in mapping.header)}
        for node in nodes_of(mapping.root):
            if isinstance(node, Layers) and node.overrides is not None:
                depth = len(node.theirs)
                below = {path for path in mapping.claims if path[:depth] == node.theirs}
                if node.overridable is not None:
                    below = {path for path in below if path[depth] in node.overridable}
                paths |= {(*node.overrides, "{layer}", *path[depth:]) for path in below}
        self.paths = paths
        self.prefixes = {path[:n] for path in paths for n in range(1, len(path))}
        self.has_holes = {path[:n] for path in paths for n, part in enumerate(path) if part.startswith("{")}

    def match(self, path: KeyPath, among: set[KeyPath]) -> bool:
        if path in among:
            return True
        if not self.has_holes:
            return False
        return any(
            len(other) == len(path) and all(a == b or b.startswith("{") for a, b in zip(path, other, strict=True))
            for other in among
        )

    def siblings(self, parent: KeyPath) -> list[str]:
        return [path[len(parent)] for path in self.paths if path[: len(parent)] == parent and len(path) > len(parent)]


def _unclaimed(
    data: Mapping[str, Any], at: KeyPath, claims: _Claims, parts: Mapping[KeyPath, PartNode]
) -> Iterator[tuple[KeyPath, Any]]:
    for key, value in data.items():
        path = (*at, key)
        if path in parts or claims.match(path, claims.paths):
            continue
        if claims.match(path, claims.prefixes):
            if isinstance(value, Mapping):
                yield from _unclaimed(value, path, claims, parts)
            elif value is not None:
                yield path, value
        else:
            yield path, value


@functools.cache
def _bare_keys() -> frozenset[str]:
    """The keys of a bare PretrainedConfig of the installed transformers (they differ by version); none without one."""
    if importlib.util.find_spec("transformers") is None:
        return frozenset()
    from transformers.configuration_utils import PretrainedConfig

    return frozenset(PretrainedConfig().to_dict())


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
