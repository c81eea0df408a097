"""Large files of YAML, read as it means the same to readers of version 1.1 (PyYAML, which the trainer uses) and of
version 1.2: the metadata of a checkpoint lists every tensor, so libyaml reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import yaml

from crosswalk.compiler.text.positioned import Map, Seq
from crosswalk.runtime.errors import CrosswalkError, Position, fail, shorten

MAX_DEPTH = 40
#: Most values of a document in which some stand several times.
MAX_VALUES = 1_000_000
_LOADER: Any = getattr(yaml, "CLoader", yaml.Loader)  # only its parser is used, which makes no objects


class _Shared:
    """What anchors of a document name, with how many values each has; and how many there were so far."""

    def __init__(self) -> None:
        self.anchored: dict[str, tuple[Any, int]] = {}
        self.count = 0


@lru_cache(maxsize=1)  # messages look for positions in what was just read, which may be megabytes
def load(text: str, file: str, shared: bool = False) -> Any:
    """The document, a ``Map`` or ``Seq`` that knows its positions, or a scalar; keys are always text, as written. It is
    shared by all who ask for the same text, so it is not to be changed. ``shared``: values may have anchors, and stand
    elsewhere by their aliases, as PyYAML writes an object that it meets again.

    Raises ``CrosswalkError`` for bad syntax, a key that is there twice, and what can make objects or, unless it is
    ``shared``, multiply the size of a document: tags, aliases and anchors."""
    try:
        return _build(text, file, _Shared() if shared else None)
    except CrosswalkError as error:
        if not shared:
            _parse_again(text, file)  # says more about what is wrong, unless the text is beyond its limits
        raise error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if not shared:
            _parse_again(text, file)
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)[:300]
        raise _refused(f"not valid YAML: {what}", file, mark) from error


def _parse_again(text: str, file: str) -> None:
    """Raise ``CrosswalkError`` with what is wrong with the text as a document of the compiler."""
    from crosswalk.compiler.text.documents import parse_document

    parse_document(text, file)


def _refused(what: str, file: str, mark: Any = None) -> CrosswalkError:
    return fail("native/metadata", what, Position(file, mark.line + 1, mark.column + 1) if mark else Position(file))


def _build(text: str, file: str, shared: _Shared | None) -> Any:
    events = yaml.parse(text, Loader=_LOADER)
    next(events)  # the stream starts
    if isinstance(next(events), yaml.StreamEndEvent):
        return None
    first = next(events)
    document = _value(events, first, _plain(first, file, shared), 0, shared)
    next(events)  # the document ends
    after = next(events)
    if not isinstance(after, yaml.StreamEndEvent):
        raise _refused("a second document starts here", file, after.start_mark)
    return document


def _value(events: Iterator[Any], event: Any, at: Position, depth: int, shared: _Shared | None) -> Any:
    """What starts with ``event``, which is ``at``; the events up to its end are taken."""
    if shared is None:
        return _inside(events, event, at, depth, None)
    if isinstance(event, yaml.AliasEvent):
        if event.anchor not in shared.anchored:
            raise _refused(f"nothing has the anchor `{shorten(str(event.anchor))}`", at.file, event.start_mark)
        value, size = shared.anchored[event.anchor]
    else:
        before, size = shared.count, 1
        value = _inside(events, event, at, depth, shared)
        if event.anchor is not None:
            shared.anchored[event.anchor] = value, shared.count - before + 1
    shared.count += size
    if shared.count > MAX_VALUES:
        raise _refused(f"more than {MAX_VALUES} values with what stands in it again", at.file, event.start_mark)
    return value


def _inside(events: Iterator[Any], event: Any, at: Position, depth: int, shared: _Shared | None) -> Any:
    """A value that stands where it is."""
    file = at.file
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value) if event.implicit[0] else event.value
    if depth == MAX_DEPTH:
        raise _refused(f"more than {MAX_DEPTH} levels of nesting", file, event.start_mark)
    if isinstance(event, yaml.SequenceStartEvent):
        listed = Seq(at)
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            item_at = _plain(item, file, shared)
            listed.put(_value(events, item, item_at, depth + 1, shared), item_at)
        return listed
    mapping = Map(at)
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        key_at = _plain(key, file, None)
        if not isinstance(key, yaml.ScalarEvent):
            raise _refused("a key must be text, not a mapping or a list", file, key.start_mark)
        if key.value in mapping:
            written = f"`{shorten(key.value)}` is already written at {mapping.key_position(key.value)}"
            raise _refused(written, file, key.start_mark)
        first = next(events)
        first_at = _plain(first, file, shared)
        mapping.put(key.value, _value(events, first, first_at, depth + 1, shared), key_at, first_at)
    return mapping


def _plain(event: Any, file: str, shared: _Shared | None) -> Position:
    """Where an event starts. Raises if it has what a plain document does not."""
    is_alias = isinstance(event, yaml.AliasEvent)
    if (shared is None and (is_alias or event.anchor is not None)) or (not is_alias and event.tag is not None):
        raise _refused("aliases, anchors and tags are not allowed here", file, event.start_mark)
    return Position(file, event.start_mark.line + 1, event.start_mark.column + 1)


_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
# With a sign in the exponent: without one it is text to the trainer, which may call a block so.
_FLOAT = re.compile(r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[0-9]+[eE][-+][0-9]+)")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def _scalar(text: str) -> Any:
    """The value of text without quotes, where both versions agree on one; text otherwise."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "", 1)) if _NOT_FINITE.fullmatch(text) else text
