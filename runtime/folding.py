"""Names that differ only in numbers, as one pattern: how tensors of many layers and experts are shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_NUMBER = re.compile(r"\d+")


def fold(names: Iterable[str], key: Callable[[str], object] = lambda name: None) -> list[tuple[str, list[str]]]:
    """Names that differ only in numbers, and agree in ``key``, as one pattern such as ``layers.{0..31}.norm`` with the
    names themselves."""
    groups: dict[tuple[str, object], list[str]] = {}
    for name in names:
        groups.setdefault((_NUMBER.sub("{}", name), key(name)), []).append(name)
    result = []
    for (pattern, _), members in groups.items():
        numbers = [[int(n) for n in _NUMBER.findall(name)] for name in members]
        parts = pattern.split("{}")
        text = parts[0]
        for column, part in zip(zip(*numbers, strict=True), parts[1:], strict=True):
            text += _range(sorted(set(column))) + part
        result.append((text, members))
    return result


def _range(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if values == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return "{" + ",".join(map(str, values[:8])) + (",..." if len(values) > 8 else "") + "}"
