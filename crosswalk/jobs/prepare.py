"""Open a checkpoint, decide its format, and make the plan: everything that is decided before a byte of data moves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.huggingface import (
    CONFIG,
    HuggingFaceCheckpoint,
    config_bytes,
    is_in_parts,
    open_hugging_face,
    parse_config,
)
from crosswalk.checkpoints.key_positions import located, locator, read_from
from crosswalk.checkpoints.kinds.beside import config_of
from crosswalk.checkpoints.kinds.every import BY_NAME, HUGGING_FACE, kind_of, kind_to_write
from crosswalk.checkpoints.kinds.forms import Form, write_forms
from crosswalk.checkpoints.kinds.kind import Given, Kind
from crosswalk.checkpoints.model_files import derived_files, files_to_write, missing_files
from crosswalk.checkpoints.native import require_checkpoint
from crosswalk.checkpoints.opened import Opened
from crosswalk.checkpoints.states import without_idle
from crosswalk.checkpoints.towers import text_tower
from crosswalk.compiler.config.dtypes import main_dtype
from crosswalk.compiler.config.origin import Origin
from crosswalk.compiler.layout.limit import Limit
from crosswalk.compiler.layout.model import ConfigType
from crosswalk.compiler.layout.natives import copies_in
from crosswalk.compiler.layout.padded_axes import length, padding_notes, resized
from crosswalk.compiler.layout.scope import normalize
from crosswalk.compiler.layout.variants import idle, in_directory
from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.compiler.notation.axes import Axis
from crosswalk.compiler.pipeline import (
    Exported,
    Imported,
    Places,
    at,
    export_checkpoint,
    import_checkpoint,
)
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.tensors.bind import Bound
from crosswalk.compiler.tensors.plan import with_copies
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.records import Record, field, replace

from .detect import chosen_format, formats_that_hold
from .formats import DEFAULT_LAYOUT, catalog, format_named, layouts_kept_as, name_in_layout, short_name
from .options import Options, check_direction
from .origin import decoded_config, original, record, remembered
from .plans import formats


class Prepared(Record, frozen=True):
    """A conversion that is ready to run. ``config`` is the native config; ``text`` the config.json that belongs to the
    Hugging Face side as its tensors are decoded, or that is to be written; ``files`` are carried along, by name;
    ``notes`` say what a user should know, though nothing is wrong; ``lengths`` are the sizes on the Hugging Face side
    of axes that are longer here; ``derived`` are files made from ``text``, name -> content; ``origin`` is what a native
    output is to remember; ``lossy`` says what of the config is inexact, and why; ``defaults`` are keys that config.json
    will not hold, with what the class takes for them; ``kind`` is that of the directory to write, and ``forms``
    those of the native config that are written there."""

    to: str
    mapping: CompiledMapping
    bound: Bound
    plan: Plan
    source: Checkpoint
    config: Mapping[str, Any]
    text: str
    files: Mapping[str, Path]
    dialects: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lengths: Mapping[str, int] = field(default_factory=dict)
    derived: Mapping[str, bytes] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    lossy: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = HUGGING_FACE
    forms: tuple[Form, ...] = ()

    @property
    def unpadded(self) -> Mapping[str, Any]:
        """The native config with the sizes of the Hugging Face side."""
        return resized(self.mapping.root.type, self.config, self.lengths)


def prepare(source: Path, options: Options) -> Prepared:
    """Open ``source`` and plan its conversion. Without ``to``, it is to the other side of what it is.

    Raises ``CrosswalkError`` with everything that stands in the way.
    """
    kind = kind_of(source, options.layout)
    if kind is HUGGING_FACE:
        require_checkpoint(source)
        whole = options.layout == "hf" and options.to in (None, "hf") and is_in_parts(source)
        if whole:
            return _prepare_whole(source, options)
        return _prepare_import(source, replace(options, to=options.to or DEFAULT_LAYOUT))
    options = replace(options, to=options.to or "hf")
    check_direction(options, onward=options.to != "hf")
    if options.text_only:
        text = f"a text tower is taken from a Hugging Face checkpoint, and this is one of a trainer ({kind.mark})"
        raise fail("usage/text-only", text, Position(str(source)), "leave out --text-only")
    opened = open_trainer(source, options)
    if options.to == "hf":
        return _prepare_export(opened, options)
    if options.to == opened.layout.name and kind_to_write(options.kind, opened.layout) is kind:
        raise _already(source, options.to, kind)
    return _prepare_onward(opened, options)


def _already(source: Path, layout: str, kind: Kind) -> CrosswalkError:
    what = f"this is a {layout} checkpoint ({kind.mark}) already"
    hint = "pass --to hf, --to with another layout, or --as with another kind of directory"
    return fail("usage/to", what, Position(str(source)), hint)


def open_trainer(path: Path, options: Options) -> Opened:
    """A trainer's checkpoint of any kind. Raises ``CrosswalkError`` with everything that is wrong with it."""
    kind = kind_of(path, options.layout)
    assert kind.open is not None
    given = options.native_file if options.native_file is not None else options.native_config
    return kind.open(
        path,
        Given(catalog().layout, catalog().compiled, layouts_kept_as, options.layout, given, options.like is not None),
    )


