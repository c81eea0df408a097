"""Axes that a native checkpoint has longer than the Hugging Face checkpoint it came from: what is asked for, what is
remembered, and what a user is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from crosswalk.compiler.layout.model import Type
from crosswalk.compiler.layout.padded_axes import cut_to, length, resized, round_up
from crosswalk.compiler.text.positioned import shorten
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail

#: Axis -> a number: a multiple to pad to, or a size.
Sizes = Mapping[str, int]


def check_direction(to: str | None, pad: Sizes | None, truncate: Sizes | None) -> None:
    """Raise for ``pad`` in a conversion to ``hf``, and for ``truncate`` in one to a layout."""
    if to == "hf" and pad:
        hint = "leave out --pad: what the checkpoint remembers as padding is cut off"
        raise fail("usage/pad", "axes are padded on the way to a layout, and this is a conversion to `hf`", None, hint)
    if to != "hf" and truncate:
        text = "axes are truncated on the way to `hf`, and this is a conversion to a layout"
        raise fail("usage/truncate", text, None, "leave out --truncate")


def padded(kind: Type, native: Mapping[str, Any], multiples: Sizes | None) -> tuple[dict[str, Any], dict[str, int]]:
    """The native config with every axis rounded up to its multiple, and the sizes before of those that are longer now.
    Raises ``CrosswalkError``, see :func:`crosswalk.compiler.layout.padded_axes.round_up`."""
    wanted = round_up(kind, native, multiples or {})
    lengths = {axis: length(kind, native, axis) for axis, size in wanted.items() if size > length(kind, native, axis)}
    return resized(kind, native, {axis: wanted[axis] for axis in lengths}), lengths


def record(kind: Type, native: Mapping[str, Any], lengths: Sizes) -> dict[str, Any]:
    """What a native checkpoint remembers of its padding; nothing if there is none."""
    if not lengths:
        return {}
    return {"padded": {axis: {"from": size, "to": length(kind, native, axis)} for axis, size in lengths.items()}}


def truncated(
    kind: Type,
    native: Mapping[str, Any],
    origin: Mapping[str, Any],
    truncate: Sizes | None,
    allow_lossy: bool,
    where: Position,
) -> dict[str, int]:
    """The sizes on the other side of the axes that are to be cut: those asked for, else those that the checkpoint
    remembers in ``origin``.

    Raises ``CrosswalkError`` if what it remembers is not what its config says, and unless ``allow_lossy``, if more is
    cut off than is known to be padding."""
    asked = dict(truncate or {})
    problems: list[Diagnostic] = []
    known: dict[str, int] = {}
    for axis, sizes in (origin.get("padded") or {}).items():
        now = length(kind, native, axis) if axis in kind.pads else None
        if now == sizes["to"]:
            known[axis] = sizes["from"]
        elif axis not in asked:
            says = f"has the size {now} by the config" if now is not None else "is none that may be padded"
            text = f"axis `{axis}` {says}; it was padded from {sizes['from']} to {sizes['to']}"
            hint = f"say how much of it is not padding: --truncate {axis}=SIZE; {now} keeps all" if now else None
            problems.append(Diagnostic("native/padded", text, where, hint))
    try:
        result = cut_to(kind, native, known | asked)
    except CrosswalkError as error:
        raise CrosswalkError((*problems, *error.diagnostics)) from error
    for axis, size in result.items():
        least = known.get(axis, length(kind, native, axis))
        if size < least and not allow_lossy:
            text = f"axis `{axis}`: {least - size} of {length(kind, native, axis)} are not known to be padding"
            hint = f"cut it to {least} or more, or allow it with --allow-lossy (allow_lossy=True)"
            if axis not in known:
                hint = "allow it with --allow-lossy (allow_lossy=True); the checkpoint does not say that it was padded"
            problems.append(Diagnostic("lossy/truncate", text, where, hint))
    if problems:
        raise CrosswalkError(problems)
    return result


def padding_notes(kind: Type, native: Mapping[str, Any], lengths: Sizes, is_import: bool) -> tuple[str, ...]:
    """A sentence for each axis that has another size on the other side."""
    result = []
    for axis, size in lengths.items():
        whole = length(kind, native, axis)
        if is_import:
            result.append(f"axis `{axis}` is padded from {size} to {whole} with zeros")
        else:
            result.append(f"axis `{axis}` is cut from {whole} to {size}: the last {whole - size} are left out, unread")
    return tuple(result)


def parse_sizes(texts: Iterable[str], option: str) -> dict[str, int]:
    """Numbers by axis, of texts such as ``vocab=128``. ``option`` is what the user calls them.

    Raises ``CrosswalkError`` with every text that is something else, or names an axis again."""
    result: dict[str, int] = {}
    problems = []
    for text in texts:
        axis, _, number = text.partition("=")
        if not axis or not (number.isascii() and number.isdigit() and len(number) < 20):
            problems.append(Diagnostic(f"usage/{option}", f"`--{option} {shorten(text)}` is not AXIS=NUMBER", None,
                                       f"write it as --{option} vocab=128"))  # fmt: skip
        elif axis in result:
            problems.append(Diagnostic(f"usage/{option}", f"`--{option}` names axis `{axis}` twice"))
        else:
            result[axis] = int(number)
    if problems:
        raise CrosswalkError(problems)
    return result
