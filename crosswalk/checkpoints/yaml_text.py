"""YAML that means the same to readers of version 1.1 (PyYAML, which the trainer uses) and of version 1.2, written
without a library: importing one takes longer than a small conversion."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: What no reader takes for anything but text: numbers, dates, nulls and merge keys do not start with a letter, but
#: these words do.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))
_PRINTABLE = re.compile(r"[ -~]*")
#: Longer keys are announced by a question mark: readers look no further than 1024 characters for the colon.
_LONGEST_KEY = 128


def dump(document: Mapping[str, Any]) -> str:
    """The text of a document of mappings, lists, texts, numbers, booleans and nulls; keys are sorted."""
    return "\n".join(_lines(document)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    """The lines of a value that begins its own line."""
    if isinstance(value, Mapping) and value:
        for key in sorted(value):
            yield from _entry(key, value[key])
    elif isinstance(value, list | tuple) and value:
        for item in value:
            first, *others = _lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in others)
    else:
        yield _scalar(value)


def _entry(key: str, value: Any) -> Iterator[str]:
    written, short = _text(key), len(key) <= _LONGEST_KEY
    if not short:
        yield f"? {written}"
        written = ""
    if not isinstance(value, Mapping | list | tuple) or not value:
        yield f"{written}: {_scalar(value)}"
        return
    yield f"{written}:"
    indent = "" if short and not isinstance(value, Mapping) else "  "  # a list stands below its key as it is
    yield from (indent + line for line in _lines(value))


def _scalar(value: Any) -> str:
    """A number, boolean, null, text, or what is empty."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value) if isinstance(value, int) else "{}" if isinstance(value, Mapping) else "[]"


def _float(value: float) -> str:
    """``1.0e-05``: version 1.1 knows no float without a dot."""
    text = repr(value)
    if text in ("inf", "-inf", "nan"):
        return text.replace("inf", ".inf").replace("nan", ".nan")
    return text if "." in text else text.replace("e", ".0e")


def _text(text: str) -> str:
    """A text that every reader takes for one. Readers differ in what is a line break, so there is none in it."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    if _PRINTABLE.fullmatch(text):
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(letter: str) -> str:
    code = ord(letter)
    if code < 0x7F and letter.isprintable():
        return f"\\{letter}" if letter in '"\\' else letter
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
