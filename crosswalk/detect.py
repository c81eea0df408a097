"""Which format a Hugging Face checkpoint has: by its config, and where that leaves a choice, by its tensor names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from crosswalk.compiler.mapping import MappingFile
from crosswalk.compiler.planning import bind, plan_import
from crosswalk.compiler.relations import CompiledMapping
from crosswalk.runtime.errors import CrosswalkError, fail
from crosswalk.runtime.plan import TensorSpec

from .catalog import catalog, format_named


def detect_format(
    config: Mapping[str, Any], tensors: Iterable[TensorSpec] | None = None, layout: str = "fast_llm"
) -> CompiledMapping:
    """The format that a config.json says it has, among those of a layout.

    ``model_type`` decides, then ``architectures``; if several formats are left, the one whose tensors these are. Raises
    ``CrosswalkError`` if none or more than one is left, naming what was found and what there is.
    """
    mappings = [catalog().mapping(name) for name in catalog().formats()]
    known = [mapping for mapping in mappings if mapping.layout == layout]
    model_type, architectures = config.get("model_type"), config.get("architectures") or []
    if model_type is not None:
        found = [m for m in known if m.model_type == model_type]
    else:
        found = [m for m in known if m.architecture in architectures]
    if len(found) > 1:
        found = [m for m in found if m.architecture in architectures] or found
    if len(found) > 1 and tensors is not None:
        specs = {tensor.name: tensor for tensor in tensors}
        found = [m for m in found if _holds(m, config, specs)] or found
    if len(found) == 1:
        return catalog().compiled(found[0].name)
    said = f"model_type {model_type!r}, architectures {list(architectures)!r}"
    listed = ", ".join(f"{m.name} ({m.model_type})" for m in (found or known))
    if found:
        raise fail(
            "format/ambiguous", f"several formats fit this config.json ({said}): {listed}", None, "pass --format"
        )
    raise fail("format/undetected", f"no format fits this config.json ({said})", None, f"there are {listed}")


def chosen_format(
    name: str | None, config: Mapping[str, Any], tensors: Iterable[TensorSpec] | None = None, layout: str = "fast_llm"
) -> CompiledMapping:
    """The format asked for, or the one detected (``auto``)."""
    if name is None or name == "auto":
        return detect_format(config, tensors, layout)
    return format_named(name)


def _holds(mapping: MappingFile, config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> bool:
    from crosswalk.compiler.importing import import_config

    compiled = catalog().compiled(mapping.name)
    try:
        plan_import(bind(compiled, import_config(compiled, config)[0]), specs)
    except CrosswalkError:
        return False
    return True
