"""Prove that one checkpoint is the conversion of another, by reading both and writing nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from crosswalk.checkpoints.huggingface import CONFIG, open_hugging_face
from crosswalk.checkpoints.key_positions import locator, read_from
from crosswalk.checkpoints.kinds.every import HUGGING_FACE, kind_of
from crosswalk.checkpoints.native import require_checkpoint
from crosswalk.checkpoints.opened import Opened
from crosswalk.compiler.config.dialects import dialect_of_names
from crosswalk.compiler.layout.differences import differing
from crosswalk.compiler.layout.natives import ties_of
from crosswalk.compiler.layout.padded_axes import length
from crosswalk.compiler.layout.scope import Scope, normalize
from crosswalk.compiler.pipeline import read_config
from crosswalk.compiler.tensors.plan import plan_export
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, system_limits
from crosswalk.runtime.files.convert import EngineOptions, verify_checkpoint
from crosswalk.runtime.files.workers import Progress
from crosswalk.runtime.plan.algebra import with_sources
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.records import replace

from .options import AskedOptions, Options, options_of
from .prepare import Prepared, open_trainer, prepare
from .report import Report


@system_limits()
def verify(
    src: str | Path,
    dst: str | Path,
    format: str | None = None,
    *,
    allow_lossy: bool = False,
    take_tied: bool = False,
    like: str | Path | None = None,
    layout: str | None = None,
    native_config: str | Path | Mapping[str, Any] | None = None,
    options: EngineOptions | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Prove that ``dst`` holds the conversion of ``src``: the same model by its config, and every tensor bit for bit
    (after the casts that its dtypes imply). ``take_tied``, ``like``, ``layout`` and ``native_config``: see
    :func:`crosswalk.convert`.

    Raises ``CrosswalkError`` naming every difference."""
    source, target = Path(src), Path(dst)
    for path in (source, target):
        require_checkpoint(path)
    kinds = kind_of(source, layout), kind_of(target)
    if kinds[0] is kinds[1] and not kinds[0].every:
        what = f"`{source}` and `{target}` are checkpoints of the same kind: {kinds[0].mark} is in both"
        raise fail("verify/kind", what, None, "name a checkpoint, and what was converted from it")
    said = AskedOptions(
        allow_lossy=allow_lossy, take_tied=take_tied, like=like, layout=layout, native_config=native_config
    )
    asked = options_of(format, None, None, None, said)
    to_trainer = kinds[1] is not HUGGING_FACE
    expected = _native_output(source, target, asked) if to_trainer else _hf_output(source, target, asked)
    prepared, there, kind = expected.prepared, expected.prepared.mapping.layout, expected.prepared.mapping.root.type
    where = Position(str(expected.file))
    by_source = prepared.config if to_trainer else prepared.unpadded
    differences = differing(Scope(there, kind, by_source), Scope(there, kind, expected.config))
    lines = [f"`{'.'.join(path)}` is {value}, by the source it is {wanted}" for path, wanted, value, _ in differences]
    if lines:
        raise CrosswalkError(Diagnostic("verify/config", line, where) for line in lines)
    plan = _with_dtypes_of(prepared.plan, {spec.name: spec for spec in expected.output.specs()})
    problems = plan.verify().problems
    if problems:
        raise CrosswalkError(problems)
    done = verify_checkpoint(plan, prepared.source, expected.output, options=options, on_progress=on_progress)
    return Report.of(replace(prepared, plan=plan), done, target)


class _Expected(NamedTuple):
    """The conversion that would have made an output; the output's tensors, and its native config with the file that
    says it."""

    prepared: Prepared
    output: Checkpoint
    config: Mapping[str, Any]
    file: Path


def _native_output(source: Path, target: Path, options: Options) -> _Expected:
    native = open_trainer(target, Options())
    layout = native.layout
    # A multiple that is at least the size is the size to pad to.
    sizes = {
        axis: found["to"] for axis, found in _remembered(native).items() if axis in layout.types[_root(native)].pads
    }
    text_only = bool(native.origin.get("text_only")) and kind_of(source, options.layout) is HUGGING_FACE
    kept = native.origin.get("kept") or ()
    asked = replace(options, to=layout.name, kind=native.kind, pad=sizes, keep=kept, text_only=text_only)
    prepared = prepare(source, asked)
    kind, output, config = prepared.mapping.root.type, native.tensors, prepared.config
    if native.config is not None:
        with read_from(native.file, native.text, native.config_at):
            config = normalize(layout, native.config, native.root or kind.name)
        _check_remembered(prepared, config, native)
    copies = [name for name, of in ties_of(Scope(layout, kind, config)).items() if name in output.tensors]
    if copies:
        output = replace(output, tensors={n: t for n, t in output.tensors.items() if n not in copies})
    return _Expected(prepared, output, config, native.file)


