"""Every key of a Hugging Face config is claimed by a rule, at every depth; anything else would be lost in silence."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.mapping.model import Entry
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.keys import get, put
from crosswalk.compiler.relations.rules import Carried
from crosswalk.compiler.relations.tree import (
    CaseNode,
    CompiledMapping,
    Entries,
    Layers,
    Nullable,
    PartNode,
    nodes_of,
    part_mapping,
    rules_of,
)
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, shorten, shown

from .dialects import read_dialects


def kept_names(keep: str | Iterable[str]) -> tuple[str, ...]:
    """The dotted keys of ``--keep``: one text or several, each with one key or several between commas."""
    texts = (keep,) if isinstance(keep, str) else tuple(keep)
    return tuple(dict.fromkeys(name for text in texts for part in text.split(",") if (name := part.strip())))


MAX_LISTED = 60  # keys in one message


class Unknown(NamedTuple):
    """A key that no rule speaks of: its place in the file, its value, and what keys beside it are known and absent."""

    path: KeyPath
    value: Any
    siblings: Callable[[], Iterable[str]]

    def __str__(self) -> str:
        return f"`{shorten('.'.join(self.path))}` = {shown(self.value, 60)}"

    @property
    def near(self) -> str | None:
        """What may have been meant."""
        return did_you_mean(shorten(self.path[-1]), self.siblings())


def unknown_keys(mapping: CompiledMapping, config: Mapping[str, Any], keep: Iterable[str] = ()) -> list[Diagnostic]:
    """What stands in a config and cannot be accounted for: one problem for all keys that no rule of the mapping (or of
    its parts) speaks of, unless ``keep`` names them (dotted); one for every key that asks for a feature of other
    formats, for every value in whose place rules look for an object, and for every name in ``keep`` that is none of
    those keys. ``config`` is as in the file."""
    found = list(_survey(mapping, config, ()))
    asked = list(dict.fromkeys(keep))
    problems = [one for one in found if isinstance(one, Diagnostic)]
    unknown = [one for one in found if isinstance(one, Unknown)]
    left = [one for one in unknown if ".".join(one.path) not in asked]
    if left:
        problems.append(_not_understood(mapping, left))
    known = {".".join(one.path) for one in unknown} | {".".join(path) for path, *_ in _carried(mapping, config, ())}
    return [*problems, *_check_keep(mapping, config, [name for name in asked if name not in known])]


def _not_understood(mapping: CompiledMapping, unknown: list[Unknown]) -> Diagnostic:
    why = f"mapping `{mapping.name}`, and what the model computes may depend on"
    listed = unknown[:MAX_LISTED]
    whole = ",".join(".".join(one.path) for one in listed)
    names = shlex.quote(whole if len(whole) < 2000 else ",".join(shorten(".".join(one.path)) for one in listed))
    if len(unknown) == 1:
        message = f"{unknown[0]} has no counterpart in {why} it"
        near = f"{unknown[0].near} " if unknown[0].near else ""
        hint = f"{near}if the model is the same without it, carry it along, to be restored on export"
    else:
        lines = [f"{one}{f' ({one.near})' if one.near else ''}" for one in listed]
        more = [f"and {len(unknown) - MAX_LISTED} more"] if len(unknown) > MAX_LISTED else []
        message = "\n".join((f"{len(unknown)} keys have no counterpart in {why} them:", *lines, *more))
        hint = "if the model is the same without them, carry them along, to be restored on export"
    hint = f"{hint}: --keep {names} (in Python, keep=)"
    return Diagnostic("config/unknown-key", message, None, hint, path=unknown[0].path)


def _check_keep(mapping: CompiledMapping, config: Mapping[str, Any], names: list[str]) -> Iterator[Diagnostic]:
    for name in names:
        path = _place(config, name)
        if path is None:
            keys = {key for key, _ in _dotted(config)}
            hint = did_you_mean(name, keys) or "name a key of config.json, nested ones with dots"
            yield Diagnostic("usage/keep", f"there is no key `{name}` to keep", None, hint)
        else:
            text = f"`{name}` cannot be kept as it is: format `{mapping.name}` knows what it means"
            yield Diagnostic("usage/keep", text, None, "leave it out of --keep", path=path)


def _place(config: Mapping[str, Any], name: str) -> KeyPath | None:
    """The path of a dotted name; keys may have dots of their own."""
    return next((path for key, path in _dotted(config) if key == name), None)


def _dotted(config: Mapping[str, Any], at: KeyPath = ()) -> Iterator[tuple[str, KeyPath]]:
    for key, value in config.items():
        yield ".".join((*at, key)), (*at, key)
        if isinstance(value, Mapping):
            yield from _dotted(value, (*at, key))


def _survey(mapping: CompiledMapping, config: Mapping[str, Any], where: KeyPath) -> Iterator[Unknown | Diagnostic]:
    """The keys that no rule speaks of, and what is wrong with others; ``where`` is the object of the mapping."""
    data = read_dialects(mapping, config)[0]
    claims = _Claims(mapping)
    checked = {node.theirs for node in nodes_of(mapping.root) if isinstance(node, (Nullable, Entries))}
    checked |= {node.overrides for node in nodes_of(mapping.root) if isinstance(node, Layers) and node.overrides}
    parts = {node.part.theirs: node for node in nodes_of(mapping.root) if isinstance(node, PartNode)}
    undecided = set(_undecided(mapping, data))
    for path, value in _unclaimed(data, (), claims, parts):
        written = (*where, *as_written(mapping, config, path))
        if not claims.match(path, claims.prefixes):
            if path[:-1] not in undecided and (len(path) > 1 or not _is_empty(value)):
                yield Unknown(written, value, partial(_absent, data, path[:-1], claims))
        elif not claims.match(path, checked):  # else importing reports it, with the rule
            message = f"`{'.'.join(written)}` must be an object, it is {shown(value, 60)}"
            yield Diagnostic("config/type", message, path=written)
    yield from _features(mapping, config, data, where)
    for theirs, node in parts.items():
        value = get(data, theirs)
        if isinstance(value, Mapping):
            try:
                inner = part_mapping(node, value)
            except CrosswalkError:
                continue  # importing reports it, with the rule
            yield from _survey(inner, value, (*where, *theirs))


def _absent(data: Mapping[str, Any], at: KeyPath, claims: _Claims) -> list[str]:
    """The keys of the object at a path that rules speak of and that are not there."""
    return [name for name in claims.siblings(at) if get(data, (*at, name)) is MISSING]


def _undecided(mapping: CompiledMapping, data: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Objects inside of a config that say to be of a kind that there is not, which importing reports: of the keys of
    such an object nothing can be said."""
    for node in nodes_of(mapping.root):
        if isinstance(node, CaseNode) and len(node.key) > 1:
            value = get(data, node.key)
            if isinstance(value, str) and not any(case.value == value for case in node.cases):
                yield node.key[:-1]


