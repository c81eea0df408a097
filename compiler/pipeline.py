"""The two pipelines, each written once: from a Hugging Face config to a plan into a layout, and from a native one back.

Every entry of the face goes through them, so that the same bad checkpoint gives the same diagnostics everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.records import Record, field

from .config.coverage import kept_names, left_to_the_class, restore_kept, unknown_keys
from .config.dialects import choose_dialects, dialect_of_names, dialects_of, of_config, without_stale_versions
from .config.dtypes import main_dtype, state_dtype, stated_dtype
from .config.origin import Origin
from .config.read import import_config
from .config.taken import Cases, Taken, follow, related_training
from .config.write import export_config
from .layout.differences import differing
from .layout.limit import Limit
from .layout.padded_axes import length, padded, resized, truncated
from .layout.scope import Scope, as_stored, normalize
from .layout.variants import Shapes, fitting
from .mapping.model import Dialect
from .relations.tree import CompiledMapping
from .tensors.bind import Bound, bind
from .tensors.compare import check_stored
from .tensors.encoded import Read, read_encodings
from .tensors.plan import check_dtype, check_protected, plan_export, plan_import, tensor_dialect, written_in
from .tensors.read_config import check_written, import_with_tensors, written_alone

#: Axis -> a number: a multiple to pad to, or a size.
Sizes = Mapping[str, int]
#: Problems -> the same, at their places in a file.
Locate = Callable[[Iterable[Diagnostic]], Iterable[Diagnostic]]


class PlanOptions(Record, frozen=True, kw_only=True):
    """What decides a plan beside the config and the tensors. ``pad``: axis -> multiple, on the way to a layout;
    ``truncate``: axis -> size, on the way to Hugging Face; ``native_config``: that of the model to fill, or else
    ``parameters``: name -> shape of what that model has; ``stored``: whether the native config is to be what a
    checkpoint of the trainer holds of it; ``keep``: dotted keys of a config.json that no mapping knows, to be carried
    along (one text may hold several, between commas); ``take_tied``: whether tensors that the config ties, and files
    hold too, are left out unread instead of compared; ``trusted``: whether what ``truncate`` cuts off is taken for
    padding; ``tensor_dialect``: the one whose names of tensors are meant, whatever else counts (``newest``: none)."""

    dialect: str | Iterable[str] | None = None
    dtype: str | None = None
    protect: tuple[str, ...] = ()
    allow_lossy: bool = False
    pad: Sizes = field(default_factory=dict)
    truncate: Sizes = field(default_factory=dict)
    native_config: Mapping[str, Any] | None = None
    parameters: Shapes | None = None
    stored: bool = False
    keep: str | Iterable[str] = ()
    take_tied: bool = False
    trusted: bool = False
    tensor_dialect: str | None = None


class Places(Record, frozen=True):
    """Who knows where problems are that do not say so: those of the config, of the tensors, and of what is remembered
    of the origin."""

    config: Locate = tuple
    tensors: Locate = tuple
    origin: Locate = tuple


#: Nobody knows.
_NOWHERE = Places()


class ConfigRead(Record, frozen=True):
    """A config.json, read. ``native`` is complete; ``taken`` is what was decided on the way; ``stored`` is the
    checkpoint as its decoded tensors; ``problems`` were found and do not stand in the way of looking for more; ``kept``
    are the keys that were asked to be kept."""

    native: dict[str, Any]
    taken: Taken
    stored: Read
    problems: tuple[Diagnostic, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it, though nothing is wrong."""
        kept = [f"kept as it is, though not understood: {', '.join(f'`{k}`' for k in self.kept)}"] if self.kept else []
        return tuple(dict.fromkeys((*self.stored.notes, *kept, *self.taken.notes)))


class Imported(Record, frozen=True):
    """The way to a layout. ``config``: native, complete, with padding; ``lengths``: what padded axes were before;
    ``dialect``: the one that the names of the tensors are in, None for the newest."""

    mapping: CompiledMapping
    read: ConfigRead
    config: Mapping[str, Any]
    lengths: Sizes
    bound: Bound
    plan: Plan
    dialect: Dialect | None


