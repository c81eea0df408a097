"""Prove that one checkpoint is the conversion of another, by reading both and writing nothing."""

from __future__ import annotations

from pathlib import Path

from crosswalk.compiler.dialects import dialect_of_names
from crosswalk.compiler.planning import plan_export
from crosswalk.compiler.scope import Scope, normalize, same_config
from crosswalk.runtime.engine import Progress
from crosswalk.runtime.errors import CrosswalkError, Position, fail
from crosswalk.runtime.files import Options, verify_checkpoint

from .api import read_config
from .catalog import catalog
from .huggingface import CONFIG, open_hugging_face
from .native import METADATA, is_native, open_native
from .positions import read_from
from .prepare import prepare, with_dtypes_of
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
    if is_native(target) == is_native(source):
        raise fail("verify/kind", f"`{target}` and `{source}` are of the same kind: one is to be Hugging Face's")
    if is_native(target):
        prepared = prepare(source, None, format, allow_lossy=allow_lossy)
        native = open_native(target, catalog().layout("fast_llm"))
        with read_from(target / METADATA, native.text, ("config", "base_model")):
            config = normalize(prepared.mapping.layout, native.config, native.root)
        output, plan = native.tensors, prepared.plan
    else:
        # The model code that an export needs is at the destination already.
        prepared = prepare(source, "hf", format, allow_lossy=allow_lossy, model_files=target)
        checkpoint = open_hugging_face(target)
        with read_from(target / CONFIG, checkpoint.text):
            config = read_config(prepared.mapping, checkpoint.config, True)
        output = checkpoint.tensors
        dialect = dialect_of_names(prepared.mapping, output.tensors)
        specs = {spec.name: spec for spec in prepared.source.specs()}
        plan = plan_export(prepared.bound, specs, tensor_dialect=dialect.name if dialect else None)
    layout, kind = prepared.mapping.layout, prepared.mapping.root.type
    if not same_config(Scope(layout, kind, config), Scope(layout, kind, prepared.config)):
        raise fail("verify/config", "its config is not that of the source", Position(str(target)))
    plan = with_dtypes_of(plan, {spec.name: spec for spec in output.specs()})
    problems = plan.verify().problems
    if problems:
        raise CrosswalkError(problems)
    done = verify_checkpoint(plan, prepared.source, output, options=options, on_progress=on_progress)
    return Report.of(prepared, done, target)
