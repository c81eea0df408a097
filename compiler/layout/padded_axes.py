"""Axes that may be longer on the native side than on the hf side, because what is beyond means nothing: padding.

A layout says which (``pads``). The size of such an axis is one field of the native config, so that another size is
another value of that field, on whichever side, and all else follows from the axis.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from crosswalk.compiler.notation.expressions import Expression
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, shown

from .model import ConfigType

#: No axis is longer: an absurd number is an error, not a plan for a file that no disk holds.
_LARGEST = 1 << 40


def length(kind: ConfigType, config: Mapping[str, Any], axis: str) -> int:
    """The size that a complete native config of type ``kind`` gives to an axis that may be padded."""
    value: Any = config
    for name in _field(kind, axis):
        value = value[name]
    assert isinstance(value, int)
    return value


def resized(kind: ConfigType, config: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, Any]:
    """The config with these sizes of axes that may be padded."""
    result = copy.deepcopy(dict(config)) if lengths else dict(config)
    for axis, size in lengths.items():
        *outer, last = _field(kind, axis)
        inner = result
        for name in outer:
            inner = inner[name]
        inner[last] = size
    return result


def round_up(kind: ConfigType, config: Mapping[str, Any], multiples: Mapping[str, int]) -> dict[str, int]:
    """The size of each axis, rounded up to its multiple; one that is at least the size is the result itself.

    Raises ``CrosswalkError`` with every axis that may not be padded and every number that is no multiple."""
    problems = list(_problems(kind, multiples, "pad", "padded"))
    if problems:
        raise CrosswalkError(problems)
    return {axis: -(-length(kind, config, axis) // multiple) * multiple for axis, multiple in multiples.items()}


def cut_to(kind: ConfigType, config: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, int]:
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


def padded(
    kind: ConfigType, native: Mapping[str, Any], multiples: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, int]]:
    """The native config with every axis rounded up to its multiple, and the sizes before of those that are longer now.
    Raises ``CrosswalkError``, see :func:`round_up`."""
    wanted = round_up(kind, native, multiples)
    lengths = {axis: length(kind, native, axis) for axis, size in wanted.items() if size > length(kind, native, axis)}
    return resized(kind, native, {axis: wanted[axis] for axis in lengths}), lengths


def truncated(
    kind: ConfigType,
    native: Mapping[str, Any],
    remembered: Mapping[str, Mapping[str, int]],
    asked: Mapping[str, int],
    allow_lossy: bool,
) -> dict[str, int]:
    """The sizes on the other side of the axes that are to be cut: those asked for, else those ``from`` which an axis
    was padded, as a checkpoint remembers.

    Raises ``CrosswalkError`` if what it remembers is not what its config says, and unless ``allow_lossy``, if more is
    cut off than is known to be padding."""
    problems: list[Diagnostic] = []
    known: dict[str, int] = {}
    for axis, sizes in remembered.items():
        now = length(kind, native, axis) if axis in kind.pads else None
        if now == sizes["to"]:
            known[axis] = sizes["from"]
        elif axis not in asked:
            says = f"has the size {now} by the config" if now is not None else "is none that may be padded"
            text = f"axis `{axis}` {says}; it was padded from {sizes['from']} to {sizes['to']}"
            hint = f"say how much of it is not padding: --truncate {axis}=SIZE; {now} keeps all" if now else None
            problems.append(Diagnostic("native/padded", text, None, hint))
    try:
        result = cut_to(kind, native, known | dict(asked))
    except CrosswalkError as error:
        raise CrosswalkError((*problems, *error.diagnostics)) from error
    for axis, size in result.items():
        least = known.get(axis, length(kind, native, axis))
        if size < least and not allow_lossy:
            text = f"axis `{axis}`: {least - size} of {length(kind, native, axis)} are not known to be padding"
            hint = f"cut it to {least} or more, or allow it with --allow-lossy (allow_lossy=True)"
            if axis not in known:
                hint = "allow it with --allow-lossy (allow_lossy=True); the checkpoint does not say that it was padded"
            problems.append(Diagnostic("lossy/truncate", text, None, hint))
    if problems:
        raise CrosswalkError(problems)
    return result


def padding_notes(
    kind: ConfigType, native: Mapping[str, Any], lengths: Mapping[str, int], is_import: bool
) -> list[str]:
    """A sentence for each axis that has another size on the other side."""
    result = []
    for axis, size in lengths.items():
        whole = length(kind, native, axis)
        if is_import:
            result.append(f"axis `{axis}` is padded from {size} to {whole} with zeros")
        else:
            result.append(f"axis `{axis}` is cut from {whole} to {size}: the last {whole - size} are left out, unread")
    return result


def _problems(kind: ConfigType, numbers: Mapping[str, int], option: str, done: str) -> Iterator[Diagnostic]:
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
            text = f"axis `{axis}`: {what} is a whole number from 1 on, not {shown(number)}"
            yield Diagnostic(f"usage/{option}", text)


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= _LARGEST


def _field(kind: ConfigType, axis: str) -> list[str]:
    size = kind.axes[axis]
    assert isinstance(size, Expression)
    return size.text.split(".")
