"""Open a checkpoint, decide its format, and make the plan: everything that is decided before a byte of data moves."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.huggingface import (
    CONFIG,
    config_bytes,
    folders_left_behind,
    open_hugging_face,
    parse_config,
)
from crosswalk.checkpoints.key_positions import located, locator, read_from
from crosswalk.checkpoints.native import METADATA, NativeCheckpoint, is_native, open_native
from crosswalk.compiler.config.coverage import restore_kept, unknown_keys
from crosswalk.compiler.config.dialects import choose_dialects, dialect_of_names, dialects_of, without_stale_versions
from crosswalk.compiler.config.read import import_config
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.layout.differences import same_value
from crosswalk.compiler.layout.padded_axes import resized
from crosswalk.compiler.layout.scope import as_stored, normalize
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.tensors.bind import Bound, bind
from crosswalk.compiler.tensors.plan import check_dtype, plan_export, plan_import, protects, tensor_dialect
from crosswalk.compiler.tensors.read_config import import_with_tensors
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.plan.model import Plan, TensorSpec

from .detect import DEFAULT_LAYOUT, chosen_format
from .formats import catalog, format_named
from .model_files import derived_files, files_to_write
from .plans import formats, read_stored
from .sizes import Sizes, check_direction, padded, padding_notes, record, truncated

DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True)
class Prepared:
    """A conversion that is ready to run. ``config`` is the native config; ``text`` the config.json that belongs to the
    Hugging Face side as its tensors are decoded, or that is to be written; ``files`` are carried along, by name;
    ``notes`` say what a user should know, though nothing is wrong; ``lengths`` are the sizes on the Hugging Face side
    of axes that are longer here; ``derived`` are files made from ``text``, name -> content."""

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

    @property
    def theirs(self) -> Mapping[str, Any]:
        """The native config of the Hugging Face side: without padding."""
        return resized(self.mapping.root.type, self.config, self.lengths)


def prepare(
    source: Path,
    to: str | None = None,
    format: str | None = None,
    dialect: str | None = None,
    dtype: str | None = None,
    protect: tuple[str, ...] = (),
    allow_lossy: bool = False,
    model_files: Path | None = None,
    pad: Sizes | None = None,
    truncate: Sizes | None = None,
) -> Prepared:
    """Open ``source`` and plan its conversion. ``to``: a layout, or ``hf``; by default the other side of what it is.
    ``pad``: axis -> multiple, of a conversion to a layout; ``truncate``: axis -> size, of one to ``hf``.

    Raises ``CrosswalkError`` with everything that stands in the way.
    """
    native = is_native(source)
    if not native:
        require_checkpoint(source)
    if to is None:
        to = "hf" if native else DEFAULT_LAYOUT
    check_direction(to, pad, truncate)
    if native and to == "hf":
        return _prepare_export(source, format, dialect, dtype, protect, allow_lossy, model_files, truncate)
    if native:
        what = f"a {DEFAULT_LAYOUT} checkpoint ({METADATA})"
        raise fail("usage/to", f"this is {what} already", Position(str(source)), "pass --to hf")
    if to == "hf":
        what = f"this is a Hugging Face checkpoint ({CONFIG}) already"
        raise fail("usage/to", what, Position(str(source)), f"pass --to {DEFAULT_LAYOUT}")
    if to != DEFAULT_LAYOUT:
        hint = f"convert to {DEFAULT_LAYOUT}; for other layouts there are compile_plan and load"
        raise fail("usage/to", f"no checkpoint directory can be written in layout `{to}`", None, hint)
    if dialect is not None:
        raise fail("usage/dialect", "a dialect is one of Hugging Face checkpoints to write; this one is read", None,
                   "leave out --dialect: the dialect of a file is found from the file")  # fmt: skip
    return _prepare_import(source, to, format, dtype, protect, allow_lossy, pad)


def _prepare_import(
    path: Path,
    to: str,
    format: str | None,
    dtype: str | None,
    protect: tuple[str, ...],
    allow_lossy: bool,
    pad: Sizes | None,
) -> Prepared:
    asked = check_dtype(dtype)
    if format not in (None, "auto"):
        format_named(str(format))
    checkpoint = open_hugging_face(path)
    specs = checkpoint.tensors.specs()
    problems: list[Diagnostic] = []
    with read_from(path / CONFIG, checkpoint.text):
        mapping = chosen_format(format, checkpoint.config, specs, to)
        read = read_stored(mapping, checkpoint.config, specs)
        unknown = [*read.problems, *unknown_keys(mapping, read.config)]
        try:
            native, notes = import_with_tensors(mapping, read.config, read.names, allow_lossy)
        except CrosswalkError as error:
            raise CrosswalkError((*unknown, *error.diagnostics)) from error
        problems += located(unknown, checkpoint.text, path / CONFIG)
    if not read.understood:
        raise CrosswalkError(problems)
    try:
        with read_from(path):
            native = as_stored(mapping.layout, mapping.root.type, native)
            native, lengths = padded(mapping.root.type, native, pad)
            bound = bind(mapping, native, allow_lossy=True, lengths=lengths)
            plan = plan_import(bound, read.specs, asked, protect=protect, encodings=read.encodings, unused=read.unused)
    except CrosswalkError as error:
        problems += error.diagnostics
    if problems:
        raise CrosswalkError(problems)
    _check_protected(protect, plan)
    left = folders_left_behind(path)
    grown = padding_notes(mapping.root.type, native, lengths, True)
    said = (*dict.fromkeys(notes), *grown, *([f"folders are not carried along: {', '.join(left)}"] if left else ()))
    files, text = checkpoint.files, checkpoint.text
    if any(checkpoint.config.get(key) is not None for key in checkpoint.config.keys() - read.config.keys()):
        # Remembered as a checkpoint of floats, which the tensors are from now on.
        decoded = dict(read.config)
        state_dtype(decoded, main_dtype(plan.sources))
        text = config_bytes(decoded).decode()
    return Prepared(to, mapping, bound, plan, checkpoint.tensors, native, text, files, (), said, lengths)


def _prepare_export(
    path: Path,
    format: str | None,
    dialect: str | None,
    dtype: str | None,
    protect: tuple[str, ...],
    allow_lossy: bool,
    model_files: Path | None,
    truncate: Sizes | None,
) -> Prepared:
    layout = catalog().layout(DEFAULT_LAYOUT)
    asked = check_dtype(dtype)
    checkpoint = open_native(path, layout)
    origin = checkpoint.origin
    name = format if format not in (None, "auto") else origin.get("format")
    if name is None:
        raise fail(
            "format/needed", "this checkpoint does not say which format it came from", Position(str(path / METADATA)),
            f"pass --format; there are {', '.join(formats(layout.name))}",
        )  # fmt: skip
    if name == origin.get("format") and name not in catalog().formats():
        at = locator(checkpoint.text, str(path / METADATA))(("metadata", "crosswalk", "format"))
        raise fail("format/unknown", f"there is no format `{name}`, which this checkpoint says it came from", at,
                   f"pass --format; there are {', '.join(formats(layout.name))}")  # fmt: skip
    mapping = format_named(str(name))
    if mapping.layout is not layout:
        message = f"format `{mapping.name}` is of layout `{mapping.layout.name}`, this checkpoint of `{layout.name}`"
        raise fail("format/layout", message, None, f"there are {', '.join(formats(layout.name))}")
    with read_from(path / METADATA, checkpoint.text, ("config", "base_model")):
        native = normalize(layout, checkpoint.config, mapping.root.type.name)
    same_format = origin.get("format") == mapping.name and isinstance(origin.get("config"), str)
    allow = allow_lossy or bool(same_format and origin.get("lossy"))
    old = _origin_config(checkpoint) if same_format else None
    dialects = choose_dialects(mapping, dialect, old)
    kind = mapping.root.type
    at = locator(checkpoint.text, str(path / METADATA))(("metadata", "crosswalk", "padded"))
    lengths = truncated(kind, native, origin, truncate, allow_lossy, at)
    with read_from(path / METADATA):
        bound = bind(mapping, native, dialects, allow, lengths)
    names = tensor_dialect(mapping, dialects)
    if dialect is None and same_format and origin.get("tensor_dialect") in mapping.source.dialects:
        names = str(origin["tensor_dialect"])
    specs = {spec.name: spec for spec in checkpoint.tensors.specs()}
    with read_from(path):
        plan = plan_export(bound, specs, asked, protect=protect, tensor_dialect=names)
    _check_protected(protect, plan)
    theirs = resized(kind, native, lengths)
    text = _config_text(mapping, bound, theirs, origin, old, plan, dialects, dialect is not None)
    files = files_to_write(mapping.source, checkpoint, model_files)
    derived = derived_files(mapping.source, parse_config(text, Path(CONFIG)), files)
    notes = (*dict.fromkeys(bound.notes), *padding_notes(kind, native, lengths, False))
    return Prepared(
        "hf", mapping, bound, plan, checkpoint.tensors, native, text, files, dialects, notes, lengths, derived
    )


def require_checkpoint(path: Path) -> None:
    """Raise unless ``path`` is a directory that could hold a checkpoint."""
    if not path.is_dir():
        what = "this is a file" if path.exists() else "there is no such directory"
        hint = f"name the directory of a checkpoint, with {CONFIG} or {METADATA}"
        raise fail("source/not-a-directory", what, Position(str(path)), hint)


def _check_protected(protect: tuple[str, ...], plan: Plan) -> None:
    """Raise for protected names that are no tensors: with a typo in one, its tensor would be cast."""
    problems = []
    names = [tensor.name for tensor in plan.targets]
    for pattern in protect:
        if not any(protects((pattern,), name) for name in names):
            hint = did_you_mean(pattern, names) or "name a tensor of the output, or a prefix as PREFIX*"
            problems.append(Diagnostic("usage/protect", f"no tensor of the output is called `{pattern}`", None, hint))
    if problems:
        raise CrosswalkError(problems)


def origin_of(prepared: Prepared) -> dict[str, Any]:
    """What a native checkpoint remembers of the Hugging Face checkpoint that it came from."""
    tensors = dialect_of_names(prepared.mapping, (tensor.name for tensor in prepared.plan.sources))
    try:
        import_config(prepared.mapping, parse_config(prepared.text, Path(CONFIG)))
        lossy = False
    except CrosswalkError:
        lossy = True
    return {
        "format": prepared.mapping.name,
        "config": prepared.text,
        "tensor_dialect": tensors.name if tensors else None,
        "dtype": main_dtype(prepared.plan.sources),
        "lossy": lossy,
        "plan": prepared.plan.digest,
        "files": sorted(prepared.files),
        **record(prepared.mapping.root.type, prepared.config, prepared.lengths),
    }


def main_dtype(tensors: tuple[TensorSpec, ...]) -> str:
    """The dtype that most bytes have; what a config's ``dtype`` says."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.nbytes
    return counts.most_common(1)[0][0] if counts else "F32"


