"""Dialects: other places in which files keep the same thing. Reading moves old places to new; writing moves back.

Config moves apply to one object (config.json, or the object of a part), tensor moves to prefixes of names.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.mapping.model import Dialect, Relocation, TensorEntry
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.notation.versions import version_numbers
from crosswalk.compiler.relations.keys import Names, get, layer_index, put
from crosswalk.compiler.relations.tree import CompiledMapping, Layers, PartNode, nodes_of, part_mapping
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail, shown

_OTHER = "write another one with --dialect; `crosswalk formats NAME` lists them"


def read_dialects(
    mapping: CompiledMapping, config: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], list[Diagnostic]]:
    """The config in its newest form, notes on old places that differed and yielded, and problems."""
    data: dict[str, Any] = copy.deepcopy(dict(config))
    notes: list[str] = []
    problems: list[Diagnostic] = []
    moves = [move for dialect in mapping.source.dialects.values() for move in dialect.config]
    for move in sorted(moves, key=lambda move: -len(move.old)):
        value = get(data, move.old)
        objects = _object_of(move)
        given = objects is not None and get(config, objects) not in (MISSING, None)
        if value is MISSING and not given:
            value = move.default
        if value is MISSING:
            continue
        _remove(data, move.old)
        if value is None or any(same_value(value, unset) for unset in move.unset):
            continue
        if move.when is not None and not _holds(mapping, data, move):
            notes.append(f"`{'.'.join(move.old)}` is {shown(value)} and does not count: not `{move.when.text}`")
            continue
        for new in _places(mapping, data, move):
            if given and get(data, new) is MISSING:  # what is not said there is said by the object that all layers read
                common = get(data, (*_layers(mapping).theirs, new[-1]))
                known = {} if common is MISSING else {new[-1]: common}
                _merge(known, move, move.old, new[-1:], value, notes, problems)
            else:
                _merge(data, move, move.old, new, value, notes, problems)
    return data, notes, problems


def _holds(mapping: CompiledMapping, data: Mapping[str, Any], move: Relocation) -> bool:
    assert move.when is not None
    return bool(Names(data, mapping.defaults, {}).evaluate(move.when, ()))


def _merge(
    data: dict[str, Any],
    move: Relocation,
    old: KeyPath,
    new: KeyPath,
    value: Any,
    notes: list[str],
    problems: list[Diagnostic],
) -> None:
    there = get(data, new)
    if isinstance(value, Mapping) and isinstance(there, Mapping):
        for key, item in value.items():
            _merge(data, move, (*old, key), (*new, key), item, notes, problems)
    elif there is MISSING or there is None:
        _place(data, move, old, new, value, problems)
    elif not same_value(there, value):
        old_key, new_key = ".".join(old), ".".join(new)
        text = f"`{old_key}` says {shown(value)} and `{new_key}` says {shown(there)}"
        if move.yields:
            notes.append(f"{text}: `{new_key}` counts")
        else:
            hint = "the file holds both the old and the new form: remove the wrong one"
            problems.append(Diagnostic("config/dialects-differ", text, None, hint, path=old, rule=move.position))


def _place(
    data: dict[str, Any], move: Relocation, old: KeyPath, new: KeyPath, value: Any, problems: list[Diagnostic]
) -> None:
    """Put a value at its new place. A null on the way is like an absent object; anything else there is wrong."""
    for length in range(1, len(new)):
        found = get(data, new[:length])
        if found is None:
            put(data, new[:length], {})
        elif found is not MISSING and not isinstance(found, Mapping):
            text = f"`{'.'.join(new[:length])}` must be an object for `{'.'.join(old)}`, it is {shown(found)}"
            problems.append(Diagnostic("config/type", text, path=new[:length], rule=move.position))
            return
    put(data, new, value)


def write_dialects(
    mapping: CompiledMapping,
    config: Mapping[str, Any],
    names: Iterable[str],
    effective: Mapping[tuple[str, KeyPath], Any],
) -> dict[str, Any]:
    """The config as the given dialects want it. The newest form stays only if it is among ``names``.

    ``effective`` gives (kind of layer, path) -> value, for places that stand for every layer of a kind. Raises
    ``CrosswalkError`` for what a dialect has no place for.
    """
    wanted = list(names)
    result: dict[str, Any] = copy.deepcopy(dict(config))
    old_places: list[tuple[KeyPath, Any]] = []
    moved: list[KeyPath] = []
    told: set[KeyPath] = set()
    for name in (name for name in wanted if name in mapping.source.dialects):
        dialect = mapping.source.dialects[name]
        for move in sorted((m for m in dialect.config if not m.legacy), key=lambda move: -len(move.new)):
            kind, objects = _kind_of(move), _object_of(move)
            if kind is not None and objects is not None:
                path = move.new[len(objects) + 1 :]
                told.update((*objects, str(index), *path) for index in _indices(mapping, config, kind))
                value = _one_value(mapping, config, effective, dialect, move)
                if value is not MISSING:
                    old_places.append((move.old, value))
                moved.append(objects)
                continue
            value = get(result, move.new)
            if value is MISSING:
                continue
            if isinstance(value, Mapping):
                value = {k: v for k, v in value.items() if (*move.new, k) not in moved}
            if not any(same_value(value, unset) for unset in move.unset):
                old_places.append((move.old, value))
            moved.append(move.new)
    if mapping.source.newest not in wanted:
        for path in moved:
            _check_told(get(result, path), path, told, wanted)
            _remove(result, path)
    for path, value in old_places:
        put(result, path, value)
    return result


def _one_value(
    mapping: CompiledMapping,
    config: Mapping[str, Any],
    effective: Mapping[tuple[str, KeyPath], Any],
    dialect: Dialect,
    move: Relocation,
) -> Any:
    """The value that all layers of a kind have, for the one old place of a move; MISSING if there is nothing to say."""
    kind, objects = _kind_of(move), _object_of(move)
    assert kind is not None
    assert objects is not None
    path = move.new[len(objects) + 1 :]
    value = effective.get((kind, path), MISSING)
    if (kind, path) in effective and (value is MISSING or not _counts(mapping, config, move, path, value)):
        needs = f" with `{move.when.text}`" if move.when is not None else ""
        message = f"dialect `{dialect.name}` has one `{'.'.join(move.old)}` for all layers that are `{kind}`{needs}"
        raise fail("dialect/one-value", message, move.position, _OTHER)
    return value


def dialects_of(mapping: CompiledMapping, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The dialects that a file is in: those whose places it has, in its parts too; without such a place, the one of the
    version that wrote it. None if it says nothing."""
    newest = mapping.source.newest or "newest"
    found: set[str] = set()
    for dialect in mapping.source.dialects.values():
        for move in (move for move in dialect.config if not move.legacy):
            found |= {dialect.name} if get(config, move.old) is not MISSING else set()
            found |= {newest} if get(config, _object_of(move) or move.new[:1]) is not MISSING else set()
    for _, part, value in _parts(mapping, config):
        found |= {name for name in dialects_of(part, value) if name in (newest, *mapping.source.dialects)}
    if not found:
        found = {name for key in mapping.source.versions if (name := _dialect_of_version(mapping, config, key))}
    return tuple(name for name in (newest, *mapping.source.dialects) if name in found)


def without_stale_versions(
    mapping: CompiledMapping, config: Mapping[str, Any], written: Iterable[str]
) -> dict[str, Any]:
    """The config without the version of a library that writes none of the dialects that it is ``written`` in."""
    names = set(written)
    result = copy.deepcopy(dict(config))
    for key in mapping.source.versions:
        dialect = _dialect_of_version(mapping, config, key)
        if dialect is not None and dialect not in names:
            del result[key]
    for path, part, value in _parts(mapping, config):
        put(result, path, without_stale_versions(part, value, names))
    return result


def _parts(
    mapping: CompiledMapping, config: Mapping[str, Any]
) -> Iterator[tuple[KeyPath, CompiledMapping, Mapping[str, Any]]]:
    for node in nodes_of(mapping.root):
        value = get(config, node.part.theirs) if isinstance(node, PartNode) else None
        if isinstance(node, PartNode) and isinstance(value, Mapping):
            try:
                yield node.part.theirs, part_mapping(node, value), value
            except CrosswalkError:
                continue  # importing reports it, with the rule


def _dialect_of_version(mapping: CompiledMapping, config: Mapping[str, Any], key: str) -> str | None:
    """The dialect that the version under ``key`` writes, of those that the mapping has."""
    version = config.get(key)
    numbers = version_numbers(version) if isinstance(version, str) else ()
    known = (mapping.source.newest, *mapping.source.dialects)
    firsts = [(first, name) for name, first in mapping.source.versions[key].items() if name in known]
    return max(((first, name) for first, name in firsts if first <= numbers), default=(None, None))[1]


def choose_dialects(
    mapping: CompiledMapping, asked: str | Iterable[str] | None, origin: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """The dialects to write: what the user asked for (names with ``-`` or ``_``, several joined by commas), else those
    of ``origin``, the config that the checkpoint comes from, else those that the mapping names. One that is about names
    of tensors alone leaves open how the config is written.

    Raises ``CrosswalkError`` for one that the format does not have."""
    newest = mapping.source.newest or "newest"
    if asked is None:
        kept = dialects_of(mapping, origin) if origin is not None else ()
        if kept:
            return kept
        named = [newest if name == "newest" else name for name in mapping.source.write_dialects]
        # One that this mapping has removed may be named by the mapping that it extends.
        return tuple(name for name in named if name in (newest, *mapping.source.dialects)) or (newest,)
    names = asked.split(",") if isinstance(asked, str) else list(asked)
    result = []
    known = (newest, *mapping.source.dialects)
    for given in names:
        name = given.strip().replace("-", "_").replace(".", "_")
        if name == "newest":
            name = newest
        if name not in known:
            listed = ", ".join(n.replace("_", "-") for n in known)
            raise fail("usage/dialect", f"format `{mapping.name}` has no dialect `{given.strip()}`; it has {listed}")
        result.append(name)
    if result and not of_config(mapping, result):  # names of tensors are all that was asked for
        result += choose_dialects(mapping, None, origin)
    return tuple(result)


def of_config(mapping: CompiledMapping, dialects: Iterable[str]) -> set[str]:
    """Those of some dialects that are not about the names of tensors alone."""
    known = mapping.source.dialects
    return {name for name in dialects if name not in known or not known[name].of_names}


def dialect_of_names(mapping: CompiledMapping, names: Iterable[str]) -> Dialect | None:
    """The dialect that the names of tensors are in, by its prefixes or the lines of its sections; None for the newest.
    Raises ``CrosswalkError`` if they mix two."""
    listed = list(names)
    for dialect in mapping.source.dialects.values():
        if not dialect.tensors and not dialect.sections:
            continue
        theirs, instead = _lines(mapping, dialect)
        olds, news = {old for old, _ in dialect.tensors}, {new for _, new in dialect.tensors}
        below_old, below_new = (tuple(f"{prefix}." for prefix in prefixes) for prefixes in (olds, news))
        old = [name for name in listed if name.startswith(below_old) or name in olds or theirs(name)]
        found = set(old)
        new = [name for name in listed if name not in found] if old else []
        mixed = next((name for name in new if name.startswith(below_new) or name in news or instead(name)), None)
        if mixed is not None:
            text = f"tensor names of two dialects in one checkpoint: `{old[0]}` ({dialect.name}) and `{mixed}`"
            raise CrosswalkError(Diagnostic("dialect/mixed", text))
        if old:
            return dialect
    return None


def _lines(mapping: CompiledMapping, dialect: Dialect) -> tuple[Callable[[str], object], Callable[[str], object]]:
    """Whether a name is one that a line of the sections of a dialect gives, and the mapping's own do not; and whether
    one that a line gives which such a line stands for."""
    # A mapping that is in the dialect has its very lines.
    own = {
        (kind, line.theirs.segments): line.position
        for kind, section in mapping.source.sections.items()
        for line in section.tensors
    }
    every = ((kind, line) for kind, section in dialect.sections.items() for line in section.tensors)
    theirs = [(kind, line) for kind, line in every if own.get((kind, line.theirs.segments)) in (None, line.position)]
    instead = [
        old
        for kind, line in theirs
        for old in (mapping.source.sections[kind].tensors if kind in mapping.source.sections else ())
        if old.position != line.position and any(a[: len(b)] == b for a in line.ours for b in old.ours)
    ]
    return _named_by(line for _, line in theirs), _named_by(instead)


def _named_by(lines: Iterable[TensorEntry]) -> Callable[[str], object]:
    """Whether a name ends with that of a line, which may be about a module."""
    names = [
        "".join(re.escape(part) if isinstance(part, str) else r"[^.]+" for part in line.theirs.segments)
        for line in lines
    ]
    if not names:
        return lambda name: None
    return re.compile(rf"(?:.*\.)?(?:{'|'.join(names)})(?:\.weight|\.bias)?").fullmatch


def rename(name: str, moves: Iterable[tuple[str, str]]) -> str:
    """The name with the longest matching prefix replaced, on whole dotted parts."""
    for old, new in sorted(moves, key=lambda move: -len(move[0])):
        if _has_prefix(name, old):
            return new + name[len(old) :]
    return name


def _has_prefix(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _kind_of(move: Relocation) -> str | None:
    holes = [part[1:-1] for part in move.new if part.startswith("{")]
    return holes[0] if holes else None


def _object_of(move: Relocation) -> KeyPath | None:
    """The object whose keys the hole of a move stands for; None without a hole."""
    kind = _kind_of(move)
    return None if kind is None else move.new[: move.new.index("{" + kind + "}")]


def _counts(mapping: CompiledMapping, config: Mapping[str, Any], move: Relocation, path: KeyPath, value: Any) -> bool:
    """Whether a reader of the old place would find ``value``: where the place does not count, the common one holds."""
    common = get(config, (*_layers(mapping).theirs, *path))
    return move.when is None or _holds(mapping, config, move) or same_value(common, value)


def _check_told(objects: Any, path: KeyPath, told: set[KeyPath], wanted: list[str]) -> None:
    """What stands in single layers and no old place holds would be lost."""
    for index, override in objects.items() if isinstance(objects, Mapping) else ():
        for key in override if isinstance(override, Mapping) else ():
            if (*path, str(layer_index(index)), key) not in told:
                where = ".".join((*path, index, key))
                text = f"dialect `{', '.join(wanted)}` has no place for `{where}`"
                raise fail("dialect/no-place", text, None, _OTHER)


def _layers(mapping: CompiledMapping) -> Layers:
    return next(node for node in nodes_of(mapping.root) if isinstance(node, Layers) and node.key is not None)


def _indices(mapping: CompiledMapping, data: Mapping[str, Any], kind: str) -> list[int]:
    """The layers of a kind."""
    layers = _layers(mapping)
    try:
        listed = layers.listed(Names(data, mapping.defaults, {}), 0)
    except CrosswalkError:
        return []  # importing reports it, with the rule
    return [index for index, name in enumerate(listed) if name == kind] if isinstance(listed, list) else []


def _places(mapping: CompiledMapping, data: Mapping[str, Any], move: Relocation) -> list[KeyPath]:
    """The new places of a move: one, or one for each layer of the kind that its hole names."""
    kind, objects = _kind_of(move), _object_of(move)
    if kind is None or objects is None:
        return [move.new]
    after = move.new[len(objects) + 1 :]
    given = get(data, objects)
    written = {layer_index(key): key for key in given} if isinstance(given, Mapping) else {}
    return [(*objects, written.get(index, str(index)), *after) for index in _indices(mapping, data, kind)]


def _remove(data: dict[str, Any], path: KeyPath) -> None:
    """Remove a place, and the objects that this leaves empty."""
    parent = get(data, path[:-1]) if len(path) > 1 else data
    if isinstance(parent, dict) and path[-1] in parent:
        del parent[path[-1]]
        if not parent and len(path) > 1:
            _remove(data, path[:-1])
