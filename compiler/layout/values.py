"""Values that a scalar or list field can hold."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from .model import Field

_SCALARS: Mapping[str, Callable[[Any], bool]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, float) and math.isfinite(v),
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "list": lambda v: isinstance(v, (list, tuple)),
    "dict": lambda v: isinstance(v, Mapping),
    "any": lambda v: True,
}


def misfit(declared: Field, value: Any) -> str | None:
    """What a value of a scalar or list field had to be, if it is not; None for one that fits, and for null."""
    if value is None or declared.is_config or declared.kind in ("enum", "dict"):
        return None
    if declared.kind == "list":
        fits = isinstance(value, (list, tuple)) and all(map(_SCALARS[declared.of], value))
        return None if fits else f"a list of {declared.of}"
    if not _SCALARS[declared.of](value):
        return f"of type {declared.of}{' and finite' if isinstance(value, float) and declared.of == 'float' else ''}"
    if declared.bound is not None:
        relation, bound = declared.bound
        if not (value > bound if relation == ">" else value >= bound):
            return f"{relation} {bound:g}"
    return None


def widened(declared: Field, value: Any) -> Any:
    """An int for a field of floats as a float. One beyond all floats stays as it is, and does not fit."""
    if declared.of == "float" and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    return value
