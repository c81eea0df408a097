"""Unquoted scalars of YAML 1.2 as values."""

from __future__ import annotations

import math
import re

from crosswalk.runtime.errors import Position, fail, shorten

Scalar = None | bool | int | float | str

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MAX_DIGITS = 80


def scalar_of(text: str, position: Position | None = None) -> Scalar:
    """The value of an unquoted YAML 1.2 (core schema) scalar. Raises CrosswalkError for nan, inf and beyond 64 bits."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    integer = _INTEGER.fullmatch(text)
    if integer and len(text) <= _MAX_DIGITS:
        number = int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if -(2**63) <= number < 2**63:
            return number
    real = _FLOAT.fullmatch(text)
    if real and not integer and len(text) <= _MAX_DIGITS:
        value = float(text)
        if math.isfinite(value):
            return value
    if integer or real or _NOT_FINITE.fullmatch(text):
        problem = "does not fit in 64 bits" if integer else "is not a finite number"
        raise fail("document/number", f"`{shorten(text, 40)}` {problem}", position, "quote it if it is text")
    return text
