"""TOML to positioned containers. tomllib reports no positions, so those of keys come from a scan of the lines."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail

from .positioned import FORBIDDEN, Map, Seq

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\\\n]*"|'[^'\n]*')"""
_PATH = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_LINE = re.compile(rf"[ \t]*(?:(?P<table>\[\[?)[ \t]*(?P<name>{_PATH})[ \t]*\]|(?P<key>{_PATH})[ \t]*=[ \t]*)")


_Place = tuple[str | int, ...]

MAX_LINE = 4000  # tomllib takes time and memory quadratic in the length of a dotted key


def read_toml(text: str, file: str, max_depth: int) -> Map:
    """The document in ``text``. Raises CrosswalkError; see :func:`crosswalk.compiler.text.documents.parse_document`."""
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise fail(
                "document/size", f"a line of more than {MAX_LINE} characters", Position(file, number, MAX_LINE + 1)
            )
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise fail("document/depth", f"more than {max_depth} levels of nesting", Position(file)) from None
    except ValueError as error:  # TOMLDecodeError, or an int of thousands of digits
        found = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        position = Position(file, int(found[1]), int(found[2])) if found else Position(file)
        raise fail("document/syntax", str(error)[: found.start() if found else None], position) from None
    conversion = _Conversion(_positions(text, file, max_depth), max_depth)
    document: Map = conversion.value(data, (), Position(file))
    if conversion.problems:
        raise CrosswalkError(conversion.problems)
    return document


class _Conversion:
    """Values of ``tomllib`` as containers with positions; ``problems`` are what a document may not hold."""

    def __init__(self, positions: Mapping[_Place, tuple[Position, Position]], max_depth: int) -> None:
        self.positions, self.max_depth = positions, max_depth
        self.problems: list[Diagnostic] = []

    def value(self, value: Any, path: _Place, position: Position) -> Any:
        if len(path) >= self.max_depth and isinstance(value, dict | list):
            self.error("document/depth", f"more than {self.max_depth} levels of nesting", position)
            return value
        if isinstance(value, dict):
            table = Map(position)
            for key, item in value.items():
                self.text(key, position)
                key_at, value_at = self.positions.get((*path, key), (position, position))
                table.put(key, self.value(item, (*path, key), value_at), key_at, value_at)
            return table
        if isinstance(value, list):
            array = Seq(position)
            for index, item in enumerate(value):
                item_at = self.positions.get((*path, index), (position, position))[1]
                array.put(self.value(item, (*path, index), item_at), item_at)
            return array
        self.scalar(value, position)
        return value

    def scalar(self, value: Any, position: Position) -> None:
        if isinstance(value, str):
            self.text(value, position)
        elif isinstance(value, float) and not math.isfinite(value):
            self.error("document/number", f"`{value}` is not a finite number", position)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            self.error("document/number", "this number does not fit in 64 bits", position)
        elif not isinstance(value, bool | int | float):
            self.error("document/date", "dates are not allowed", position, "quote it if it is text")

    def text(self, text: str, position: Position) -> None:
        bad = FORBIDDEN.search(text)
        if bad:
            self.error(
                "document/character", f"character U+{ord(bad[0]):04X} is not allowed, nor is its escape", position
            )

    def error(self, code: str, message: str, position: Position, hint: str | None = None) -> None:
        self.problems.append(Diagnostic(code, message, position, hint))


def _positions(text: str, file: str, max_depth: int) -> dict[_Place, tuple[Position, Position]]:
    """Path -> (key, value) positions, as far as lines that start with a key or a table header tell."""
    found: dict[_Place, tuple[Position, Position]] = {}
    lengths: dict[_Place, int] = {}
    table: _Place = ()
    inside_string = ""
    for number, line in enumerate(text.split("\n"), 1):
        match = None if inside_string else _LINE.match(line)
        if match and match["table"]:
            at = Position(file, number, match.start("name") + 1)
            table = _header(_parts(match["name"])[:max_depth], match["table"] == "[[", at, found, lengths)
        elif match:
            key_at = Position(file, number, match.start("key") + 1)
            path = table
            for part in _parts(match["key"])[:max_depth]:
                path = (*path, part)
                found.setdefault(path, (key_at, Position(file, number, match.end() + 1)))
        for quotes in re.findall(r'"""|' + "'''", line):
            if not inside_string or inside_string == quotes:
                inside_string = "" if inside_string else quotes
    return found


def _header(
    parts: list[str],
    is_array: bool,
    at: Position,
    found: dict[_Place, tuple[Position, Position]],
    lengths: dict[_Place, int],
) -> _Place:
    """The path of the table that a header begins; ``lengths`` are those of the arrays of tables so far."""
    table: _Place = ()
    for part in parts:
        table = (*table, part)
        found.setdefault(table, (at, at))
        if table in lengths and table[-1] == part:
            table = (*table, lengths[table] - 1)
    if is_array:
        array = table[:-1] if isinstance(table[-1], int) else table
        lengths[array] = lengths.get(array, 0) + 1
        table = (*array, lengths[array] - 1)
        found[table] = (at, at)
    return table


def _parts(path: str) -> list[str]:
    return [part[1:-1] if part[0] in "\"'" else part for part in re.findall(_KEY, path)]
