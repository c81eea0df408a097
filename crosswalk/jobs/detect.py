"""Which format a Hugging Face checkpoint has: by its config, and where that leaves a choice, by its tensor names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from crosswalk.checkpoints.towers import FLAG, formats_of_tower
from crosswalk.compiler.catalog_text import Listed
from crosswalk.compiler.config.architectures import class_name
from crosswalk.compiler.config.coverage import asked_features
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.layout.model import Layout
from crosswalk.compiler.layout.scope import normalize
from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.compiler.pipeline import PlanOptions, import_checkpoint
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail, shown
from crosswalk.runtime.plan.model import TensorSpec

from .formats import DEFAULT_LAYOUT, catalog, format_named


def detect_format(
    config: Mapping[str, Any], tensors: Iterable[TensorSpec] | None = None, layout: str = DEFAULT_LAYOUT
) -> CompiledMapping:
    """The format that a config.json says it has, among those of a layout.

    ``model_type`` decides, then ``architectures``; if several formats are left, or the config says neither, the one
    whose tensors these are. Raises ``CrosswalkError`` if none or more than one is left, naming what was found and what
    there is.
    """
    mappings = [catalog().listed(name) for name in catalog().formats()]
    known = [mapping for mapping in mappings if mapping.layout == layout]
    if not known:
        layouts = sorted({str(mapping.layout) for mapping in mappings})
        hint = did_you_mean(layout, layouts) or f"there are {', '.join(layouts)}"
        raise fail("format/layout", f"there is no layout `{layout}`", None, hint)
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if not isinstance(architectures, list):
        architectures = []
    architectures = [name for said in architectures if (name := class_name(known[0].wrappers, said)) is not None]
    if model_type is not None:
        found = [m for m in known if model_type in m.model_types]
    else:
        found = [m for m in known if m.architecture in architectures]
    if len(found) > 1:
        found = [m for m in found if m.architecture in architectures] or found
    if len(found) > 1 and tensors is not None:
        specs = list(tensors)
        found = [m for m in found if _holds(m, config, specs)] or found
    elif model_type is None and not architectures and tensors is not None:
        specs = list(tensors)
        found = [m for m in known if _holds(m, config, specs)]
    if len(found) == 1:
        return catalog().compiled(found[0].name)
    if found:
        listed = ", ".join(f"{m.name} ({m.model_type})" for m in found)
        text = f"several formats fit this config.json ({_said(config, architectures)}): {listed}"
        raise fail("format/ambiguous", text, None, "pass --format")
    raise CrosswalkError(_undetected([catalog().mapping(m.name) for m in mappings], layout, config, architectures))


def _said(config: Mapping[str, Any], architectures: list[Any]) -> str:
    return f"model_type {shown(config.get('model_type'))}, architectures {shown(architectures)}"


def _undetected(
    mappings: list[MappingFile], layout: str, config: Mapping[str, Any], architectures: list[Any]
) -> Diagnostic:
    """Which formats of other layouts there are, or what the model has that no format of this layout has."""
    kind = config.get("model_type")
    known = [m for m in mappings if m.layout == layout]
    classes = [] if any(m.architecture in architectures for m in known) else architectures
    others = [m for m in mappings if m.layout != layout and (kind in m.model_types or m.architecture in classes)]
    described = {name: text for m in mappings for name, text in m.unmapped.items()}
    text = f"no format fits this config.json ({_said(config, architectures)}) in layout `{layout}`"
    listed = ", ".join(m.name if m.name == m.model_type else f"{m.name} ({m.model_type})" for m in known)
    hint = f"there are {listed}; `crosswalk init` drafts a mapping of another"
    if towers := formats_of_tower(known, config):
        names = " or ".join(f"`{m.name}`" for m in towers)
        text += f": it has other towers beside one of text, which is {names}"
        hint = FLAG
    elif like := [name for m in known for name in m.model_types if name.casefold() == str(kind).casefold()]:
        hint = f"did you mean `{like[0]}`?"
    elif others:
        lacks = described.get(kind) if isinstance(kind, str) else None
        text += f", which lacks what `{kind}` has: {lacks}" if lacks else ""
        names = ", ".join(f"layout `{m.layout}` has `{m.name.removeprefix(f'{m.layout}_')}`" for m in others)
        hint = f"{names}: name the layout (--to; in Python: to=, or layout= of crosswalk.load)"
    elif isinstance(kind, str) and kind in described:
        text += f": there is no mapping of `{kind}`, which has {described[kind]}"
    else:
        claimed = {entry.theirs for m in known for section in m.sections.values() for entry in section.config}
        entries = [entry for m in known for entry in m.keeps if entry.theirs not in claimed]
        inner = [value for value in config.values() if isinstance(value, Mapping)]
        features = [found for place in (config, *inner) for found in asked_features(entries, place)]
        text += f": it has {', '.join(dict.fromkeys(features))}" if features else ""
        hint = did_you_mean(str(kind), [name for m in known for name in m.model_types]) or hint
    return Diagnostic("format/undetected", text, None, hint, path=("model_type",))


def chosen_format(
    name: str | None, config: Mapping[str, Any], tensors: Iterable[TensorSpec] | None = None, layout: str | None = None
) -> CompiledMapping:
    """The format asked for, which must be one of ``layout`` if that is given; without a name (or ``auto``), the one
    detected among those of the layout, by default ``fast_llm``. Raises ``CrosswalkError`` if not one fits."""
    if not isinstance(config, Mapping):
        raise fail("config/type", f"a config must be an object, it is {shown(config)}")
    if name is None or name == "auto":
        return detect_format(config, tensors, layout or DEFAULT_LAYOUT)
    mapping = format_named(name, layout)
    if layout not in (None, mapping.layout.name):
        message = f"format `{name}` converts to layout `{mapping.layout.name}`, not to `{layout}`"
        raise fail("format/layout", message, None, "name one of the two only, or one of each that belong together")
    kind = config.get("model_type")
    if kind in tuple(mapping.source.tower_of) and kind not in mapping.source.model_types:
        raise fail(
            "format/tower", f"model_type {shown(kind)} has other towers beside that of format `{name}`", None, FLAG
        )
    return mapping


#: Codes of problems in what no format has to itself: they do not tell formats apart.
_COMMON = frozenset(("config/unknown-key", "config/encoding", "config/value", "tensors/encoding"))


def _holds(mapping: Listed, config: Mapping[str, Any], specs: Iterable[TensorSpec]) -> bool:
    """Whether the tensors are those that the config has in this format."""
    try:
        import_checkpoint(catalog().compiled(mapping.name), config, specs, PlanOptions())
    except CrosswalkError as error:
        return all(found.code in _COMMON for found in error.diagnostics)
    return True


def formats_that_hold(layout: Layout, config: Mapping[str, Any]) -> list[CompiledMapping]:
    """The formats of a layout that a native config can be written in, in the order of their names."""
    found = []
    for listed in map(catalog().listed, catalog().formats()):
        if listed.layout == layout.name:
            mapping = catalog().compiled(listed.name)
            with suppress(CrosswalkError):
                export_config(mapping, normalize(layout, config, mapping.root.type.name))
                found.append(mapping)
    return found
