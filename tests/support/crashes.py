"""A conversion in small pieces, in this process or in a child that ends at a step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from crosswalk.runtime.checkpoint.output import hugging_face_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.files.workers import Progress
from crosswalk.runtime.plan.model import Plan, TensorSpec, make_plan


def make_model(directory: Path) -> tuple[Plan, Path]:
    """A plan with ranges, transposes and casts, and the directory of its source, which is filled."""
    torch.manual_seed(3)
    rows, columns = 223, 307
    tensors = {
        f"{k}.{i:02}": torch.randn(rows, columns).bfloat16() for k in ("same", "turned", "cast") for i in range(8)
    }
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    size = rows * columns
    targets, copies = [], []
    for name in tensors:
        kind = name.split(".")[0]
        shape = (columns, rows) if kind == "turned" else (rows, columns)
        targets.append(TensorSpec(f"new.{name}", shape, "F32" if kind == "cast" else "BF16"))
        turned = (name, f"new.{name}", (columns, rows), 0, (1, columns), 0, (rows, 1), 0)
        copies.append(turned if kind == "turned" else (name, f"new.{name}", (size,), 0, (1,), 0, (1,), 0))
    specs = [TensorSpec(name, (rows, columns), "BF16") for name in tensors]
    return make_plan(specs, targets, copies), directory


def write(model: tuple[Plan, Path], destination: Path, on_progress: Progress | None = None, **options: Any) -> Any:
    plan, directory = model
    return write_checkpoint(
        plan,
        open_checkpoint(directory),
        destination,
        layout=hugging_face_layout(max_shard_bytes=860_000),
        extra={"config.json": b"{}"},
        carried={"carried.safetensors": directory / "model.safetensors"},
        options=EngineOptions(**{"workers": 2, **options}),
        on_progress=on_progress,
    )


def content(directory: Path) -> dict[str, str]:
    """File name -> hash of every file below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def child(work: Callable[[], object]) -> int:
    """Run in a child process; its id."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return process


#: More bytes than a line of the journal has, and fewer than a range of a tensor.
_LINE = 4096


def failing(monkeypatch: pytest.MonkeyPatch, name: str, after: int, number: int) -> None:
    """Let the calls of ``os.name`` fail with an error number after the first few; lines of the journal, which come
    between the others at any time, are written."""
    function, calls = getattr(os, name), [0]

    def wrapper(*arguments: Any) -> Any:
        if name == "pwrite" and len(arguments[1]) < _LINE:
            return function(*arguments)
        calls[0] += 1
        if calls[0] > after:
            raise OSError(number, os.strerror(number))
        return function(*arguments)

    monkeypatch.setattr(os, name, wrapper)