def open_import(path: Path, options: Options) -> tuple[HuggingFaceCheckpoint, Imported]:
    """A Hugging Face checkpoint and its way to a layout: that of ``options.to``, of the format, or ``fast_llm``.

    Raises ``CrosswalkError`` with every problem, those of config.json at their keys.
    """
    checkpoint, mapping, places = _open_format(path, options)
    return checkpoint, import_checkpoint(mapping, checkpoint.config, checkpoint.tensors.specs(), options, places)


def open_into(
    path: Path, options: Options, parameters: Mapping[str, TensorSpec], once: Callable[..., Any]
) -> tuple[HuggingFaceCheckpoint, Imported, dict[str, str]]:
    """The same for a model that has these parameters, and which of them the config ties to others. ``once(same, equal,
    make)`` keeps what was made for the same. Raises ``CrosswalkError``."""
    checkpoint, mapping, places = _open_format(path, options)
    specs = tuple(checkpoint.tensors.specs())

    def way() -> tuple[Imported, dict[str, str]]:
        imported = import_checkpoint(mapping, checkpoint.config, specs, options, places)
        layout, kind = imported.mapping.layout, imported.mapping.root.type
        return imported, copies_in(layout, kind, imported.config, parameters)

    asked = (checkpoint.text, specs, copy.deepcopy(options), dict(parameters))
    imported, copies = once((mapping,), asked, way)
    return checkpoint, replace(imported, config=copy.deepcopy(imported.config)), copies


def _open_format(path: Path, options: Options) -> tuple[HuggingFaceCheckpoint, CompiledMapping, Places]:
    """A Hugging Face checkpoint, the format that it has, and where its problems are. Raises ``CrosswalkError``."""
    require_checkpoint(path)
    if options.named_format is not None:
        format_named(options.named_format, options.to)
    checkpoint = open_hugging_face(path, options.like if options.layout == "hf" else None)
    path, text = checkpoint.path, checkpoint.text
    root: tuple[str, ...] = ()
    if options.text_only:
        checkpoint, root = text_tower(checkpoint, _mappings(options))
    places = _places(path / CONFIG, text, checkpoint.tensors.path, root)
    with read_from(path / CONFIG, text, root):
        mapping = chosen_format(options.format, checkpoint.config, checkpoint.tensors.specs(), options.to)
    return checkpoint, mapping, places


def _mappings(options: Options) -> list[MappingFile]:
    """The formats that are meant: the one that is named, or those of a layout."""
    if options.named_format is not None:
        return [format_named(options.named_format, options.to).source]
    return [catalog().mapping(name) for name in formats(options.to or DEFAULT_LAYOUT)]


def _prepare_import(path: Path, options: Options) -> Prepared:
    check_direction(options)
    if options.to == "hf":
        what = f"this is a Hugging Face checkpoint ({CONFIG}) already"
        raise fail("usage/to", what, Position(str(path)), f"pass --to {DEFAULT_LAYOUT}")
    if options.dialect is not None:
        raise fail("usage/dialect", "a dialect is one of Hugging Face checkpoints to write; this one is read", None,
                   "leave out --dialect: the dialect of a file is found from the file")  # fmt: skip
    layout = catalog().layout(options.to or DEFAULT_LAYOUT)
    if options.native_file is not None:
        options = replace(options, native_config=config_of(options.native_file, layout, catalog().compiled))
    if options.native_config is not None and kind_to_write(options.kind, layout).name == layout.directory:
        options = replace(options, native_config=in_directory(layout, options.native_config))
    checkpoint, imported = open_import(path, replace(options, stored=True))
    mapping = imported.mapping
    text, _ = decoded_config(
        checkpoint.text, dict(checkpoint.config), mapping, imported.read, main_dtype(imported.plan.sources)
    )
    kind = kind_to_write(options.kind, mapping.layout)
    forms, left = _forms(kind, mapping, imported.config)
    return Prepared(
        to=mapping.layout.name, mapping=mapping, bound=imported.bound, plan=imported.plan, source=checkpoint.tensors,
        config=imported.config, text=text, files=checkpoint.files, lengths=imported.lengths,
        notes=(*checkpoint.notes, *_notes(imported, options), *left), lossy=imported.read.taken.lossy,
        origin=record(imported, text, checkpoint.files, options.text_only), kind=kind, forms=forms,
    )  # fmt: skip


def _forms(kind: Kind, mapping: CompiledMapping, config: Mapping[str, Any]) -> tuple[tuple[Form, ...], list[str]]:
    """The other forms of a native config that a directory has, and why it lacks others."""
    forms, notes = write_forms(mapping.layout, config, catalog().compiled) if kind.forms else ([], [])
    return tuple(forms), notes


def _prepare_whole(path: Path, options: Options) -> Prepared:
    """From the parts that torch.distributed.checkpoint saved under names of Hugging Face to whole tensors: there and
    back again by way of a layout, so that what is written is what its class has."""
    there = _prepare_import(path, replace(options, to=_layout_for(path, options)))
    whole = there.plan.compose(there.plan.inverse())
    return replace(
        there, to="hf", plan=whole, kind=kind_to_write(options.kind, None), config=there.config, origin={},
        derived=derived_files(there.mapping.source, parse_config(there.text, path / CONFIG), there.files),
    )  # fmt: skip


def _layout_for(path: Path, options: Options) -> str:
    """A layout that has a format for a checkpoint: the default one if it has. Raises ``CrosswalkError``."""
    checkpoint = open_hugging_face(path, options.like)
    named = None if options.named_format is None else format_named(options.named_format, None).layout.name
    layouts = sorted({catalog().mapping(name).layout or "" for name in catalog().formats()})
    for layout in (named,) if named else (DEFAULT_LAYOUT, *layouts):
        with suppress(CrosswalkError):
            return chosen_format(options.format, checkpoint.config, checkpoint.tensors.specs(), layout).layout.name
    return DEFAULT_LAYOUT


def _notes(imported: Imported, options: Options) -> tuple[str, ...]:
    """What a user should know of a way to a layout."""
    grown = padding_notes(imported.mapping.root.type, imported.config, imported.lengths, True)
    left = (e for e in imported.plan.exemptions if e.tensor in imported.bound.duplicates and options.take_tied)
    return (*imported.read.notes, *grown, *(f"`{e.tensor}` is left out: {e.reason}" for e in left))


class _Way(Record, frozen=True):
    """The way of a trainer's checkpoint to Hugging Face. ``text``: the config.json of it; ``tensors``: what is read."""

    mapping: CompiledMapping
    origin: Origin
    exported: Exported
    text: str
    notes: tuple[str, ...]
    tensors: Checkpoint


