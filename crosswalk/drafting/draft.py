"""A draft as data, and as the text of a mapping file with its questions."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from crosswalk.runtime.records import Record, field

#: What a line that has to be answered ends with.
MARK = "# ?"
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*\Z")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"}
_WIDTH = 120
_LAYERS = "Sequence"


class Draft(Record):
    """``header``: word -> value; ``sections``: section -> ``config``, ``sets`` or ``tensors`` -> left -> right side;
    ``layers``: ``each`` and ``kinds`` of the section ``Sequence``, if they are stated; ``keeps``: keys that mean
    nothing; ``notes``: (section, part, left) -> what stands behind the line, a question if it begins with ``?``;
    ``open``: questions that belong to no line."""

    header: dict[str, Any]
    sections: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    keeps: list[str] = field(default_factory=list)
    notes: dict[tuple[str, str, str], str] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def copy(self) -> Draft:
        """The same, to be changed by itself."""
        return copy.deepcopy(self)

    def put(self, section: str, part: str, left: str, right: Any, note: str = "") -> None:
        """Write a line, in the place of one with the same left side."""
        self.sections.setdefault(section, {}).setdefault(part, {})[left] = right
        if note:
            self.notes[section, part, left] = note

    @property
    def questions(self) -> list[str]:
        """Everything that is not decided."""
        return [note.removeprefix("? ") for note in self.notes.values() if note.startswith("?")] + self.open

    def text(self) -> str:
        """The mapping file."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        count = len(self.questions)
        said = f"{count} question{'s' if count != 1 else ''} to answer, at `{MARK}`" if count else "no question is open"
        yield f"# A draft for {self.header['architecture']}, {said}. Then: crosswalk check, prove, compare."
        yield "crosswalk: 1"
        yield from (f"{word}: {written(value)}" for word, value in self.header.items())
        if self.keeps:
            yield from _wrapped("keeps: [", self.keeps, "]")
        yield from (f"{MARK} {question}" for question in self.open)
        layers = {_LAYERS: self.sections.get(_LAYERS, {})} if self.layers else {}
        for section, parts in {**self.sections, **layers}.items():
            filled = {part: lines for part, lines in parts.items() if lines}
            stated = self.layers if section == _LAYERS else {}
            yield from ("", f"{section}:") if filled or stated else ()
            if stated:
                yield f"  each: {written(stated['each'])}"
                yield "  kinds:"
                yield from (f"    {written(kind)}: {written(lines)}" for kind, lines in stated["kinds"].items())
            for part, lines in filled.items():
                yield f"  {part}:"
                for left, right in lines.items():
                    line = f"    {written(left)}: {written(right)}"
                    note = self.notes.get((section, part, left), "")
                    comment = f"{MARK} {note.removeprefix('? ')}" if note.startswith("?") else f"# {note}"
                    if note and len(line) + len(comment) + 2 > _WIDTH:
                        yield from (f"    {part}" for part in _folded(comment))
                        note = ""
                    yield f"{line}  {comment}" if note else line


def _folded(comment: str) -> Iterator[str]:
    line = ""
    for word in comment.split():
        if len(line) + len(word) > _WIDTH - 8:
            yield line
            line = "#  "
        line = f"{line} {word}" if line else word
    yield line


def _wrapped(head: str, items: list[str], tail: str) -> Iterator[str]:
    line = head
    for number, item in enumerate(items):
        end = "," if number + 1 < len(items) else tail
        if len(line) + len(item) > _WIDTH - 10:
            yield line.rstrip()
            line = "  "
        line += item + end + " "
    yield line.rstrip()


def written(value: Any) -> str:
    """A value as YAML 1.1 and 1.2 both read it, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(key)}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, str):
        plain = _PLAIN.match(value) and value.lower() not in _WORDS
        return value if plain else json.dumps(value, ensure_ascii=False)
    return "~" if value is None else json.dumps(value)