class Exported(Record, frozen=True):
    """The way to Hugging Face. ``native``: complete, as it is; ``lengths``: the sizes there of axes that are cut;
    ``config``: the config.json that belongs to it, ``unchanged`` if it is that of the origin; ``notes``: what a user
    should know; ``lossy``: what is inexact, and why; ``defaults``: key -> what the class takes for it, of what is lost
    without an origin; ``copies``: names of tied tensors that files do not hold -> what holds them."""

    mapping: CompiledMapping
    native: Mapping[str, Any]
    lengths: Sizes
    bound: Bound
    plan: Plan
    config: Mapping[str, Any]
    unchanged: bool
    dialects: tuple[str, ...]
    notes: tuple[str, ...]
    lossy: tuple[str, ...]
    defaults: Mapping[str, Any]
    copies: Mapping[str, str]


def import_checkpoint(
    mapping: CompiledMapping,
    config: Mapping[str, Any],
    tensors: Iterable[TensorSpec] | None,
    options: PlanOptions,
    places: Places = _NOWHERE,
) -> Imported:
    """The plan for a config.json. ``tensors``: what the files hold; without, all have the dtype that the config names.

    Raises ``CrosswalkError`` with every problem of the config, of the tensors, and of the options.
    """
    dtype = check_dtype(options.dtype)
    dialect: Dialect | None = None
    if tensors is not None:
        tensors = list(tensors)
        if mapping.spelled:
            dialect = dialect_of_names(mapping, (tensor.name for tensor in tensors))
            mapping = mapping.in_dialect(dialect.name if dialect else None)
    read = read_config(mapping, config, tensors, options.allow_lossy, places, options.keep)
    found = read.stored if tensors is not None else None
    problems = list(read.problems)
    try:
        native, cases, lengths = _to_fill(mapping, read, options)
        with at(places.tensors):
            bound = bind(mapping, native, cases, lengths, Limit.of(found.names if found is not None else None))
            if found is not None and (found.encodings or not mapping.spelled):
                dialect = dialect_of_names(mapping, found.specs)
            plan = plan_import(
                bound, found.specs if found else None, dtype, stated_dtype(config), options.protect,
                found.encodings if found else (), found.unused if found else {}, options.take_tied, dialect,
            )  # fmt: skip
    except CrosswalkError as error:
        problems += error.diagnostics
    if problems:
        raise CrosswalkError(problems)
    check_protected(options.protect, plan)
    return Imported(mapping, read, native, lengths, bound, plan, dialect)


def import_model(mapping: CompiledMapping, config: Mapping[str, Any], options: PlanOptions) -> dict[str, Any]:
    """The native config of a config.json alone. Raises ``CrosswalkError`` with every problem of it."""
    read = read_config(mapping, config, None, options.allow_lossy, keep=options.keep)
    if read.problems:
        raise CrosswalkError(read.problems)
    return _to_fill(mapping, read, options)[0]


def read_config(
    mapping: CompiledMapping,
    config: Mapping[str, Any],
    tensors: Iterable[TensorSpec] | None = None,
    allow_lossy: bool = False,
    places: Places = _NOWHERE,
    keep: str | Iterable[str] = (),
) -> ConfigRead:
    """Read a config.json, and the tensors beside it as they are decoded: in the dtype that it names, or BF16 if it
    names none, or one of 8 bits. Raises ``CrosswalkError`` if there is no native config for it."""
    stated = stated_dtype(config, "BF16")
    stored = read_encodings(mapping.source, config, tensors or (), stated if size_of(stated) > 1 else "BF16")
    kept = kept_names(keep)
    problems = [*stored.problems, *unknown_keys(mapping, stored.config, kept)]
    found: tuple[dict[str, Any], Taken] | None = None
    try:
        if tensors is None:
            found = import_config(mapping, stored.config, allow_lossy)
        else:
            found = import_with_tensors(mapping, stored.config, stored.names, allow_lossy)
    except CrosswalkError as error:
        problems += error.diagnostics
    located = tuple(places.config(problems))
    if found is None or not stored.understood:
        raise CrosswalkError(located)
    return ConfigRead(*found, stored, located, kept)


