"""Conversions by the command line, and what they wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from small_checkpoints import CommandLine


def convert(crosswalk: CommandLine, source: Path, target: Path, *options: object) -> Path:
    ran = crosswalk("convert", source, target, *options)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return target


def converted(command: CommandLine, source: Path, name: str = "native", *options: str) -> Path:
    """What becomes of a checkpoint, beside it; notes about it are allowed."""
    target = source.with_name(name)
    ran = command("convert", source, target, *options)
    assert ran.code == 0, ran.err
    return target


def metadata_of(directory: Path) -> Any:
    return YAML(typ="safe", pure=True).load((directory / "metadata.yaml").read_text())


def equal_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )
