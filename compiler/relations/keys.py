"""The Hugging Face side of a config: paths of keys in nested dicts, and the names that expressions may use there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail
from crosswalk.runtime.records import Record


def fill(path: KeyPath, holes: Mapping[str, str]) -> KeyPath:
    """The path with its holes filled in: ``("mixers", "{mixers}")`` with ``mixers`` attn is ``("mixers", "attn")``."""
    return tuple(holes.get(part[1:-1], part) if part[:1] == "{" else part for part in path) if holes else path


def get(data: Any, path: KeyPath) -> Any:
    """The value at a path of keys; MISSING if there is none."""
    for key in path:
        if not isinstance(data, Mapping) or key not in data:
            return MISSING
        data = data[key]
    return data


def put(data: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Place a value, making the objects on the way."""
    for key in path[:-1]:
        data = data.setdefault(key, {})
    data[path[-1]] = value


def placed(data: Mapping[str, Any], path: KeyPath, value: Any) -> dict[str, Any]:
    """A copy of ``data`` with ``value`` at ``path``; only the objects on the way are copied."""
    result = dict(data)
    inner = data.get(path[0])
    result[path[0]] = value if len(path) == 1 else placed(inner if isinstance(inner, Mapping) else {}, path[1:], value)
    return result


def overlaid(data: Mapping[str, Any], at: KeyPath, over: Mapping[str, Any]) -> Mapping[str, Any]:
    """``data`` with the keys of ``over`` laid over the object at a path."""
    if not over:
        return data
    current = get(data, at) if at else data
    merged = {**current, **over}
    return placed(data, at, merged) if at else merged


def leaves(data: Mapping[str, Any], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is no object with entries, with its path."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def layer_index(key: Any) -> int | None:
    """The index of the layer that a key such as ``"05"`` names; None if it names none."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10 else None


class Defaults(Record, frozen=True):
    """What absent keys mean, by path. ``nulls``: those of which a null means that they are absent; of others it is a
    value."""

    values: Mapping[KeyPath, Any]
    nulls: frozenset[KeyPath]

    def of(self, path: KeyPath, value: Any) -> Any:
        """The default that counts in the place of ``value``; MISSING if ``value`` itself does, or there is none."""
        counts = value is MISSING or (value is None and path in self.nulls)
        return self.values.get(path, MISSING) if counts else MISSING


class Names:
    """What names mean in expressions over ``data``: keys of the object at ``at``, absent ones by their defaults.

    ``root`` is what ``root.`` names see where ``data`` is what a single layer reads; by default ``data`` itself.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        defaults: Defaults,
        holes: Mapping[str, str],
        root: Mapping[str, Any] | None = None,
    ) -> None:
        self.data, self.defaults, self.holes = data, defaults, holes
        self.root = data if root is None else root
        self.active: list[KeyPath] = []

    def evaluate(self, what: Any, at: KeyPath, **special: Any) -> Any:
        """A literal as it is; an expression over the object at ``at`` evaluated. ``special`` names are no keys there:
        ``value``, ``layer``, ``kinds``."""
        if not isinstance(what, Expression):
            return what

        def resolve(name: KeyPath) -> Any:
            return special[name[0]] if len(name) == 1 and name[0] in special else self.lookup(name, at)

        return what.evaluate(resolve, lambda name: self.exists(name, at))

    def lookup(self, name: KeyPath, at: KeyPath) -> Any:
        """The value of a dotted name below ``at`` (``root.``: of the outermost object). Raises ``CrosswalkError`` if
        it is not there and has no default."""
        path, data = (name[1:], self.root) if name[0] == "root" else ((*at, *name), self.data)
        value = get(data, fill(path, self.holes))
        default = self.defaults.of(path, value)
        if default is MISSING:
            if value is not MISSING:
                return value
            there = fill(path, self.holes)
            message = f"`{'.'.join(there)}` is needed and not there"
            raise CrosswalkError(Diagnostic("config/missing-key", message, path=there))
        if path in self.active:
            raise fail("mapping/cycle", f"the default of `{'.'.join(path)}` depends on itself")
        self.active.append(path)
        try:
            return self.evaluate(default, path[:-1])
        finally:
            self.active.pop()

    def exists(self, name: KeyPath, at: KeyPath) -> bool:
        """Whether a dotted name below ``at`` (``root.``: of the outermost object) is in the data."""
        path, data = (name[1:], self.root) if name[0] == "root" else ((*at, *name), self.data)
        return get(data, fill(path, self.holes)) is not MISSING
