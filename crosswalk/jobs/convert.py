"""Convert a checkpoint directory into another, both ways."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.huggingface import CONFIG
from crosswalk.checkpoints.native import metadata_yaml
from crosswalk.compiler.pipeline import Sizes
from crosswalk.runtime.checkpoint.output import Written, hugging_face_layout, native_layout
from crosswalk.runtime.errors import system_limits
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.files.workers import Progress

from .options import Options, as_path, parse_size
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
    protect: tuple[str, ...] = (),
    allow_lossy: bool = False,
    model_files: str | Path | None = None,
    pad: Sizes | None = None,
    truncate: Sizes | None = None,
    like: str | Path | None = None,
    keep: str | Iterable[str] = (),
    take_tied: bool = False,
    text_only: bool = False,
    options: EngineOptions | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Convert the checkpoint ``src`` into the new directory ``dst``, which appears complete or not at all.

    ``to``: ``fast_llm`` or ``hf``, by default the other side of what ``src`` is. ``format`` is detected or remembered
    unless given. ``dialect`` and ``dtype``: see ``crosswalk convert --help``; ``protect``: tensors that ``dtype``
    leaves alone (names, or prefixes ending in ``*``). ``max_shard_size``: bytes, or a text such as ``5GB``.

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

    Raises ``CrosswalkError`` with all problems found; nothing is left at ``dst`` then.
    """
    planning = Options(
        format=format, to=to, dialect=dialect, dtype=dtype, protect=protect, allow_lossy=allow_lossy,
        model_files=as_path(model_files), pad=pad or {}, truncate=truncate or {},
        like=as_path(like), keep=keep, take_tied=take_tied, text_only=text_only,
    )  # fmt: skip
    destination = Path(dst)
    prepared = prepare(Path(src), planning)
    shard = parse_size(max_shard_size)
    extra: dict[str, bytes] = {}
    if prepared.to == "hf":
        layout = hugging_face_layout(shard)
        extra = {CONFIG: prepared.text.encode(), **prepared.derived}
    else:
        layout = native_layout(lambda written: _native_files(prepared, written), shard)
    written = write_checkpoint(
        prepared.plan,
        prepared.source,
        destination,
        layout=layout,
        extra=extra,
        carried=prepared.files,
        options=options,
        on_progress=on_progress,
    )
    return Report.of(prepared, written, destination)


def _native_files(prepared: Prepared, written: Written) -> dict[str, bytes]:
    origin: dict[str, Any] = {**prepared.origin, "checksums": dict(sorted(written.checksums.items()))}
    layout = prepared.mapping.layout
    text = metadata_yaml(layout, prepared.config, prepared.mapping.root.type.name, written.weight_map, origin)
    return {"metadata.yaml": text, "ok": b""}