def _to_fill(
    mapping: CompiledMapping, read: ConfigRead, options: PlanOptions
) -> tuple[dict[str, Any], Cases, dict[str, int]]:
    """The config of the model that is to be filled, its cases, and the sizes before of its axes that are padded. The
    config is the one given in the options, or else what was read.

    Raises ``CrosswalkError`` (``native/differs``) with every field, those of ``training`` excepted, in which a given
    config is another model.
    """
    layout, kind = mapping.layout, mapping.root.type
    native = as_stored(layout, kind, read.native) if options.stored else read.native
    imported, lengths = padded(kind, native, options.pad)
    given = options.native_config
    if given is None:
        if options.parameters is None:
            return imported, read.taken.cases, lengths
        given = fitting(layout, kind, imported, options.parameters)
    found, complete = Scope(layout, kind, imported), Scope(layout, kind, normalize(layout, given, kind.name))
    hint = "only fields of `training` may differ from what the checkpoint is"
    problems = []
    for path, now, wanted, _ in differing(complete, found):
        text = f"`{'.'.join(path)}` is {now}, the checkpoint says {wanted}"
        problems.append(Diagnostic("native/differs", text, None, hint, path=path))
    if problems:
        raise CrosswalkError(problems)
    return *follow(read.taken.cases, found, complete), lengths


def export_checkpoint(
    mapping: CompiledMapping,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorSpec] | None,
    options: PlanOptions,
    origin: Origin | None = None,
    places: Places = _NOWHERE,
) -> Exported:
    """The plan for a native config. ``tensors``: what the model holds; without, all are F32. What the options leave
    open is as ``origin`` has it.

    Raises ``CrosswalkError`` with everything that the format cannot hold, of the tensors, and of the options; and with
    every field in which the origin is another model.
    """
    dtype = check_dtype(options.dtype)
    native, lengths, dialects, tuned = _sides(mapping, config, options, origin, places)
    if tensors is not None:
        shapes = {name: spec.shape for name, spec in tensors.items()}
        native = fitting(mapping.layout, mapping.root.type, native, shapes)
    known = origin if origin is not None and origin.is_of(mapping) else None
    names = _names_to_write(mapping, dialects, options, known)
    mapping = mapping.in_dialect(names)
    allow = options.allow_lossy or (known is not None and known.lossy)
    sized = resized(mapping.root.type, native, lengths)
    source = known.config if known is not None else None
    remembered, same = _remembered(mapping, source, sized)
    with at(places.config):
        written, taken = export_config(mapping, sized, dialects, allow, remembered, source or {})
    if tensors is not None:
        with at(places.tensors):
            check_stored(mapping, native, tensors)
    with at(places.config):
        bound = bind(mapping, native, taken.cases, lengths)
    with at(places.tensors):
        plan = plan_export(bound, tensors, dtype, "F32", options.protect, names)
    check_protected(options.protect, plan)
    kept = options.dialect is None or (
        source is not None and of_config(mapping, dialects) == set(dialects_of(mapping, source))
    )
    same = same and kept and taken.cases == remembered
    final, unchanged = _config_to_write(mapping, written, plan, known, same)
    if not unchanged:
        final = without_stale_versions(mapping, final, dialects)
        written_as = written_alone(mapping, sized, dialects, allow, remembered, source or {}, final)
        targets = [tensor.name for tensor in plan.targets] if tensors is not None else None
        check_written(mapping, written_as, sized, targets)
    return Exported(
        mapping, native, lengths, bound, plan, final, unchanged, dialects,
        notes=tuple(dict.fromkeys((*taken.notes, *tuned))), lossy=taken.lossy,
        defaults=left_to_the_class(mapping, final) if known is None else {},
        copies=written_in(bound, names).duplicates,
    )  # fmt: skip


def _names_to_write(
    mapping: CompiledMapping, dialects: tuple[str, ...], options: PlanOptions, origin: Origin | None
) -> str | None:
    """The dialect whose names of tensors are written; None for those of the sections."""
    known = mapping.source.dialects
    if options.tensor_dialect is not None:
        return options.tensor_dialect if options.tensor_dialect in known else None
    if options.dialect is None and origin is not None and origin.tensor_dialect in known:
        return origin.tensor_dialect
    return tensor_dialect(mapping, dialects)