def _config_text(
    mapping: CompiledMapping,
    bound: Bound,
    native: Mapping[str, Any],
    origin: Mapping[str, Any],
    old: Mapping[str, Any] | None,
    plan: Plan,
    dialects: tuple[str, ...],
    dialect_asked: bool,
) -> str:
    """config.json to write. If ``old``, the one that the checkpoint came from, still says what the native config says,
    it is that one, byte for byte; else a new one, with what means nothing to the trainer restored from it."""
    result: dict[str, Any] = copy.deepcopy(dict(bound.config))
    stated = main_dtype(plan.targets)
    if old is not None:
        same_dtype = origin.get("dtype") == stated
        same_dialects = not dialect_asked or set(dialects) == set(dialects_of(mapping, old))
        if same_dtype and same_dialects and _still_says(mapping, old, native):
            return str(origin["config"])
        restore_kept(mapping, result, old)
        result = without_stale_versions(mapping, result, dialects)
        if same_dtype:
            return config_bytes(result).decode()
    state_dtype(result, stated)
    return config_bytes(result).decode()


def _origin_config(checkpoint: NativeCheckpoint) -> dict[str, Any]:
    """The config.json that a native checkpoint remembers."""
    keys = ("metadata", "crosswalk", "config")
    try:
        return parse_config(checkpoint.origin["config"], Path(CONFIG))
    except CrosswalkError as error:
        where = locator(checkpoint.text, str(checkpoint.path / METADATA))(keys)
        hint = "remove it: a new config.json is written then"
        raise CrosswalkError(
            Diagnostic("native/metadata", f"`{'.'.join(keys)}`: {d.message}", where, hint) for d in error.diagnostics
        ) from error


