"""Open a checkpoint, decide its format, and make the plan: everything that is decided before a byte of data moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.huggingface import CONFIG, HuggingFaceCheckpoint, config_bytes, open_hugging_face
from crosswalk.checkpoints.key_positions import located, locator, read_from
from crosswalk.checkpoints.model_files import derived_files, files_to_write
from crosswalk.checkpoints.native import METADATA, NativeCheckpoint, is_native, open_native, require_checkpoint
from crosswalk.checkpoints.towers import text_tower
from crosswalk.compiler.config.dtypes import main_dtype
from crosswalk.compiler.layout.padded_axes import padding_notes, resized
from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.compiler.pipeline import (
    Imported,
    Places,
    export_checkpoint,
    import_checkpoint,
)
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.tensors.bind import Bound
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.errors import Position, fail
from crosswalk.runtime.plan.model import Plan

from .detect import chosen_format
from .formats import DEFAULT_LAYOUT, catalog, format_named
from .options import Options, check_direction
from .origin import decoded_config, original, record, remembered
from .plans import formats


@dataclass(frozen=True)
class Prepared:
    """A conversion that is ready to run. ``config`` is the native config; ``text`` the config.json that belongs to the
    Hugging Face side as its tensors are decoded, or that is to be written; ``files`` are carried along, by name;
    ``notes`` say what a user should know, though nothing is wrong; ``lengths`` are the sizes on the Hugging Face side
    of axes that are longer here; ``derived`` are files made from ``text``, name -> content; ``origin`` is what a native
    output is to remember; ``lossy`` says what of the config is inexact, and why; ``defaults`` are keys that config.json
    will not hold, with what the class takes for them."""

    to: str
    mapping: CompiledMapping
    bound: Bound
    plan: Plan
    source: Checkpoint
    config: Mapping[str, Any]
    text: str
    files: Mapping[str, Path]
    dialects: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    lengths: Mapping[str, int] = field(default_factory=dict)
    derived: Mapping[str, bytes] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    lossy: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unpadded(self) -> Mapping[str, Any]:
        """The native config with the sizes of the Hugging Face side."""
        return resized(self.mapping.root.type, self.config, self.lengths)


def prepare(source: Path, options: Options) -> Prepared:
    """Open ``source`` and plan its conversion. Without ``to``, it is to the other side of what it is.

    Raises ``CrosswalkError`` with everything that stands in the way.
    """
    native = is_native(source)
    if not native:
        require_checkpoint(source)
    if options.to is None:
        options = replace(options, to="hf" if native else DEFAULT_LAYOUT)
    check_direction(options)
    if native and options.text_only:
        text = f"a text tower is taken from a Hugging Face checkpoint, and this is one of {DEFAULT_LAYOUT} ({METADATA})"
        raise fail("usage/text-only", text, Position(str(source)), "leave out --text-only")
    if native and options.to == "hf":
        return _prepare_export(source, options)
    if native:
        what = f"a {DEFAULT_LAYOUT} checkpoint ({METADATA})"
        raise fail("usage/to", f"this is {what} already", Position(str(source)), "pass --to hf")
    if options.to == "hf":
        what = f"this is a Hugging Face checkpoint ({CONFIG}) already"
        raise fail("usage/to", what, Position(str(source)), f"pass --to {DEFAULT_LAYOUT}")
    if options.to != DEFAULT_LAYOUT:
        hint = f"convert to {DEFAULT_LAYOUT}; for other layouts there are compile_plan and load"
        raise fail("usage/to", f"no checkpoint directory can be written in layout `{options.to}`", None, hint)
    if options.dialect is not None:
        raise fail("usage/dialect", "a dialect is one of Hugging Face checkpoints to write; this one is read", None,
                   "leave out --dialect: the dialect of a file is found from the file")  # fmt: skip
    return _prepare_import(source, options)


def open_import(path: Path, options: Options) -> tuple[HuggingFaceCheckpoint, Imported]:
    """A Hugging Face checkpoint and its way to a layout: that of ``options.to``, of the format, or ``fast_llm``.

    Raises ``CrosswalkError`` with every problem, those of config.json at their keys.
    """
    require_checkpoint(path)
    if options.named_format is not None:
        format_named(options.named_format)
    checkpoint = open_hugging_face(path)
    path, text = checkpoint.path, checkpoint.text
    root: tuple[str, ...] = ()
    if options.text_only:
        checkpoint, root = text_tower(checkpoint, _mappings(options))
    specs = checkpoint.tensors.specs()
    places = _places(path / CONFIG, text, path, root)
    with read_from(path / CONFIG, text, root):
        mapping = chosen_format(options.format, checkpoint.config, specs, options.to)
    return checkpoint, import_checkpoint(mapping, checkpoint.config, specs, options, places)


def _mappings(options: Options) -> list[MappingFile]:
    """The formats that are meant: the one that is named, or those of a layout."""
    if options.named_format is not None:
        return [catalog().mapping(options.named_format)]
    return [catalog().mapping(name) for name in formats(options.to or DEFAULT_LAYOUT)]


def _prepare_import(path: Path, options: Options) -> Prepared:
    checkpoint, imported = open_import(path, replace(options, stored=True))
    mapping, plan, read = imported.mapping, imported.plan, imported.read
    grown = padding_notes(mapping.root.type, imported.config, imported.lengths, True)
    tied = [f"`{e.tensor}` is left out: {e.reason}" for e in plan.exemptions if e.tensor in imported.bound.duplicates]
    notes = (*checkpoint.notes, *read.notes, *grown, *(tied if options.take_tied else ()))
    text, _ = decoded_config(checkpoint.text, dict(checkpoint.config), mapping, read, main_dtype(plan.sources))
    return Prepared(
        to=str(options.to), mapping=mapping, bound=imported.bound, plan=plan, source=checkpoint.tensors,
        config=imported.config, text=text, files=checkpoint.files, notes=notes, lengths=imported.lengths,
        origin=record(imported, text, checkpoint.files, options.text_only), lossy=read.taken.lossy,
    )  # fmt: skip


def _prepare_export(path: Path, options: Options) -> Prepared:
    checkpoint = open_native(path, catalog().layout(DEFAULT_LAYOUT))
    origin = original(options.like, options) if options.like is not None else None
    mapping = _format_to_write(checkpoint, origin.format if origin is not None else options.named_format)
    if origin is None:
        origin = remembered(checkpoint, mapping.name)
    padded = ("metadata", "crosswalk", "padded")
    places = replace(
        _places(path / METADATA, checkpoint.text, path, ("config", "base_model")),
        origin=partial(located, text=checkpoint.text, file=path / METADATA, root=padded),
    )
    specs = {spec.name: spec for spec in checkpoint.tensors.specs()}
    exported = export_checkpoint(mapping, checkpoint.config, specs, options, origin, places)
    kind, lengths = mapping.root.type, exported.lengths
    text = origin.text if exported.unchanged else config_bytes(exported.config).decode()
    files = files_to_write(mapping.source, origin.files, options.model_files, path)
    notes = (*exported.notes, *padding_notes(kind, exported.native, lengths, False))
    if origin.is_of(mapping) and origin.kept:
        notes += (f"restored as it was, though not understood: {', '.join(f'`{key}`' for key in origin.kept)}",)
    return Prepared(
        to="hf", mapping=mapping, bound=exported.bound, plan=exported.plan, source=checkpoint.tensors,
        config=exported.native, text=text, files=files, dialects=exported.dialects, notes=notes, lengths=lengths,
        derived=derived_files(mapping.source, exported.config, files), lossy=exported.lossy, defaults=exported.defaults,
    )  # fmt: skip


def _format_to_write(checkpoint: NativeCheckpoint, asked: str | None) -> CompiledMapping:
    """The format asked for, or else the one that a native checkpoint remembers."""
    layout, file = catalog().layout(DEFAULT_LAYOUT), checkpoint.path / METADATA
    known = checkpoint.origin.get("format")
    name = asked or known
    listed = f"there are {', '.join(formats(layout.name))}"
    if name is None:
        text = "this checkpoint does not say which format it came from"
        raise fail("format/needed", text, Position(str(file)), f"pass --format; {listed}")
    if name == known and name not in catalog().formats():
        where = locator(checkpoint.text, str(file))(("metadata", "crosswalk", "format"))
        text = f"there is no format `{name}`, which this checkpoint says it came from"
        raise fail("format/unknown", text, where, f"pass --format; {listed}")
    mapping = format_named(name)
    if mapping.layout is not layout:
        text = f"format `{mapping.name}` is of layout `{mapping.layout.name}`, this checkpoint of `{layout.name}`"
        raise fail("format/layout", text, None, listed)
    return mapping


def _places(file: Path, text: str, directory: Path, root: tuple[str, ...] = ()) -> Places:
    """Problems of a config at the keys of ``file`` below ``root``, and those of tensors at the directory."""
    return Places(partial(located, text=text, file=file, root=root), partial(located, text="", file=directory))
