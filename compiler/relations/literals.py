"""Values that are written in a mapping, against the fields that are to hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crosswalk.compiler.layout.model import Field, Layout
from crosswalk.compiler.text.positioned import describe
from crosswalk.runtime.errors import Diagnostic, Position


def literal_problem(what: str, wanted: str, value: Any, field: Field, position: Position) -> Diagnostic:
    """That ``what`` is to hold something else than ``value``."""
    message = f"{what} must be {wanted}, not {describe(value)}"
    return Diagnostic("mapping/literal", message, position, f"`{field.name}` is declared at {field.position}")


_SCALARS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "bool": ("true or false", lambda v: isinstance(v, bool)),
    "str": ("text", lambda v: isinstance(v, str)),
    "list": ("a list", lambda v: isinstance(v, list)),
    "dict": ("a mapping", lambda v: isinstance(v, Mapping)),
}


def unfit(value: Any, field: Field, layout: Layout) -> str | None:
    """What the field must hold, if ``value`` is not that."""
    if value is None and (field.nullable or field.of == "any"):
        return None
    or_null = " or null" if field.nullable else ""
    if field.kind == "enum":
        known = layout.enums[field.of]
        return None if value in known else f"one of {', '.join(known)}{or_null}"
    if field.kind == "list":
        return None if isinstance(value, list) else "a list"
    wanted, fits = _SCALARS.get(field.of, ("", lambda _: True))
    if not fits(value):
        return wanted + or_null
    if field.bound is not None:
        relation, bound = field.bound
        if not (value > bound if relation == ">" else value >= bound):
            return f"{relation} {bound:g}"
    return None