def export_model(mapping: CompiledMapping, config: Mapping[str, Any], options: PlanOptions) -> dict[str, Any]:
    """The config.json of a native config alone. Raises ``CrosswalkError`` with every field that it cannot hold."""
    native, lengths, dialects, _ = _sides(mapping, config, options, None, Places())
    sized = resized(mapping.root.type, native, lengths)
    written, taken = export_config(mapping, sized, dialects, options.allow_lossy)
    written_as = written_alone(mapping, sized, dialects, options.allow_lossy, taken.cases, {}, written)
    check_written(mapping, written_as, sized, None)
    return written


def _sides(
    mapping: CompiledMapping, config: Mapping[str, Any], options: PlanOptions, origin: Origin | None, places: Places
) -> tuple[dict[str, Any], dict[str, int], tuple[str, ...], list[str]]:
    """The complete native config, the sizes of its axes that are cut, the dialects to write, and a note for each number
    in which the origin differs."""
    kind = mapping.root.type
    tuned: list[str] = []
    remembered = origin.padded if origin is not None else {}
    with at(places.config):
        native = normalize(mapping.layout, config, kind.name)
        if origin is not None and origin.native is not None:
            remembered, tuned = _compared(mapping, native, origin.native, origin.name)
    source = origin.config if origin is not None and origin.is_of(mapping) else None
    dialects = choose_dialects(mapping, options.dialect, source)
    with at(places.origin):
        lengths = truncated(kind, native, remembered, options.truncate, options.allow_lossy or options.trusted)
    return native, lengths, dialects, tuned


def _compared(
    mapping: CompiledMapping, native: Mapping[str, Any], original: Mapping[str, Any], name: str
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """What is longer in a native config than in the original one, as padding, and a note for each number that training
    may have changed. Raises ``CrosswalkError`` (``like/differs``) with every other field in which they differ."""
    layout, kind = mapping.layout, mapping.root.type
    native = as_stored(layout, kind, native)
    sizes = {axis: (length(kind, original, axis), length(kind, native, axis)) for axis in kind.pads}
    longer = {axis: {"from": before, "to": now} for axis, (before, now) in sizes.items() if before < now}
    unpadded = resized(kind, native, {axis: found["from"] for axis, found in longer.items()})
    problems, notes = [], []
    for path, here, there, floats in differing(Scope(layout, kind, unpadded), Scope(layout, kind, original)):
        field_name = ".".join(path) or "the model"
        if floats:
            notes.append(f"`{field_name}` is {here}, and {there} in `{name}`: {here} is written")
            continue
        text = f"`{field_name}` is {here}, and {there} in `{name}`: that is another model"
        hint = "name the directory that this model came from"
        problems.append(Diagnostic("like/differs", text, None, hint, path=path))
    if problems:
        raise CrosswalkError(problems)
    return longer, notes


def _config_to_write(
    mapping: CompiledMapping, written: Mapping[str, Any], plan: Plan, origin: Origin | None, same: bool
) -> tuple[dict[str, Any], bool]:
    """config.json to write, and whether it is that of the origin. It is if that is the ``same`` still; else it is the
    one ``written``, with what means nothing to the trainer restored from the old one."""
    result: dict[str, Any] = copy.deepcopy(dict(written))
    stated = main_dtype(plan.targets)
    if origin is not None and origin.config is not None:
        same_dtype = origin.dtype == stated
        if same_dtype and same:
            return dict(origin.config), True
        restore_kept(mapping, result, origin.config)
        if same_dtype:
            return result, False
    state_dtype(result, stated)
    return result, False


def _remembered(
    mapping: CompiledMapping, config: Mapping[str, Any] | None, native: Mapping[str, Any]
) -> tuple[Cases, bool]:
    """The cases that the config.json of the origin took, and whether it still says what the native config says."""
    if config is None:
        return {}, False
    layout, kind = mapping.layout, mapping.root.type
    try:
        imported, taken = import_config(mapping, config, allow_lossy=True)
        before = Scope(layout, kind, as_stored(layout, kind, imported))
    except CrosswalkError:
        return {}, False
    now = Scope(layout, kind, native)
    if any(differing(before, now, related_training(mapping))):
        return taken.cases, False
    return follow(taken.cases, before, now)[1], True


@contextmanager
def at(locate: Locate) -> Iterator[None]:
    """Problems of this block are at the places that ``locate`` finds for them. They are raised as ``CrosswalkError``
    again."""
    try:
        yield
    except CrosswalkError as error:
        raise CrosswalkError(locate(error.diagnostics)) from error
