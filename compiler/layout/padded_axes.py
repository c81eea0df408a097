"""Axes that may be longer on our side than on theirs, because what is beyond means nothing: padding.

A layout says which (``pads``). The size of such an axis is one field of the native config, so that another size is
another value of that field, on whichever side, and all else follows from the axis.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from crosswalk.compiler.notation.expressions import Expression
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import CrosswalkError, Diagnostic

from .model import Type

#: No axis is longer: an absurd number is an error, not a plan for a file that no disk holds.
_LARGEST = 1 << 40


def length(kind: Type, config: Mapping[str, Any], axis: str) -> int:
    """The size that a complete native config of type ``kind`` gives to an axis that may be padded."""
    value: Any = config
    for name in _field(kind, axis):
        value = value[name]
    assert isinstance(value, int)
    return value


def resized(kind: Type, config: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, Any]:
    """The config with these sizes of axes that may be padded."""
    result = copy.deepcopy(dict(config)) if lengths else dict(config)
    for axis, size in lengths.items():
        *outer, last = _field(kind, axis)
        inner = result
        for name in outer:
            inner = inner[name]
        inner[last] = size
    return result


def round_up(kind: Type, config: Mapping[str, Any], multiples: Mapping[str, int]) -> dict[str, int]:
    """The size of each axis, rounded up to its multiple; one that is at least the size is the result itself.

    Raises ``CrosswalkError`` with every axis that may not be padded and every number that is no multiple."""
    problems = list(_problems(kind, multiples, "pad", "padded"))
    if problems:
        raise CrosswalkError(problems)
    return {axis: -(-length(kind, config, axis) // multiple) * multiple for axis, multiple in multiples.items()}


def cut_to(kind: Type, config: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, int]:
    """The sizes asked for, without those that the axes have anyway.

    Raises ``CrosswalkError`` with every axis that may not be truncated and every size that is none or too large."""
    problems = list(_problems(kind, lengths, "truncate", "truncated"))
    for axis, size in lengths.items():
        if axis in kind.pads and _is_size(size) and size > length(kind, config, axis):
            text = f"axis `{axis}` has the size {length(kind, config, axis)}: it cannot be truncated to {size}"
            problems.append(Diagnostic("usage/truncate", text))
    if problems:
        raise CrosswalkError(problems)
    return {axis: size for axis, size in lengths.items() if size != length(kind, config, axis)}


def _problems(kind: Type, numbers: Mapping[str, int], option: str, done: str) -> Iterator[Diagnostic]:
    what = "a multiple" if option == "pad" else "a size"
    may = f"axes that may be {done}: {', '.join(kind.pads) or 'none'}"
    for axis, number in numbers.items():
        if axis not in kind.pads:
            text = f"there is no axis `{axis}` that may be {done}"
            hint = did_you_mean(str(axis), kind.pads) or may
            if axis in kind.axes:
                text = f"axis `{axis}` may not be {done}: the model would be another one"
            yield Diagnostic(f"usage/{option}", text, None, hint)
        if not _is_size(number):
            text = f"axis `{axis}`: {what} is a whole number from 1 on, not {number!r}"
            yield Diagnostic(f"usage/{option}", text)


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= _LARGEST


def _field(kind: Type, axis: str) -> list[str]:
    size = kind.axes[axis]
    assert isinstance(size, Expression)
    return size.text.split(".")
