"""Names of tensors and keys as templates with typed holes.

    hole := {axis} | {index} | {index+N} | {index+index} | {key} | {kind} | {label|label} | {text=label|text=label}

A template is matched by generating its names, never by searching: every hole ranges over something known. What a plain
hole stands for (an index, a key of a dict, an axis) follows from where the template is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from crosswalk.runtime.errors import Position, fail
from crosswalk.runtime.records import Record

from .axes import shifted


class Hole(Record, frozen=True):
    """``{name}`` or ``{name+plus}``. A ``plus`` that is another hole means as many as that one counts."""

    name: str
    plus: int | str = 0

    def __str__(self) -> str:
        return f"{{{self.name}+{self.plus}}}" if self.plus else f"{{{self.name}}}"


class Choice(Record, frozen=True):
    """``{text=label|...}``: one name for each label of a sum. ``options`` are pairs (text, label)."""

    options: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "{" + "|".join(text if text == label else f"{text}={label}" for text, label in self.options) + "}"


Segment: TypeAlias = str | Hole | Choice


class Template(Record, frozen=True, eq=False):
    """Literal text and holes in turn. Equal templates have equal segments, wherever they were written."""

    segments: tuple[Segment, ...]
    position: Position | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self.segments == other.segments

    def __hash__(self) -> int:
        return hash(self.segments)

    @staticmethod
    def parse(text: str, position: Position | None = None) -> Template:
        """Read a name; ``position`` is where it begins. Raises ``CrosswalkError`` (``names/...``) at the mistake."""
        segments: list[Segment] = []
        index = 0
        while index < len(text):
            opening, closing = text.find("{", index), text.find("}", index)
            if closing >= 0 and not 0 <= opening < closing:
                raise fail("names/syntax", "`}` closes no hole", shifted(position, closing))
            if opening < 0:
                segments.append(text[index:])
                break
            if closing < 0 or "{" in text[opening + 1 : closing]:
                raise fail("names/syntax", "this hole is not closed by `}`", shifted(position, opening))
            segments.append(text[index:opening])
            segments.append(_parse_hole(text[opening + 1 : closing], shifted(position, opening)))
            index = closing + 1
        return Template(_joined(segments), position)

    @property
    def holes(self) -> tuple[Hole | Choice, ...]:
        """All holes, from left to right."""
        return tuple(segment for segment in self.segments if not isinstance(segment, str))

    def counted(self, count: Callable[[str], int | None]) -> Template:
        """The template with numbers in place of holes after a ``+``; one whose ``count`` is None stays."""
        return Template(tuple(_counted(segment, count) for segment in self.segments), self.position)

    def render(self, values: Mapping[str, object]) -> Template:
        """Fill the holes whose name is in ``values`` and leave the others. Raises ``CrosswalkError`` for ``{key+N}``
        with a value that is no integer."""
        return Template(_joined(self._fill(segment, values) for segment in self.segments), self.position)

    def _fill(self, segment: Segment, values: Mapping[str, object]) -> Segment:
        if not isinstance(segment, Hole) or segment.name not in values:
            return segment
        value = values[segment.name]
        if not segment.plus:
            return str(value)
        if not isinstance(value, int) or isinstance(segment.plus, str):
            raise fail("names/not-an-index", f"`{segment}`: `{value}` is not an index", self.position)
        return str(value + segment.plus)

    def __str__(self) -> str:
        return "".join(map(str, self.segments))


def _counted(segment: Segment, count: Callable[[str], int | None]) -> Segment:
    number = count(segment.plus) if isinstance(segment, Hole) and isinstance(segment.plus, str) else None
    return segment if number is None or not isinstance(segment, Hole) else Hole(segment.name, number)


def join(prefix: Template, suffix: Template) -> Template:
    """``prefix.suffix``; an empty part vanishes with its dot. The position is that of the suffix, if it has one."""
    dot = (".",) if prefix.segments and suffix.segments else ()
    return Template(_joined((*prefix.segments, *dot, *suffix.segments)), suffix.position or prefix.position)


def _joined(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Neighbouring texts become one and empty ones go, so that equal templates compare equal."""
    result: list[Segment] = []
    for segment in segments:
        last = result[-1] if result else None
        if isinstance(segment, str) and isinstance(last, str):
            result[-1] = last + segment
        elif segment != "":
            result.append(segment)
    return tuple(result)


def _parse_hole(text: str, position: Position | None) -> Hole | Choice:
    if "|" in text or "=" in text:
        return _parse_choice(text, position)
    name, plus, number = (part.strip() for part in text.partition("+"))
    if not _is_identifier(name):
        hint = "an index can be added to, as in {i+1}" if "-" in name else "a hole is {name}, {i+1} or {label|label}"
        raise fail("names/syntax", f"`{{{text}}}` is not a hole", position, hint)
    if plus and _is_identifier(number):
        return Hole(name, number)
    if plus and not (number.isascii() and number.isdigit()):
        raise fail("names/syntax", f"`{{{text}}}`: expected a number or another hole after `+`", position)
    return Hole(name, int(number or "0"))


def _parse_choice(text: str, position: Position | None) -> Choice:
    options = []
    for option in text.split("|"):
        shown, equals, label = (part.strip() for part in option.partition("="))
        options.append((shown, label) if equals else (shown, shown))
        if not _is_identifier(options[-1][1]):
            raise fail("names/syntax", f"`{options[-1][1]}` in `{{{text}}}` is not a label", position)
    for what, column in (("text", 0), ("label", 1)):
        values = [option[column] for option in options]
        for value in dict.fromkeys(value for value in values if values.count(value) > 1):
            raise fail("names/duplicate", f"the {what} `{value}` is twice in `{{{text}}}`", position)
    return Choice(tuple(options))


def _is_identifier(text: str) -> bool:
    return text.rstrip("'").isidentifier()