def _way_out(opened: Opened, options: Options) -> _Way:
    """To Hugging Face, or to what another layout is made from."""
    layout = opened.layout
    origin = original(options.like, replace(options, to=layout.name)) if options.like is not None else None
    mapping, fits = _format_to_write(opened, origin.format if origin is not None else options.named_format)
    if origin is None:
        origin = remembered(opened, mapping)
    config = opened.config if opened.config is not None else origin.native
    if config is None:
        text = "nothing here says the config of the model, only its tensors"
        hint = "pass --native-config FILE, or --like DIR with the Hugging Face directory that it came from"
        raise fail("usage/native-config", text, Position(str(opened.path)), hint)
    places = replace(
        _places(opened.file, opened.text, opened.path, opened.config_at),
        origin=partial(located, text=opened.text, file=opened.file, root=(*opened.origin_at, "padded")),
    )
    tensors = opened.tensors
    specs = {spec.name: spec for spec in tensors.specs()}
    copies: dict[str, str] = {}
    if not BY_NAME[opened.kind].exact:
        with at(places.config):
            given = normalize(layout, config, mapping.root.type.name)
            config = _as_saved(opened, mapping.root.type, given, specs)
            if opened.own and not options.truncate:  # what the trainer has made longer is padding
                cut = {axis: length(mapping.root.type, given, axis) for axis in mapping.root.type.pads}
                longer = {axis: size for axis, size in cut.items() if size < length(mapping.root.type, config, axis)}
                options = replace(options, truncate=longer, trusted=True)
            copies = copies_in(layout, mapping.root.type, config, specs, Limit.of(specs))
            tensors, left = without_idle(opened.tensors, idle(layout, mapping.root.type, config), options.allow_lossy)
            specs, fits = {spec.name: spec for spec in tensors.specs()}, (*fits, *left)
    once = {name: spec for name, spec in specs.items() if name not in copies}
    exported = export_checkpoint(mapping, config, once, options, origin, places)
    exported = replace(exported, plan=with_copies(exported.plan, specs, copies, options.take_tied))
    text = origin.text if exported.unchanged else config_bytes(exported.config).decode()
    notes_of_cut = padding_notes(mapping.root.type, exported.native, exported.lengths, False)
    notes = (*opened.notes, *fits, *exported.notes, *notes_of_cut)
    if origin.is_of(mapping) and origin.kept:
        notes += (f"restored as it was, though not understood: {', '.join(f'`{key}`' for key in origin.kept)}",)
    return _Way(mapping, origin, exported, text, notes, tensors)


def _as_saved(
    opened: Opened, kind: ConfigType, config: dict[str, Any], specs: Mapping[str, TensorSpec]
) -> dict[str, Any]:
    """A complete config that was given for a checkpoint: with the sizes that its padded axes have there, where the
    config is that of an original. Raises ``CrosswalkError`` for every switch that the run had on, and the config has
    not: it may decide what the bytes of a tensor are."""
    problems = [
        Diagnostic("native/run", f"`{name}` is true in the arguments of the run, and not in the config", None,
                   "give the config of this run with --native-config", path=(name,))
        for name, declared in kind.fields.items()
        if declared.group == "features" and opened.run.get(name) is True and config[name] is False
    ]  # fmt: skip
    if problems:
        raise CrosswalkError(problems)
    if opened.config is not None and not opened.own:
        return config
    sizes = {
        dim.name: specs[name].shape[place]
        for name, dims in ((str(p.name), p.pattern.dims) for p in kind.parameters)
        for place, dim in enumerate(dims)
        if isinstance(dim, Axis) and dim.name in kind.pads and len(specs[name].shape if name in specs else ()) > place
    }
    return resized(kind, config, {axis: size for axis, size in sizes.items() if size > length(kind, config, axis)})


