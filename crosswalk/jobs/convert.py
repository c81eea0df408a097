"""Convert a checkpoint directory into another, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crosswalk.checkpoints.huggingface import CONFIG
from crosswalk.checkpoints.native import metadata_yaml
from crosswalk.runtime.checkpoint.output import Written, hugging_face_layout, native_layout
from crosswalk.runtime.errors import Position, fail
from crosswalk.runtime.files.convert import Options, write_checkpoint
from crosswalk.runtime.files.workers import Progress

from .prepare import Prepared, origin_of, prepare
from .report import Report
from .sizes import Sizes

DEFAULT_SHARD = 5_000_000_000


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
    options: Options | None = None,
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

    Raises ``CrosswalkError`` with all problems found; nothing is left at ``dst`` then.
    """
    source, destination = Path(src), Path(dst)
    files = Path(model_files) if model_files else None
    prepared = prepare(source, to, format, dialect, dtype, protect, allow_lossy, files, pad, truncate)
    shard = parse_size(max_shard_size) if max_shard_size is not None else DEFAULT_SHARD
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
    origin: dict[str, Any] = {**origin_of(prepared), "checksums": dict(sorted(written.checksums.items()))}
    layout = prepared.mapping.layout
    text = metadata_yaml(layout, prepared.config, prepared.mapping.root.type.name, written.weight_map, origin)
    return {"metadata.yaml": text, "ok": b""}


def parse_size(text: int | str, option: str = "--max-shard-size") -> int:
    """Bytes of a size such as ``5GB``, ``500MiB`` or a number; ``option`` is what the user calls it."""
    if isinstance(text, int):
        size = text
    else:
        units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}
        number, unit = text.strip().upper(), ""
        for name in sorted(units, key=len, reverse=True):
            if number.endswith(name):
                number, unit = number[: -len(name)], name
                break
        try:
            size = int(float(number) * units.get(unit, 1))
        except (ValueError, OverflowError):
            size = 0
    if size <= 0:
        raise fail("usage/size", f"`{text}` is no size", Position(option), "write it as 5GB or 500MiB")
    return size