def _still_says(mapping: CompiledMapping, config: Mapping[str, Any], native: Mapping[str, Any]) -> bool:
    try:
        imported, _ = import_config(mapping, config, allow_lossy=True)
        imported = as_stored(mapping.layout, mapping.root.type, imported)
        return same_value(
            export_config(mapping, imported, None, True)[0], export_config(mapping, native, None, True)[0]
        )
    except CrosswalkError:
        return False


def state_dtype(config: dict[str, Any], dtype: str) -> None:
    """Say in a config.json which dtype its tensors have."""
    for key in [key for key in DTYPE_KEYS if key in config] or [DTYPE_KEYS[0]]:
        config[key] = DTYPES[dtype][1]


def with_dtypes_of(plan: Plan, found: Mapping[str, TensorSpec]) -> Plan:
    """The plan with the dtypes that an output really has, to compare with it; what is decoded for one dtype only is
    decoded to that, and so are its duplicates."""
    targets = tuple(replace(t, dtype=found[t.name].dtype) if t.name in found else t for t in plan.targets)
    wanted: dict[str, set[str]] = {}
    for moved in plan.copies:
        wanted.setdefault(plan.sources[moved.source].name, set()).add(targets[moved.target].dtype)
    once = {name: dtypes.pop() for name, dtypes in wanted.items() if len(dtypes) == 1 and name in plan.encoding_of}
    once |= {e.tensor: once[e.of] for e in plan.exemptions if e.of in once and e.tensor in plan.encoding_of}
    sources = tuple(replace(s, dtype=once[s.name]) if s.name in once else s for s in plan.sources)
    return replace(plan, sources=sources, targets=targets)
