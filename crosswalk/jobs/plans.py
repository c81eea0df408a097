"""Configs and plans without files: the functions for programs that hold a config in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from crosswalk.compiler.config.coverage import unknown_keys
from crosswalk.compiler.config.dialects import choose_dialects
from crosswalk.compiler.config.read import import_config as import_through
from crosswalk.compiler.config.write import export_config as export_through
from crosswalk.compiler.layout.differences import differing
from crosswalk.compiler.layout.padded_axes import cut_to, resized
from crosswalk.compiler.layout.scope import Scope, normalize
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.tensors.bind import bind
from crosswalk.compiler.tensors.encoded import Read, read_encodings, without_encodings
from crosswalk.compiler.tensors.plan import check_dtype, plan_export, plan_import, tensor_dialect
from crosswalk.compiler.tensors.read_config import import_with_tensors
from crosswalk.runtime.dtypes import DTYPES, FLOATS, size_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail
from crosswalk.runtime.plan.model import Plan, TensorSpec

from .detect import DEFAULT_LAYOUT, chosen_format
from .formats import catalog, format_named
from .sizes import Sizes, check_direction, padded


def formats(layout: str | None = None) -> list[str]:
    """The names of all formats, or of those of one layout."""
    found = catalog()
    return [name for name in found.formats() if layout in (None, found.mapping(name).layout)]


def normalize_native(
    config: Mapping[str, Any], root: str | None = None, layout: str = DEFAULT_LAYOUT
) -> dict[str, Any]:
    """A native config with every default of the layout filled in. ``root`` is its type, such as ``base_model`` or
    ``multimodal_model``, by default that of the layout. Raises ``CrosswalkError`` listing every invalid field."""
    return normalize(catalog().layout(layout), config, root)


def import_config(
    hf_config: Mapping[str, Any],
    format: str | None = None,
    allow_lossy: bool = False,
    to: str | None = None,
    pad: Sizes | None = None,
) -> dict[str, Any]:
    """The native config of a Hugging Face config, with every field of the layout. ``to``: the layout, by default that
    of ``format``, and ``fast_llm`` without one. ``pad``: axis -> multiple that its size is rounded up to.

    Raises ``CrosswalkError`` with every key that is unknown, missing, or has a value that the layout cannot hold.
    """
    mapping = chosen_format(format, hf_config, layout=to)
    return padded(mapping.root.type, read_config(mapping, hf_config, allow_lossy), pad)[0]


def export_config(
    native: Mapping[str, Any],
    format: str,
    dialect: str | Iterable[str] | None = None,
    allow_lossy: bool = False,
    truncate: Sizes | None = None,
) -> dict[str, Any]:
    """The Hugging Face config of a native base-model config. ``dialect``: ``transformers-4``, ``transformers-5``, or
    several joined by commas; by default what the format prefers, see ``crosswalk formats``. ``truncate``: axis -> its
    size without padding.

    Raises ``CrosswalkError`` with every field that the format cannot hold.
    """
    mapping = format_named(format)
    complete = normalize(mapping.layout, native, mapping.root.type.name)
    kind = mapping.root.type
    theirs = resized(kind, complete, cut_to(kind, complete, truncate or {}))
    return export_through(mapping, theirs, choose_dialects(mapping, dialect), allow_lossy)[0]


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
) -> Plan:
    """The plan for one config: from Hugging Face to the layout ``to``, by default that of ``format``, and ``fast_llm``
    without one; or with ``to="hf"`` from a native config (``format`` is needed then).

    Without files, all tensors have the config's dtype (F32 if it names none), and none is encoded; ``dtype`` is what
    they are cast to.
    ``pad``: axis -> multiple that its size is rounded up to, of a plan to a layout; ``truncate``: axis -> size, of a
    plan to ``hf``: what is beyond is taken for padding. ``native_config``: that of the model to fill, if it is not
    :func:`import_config` of ``config``; only ``training`` fields may differ.
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
    return plan_for(mapping, config, to, dtype, dialect, allow_lossy, pad, truncate, native_config)


def plan_for(
    mapping: CompiledMapping,
    config: Mapping[str, Any],
    to: str | None,
    dtype: str | None,
    dialect: str | Iterable[str] | None,
    allow_lossy: bool,
    pad: Sizes | None = None,
    truncate: Sizes | None = None,
    native_config: Mapping[str, Any] | None = None,
) -> Plan:
    """:func:`compile_plan` for a compiled mapping, such as one that is not shipped."""
    check_direction(to, pad, truncate)
    kind = mapping.root.type
    if to != "hf":
        imported, lengths = padded(kind, read_config(mapping, config, allow_lossy), pad)
        native = model_config(mapping, imported, native_config)
        bound = bind(mapping, native, allow_lossy=True, lengths=lengths)
        return plan_import(bound, None, check_dtype(dtype), stated_dtype(config))
    complete = normalize(mapping.layout, config, mapping.root.type.name)
    dialects = choose_dialects(mapping, dialect)
    bound = bind(mapping, complete, dialects, allow_lossy, cut_to(kind, complete, truncate or {}))
    return plan_export(bound, None, check_dtype(dtype), "F32", tensor_dialect=tensor_dialect(mapping, dialects))


def stated_dtype(config: Mapping[str, Any], default: str = "F32") -> str:
    """The dtype that a config.json names for its tensors; ``default`` if it names none that is a float."""
    stated = config.get("dtype") or config.get("torch_dtype")
    by_name = {attribute: name for name, (_, attribute) in DTYPES.items() if name in FLOATS}
    return by_name.get(str(stated).removeprefix("torch."), default)


def read_stored(mapping: CompiledMapping, config: Mapping[str, Any], specs: Iterable[TensorSpec]) -> Read:
    """A checkpoint as its decoded tensors, encoded ones in the dtype that the config names; BF16 if it names none, or
    one of 8 bits."""
    stated = stated_dtype(config, "BF16")
    return read_encodings(mapping.source, config, specs, stated if size_of(stated) > 1 else "BF16")


def read_config(
    mapping: CompiledMapping,
    config: Mapping[str, Any],
    allow_lossy: bool,
    names: Collection[str] | None = None,
    known: Iterable[Diagnostic] = (),
) -> dict[str, Any]:
    """Import a config, with the keys that nothing claims among the problems, and those that are ``known`` already.
    ``names``: of the tensors, if known."""
    config, problems = without_encodings(mapping.source, config)
    problems = [*known, *problems, *unknown_keys(mapping, config)]
    try:
        if names is None:
            native, _ = import_through(mapping, config, allow_lossy)
        else:
            native, _ = import_with_tensors(mapping, config, names, allow_lossy)
    except CrosswalkError as error:
        problems += error.diagnostics
    if problems:
        raise CrosswalkError(problems)
    return native


def model_config(mapping: CompiledMapping, imported: dict[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The complete config of the model that is to be filled: ``given``, or what was imported if there is none.

    Raises ``CrosswalkError`` (``native/differs``) with every field, those of ``training`` excepted, in which a given
    config is another model than the imported one.
    """
    if given is None:
        return imported
    layout, kind = mapping.layout, mapping.root.type
    complete = normalize(layout, given, kind.name)
    hint = "only fields of `training` may differ from what the checkpoint is"
    problems = []
    for path, ours, theirs in differing(Scope(layout, kind, complete), Scope(layout, kind, imported)):
        text = f"`{'.'.join(path)}` is {ours}, the checkpoint says {theirs}"
        problems.append(Diagnostic("native/differs", text, None, hint, path=path))
    if problems:
        raise CrosswalkError(problems)
    return complete
