"""The dialects of a document: moves of keys and of prefixes, and sections with other lines for tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.notation.expressions import compile_expression
from crosswalk.compiler.text.positioned import Map
from crosswalk.runtime.errors import Position

from .model import Dialect, MappingFile, Relocation, Section


def parse_dialects(
    document: Map, base: MappingFile, parse_section: Callable[[str, Map, Position], Section]
) -> dict[str, Dialect]:
    """Those of ``base`` with those of the document, of which a null takes one away."""
    result = dict(base.dialects)
    for name, body in document.get("dialects", {}).items():
        if body is None:
            result.pop(name, None)
            continue
        config, sections = body.get("config", Map()), body.get("sections", Map())
        result[name] = Dialect(
            name,
            tuple(_move(old, new, config.key_position(old)) for old, new in config.items()),
            tuple(body.get("tensors", {}).items()),
            {kind: parse_section(kind, lines, sections.key_position(kind)) for kind, lines in sections.items()},
        )
    return result


def _move(old: str, new: Any, at: Position) -> Relocation:
    if not isinstance(new, Map):
        return Relocation(_path(old), _path(new), at)
    unset = (new["unset"],) if "unset" in new else ()
    when = compile_expression(new["when"], new.value_position("when")) if "when" in new else None
    return Relocation(
        _path(old), _path(new["is"]), at, unset, bool(new.get("legacy")), bool(new.get("yields")),
        new.get("default", MISSING), when,
    )  # fmt: skip


def _path(text: str) -> tuple[str, ...]:
    return tuple(text.split("."))
