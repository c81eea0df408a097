"""Prove that one checkpoint is the conversion of another, by reading both and writing nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.huggingface import CONFIG, open_hugging_face
from crosswalk.checkpoints.key_positions import locator, read_from
from crosswalk.checkpoints.native import METADATA, NativeCheckpoint, is_native, open_native
from crosswalk.compiler.config.dialects import dialect_of_names
from crosswalk.compiler.layout.differences import differing
from crosswalk.compiler.layout.padded_axes import length
from crosswalk.compiler.layout.scope import Scope, normalize
from crosswalk.compiler.tensors.plan import plan_export
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.files.convert import Options, verify_checkpoint
from crosswalk.runtime.files.workers import Progress

from .detect import DEFAULT_LAYOUT
from .formats import catalog
from .plans import read_config, read_stored
from .prepare import Prepared, prepare, require_checkpoint, with_dtypes_of
from .report import Report


def verify(
    src: str | Path,
    dst: str | Path,
    format: str | None = None,
    *,
    allow_lossy: bool = False,
    options: Options | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Prove that ``dst`` holds the conversion of ``src``: the same model by its config, and every tensor bit for bit
    (after the casts that its dtypes imply). Raises ``CrosswalkError`` naming every difference."""
    source, target = Path(src), Path(dst)
    for path in (source, target):
        require_checkpoint(path)
    if is_native(target) == is_native(source):
        what = f"{METADATA} is in both" if is_native(source) else f"{METADATA} is in neither"
        raise fail("verify/kind", f"`{source}` and `{target}` are checkpoints of the same kind: {what}")
    if is_native(target):
        layout = catalog().layout(DEFAULT_LAYOUT)
        native = open_native(target, layout)
        pads = layout.types[native.root].pads
        # A multiple that is at least the size is the size to pad to.
        sizes = {axis: found["to"] for axis, found in _remembered(native).items() if axis in pads}
        prepared = prepare(source, None, format, allow_lossy=allow_lossy, pad=sizes)
        with read_from(target / METADATA, native.text, ("config", "base_model")):
            config = normalize(prepared.mapping.layout, native.config, native.root)
        _check_remembered(prepared, config, native)
        output, plan = native.tensors, prepared.plan
    else:
        # The model code that an export needs is at the destination already.
        sizes = _changed(source)
        prepared = prepare(source, "hf", format, allow_lossy=allow_lossy, model_files=target, truncate=sizes)
        checkpoint = open_hugging_face(target)
        with read_from(target / CONFIG, checkpoint.text):
            stored = read_stored(prepared.mapping, checkpoint.config, checkpoint.tensors.specs())
            if stored.encodings:
                text = f"{len(stored.encodings)} tensors of the output are encoded, and no conversion writes such"
                raise fail("verify/encoded", text, Position(str(target)))
            config = read_config(prepared.mapping, checkpoint.config, True, stored.names, stored.problems)
        cut = _cut_otherwise(prepared, config, allow_lossy)
        if cut:
            sizes |= cut
            prepared = prepare(source, "hf", format, allow_lossy=allow_lossy, model_files=target, truncate=sizes)
        output = checkpoint.tensors
        dialect = dialect_of_names(prepared.mapping, output.tensors)
        specs = {spec.name: spec for spec in prepared.source.specs()}
        plan = plan_export(prepared.bound, specs, tensor_dialect=dialect.name if dialect else None)
    layout, kind = prepared.mapping.layout, prepared.mapping.root.type
    where = Position(str(target / (METADATA if is_native(target) else CONFIG)))
    by_source = prepared.config if is_native(target) else prepared.theirs
    differences = differing(Scope(layout, kind, by_source), Scope(layout, kind, config))
    lines = [f"`{'.'.join(path)}` is {value}, by the source it is {wanted}" for path, wanted, value in differences]
    if lines:
        raise CrosswalkError(Diagnostic("verify/config", line, where) for line in lines)
    plan = with_dtypes_of(plan, {spec.name: spec for spec in output.specs()})
    problems = plan.verify().problems
    if problems:
        raise CrosswalkError(problems)
    done = verify_checkpoint(plan, prepared.source, output, options=options, on_progress=on_progress)
    return Report.of(replace(prepared, plan=plan), done, target)


def _remembered(native: NativeCheckpoint) -> Mapping[str, Any]:
    """Axis -> its sizes ``from`` and ``to``."""
    return native.origin.get("padded") or {}


def _check_remembered(prepared: Prepared, config: Mapping[str, Any], native: NativeCheckpoint) -> None:
    """Raise for axes that an output of this config remembers as padded otherwise than it is: exporting it again would
    cut them to another size."""
    kind = prepared.mapping.root.type
    locate = locator(native.text, str(native.path / METADATA))
    problems = []
    for axis, sizes in _remembered(native).items():
        text = f"axis `{axis}` is remembered as padded from {sizes['from']} to {sizes['to']}"
        where = locate(("metadata", "crosswalk", "padded", axis))
        if axis not in kind.pads:
            problems.append(Diagnostic("verify/padded", f"{text}, and may not be padded", where))
            continue
        real = length(kind, prepared.theirs, axis), length(kind, config, axis)
        if (sizes["from"], sizes["to"]) != real:
            text = f"{text}; its size is {real[0]} by the source, and {real[1]} by the config"
            problems.append(Diagnostic("verify/padded", text, where))
    if problems:
        raise CrosswalkError(problems)


def _changed(path: Path) -> dict[str, int]:
    """The sizes of axes that were changed after padding, so that what a native checkpoint remembers says nothing."""
    layout = catalog().layout(DEFAULT_LAYOUT)
    native = open_native(path, layout)
    kind = layout.types[native.root]
    with read_from(path / METADATA, native.text, ("config", "base_model")):
        config = normalize(layout, native.config, native.root)
    said = {axis: sizes["to"] for axis, sizes in _remembered(native).items() if axis in kind.pads}
    return {axis: now for axis, size in said.items() if (now := length(kind, config, axis)) != size}


def _cut_otherwise(prepared: Prepared, config: Mapping[str, Any], allow_lossy: bool) -> dict[str, int]:
    """The sizes of axes of which less, or with ``allow_lossy`` more, was cut off than the source remembers as padding.
    ``config``: of the output."""
    kind = prepared.mapping.root.type
    result = {}
    for axis in kind.pads:
        size, least = length(kind, config, axis), length(kind, prepared.theirs, axis)
        if size != least and size <= length(kind, prepared.config, axis) and (allow_lossy or size > least):
            result[axis] = size
    return result