def _root(native: Opened) -> str:
    """The type of a native config, by what is said of it."""
    return native.root or native.layout.root


def _hf_output(source: Path, target: Path, options: Options) -> _Expected:
    # The model code that an export needs is at the destination already.
    sizes = _changed(source, options)
    asked = replace(options, to="hf", model_files=target, truncate=sizes)
    prepared = prepare(source, asked)
    checkpoint = open_hugging_face(target)
    output = checkpoint.tensors
    dialect = dialect_of_names(prepared.mapping, output.tensors)
    asked = replace(asked, tensor_dialect=dialect.name if dialect else "newest")
    if any(known.sections for known in prepared.mapping.source.dialects.values()):
        prepared = prepare(source, asked)
    with read_from(target / CONFIG, checkpoint.text):
        kept = open_trainer(source, options).origin.get("kept") or ()
        read = read_config(prepared.mapping, checkpoint.config, checkpoint.tensors.specs(), True, keep=kept)
        if read.stored.encodings:
            text = f"{len(read.stored.encodings)} tensors of the output are encoded, and no conversion writes such"
            raise fail("verify/encoded", text, Position(str(target)))
        if read.problems:
            raise CrosswalkError(read.problems)
    cut = _cut_otherwise(prepared, read.native, options.allow_lossy)
    if cut:
        prepared = prepare(source, replace(asked, truncate=sizes | cut))
    specs = {spec.name: spec for spec in prepared.source.specs()}
    copied = [e for e in prepared.plan.exemptions if e.tensor in specs]
    twice = [specs.pop(exemption.tensor) for exemption in copied]
    plan = plan_export(prepared.bound, specs, tensor_dialect=dialect.name if dialect else None)
    plan = with_sources(plan, twice, copied)
    return _Expected(replace(prepared, plan=plan), output, read.native, target / CONFIG)


def _remembered(native: Opened) -> Mapping[str, Any]:
    """Axis -> its sizes ``from`` and ``to``."""
    return native.origin.get("padded") or {}


def _check_remembered(prepared: Prepared, config: Mapping[str, Any], native: Opened) -> None:
    """Raise for axes that an output of this config remembers as padded otherwise than it is: exporting it again would
    cut them to another size."""
    kind = prepared.mapping.root.type
    locate = locator(native.text, str(native.file))
    problems = []
    for axis, sizes in _remembered(native).items():
        text = f"axis `{axis}` is remembered as padded from {sizes['from']} to {sizes['to']}"
        where = locate((*native.origin_at, "padded", axis))
        if axis not in kind.pads:
            problems.append(Diagnostic("verify/padded", f"{text}, and may not be padded", where))
            continue
        real = length(kind, prepared.unpadded, axis), length(kind, config, axis)
        if (sizes["from"], sizes["to"]) != real:
            text = f"{text}; its size is {real[0]} by the source, and {real[1]} by the config"
            problems.append(Diagnostic("verify/padded", text, where))
    if problems:
        raise CrosswalkError(problems)


def _changed(path: Path, options: Options) -> dict[str, int]:
    """The sizes of axes that were changed after padding, so that what a native checkpoint remembers says nothing."""
    native = open_trainer(path, options)
    if native.config is None or not _remembered(native):
        return {}
    layout, kind = native.layout, native.layout.types[_root(native)]
    with read_from(native.file, native.text, native.config_at):
        config = normalize(layout, native.config, kind.name)
    said = {axis: sizes["to"] for axis, sizes in _remembered(native).items() if axis in kind.pads}
    return {axis: now for axis, size in said.items() if (now := length(kind, config, axis)) != size}


def _cut_otherwise(prepared: Prepared, config: Mapping[str, Any], allow_lossy: bool) -> dict[str, int]:
    """The sizes of axes of which less, or with ``allow_lossy`` more, was cut off than the source remembers as padding.
    ``config``: of the output."""
    kind = prepared.mapping.root.type
    result = {}
    for axis in kind.pads:
        size, least = length(kind, config, axis), length(kind, prepared.unpadded, axis)
        if size != least and size <= length(kind, prepared.config, axis) and (allow_lossy or size > least):
            result[axis] = size
    return result


def _with_dtypes_of(plan: Plan, found: Mapping[str, TensorSpec]) -> Plan:
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
