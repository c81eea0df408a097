"""Configs and plans without files: the functions for programs that hold a config in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from crosswalk.checkpoints.kinds.forms import read_form, write_forms
from crosswalk.compiler.layout.scope import normalize
from crosswalk.compiler.pipeline import Sizes, export_checkpoint, export_model, import_checkpoint, import_model
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.errors import fail, system_limits
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.records import replace

from .detect import chosen_format
from .formats import DEFAULT_LAYOUT, catalog, format_named
from .options import Options, check_direction


@system_limits()
def formats(layout: str | None = None) -> list[str]:
    """The names of all formats, or of those of one layout."""
    found = catalog()
    return [name for name in found.formats() if layout in (None, found.listed(name).layout)]


@system_limits()
def normalize_native(
    config: Mapping[str, Any], root: str | None = None, layout: str = DEFAULT_LAYOUT
) -> dict[str, Any]:
    """A native config, in any form that the layout knows, with every default of the layout filled in. ``root`` is its
    type, such as ``base_model`` or ``multimodal_model``, by default that of the layout. Raises ``CrosswalkError``
    listing every invalid field."""
    found = catalog().layout(layout)
    return normalize(found, read_form(found, config, catalog().compiled) or config, root)


@system_limits()
def native_forms(config: Mapping[str, Any], layout: str) -> dict[str, dict[str, Any]]:
    """A native config in the other forms that its trainer has: document by the name of the file, or of the part of the
    common state, that holds it in a folder of the trainer. Raises ``CrosswalkError`` listing every invalid field; a
    form that has no place for this model is left out."""
    found = catalog().layout(layout)
    forms, _ = write_forms(found, normalize_native(config, layout=layout), catalog().compiled)
    return {form.file or form.state or "": dict(form.document) for form in forms}


@system_limits()
def import_config(
    hf_config: Mapping[str, Any],
    format: str | None = None,
    allow_lossy: bool = False,
    to: str | None = None,
    pad: Sizes | None = None,
    keep: str | Iterable[str] = (),
) -> dict[str, Any]:
    """The native config of a Hugging Face config, with every field of the layout. ``to``: the layout, by default that
    of ``format``, and ``fast_llm`` without one. ``pad``: axis -> multiple that its size is rounded up to. ``keep``: see
    :func:`crosswalk.convert`.

    Raises ``CrosswalkError`` with every key that is unknown, missing, or has a value that the layout cannot hold.
    """
    mapping = chosen_format(format, hf_config, layout=to)
    return import_model(mapping, hf_config, Options(allow_lossy=allow_lossy, pad=pad or {}, keep=keep))


@system_limits()
def export_config(
    native: Mapping[str, Any],
    format: str,
    dialect: str | Iterable[str] | None = None,
    allow_lossy: bool = False,
    truncate: Sizes | None = None,
) -> dict[str, Any]:
    """The Hugging Face config of a native base-model config. ``dialect``: ``transformers-4``, ``transformers-5``, or
    several joined by commas; by default what the format prefers, see ``crosswalk formats NAME``. ``truncate``: axis ->
    its size without padding.

    Raises ``CrosswalkError`` with every field that the format cannot hold.
    """
    options = Options(dialect=dialect, allow_lossy=allow_lossy, truncate=truncate or {}, trusted=True)
    return export_model(format_named(format), native, options)


@system_limits()
def compile_plan(
    config: Mapping[str, Any],
    format: str | None = None,
    to: str | None = None,
    dtype: str | None = None,
    dialect: str | Iterable[str] | None = None,
    allow_lossy: bool = False,
    pad: Sizes | None = None,
    truncate: Sizes | None = None,
    native_config: Mapping[str, Any] | None = None,
    keep: str | Iterable[str] = (),
) -> Plan:
    """The plan for one config: from Hugging Face to the layout ``to``, by default that of ``format``, and ``fast_llm``
    without one; or with ``to="hf"`` from a native config (``format`` is needed then).

    Without files, all tensors have the config's dtype (F32 if it names none), and none is encoded; ``dtype`` is what
    they are cast to.
    ``pad``: axis -> multiple that its size is rounded up to, of a plan to a layout; ``truncate``: axis -> size, of a
    plan to ``hf``: what is beyond is taken for padding. ``native_config``: that of the model to fill, if it is not
    :func:`import_config` of ``config``; only ``training`` fields may differ. ``keep``: see :func:`crosswalk.convert`.
    Raises ``CrosswalkError``, see :func:`import_config` and :func:`export_config`.
    """
    if to == "hf" and native_config is not None:
        raise fail("usage/native-config", 'with to="hf" the config is native', None, "pass one of the two only")
    if to != "hf":
        mapping = chosen_format(format, config, layout=to)
    elif format is None:
        raise fail("format/needed", "a native config does not say which format to write: pass `format`")
    else:
        mapping = format_named(format)
    options = Options(to=to, dtype=dtype, dialect=dialect, allow_lossy=allow_lossy, pad=pad or {},
                      truncate=truncate or {}, native_config=native_config, keep=keep)  # fmt: skip
    return plan_for(mapping, config, options)


def plan_for(mapping: CompiledMapping, config: Mapping[str, Any], options: Options) -> Plan:
    """:func:`compile_plan` for a compiled mapping, such as one that is not shipped."""
    check_direction(options)
    if options.to == "hf":
        return export_checkpoint(mapping, config, None, replace(options, trusted=True)).plan
    return import_checkpoint(mapping, config, None, options).plan
