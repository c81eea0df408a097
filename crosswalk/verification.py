"""Prove that one checkpoint is the conversion of another, by reading both and writing nothing."""

from __future__ import annotations

from pathlib import Path

from crosswalk.compiler.comparing import differing
from crosswalk.compiler.dialects import dialect_of_names
from crosswalk.compiler.padding import length
from crosswalk.compiler.planning import plan_export
from crosswalk.compiler.scope import Scope, normalize
from crosswalk.runtime.engine import Progress
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.files import Options, verify_checkpoint

from .api import read_config, read_stored
from .catalog import catalog
from .detect import DEFAULT_LAYOUT
from .huggingface import CONFIG, open_hugging_face
from .native import METADATA, is_native, open_native
from .positions import read_from
from .prepare import prepare, require_checkpoint, with_dtypes_of
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
        native = open_native(target, catalog().layout(DEFAULT_LAYOUT))
        # A multiple that is at least the size is the size to pad to.
        sizes = {axis: found["to"] for axis, found in (native.origin.get("padded") or {}).items()}
        prepared = prepare(source, None, format, allow_lossy=allow_lossy, pad=sizes)
        with read_from(target / METADATA, native.text, ("config", "base_model")):
            config = normalize(prepared.mapping.layout, native.config, native.root)
        output, plan = native.tensors, prepared.plan
    else:
        # The model code that an export needs is at the destination already.
        prepared = prepare(source, "hf", format, allow_lossy=allow_lossy, model_files=target)
        checkpoint = open_hugging_face(target)
        with read_from(target / CONFIG, checkpoint.text):
            stored = read_stored(prepared.mapping, checkpoint.config, checkpoint.tensors.specs())
            if stored.encodings:
                text = f"{len(stored.encodings)} tensors of the output are encoded, and no conversion writes such"
                raise fail("verify/encoded", text, Position(str(target)))
            config = read_config(prepared.mapping, checkpoint.config, True, stored.names, stored.problems)
        kind = prepared.mapping.root.type
        cut = {axis: length(kind, config, axis) for axis in prepared.lengths}
        if any(prepared.lengths[axis] < size <= length(kind, prepared.config, axis) for axis, size in cut.items()):
            # Less was cut off than the source remembers as padding.
            prepared = prepare(source, "hf", format, allow_lossy=allow_lossy, model_files=target, truncate=cut)
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
    return Report.of(prepared, done, target)
