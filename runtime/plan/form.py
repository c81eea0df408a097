"""What the JSON of a plan must be made of: what ``schema/plan.schema.json`` says, without its library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Raises ``ValueError`` for a value that is not of the form; the text says where it is in the document.
Form = Callable[[Any, str], None]


def check_form(document: Any) -> None:
    """Raise ``ValueError`` unless ``document`` is of the form of a plan. What its numbers mean is for the proof."""
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    missing = _REQUIRED - document.keys()
    unknown = document.keys() - _PARTS.keys()
    if missing or unknown:
        which = "has no" if missing else "has the unknown key"
        raise ValueError(f"it {which} {', '.join(sorted(missing or unknown))!a}")
    for key, value in document.items():
        _PARTS[key](value, key)


def _natural(least: int = 0) -> Form:
    def check(value: Any, at: str) -> None:
        if type(value) is not int or value < least:
            raise ValueError(f"{at} is {_shown(value)}, not a whole number from {least} on")

    return check


def _text(value: Any, at: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{at} is {_shown(value)}, not a text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{at} is {_shown(value)}, which has half of a surrogate pair: it is no text")


def _text_or_null(value: Any, at: str) -> None:
    if value is not None:
        _text(value, at)


def _among(*values: str) -> Form:
    def check(value: Any, at: str) -> None:
        if not isinstance(value, str) or value not in values:
            raise ValueError(f"{at} is {_shown(value)}, not one of {', '.join(values)}")

    return check


def _list(of: Form) -> Form:
    def check(value: Any, at: str) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{at} is {_shown(value)}, not a list")
        for number, entry in enumerate(value):
            of(entry, f"{at}[{number}]")

    return check


def _row(*forms: Form) -> Form:
    def check(value: Any, at: str) -> None:
        if not isinstance(value, list) or len(value) != len(forms):
            raise ValueError(f"{at} is {_shown(value)}, not a list of {len(forms)}")
        for number, (form, entry) in enumerate(zip(forms, value, strict=True)):
            form(entry, f"{at}[{number}]")

    return check


def _json(value: Any, at: str) -> None:
    """An object of texts that can be written again, whatever is in it."""
    if not isinstance(value, dict):
        raise ValueError(f"{at} is {_shown(value)}, not an object")
    left: list[Any] = [value]
    while left:
        inside = left.pop()
        if isinstance(inside, str):
            _text(inside, at)
        elif isinstance(inside, dict):
            left += [*inside.keys(), *inside.values()]
        elif isinstance(inside, list):
            left += inside


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:60] + "..."


_NATURAL, _SIZES = _natural(), _list(_natural())
_EXTENTS, _STRIDES = _list(_natural(2)), _list(_natural(1))
_TENSOR = _row(_text, _SIZES, _text)
_REGIONS = _list(_row(_NATURAL, _EXTENTS, _NATURAL, _STRIDES, _NATURAL))
_REQUIRED = {"crosswalk_plan", "sources", "targets", "copies", "rules", "exemptions", "metadata"}
_PARTS: dict[str, Form] = {
    "crosswalk_plan": _NATURAL,
    "sources": _list(_TENSOR),
    "targets": _list(_TENSOR),
    "copies": _list(_row(_NATURAL, _NATURAL, _EXTENTS, _NATURAL, _STRIDES, _NATURAL, _STRIDES, _NATURAL)),
    "rules": _list(_row(_text, _text, _text)),
    "exemptions": _list(_row(_among("tied", "dropped"), _text, _text_or_null, _text)),
    "metadata": _json,
    "padded": _REGIONS,
    "truncated": _REGIONS,
    "encodings": _list(_row(_text, _text, _row(_TENSOR, _TENSOR), _STRIDES)),
}
