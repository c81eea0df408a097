"""A compiled mapping as JSON: every relation with its place in the file, for tools and for reading."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from crosswalk.compiler.layout.model import MISSING, Field, Layout, Type
from crosswalk.compiler.mapping.model import MappingFile, Section
from crosswalk.compiler.notation.axes import format_terms
from crosswalk.compiler.notation.expressions import Expression
from crosswalk.compiler.notation.templates import Template
from crosswalk.runtime.errors import Position

from .tree import CompiledMapping, PartNode


def describe(mapping: CompiledMapping) -> str:
    """The relations of a mapping as indented JSON; the same mapping gives the same text."""
    document = {
        "crosswalk_mapping": 1,
        "name": mapping.name,
        "layout": mapping.layout.name,
        "architecture": mapping.source.architecture,
        "model_type": mapping.source.model_type,
        "extends": list(mapping.source.ancestors),
        "header": _plain(mapping.header),
        "encodings": _plain(tuple(mapping.source.encodings.values())),
        "root": _plain(mapping.root),
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _plain(value: Any) -> Any:
    match value:
        case Position():
            return f"{value.file.rsplit('/', 1)[-1]}:{value.line}:{value.column}"
        case Expression():
            return {"expression": value.text}
        case Template():
            return str(value)
        case Type() | Field() | Layout() | MappingFile() | CompiledMapping():
            return value.name
        case Section():
            return {"name": value.name, "tensors": [_tensor(line) for line in value.tensors]}
        case PartNode():
            return {
                "part": _plain(value.part),
                "mappings": [m.name for m in value.mappings],
                "beside": _plain(value.beside),
            }
    if value is MISSING:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        plain = {name: _plain(item) for name, item in fields.items() if item is not MISSING}
        return {"node": type(value).__name__, **plain}
    if isinstance(value, frozenset):
        return sorted(map(str, value))
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _tensor(line: Any) -> dict[str, Any]:
    return {
        "theirs": str(line.theirs),
        "ours": [".".join(path) for path in line.ours],
        "axes": format_terms(line.dims) if line.dims else None,
        "encoded": format_terms(line.encoded) if line.encoded else None,
        "at": _plain(line.position),
    }
