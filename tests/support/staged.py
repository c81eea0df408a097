"""A conversion of a few shards, whole or broken off, in this process or in a child."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crosswalk.runtime.checkpoint.output import hugging_face_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.plan.model import Plan, TensorSpec, make_plan

ROWS, COLUMNS = 1021, 307
NAMES = [f"t{i}" for i in range(6)]


def plan_of(prefix: str) -> Plan:
    specs = [TensorSpec(name, (ROWS, COLUMNS), "F32") for name in NAMES]
    targets = [TensorSpec(f"{prefix}.{name}", (ROWS, COLUMNS), "F32") for name in NAMES]
    return make_plan(specs, targets, [(n, f"{prefix}.{n}", (ROWS * COLUMNS,), 0, (1,), 0, (1,), 0) for n in NAMES])


def write(source: Path, destination: Path, prefix: str = "new", stop: int | None = None, **options: Any) -> Any:
    """Three shards and some small files; with ``stop`` it is interrupted once that many bytes are done."""

    def progress(done: int, total: int, name: str) -> None:
        if stop is not None and done >= stop:
            raise KeyboardInterrupt

    return write_checkpoint(
        plan_of(prefix), open_checkpoint(source), destination,
        layout=hugging_face_layout(max_shard_bytes=2 * ROWS * COLUMNS * 4), extra={"config.json": b"{}"},
        carried=options.pop("carried", {}), options=EngineOptions(workers=1, **options), on_progress=progress,
    )  # fmt: skip


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


COMPLETE = ["config.json", *(f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)), "model.safetensors.index.json"]


def code(error: pytest.ExceptionInfo[CrosswalkError]) -> str:
    (problem,) = error.value.diagnostics
    return problem.code


def partial(source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, after: int = 4, **options: Any) -> Path:
    """An interrupted conversion that can be continued: the disk fails at the given sync."""
    calls = [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(CrosswalkError):
            write(source, destination, resume=True, **options)
    return destination.parent / f".{destination.name}.crosswalk"


def child(work: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process