def _features(
    mapping: CompiledMapping, config: Mapping[str, Any], data: Mapping[str, Any], where: KeyPath
) -> Iterator[Diagnostic]:
    """Keys that are carried at some values alone and have another."""
    for rule in rules_of(mapping.root):
        if isinstance(rule, Carried) and rule.line.values:
            value = get(data, rule.theirs)
            if value is not MISSING and not _says_nothing(rule, value):
                path = (*where, *as_written(mapping, config, rule.theirs))
                allowed = " or ".join(map(shown, rule.line.values))
                text = (
                    f"`{'.'.join(path)}` = {shown(value, 60)} asks for {rule.line.why or ''},"
                    f" which format `{mapping.name}` does not have; it can be converted at {allowed}"
                )
                hint = "take the key out of config.json if the class of this model does not look at it"
                yield Diagnostic("config/unsupported", text, None, hint, path=path)


def _says_nothing(rule: Carried, value: Any) -> bool:
    return not rule.line.values or _is_empty(value) or any(same_value(value, allowed) for allowed in rule.line.values)


def asked_features(entries: Iterable[Entry], config: Mapping[str, Any]) -> list[str]:
    """The features that the keys of an object ask for, by lines of ``harmless:``."""
    return [
        entry.why or ""
        for entry in entries
        if entry.values
        and (value := get(config, entry.theirs)) is not MISSING
        and not _is_empty(value)
        and not any(same_value(value, allowed) for allowed in entry.values)
    ]


def _is_empty(value: Any) -> bool:
    """Whether a value of a key that nothing speaks of is as if it were absent."""
    return value is None or (isinstance(value, (Mapping, list)) and not value)


