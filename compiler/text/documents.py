"""Text to plain data in which every key and every value knows where it was written.

YAML 1.2 and TOML are read into :class:`Map`, :class:`Seq` and plain scalars (None, bool, int, float, str). Keys are
always text, exactly as written: ``05:`` and ``false:`` stay "05" and "false" (:func:`scalar_of` interprets them where a
table needs values). What a mapping has no use for is refused here, with a position: anchors, tags, duplicate keys, nan.
"""

from __future__ import annotations

import os
import re
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml import events as yaml_events
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from crosswalk.runtime.checkpoint.opening import open_regular
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, shorten
from crosswalk.runtime.records import Record

from .positioned import FORBIDDEN, MAX_BYTES, MAX_DEPTH, Map, Seq, describe, did_you_mean
from .scalars import Scalar, scalar_of
from .schema_errors import validate
from .toml import read_toml

__all__ = ["Map", "Scalar", "Seq", "did_you_mean", "load_document", "parse_document", "scalar_of", "validate"]

MAX_VALUES = 50_000
_MAX_PROBLEMS = 100  # a file of garbage must not produce a megabyte of messages


def load_document(path: Path | Traversable, name: str | None = None) -> Map:
    """Read a .yaml (or .json) or .toml file. ``name`` is what positions call it, by default the path.

    Raises CrosswalkError with every problem found; none of them needs a second look at the file.
    """
    file = str(path) if name is None else name
    try:
        with os.fdopen(open_regular(path), "rb") if isinstance(path, Path) else path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise fail("document/read", f"cannot read the file: {error.strerror or error}", Position(file)) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) > MAX_BYTES:  # the cut may be inside a character
            raise _too_large(file) from None
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise fail("document/encoding", "this is not UTF-8 text", Position(file, line, column)) from None
    return parse_document(text, file, "toml" if path.name.endswith(".toml") else "yaml")


def parse_document(text: str, file: str, kind: Literal["yaml", "toml"] = "yaml") -> Map:
    """The mapping that ``text`` holds; ``file`` is the name in positions. Raises CrosswalkError."""
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_large(file)
    bad = FORBIDDEN.search(text)
    if bad:
        line = text.count("\n", 0, bad.start()) + 1
        position = Position(file, line, bad.start() - text.rfind("\n", 0, bad.start()))
        raise fail("document/character", f"character U+{ord(bad[0]):04X} is not allowed", position)
    return read_toml(text, file, MAX_DEPTH) if kind == "toml" else _read_yaml(text, file)


def _too_large(file: str) -> CrosswalkError:
    return fail("document/size", f"the file is larger than {MAX_BYTES >> 20} MiB", Position(file))


class _Unclosed(Record):
    """A collection whose end is not read yet."""

    container: Map | Seq
    offset: int
    key: str | None = None  # None with a key_position: the key was refused, its value goes nowhere
    key_position: Position | None = None  # None: a key comes next


