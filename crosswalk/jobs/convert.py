"""Convert a checkpoint directory into another, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from crosswalk.checkpoints.huggingface import CONFIG
from crosswalk.checkpoints.kinds.kind import Contents
from crosswalk.compiler.layout.natives import ties_of
from crosswalk.compiler.layout.scope import Scope
from crosswalk.runtime.errors import system_limits
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.files.workers import Progress

from .options import AskedOptions, options_of, parse_size
from .prepare import Prepared, prepare
from .report import Report


@system_limits()
def convert(
    src: str | Path,
    dst: str | Path,
    to: str | None = None,
    format: str | None = None,
    dialect: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    *,
    options: EngineOptions | None = None,
    on_progress: Progress | None = None,
    **asked: Unpack[AskedOptions],
) -> Report:
    """Convert the checkpoint ``src`` into the new directory ``dst``, which appears complete or not at all.

    ``to``: a layout or ``hf``, by default ``hf`` for what is of a layout, and ``fast_llm`` for what is of Hugging Face.
    ``format`` is detected or remembered unless given. ``dialect`` and ``dtype``: see ``crosswalk convert --help``;
    ``protect``: tensors that ``dtype`` leaves alone (names, or prefixes ending in ``*``).
    ``max_shard_size``: bytes, or a text such as ``5GB``.

    ``pad``: axis -> multiple, as ``{"vocab": 128}``, of a conversion to a layout: the size is rounded up (a multiple
    that is at least the size is the new size), and what is new is zeros. The checkpoint remembers the size that it had,
    and a conversion back cuts to it. ``truncate``: axis -> size, to cut to another one; to cut off more than is known
    to be padding takes ``allow_lossy``.

    ``like``, of a conversion to ``hf``: the Hugging Face directory that the model came from, with weights or without.
    What the trainer has no place for is taken from there: keys of config.json, tokenizer and other files, sizes without
    padding, the dtype that is stated, names of tensors. It must be the same model, up to numbers that training may
    change. Without, it is what the checkpoint itself remembers; the report's ``defaults`` lists what is lost if there
    is nothing.

    ``keep``: keys of config.json that the format does not know and the model does not depend on, nested ones with dots;
    they are carried along, and restored on the way back. ``take_tied``: where the config ties a tensor and the files
    hold it too, leave it out, as transformers does, instead of refusing the checkpoint if the two differ.
    ``text_only``: take the text tower of a model with others, as one of its own; the notes of the report say what stays
    behind.

    ``kind``: of the directory to write, of a conversion to a layout: ``dcp`` (torch.distributed.checkpoint) or
    ``safetensors`` for every layout, by default what its trainer keeps. ``layout``: that of ``src``, where its
    directory does not say it; ``native_config``: the native config of ``src``, or a JSON or YAML file with it, where
    that does not say it either. See docs/directories.md.

    Raises ``CrosswalkError`` with all problems found; nothing is left at ``dst`` then.
    """
    destination = Path(dst)
    prepared = prepare(Path(src), options_of(format, to, dialect, dtype, asked))
    shard = parse_size(max_shard_size)
    extra = {CONFIG: prepared.text.encode(), **prepared.derived} if prepared.to == "hf" else {}
    assert prepared.kind.lay_out is not None
    laid_out = prepared.kind.lay_out(_contents(prepared), shard)
    written = write_checkpoint(
        prepared.plan,
        prepared.source,
        destination,
        layout=laid_out,
        extra=extra,
        carried=prepared.files,
        options=options,
        on_progress=on_progress,
    )
    return Report.of(prepared, written, destination)


def _contents(prepared: Prepared) -> Contents:
    """What goes beside the tensors of a trainer's checkpoint."""
    mapping = prepared.mapping
    ties = ties_of(Scope(mapping.layout, mapping.root.type, prepared.config)) if prepared.kind.twice else {}
    root, targets = mapping.root.type.name, prepared.plan.targets
    return Contents(mapping.layout, root, prepared.config, prepared.origin, ties, targets, prepared.forms)
