"""A mapping as a function of a config, and the lines of it that speak of a key or a field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from crosswalk.compiler.config.coverage import restore_kept
from crosswalk.compiler.config.taken import related_training
from crosswalk.compiler.layout.differences import Difference, differing
from crosswalk.compiler.layout.scope import Scope, as_stored
from crosswalk.compiler.pipeline import PlanOptions, export_model, import_model
from crosswalk.compiler.relations.inverse import ROUNDING
from crosswalk.compiler.relations.rules import FieldRule, OursFact, TheirsFact
from crosswalk.compiler.relations.tree import CaseNode, CompiledMapping, Layers, Nullable, PartNode, nodes_of, rules_of
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Position

from .values import Path, leaves

Config = Mapping[str, Any]
Native = Mapping[str, Any]


def native_of(mapping: CompiledMapping, config: Config) -> Native | CrosswalkError:
    """The native config, or why the mapping refuses it."""
    try:
        return import_model(mapping, config, PlanOptions())
    except CrosswalkError as error:
        return error


def written(mapping: CompiledMapping, native: Native, config: Config, dialect: str | None = None) -> dict[str, Any]:
    """config.json of a native config, with what means nothing to the trainer as in ``config``. Raises
    ``CrosswalkError`` for what the format cannot hold."""
    result = export_model(mapping, native, PlanOptions(dialect=dialect, trusted=True))
    restore_kept(mapping, result, config)
    return result


def differences(mapping: CompiledMapping, first: Native, second: Native, trained: bool = True) -> list[Difference]:
    """The fields in which two native configs are different models; ``trained``: or are trained differently, as far as
    the mapping relates it."""
    layout, kind = mapping.layout, mapping.root.type
    one, other = (Scope(layout, kind, as_stored(layout, kind, native)) for native in (first, second))
    return list(differing(one, other, related_training(mapping) if trained else ()))


def rounds(mapping: CompiledMapping) -> bool:
    """Whether a line of a mapping says that what it writes is read as it was but for rounding."""
    return any(isinstance(rule, FieldRule) and rule.line.rounded for rule in rules_of(mapping.root))


def only_rounded(mapping: CompiledMapping, difference: Difference) -> bool:
    """Whether a difference is no more than what such a line allows."""
    if not difference.floats or not rounds(mapping):
        return False
    return math.isclose(float(difference.first), float(difference.second), rel_tol=ROUNDING)


def line_of_key(mapping: CompiledMapping, path: Path) -> Position:
    """The line that speaks of a key of config.json, or of the object that it is in; the mapping if none does."""
    best: tuple[int, Position] = (0, mapping.source.position)
    for place, position in _key_lines(mapping, ()):
        shared = len(place) if _matches(place, path[: len(place)]) else 0
        if shared > best[0]:
            best = shared, position
    return best[1]


def _matches(place: Path, path: Path) -> bool:
    return len(place) == len(path) and all(a == b or a.startswith("{") for a, b in zip(place, path, strict=True))


def _key_lines(mapping: CompiledMapping, at: Path) -> Iterator[tuple[Path, Position]]:
    for rule in rules_of(mapping.root):
        for place in rule.places():
            yield (*at, *place), rule.position
    for node in nodes_of(mapping.root):
        match node:
            case Nullable():
                yield (*at, *node.theirs), node.position
            case CaseNode():
                yield (*at, *node.key), node.position
            case Layers():
                yield (*at, *node.count), node.position
                if node.key:
                    yield (*at, *node.key), node.position
            case PartNode():
                for inner in node.mappings:
                    yield from _key_lines(inner, (*at, *node.part.theirs))


def values_at(mapping: CompiledMapping, path: Path) -> list[Any]:
    """The values that the mapping tells apart at a key."""
    nodes = [node for node in nodes_of(mapping.root) if isinstance(node, CaseNode)]
    found = [case.value for node in nodes if _matches(node.key, path) for case in node.cases]
    for rule in rules_of(mapping.root):
        if isinstance(rule, FieldRule) and rule.table and any(_matches(place, path) for place in rule.places()):
            found += [row.theirs for row in rule.table if not row.lossy]
    return found


def same_name(mapping: CompiledMapping, path: Path, one: Any, other: Any) -> bool:
    """Whether two texts at a key are names of the same, such as `gelu_new` and `gelu_pytorch_tanh`."""
    return isinstance(one, str) and other in list(_kept(mapping, path, one))


def without_loss(mapping: CompiledMapping, config: Config, refused: CrosswalkError) -> dict[Path, tuple[Any, Any]]:
    """Where a config is refused for nothing but what would be lost: the keys that lose, each with its value and with
    the one that the trainer computes. Empty where it is refused for anything else."""
    lost = dict(leaves(config))
    found: dict[Path, tuple[Any, Any]] = {}
    for problem in refused.diagnostics:
        value = lost.get(problem.path)
        kept = next(_kept(mapping, problem.path, value), None) if problem.code == "config/lossy" else None
        if kept is None:
            return {}
        found[problem.path] = value, kept
    return found


def _kept(mapping: CompiledMapping, path: Path, value: Any) -> Iterator[Any]:
    for rule in rules_of(mapping.root):
        if isinstance(rule, FieldRule) and rule.table and any(_matches(place, path) for place in rule.places()):
            ours = [row.ours for row in rule.table if same_value(row.theirs, value)]
            yield from (row.theirs for row in rule.table if row.ours in ours and not row.lossy)
        elif isinstance(rule, TheirsFact) and rule.line.lossy is not None and _matches(rule.theirs, path):
            yield from rule.line.values


def line_of_field(mapping: CompiledMapping, path: Path) -> Position:
    """The line that relates or states a native field; the mapping if none does."""
    ends = [
        (len(rule.ours), rule.position)
        for rule in rules_of(mapping.root)
        if isinstance(rule, (FieldRule, OursFact)) and path[-len(rule.ours) :] == rule.ours
    ]
    return max(ends, key=lambda end: end[0])[1] if ends else mapping.source.position