def _prepare_export(opened: Opened, options: Options) -> Prepared:
    way = _way_out(opened, options)
    source, exported = way.mapping.source, way.exported
    files = files_to_write(source, way.origin.files, options.model_files, opened.path)
    return Prepared(
        to="hf", mapping=exported.mapping, bound=exported.bound, plan=way.exported.plan, source=way.tensors,
        config=exported.native, text=way.text, files=files, dialects=exported.dialects, notes=way.notes,
        lengths=exported.lengths, derived=derived_files(source, exported.config, files), lossy=exported.lossy,
        defaults=exported.defaults, kind=kind_to_write(options.kind, None),
    )  # fmt: skip


def _prepare_onward(opened: Opened, options: Options) -> Prepared:
    """From one layout to another, or to another kind of directory, in one plan: no Hugging Face tensor is made."""
    way = _way_out(opened, replace(options, to="hf", dtype=None, protect=()))
    exported, origin = way.exported, way.origin
    if gone := missing_files(origin.files, opened.path):
        raise CrosswalkError(gone)
    config, specs = dict(exported.config), way.exported.plan.targets
    asked = short_name(way.mapping) if options.to == opened.layout.name else None
    mapping = chosen_format(asked, config, specs, options.to)
    lossy = options.allow_lossy or origin.lossy
    onward = replace(
        options, stored=True, allow_lossy=lossy, keep=origin.kept, native_config=None, format=mapping.name, dialect=None
    )
    imported = import_checkpoint(mapping, config, specs, onward)
    kind = kind_to_write(options.kind, mapping.layout)
    forms, left = _forms(kind, mapping, imported.config)
    return Prepared(
        to=mapping.layout.name, mapping=imported.mapping, bound=imported.bound,
        plan=exported.plan.compose(imported.plan),
        source=way.tensors, config=imported.config, text=way.text, files=origin.files, lengths=imported.lengths,
        notes=tuple(dict.fromkeys((*way.notes, *_notes(imported, options), *left))), defaults=exported.defaults,
        lossy=tuple(dict.fromkeys((*exported.lossy, *imported.read.taken.lossy))),
        origin=record(imported, way.text, origin.files, bool(opened.origin.get("text_only"))), kind=kind, forms=forms,
    )  # fmt: skip


def _format_to_write(opened: Opened, asked: str | None) -> tuple[CompiledMapping, tuple[str, ...]]:
    """The format asked for, or else the one that a checkpoint remembers; without either, the first of its layout that
    can hold the config that the trainer keeps, with a note of it. Raises ``CrosswalkError``."""
    layout, known = opened.layout, opened.origin.get("format")
    name = asked or known
    there = [name_in_layout(name, layout.name) for name in formats(layout.name)]
    listed = f"there are {', '.join(there)}"
    if name is None and opened.own:
        holding = formats_that_hold(layout, opened.config or {})
        if holding:
            first, *others = (name_in_layout(one.name, layout.name) for one in holding)
            also = f", as {', '.join(others)} could (--format)" if others else ""
            return holding[0], (f"the config fits format {first}{also}",)
    if name is None:
        text = "this checkpoint does not say which format it came from"
        raise fail("format/needed", text, Position(str(opened.file)), f"pass --format; {listed}")
    if name == known and name not in (*there, *catalog().formats()):
        where = locator(opened.text, str(opened.file))((*opened.origin_at, "format"))
        text = f"there is no format `{name}`, which this checkpoint says it came from"
        raise fail("format/unknown", text, where, f"pass --format; {listed}")
    mapping = format_named(name, layout.name)
    if mapping.layout is not layout:
        text = f"format `{mapping.name}` is of layout `{mapping.layout.name}`, this checkpoint of `{layout.name}`"
        raise fail("format/layout", text, None, listed)
    return mapping, ()


def _places(file: Path, text: str, directory: Path, root: tuple[str, ...] = ()) -> Places:
    """Problems of a config at the keys of ``file`` below ``root``, and those of tensors at the directory."""
    return Places(partial(located, text=text, file=file, root=root), partial(located, text="", file=directory))