class _Builder:
    """Turns parser events into containers. Not recursive, and it refuses rather than expands."""

    def __init__(self, text: str, file: str):
        self.text = text
        self.file = file
        self.problems: list[Diagnostic] = []
        self.open: list[_Unclosed] = []
        self.documents = 0
        self.values = 0
        self.root: Any = None

    def at(self, mark: Any) -> Position:
        return Position(self.file, mark.line + 1, mark.column + 1)

    def report(self, code: str, message: str, position: Position, hint: str | None = None) -> None:
        self.problems.append(Diagnostic(f"document/{code}", message, position, hint))
        if len(self.problems) >= _MAX_PROBLEMS:
            raise CrosswalkError(self.problems)

    def feed(self, event: Any) -> None:
        match event:
            case yaml_events.DocumentStartEvent():
                self.documents += 1
                if self.documents == 2:
                    self.report("syntax", "a second document starts here", self.at(event.start_mark), "remove `---`")
                if event.version or event.tags:
                    self.report("syntax", "directives (%YAML, %TAG) are not allowed", self.at(event.start_mark))
            case yaml_events.AliasEvent():
                written = self.text[event.start_mark.index : event.end_mark.index].rstrip(":")
                hint = f"write the value out; text that starts with `*` needs quotes: {_quoted(written)}"
                self.report("alias", f"aliases (`{written}`) are not allowed", self.at(event.start_mark), hint)
                self.value(None, event)
            case yaml_events.ScalarEvent():
                self.refuse_properties(event)
                self.scalar(event)
            case yaml_events.CollectionStartEvent():
                self.refuse_properties(event)
                position = self.at(event.start_mark)
                if len(self.open) == MAX_DEPTH:
                    self.report("depth", f"more than {MAX_DEPTH} levels of nesting", position)
                    raise CrosswalkError(self.problems)
                is_map = isinstance(event, yaml_events.MappingStartEvent)
                self.open.append(_Unclosed(Map(position) if is_map else Seq(position), event.start_mark.index))
            case yaml_events.CollectionEndEvent():
                closed = self.open.pop()
                self.value(closed.container, event, closed)

    def refuse_properties(self, event: Any) -> None:
        for symbol, found, what in (("&", event.anchor, "anchors"), ("!", event.ctag, "tags")):
            if found is not None:
                hint = f"text that starts with `{symbol}` needs quotes"
                self.report(
                    "alias" if symbol == "&" else "tag", f"{what} are not allowed", self.at(event.start_mark), hint
                )

    def scalar(self, event: Any) -> None:
        plain = not event.style
        escaped = FORBIDDEN.search(event.value) if event.style == '"' else None
        if escaped:
            message = f"character U+{ord(escaped[0]):04X} is not allowed, nor is its escape"
            self.report("character", message, self.at(event.start_mark))
        parent = self.open[-1] if self.open else None
        if parent is not None and isinstance(parent.container, Map) and parent.key_position is None:
            self.key(parent, event.value, plain, self.at(event.start_mark))
            return
        value = event.value
        if plain:
            try:
                value = scalar_of(value, self.at(event.start_mark))
            except CrosswalkError as error:
                self.problems += error.diagnostics
                value = None
        self.value(value, event)

    def key(self, parent: _Unclosed, key: str, plain: bool, position: Position) -> None:
        assert isinstance(parent.container, Map)
        parent.key, parent.key_position = None, position
        if plain and not key:
            self.report("key", "a key is missing in front of `:`", position, 'an empty name is written ""')
        elif key in parent.container:
            first = parent.container.key_position(key)
            self.report("duplicate", f"`{shorten(key)}` is already written at {first}", position, "keep one of the two")
        else:
            parent.key = key

    def value(self, value: Any, event: Any, closed: _Unclosed | None = None) -> None:
        """Hand a finished value to what contains it; a collection comes with the frame that was just closed."""
        position = closed.container.position if closed else self.at(event.start_mark)
        self.values += 1
        if self.values > MAX_VALUES:
            self.report("size", f"more than {MAX_VALUES} values", position)
            raise CrosswalkError(self.problems)
        if not self.open:
            self.root = value if self.documents == 1 else self.root
            return
        parent = self.open[-1]
        if isinstance(parent.container, Seq):
            parent.container.put(value, position)
        elif parent.key_position is None:  # a collection or an alias where a key belongs
            if closed:
                written = self.text[closed.offset : event.end_mark.index]
                hint = f"a name that starts with `{written[:1]}` needs quotes: {_quoted(written)}"
                self.report("key", "a key must be text, not a mapping or a list", position, hint)
            parent.key_position = position
        else:
            if parent.key is not None:
                parent.container.put(parent.key, value, parent.key_position, position)
            parent.key = parent.key_position = None

    def syntax(self, error: MarkedYAMLError) -> None:
        """Report what the parser stopped at, in place of what it led to reporting before on the same line."""
        problem = str(error.problem or error.context or "syntax error")
        mark = error.problem_mark or error.context_mark
        if error.context_mark and re.search(_NEVER_CLOSED, problem):
            mark = error.context_mark
        if mark is None:
            self.report("syntax", problem, Position(self.file))
            return
        on_line = [found for found in self.problems if found.position and found.position.line == mark.line + 1]
        if any(found.code == "document/alias" for found in on_line):
            return
        self.problems = [found for found in self.problems if found not in on_line]
        lines = re.split(r"\r\n|\r|\n", self.text)
        message, hint, column = _explain(problem, lines[mark.line] if mark.line < len(lines) else "", mark.column)
        self.report("syntax", message, Position(self.file, mark.line + 1, column + 1), hint)


