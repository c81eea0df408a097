"""TOML to positioned containers. tomllib reports no positions, so those of keys come from a scan of the lines."""

from __future__ import annotations

import math
import re
import tomllib
from typing import Any

from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail

from .positioned import FORBIDDEN, Map, Seq

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\\\n]*"|'[^'\n]*')"""
_PATH = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_LINE = re.compile(rf"[ \t]*(?:(?P<table>\[\[?)[ \t]*(?P<name>{_PATH})[ \t]*\]|(?P<key>{_PATH})[ \t]*=[ \t]*)")


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
    positions = _positions(text, file, max_depth)
    problems: list[Diagnostic] = []

    def check(text: str, position: Position) -> None:
        bad = FORBIDDEN.search(text)
        if bad:
            message = f"character U+{ord(bad[0]):04X} is not allowed, nor is its escape"
            problems.append(Diagnostic("document/character", message, position))

    def convert(value: Any, path: tuple[str | int, ...], position: Position) -> Any:
        if len(path) >= max_depth and isinstance(value, dict | list):
            problems.append(Diagnostic("document/depth", f"more than {max_depth} levels of nesting", position))
        elif isinstance(value, dict):
            table = Map(position)
            for key, item in value.items():
                check(key, position)
                key_at, value_at = positions.get((*path, key), (position, position))
                table.put(key, convert(item, (*path, key), value_at), key_at, value_at)
            return table
        elif isinstance(value, list):
            array = Seq(position)
            for index, item in enumerate(value):
                item_at = positions.get((*path, index), (position, position))[1]
                array.put(convert(item, (*path, index), item_at), item_at)
            return array
        elif isinstance(value, str):
            check(value, position)
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(Diagnostic("document/number", f"`{value}` is not a finite number", position))
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            problems.append(Diagnostic("document/number", "this number does not fit in 64 bits", position))
        elif not isinstance(value, bool | int | float):
            problems.append(Diagnostic("document/date", "dates are not allowed", position, "quote it if it is text"))
        return value

    document: Map = convert(data, (), Position(file))
    if problems:
        raise CrosswalkError(problems)
    return document


def _positions(text: str, file: str, max_depth: int) -> dict[tuple[str | int, ...], tuple[Position, Position]]:
    """Path -> (key, value) positions, as far as lines that start with a key or a table header tell."""
    found: dict[tuple[str | int, ...], tuple[Position, Position]] = {}
    lengths: dict[tuple[str | int, ...], int] = {}  # of the arrays of tables
    table: tuple[str | int, ...] = ()
    inside_string = ""
    for number, line in enumerate(text.split("\n"), 1):
        match = None if inside_string else _LINE.match(line)
        if match and match["table"]:
            at = Position(file, number, match.start("name") + 1)
            table = ()
            for part in _parts(match["name"])[:max_depth]:
                table = (*table, part)
                found.setdefault(table, (at, at))
                if table in lengths and table[-1] == part:
                    table = (*table, lengths[table] - 1)
            if match["table"] == "[[":
                array = table[:-1] if isinstance(table[-1], int) else table
                lengths[array] = lengths.get(array, 0) + 1
                table = (*array, lengths[array] - 1)
                found[table] = (at, at)
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


def _parts(path: str) -> list[str]:
    return [part[1:-1] if part[0] in "\"'" else part for part in re.findall(_KEY, path)]