def as_written(mapping: CompiledMapping, config: Mapping[str, Any], path: KeyPath) -> KeyPath:
    """The place in the file of what reading moved to ``path`` from the old place of a dialect."""
    moves = [move for dialect in mapping.source.dialects.values() for move in dialect.config]
    places = [(*move.old, *path[len(move.new) :]) for move in moves if path[: len(move.new)] == move.new]
    return next((place for place in (path, *places) if get(config, place) is not MISSING), path)


def _carried(
    mapping: CompiledMapping, config: Mapping[str, Any], where: KeyPath
) -> Iterator[tuple[KeyPath, KeyPath, Any]]:
    """What a config holds that means nothing to the trainer and is to be restored: its place in the file, its place in
    the newest dialect, and its value. What nothing speaks of was accepted because it is empty, or by name."""
    data = read_dialects(mapping, config)[0]
    claims = _Claims(mapping)
    parts = {node.part.theirs: node for node in nodes_of(mapping.root) if isinstance(node, PartNode)}
    kept = {rule.theirs for rule in rules_of(mapping.root) if isinstance(rule, Carried) and rule.kept}
    stored = mapping.source.encodings  # what these keys say is no longer true
    found = (path for path, _ in _unclaimed(data, (), claims, parts) if not claims.match(path, claims.prefixes))
    unclaimed = [path for path in found if where or path[0] not in stored]
    for path in (*kept, *((".".join(path),) for path in kept if len(path) > 1), *unclaimed):
        value = get(data, path)
        if value is not MISSING:
            yield (*where, *as_written(mapping, config, path)), (*where, *path), value
    for theirs, node in parts.items():
        value = get(data, theirs)
        if isinstance(value, Mapping):
            with contextlib.suppress(CrosswalkError):  # importing reports it, with the rule
                yield from _carried(part_mapping(node, value), value, (*where, *theirs))


def restore_kept(mapping: CompiledMapping, config: dict[str, Any], old: Mapping[str, Any]) -> None:
    """Add to ``config`` what ``old`` holds that means nothing to the trainer; not below what is no object by now, such
    as a part that the model has no more, and what the mapping does not know only where its object is there still."""
    declared = {rule.theirs for rule in rules_of(mapping.root) if isinstance(rule, Carried)}
    for written, newest, value in _carried(mapping, old, ()):
        places = [path for path in (written, newest) if len(path) == 1 or isinstance(get(config, path[:-1]), Mapping)]
        above = (get(config, newest[:length]) for length in range(1, len(newest)))
        if not places and newest in declared and all(found is MISSING or isinstance(found, Mapping) for found in above):
            places = [newest]
        if places and get(config, places[0]) is MISSING:
            put(config, places[0], value)


def left_to_the_class(mapping: CompiledMapping, config: Mapping[str, Any], where: KeyPath = ()) -> dict[str, Any]:
    """The kept keys that a config.json does not hold though they matter to who uses the model, dotted, with what the
    class takes for them: ``unknown`` where the mapping does not know."""
    missing = {key: value for key, value in mapping.source.class_defaults.items() if key not in config}
    result = {".".join((*where, key)): value for key, value in missing.items()}
    for node in nodes_of(mapping.root):
        if isinstance(node, PartNode):
            value = get(config, node.part.theirs)
            if isinstance(value, Mapping):
                result |= left_to_the_class(part_mapping(node, value), value, (*where, *node.part.theirs))
    return result


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
        self.carried = {rule.theirs for rule in rules_of(mapping.root) if isinstance(rule, Carried) and rule.kept}
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
        """The keys of an object that mean something to the trainer."""
        depth = len(parent)
        return [path[depth] for path in self.paths - self.carried if path[:depth] == parent and len(path) > depth]


def _unclaimed(
    data: Mapping[str, Any], at: KeyPath, claims: _Claims, parts: Mapping[KeyPath, PartNode]
) -> Iterator[tuple[KeyPath, Any]]:
    for key, value in data.items():
        path = (*at, key)
        dotted = (*at, *key.split("."))  # a key may have dots of its own
        if path in parts or claims.match(path, claims.paths) or claims.match(dotted, claims.paths):
            continue
        if claims.match(path, claims.prefixes):
            if isinstance(value, Mapping):
                yield from _unclaimed(value, path, claims, parts)
            elif value is not None:
                yield path, value
        else:
            yield path, value
