"""Values that fields can hold, and defaults that they cannot have."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from crosswalk.runtime.errors import Diagnostic, shown

from .model import MISSING, Field, Layout

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


def unfit_defaults(layout: Layout) -> Iterator[Diagnostic]:
    """Defaults that their fields cannot have, which would be found in the middle of a config otherwise."""
    for kind in layout.all_types():
        for name, declared in kind.fields.items():
            if declared.default is not MISSING and (wanted := _unfit(layout, declared, declared.default)):
                text = f"the default of `{name}` must be {wanted}, it is {shown(declared.default)}"
                yield Diagnostic("layout/field", text, declared.position)


def _unfit(layout: Layout, declared: Field, value: Any) -> str | None:
    """What the default of a field had to be, if it is not."""
    if value is None:
        return None if declared.nullable or declared.of == "any" else "a value, or the type must end in `?`"
    if declared.kind == "enum":
        choices = layout.enums[declared.of]
        return None if value in choices else f"one of {', '.join(choices)}"
    if declared.kind == "family":
        family = layout.families[declared.of]
        named = value.get("type", family.default) if isinstance(value, Mapping) else value
        known = {*family.types, *family.aliases}
        return None if isinstance(named, str) and named in known else f"one of {', '.join(sorted(known))}"
    if declared.kind in ("type", "dict"):
        return None if isinstance(value, Mapping) else "an object"
    return misfit(declared, widened(declared, value))
