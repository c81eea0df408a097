"""Containers that remember where every key and value was written, and the phrases messages use for them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from crosswalk.runtime.errors import Position, shorten

_NOWHERE = Position("")

#: Of a document.
MAX_BYTES = 1 << 20
MAX_DEPTH = 40

# Control characters, line separators and text-direction overrides (they make a file look like what it is not), lone
# surrogates, and byte order marks.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")


class Map(dict[str, Any]):
    """A mapping as written. ``position`` is its first character."""

    __slots__ = ("_keys", "_values", "position")

    def __init__(self, position: Position = _NOWHERE):
        super().__init__()
        self.position = position
        self._keys: dict[str, Position] = {}
        self._values: dict[str, Position] = {}

    def put(self, key: str, value: Any, key_position: Position, value_position: Position) -> None:
        """Set ``key`` together with its two positions; plain ``map[key] = value`` keeps those it has."""
        self[key] = value
        self._keys[key] = key_position
        self._values[key] = value_position

    def key_position(self, key: str) -> Position:
        """Where ``key`` is written, or the position of the mapping if it is not."""
        return self._keys.get(key, self.position)

    def value_position(self, key: str) -> Position:
        """Where the value of ``key`` starts, or the position of the mapping if it has none."""
        return self._values.get(key, self.position)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_map, (self.position, list(self.items()), self._keys, self._values)


class Seq(list[Any]):
    """A list as written. ``position`` is its first character."""

    __slots__ = ("_items", "position")

    def __init__(self, position: Position = _NOWHERE):
        super().__init__()
        self.position = position
        self._items: list[Position] = []

    def put(self, value: Any, position: Position) -> None:
        """Append ``value`` together with its position."""
        self.append(value)
        self._items.append(position)

    def item_position(self, index: int) -> Position:
        """Where item ``index`` starts, or the position of the list if there is no such item."""
        return self._items[index] if -len(self._items) <= index < len(self._items) else self.position

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_seq, (self.position, list(self), self._items)


def _restore_map(
    position: Position, items: list[tuple[str, Any]], keys: dict[str, Position], values: dict[str, Position]
) -> Map:
    restored = Map(position)
    restored.update(items)
    restored._keys, restored._values = dict(keys), dict(values)
    return restored


def _restore_seq(position: Position, items: list[Any], positions: list[Position]) -> Seq:
    restored = Seq(position)
    restored.extend(items)
    restored._items = list(positions)
    return restored


def describe(value: Any) -> str:
    """A short phrase for a value, as messages use it."""
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return f"the text `{shorten(value)}`"
        case None:
            return "null"
        case bool():
            return str(value).lower()
    return f"the number {value}"


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """A hint that names the most similar of ``candidates``, if any is similar."""
    closest = difflib.get_close_matches(name, list(candidates), 1, 0.7)
    return f"did you mean `{closest[0]}`?" if closest else None