def _read_yaml(text: str, file: str) -> Map:
    builder = _Builder(text, file)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.feed(event)
    except MarkedYAMLError as error:
        builder.syntax(error)
    except (YAMLError, ValueError, IndexError, RecursionError) as error:  # the parser's own slips on garbage
        builder.problems.append(
            Diagnostic("document/syntax", f"this is not YAML: {shorten(str(error))}", Position(file))
        )
    if builder.problems:
        raise CrosswalkError(builder.problems)
    if not isinstance(builder.root, Map):
        found = "nothing" if builder.root is None else describe(builder.root)
        hint = "is a space missing after a `:`?" if isinstance(builder.root, str) else None
        raise fail("document/mapping", f"expected `key: value` lines, found {found}", Position(file), hint)
    return builder.root


_NEVER_CLOSED = r"unexpected end of stream|unexpected document separator|got '<(stream|document) (end|start)>'"

# Each: pattern in the parser's own message, our message (None: keep it), hint. The first that matches is used.
_SYNTAX = (
    (r"'\\t'", "a tab cannot be used here", "indent with spaces"),
    (r"unexpected end of stream|unexpected document separator", "this quote is never closed", None),
    (r"got '<(stream|document) (end|start)>'", "this bracket is never closed", None),
    (r"(sequence entries|mapping keys) are not allowed", None, "text that starts with `- ` or `? ` needs quotes"),
    (r"expected ',' or", "expected `,` or a closing bracket",
     "inside { } and [ ], text that contains any of , [ ] { } or `: ` needs quotes"),
    (r"chomping or indentation|a comment or a line break", None, "text that starts with `|` or `>` needs quotes"),
    (r"expected '<document start>'", "text follows a complete value", "quote the whole"),
    (r"alphabetic or numeric", None, "text that starts with `*` or `&` needs quotes"),
    (r"cannot start any token", None, "text that starts with this character needs quotes"),
    (r"could not find expected ':'", "this line has no `: `", "a key is followed by a colon and a space"),
)  # fmt: skip


def _explain(problem: str, line: str, column: int) -> tuple[str, str | None, int]:
    """Message, hint and column (from 0) for what the parser calls ``problem`` at ``column`` of ``line``."""
    if "mapping values are not allowed" in problem:
        if re.search(r":\s", line[:column]):
            return "a second `: ` in one line", "text that contains `: ` needs quotes", column
        return "this key does not fit the lines before it", _SAME_COLUMN, column
    if "<block end>" in problem:
        # Something follows a complete value: nearly always text that starts with a bracket or a quote.
        start = re.match(r"(?:\s*-\s)*\s*(?:[^\s{\[\"'][^:]*:\s+)?", line[:column])
        offset = start.end() if start else 0
        first = line[offset : offset + 1]
        if offset == column or not first or first not in "{[\"'":
            return "this line does not fit the ones before it", _SAME_COLUMN, column
        if first in "\"'":
            return "the text goes on after its closing quote", "inside '…', write '' for an apostrophe", column
        whole = re.split(r":(?:\s|$)|\s#", line[offset:])[0]
        return (
            "text follows the closing bracket",
            f"text that starts with `{first}` needs quotes: {_quoted(whole)}",
            offset,
        )
    for pattern, message, hint in _SYNTAX:
        if re.search(pattern, problem):
            return message or problem, hint, column
    return problem, None, column


_SAME_COLUMN = "keys of one mapping start in the same column, as do the `-` of one list"


def _quoted(text: str) -> str:
    text = shorten(" ".join(text.split()))
    single = text.replace("'", "''")
    return f"'{single}'" if '"' in text or "\\" in text else f'"{text}"'
