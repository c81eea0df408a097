"""Diagnostics as people read them: position, message, the line it is about, and what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from crosswalk.compiler.text.positioned import MAX_BYTES
from crosswalk.runtime.checkpoint.opening import open_regular
from crosswalk.runtime.errors import MOST_SHOWN, Diagnostic, Position, and_more, cut

_WIDTH = 120  # of the part of a source line that is shown


def render(diagnostics: Sequence[Diagnostic], sources: Callable[[str], str | None] | None = None) -> str:
    """Plain text for a terminal, one paragraph a problem, file by file as they were found, and from the top of
    each; duplicates appear once. The first line ends with the code, by which docs/errors.md tells more.

        mappings/llama.yaml:37:26: error: type `attention` has no field `head_group` [mapping/no-such-field]
          37 |     num_key_value_heads: head_group
             |                          ^^^^^^^^^^
          hint: did you mean `head_groups`? (layouts/fast_llm.yaml:169)

    ``sources(file)`` gives the text of a file named in a position, or None if there is none to show; by default it is
    read from disk. A message's further lines follow the excerpt, and then the hint and the line of a mapping that says
    so. Problems without a position come last.
    """
    lines_of = lru_cache(maxsize=None)(lambda file: _lines((sources or _read)(file)))
    files = list(dict.fromkeys(found.place.file for found in diagnostics if found.place))

    def order(found: Diagnostic) -> tuple[int, int, int]:
        at = found.place
        return (files.index(at.file), at.line, at.column) if at else (len(files), 0, 0)

    distinct = sorted(dict.fromkeys(diagnostics), key=order)
    shown = [_paragraph(found, lines_of) for found in distinct[:MOST_SHOWN]]
    return "\n\n".join([*shown, *and_more(len(distinct))])


def _paragraph(found: Diagnostic, lines_of: Callable[[str], list[str]]) -> str:
    where = f"{found.place}: " if found.place else ""
    first, *more = visible(cut(found.message)).split("\n")
    parts = [f"{on_one_line(where)}{found.severity}: {first} [{found.code}]"]
    if found.place:
        parts += _excerpt(found.place, lines_of)
    parts += [f"  {line}".rstrip() for line in more]
    if found.hint:
        parts.append("  hint: " + visible(found.hint).replace("\n", "\n        "))
    if found.position and found.rule:
        parts.append(f"  rule: {on_one_line(str(found.rule))}")
    return "\n".join(parts)


def _excerpt(position: Position, lines_of: Callable[[str], list[str]]) -> list[str]:
    """The source line with its number, and a line that underlines what starts at the column."""
    lines = lines_of(position.file) if position.line else []
    if not 0 < position.line <= len(lines):
        return []
    line = lines[position.line - 1].rstrip()
    number = str(position.line)
    if not 0 < position.column <= len(line) + 1:
        return [f"  {number} | {_cut(line, 0, _WIDTH)}"]
    start = position.column - 1
    length = extent(line, start)
    left = max(0, start - _WIDTH // 2) if len(line) > _WIDTH else 0
    shown = _cut(line, left, left + _WIDTH)
    caret = "^" * max(1, min(length, left + _WIDTH - start))
    return [f"  {number} | {shown}", f"  {' ' * len(number)} | {' ' * (start - left)}{caret}"]


_END = re.compile(r":(?=\s|$)|\s#")


def extent(line: str, start: int) -> int:
    """Length of the YAML key or value that starts at ``start``: to its closing quote or bracket, or its last word."""
    if line[start : start + 1] in ("'", '"'):
        end = line.find(line[start], start + 1)
        return (end + 1 if end > 0 else len(line)) - start
    depth = 0
    end = start
    while end < len(line):
        character = line[end]
        if character in "]})":
            depth -= 1
            if depth < 0:
                break
        elif depth == 0 and (character == "," or _END.match(line, end)):
            break
        elif character in "[{(":
            depth += 1
        end += 1
        if depth == 0 and character in "]}" and line[start] in "[{":
            break
    return len(line[start:end].rstrip())


def _cut(line: str, left: int, right: int) -> str:
    """A window of the line, every character one column wide; the ends are marked where something is left out."""
    shown = re.sub(r"[^ -~\xa0-\U0010ffff]", " ", line)[left:right]
    return ("…" + shown[1:] if left else shown) + ("…" if right < len(line) else "")


def visible(text: str) -> str:
    """Text for a terminal, which must not act on control characters in the names out of a checkpoint, and cannot print
    halves of surrogate pairs: both are shown escaped, and so are characters that have no width."""
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def on_one_line(text: str) -> str:
    """``visible`` text that is a name or a path: the end of a line in it is shown as well."""
    return visible(text).replace("\n", "\\n")


_INVISIBLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)


def _lines(text: str | None) -> list[str]:
    return re.split(r"\r\n|\r|\n", text) if text else []


def _read(file: str) -> str | None:
    try:
        with os.fdopen(open_regular(Path(file)), "rb") as stream:
            return stream.read(MAX_BYTES).decode("utf-8-sig")
    except (OSError, ValueError):
        return None
