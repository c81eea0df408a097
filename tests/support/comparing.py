"""Comparisons that say what differs: nested configs by path and JSON type, tensors by bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.records import replace

MISSING = "<absent>"


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """One line per place where two JSON-like values differ. ``1``, ``1.0`` and ``True`` are three values."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return [
            line
            for key in sorted({*found, *expected}, key=str)
            for line in differences(found.get(key, MISSING), expected.get(key, MISSING), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [
            line
            for index, pair in enumerate(zip(found, expected, strict=True))
            for line in differences(*pair, f"{path}[{index}]")
        ]
    if type(found) is type(expected) and found == expected:
        return []
    return [f"{path}: found {found!r}, expected {expected!r}"]


def tensor_differences(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """One line per tensor that is missing, extra, or not equal in shape, dtype and every byte."""
    return list(_tensor_differences(found, expected))


def _tensor_differences(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Iterator[str]:
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected:
            yield f"{name}: {'missing' if name in expected else 'unexpected'}"
        elif (found[name].shape, found[name].dtype) != (expected[name].shape, expected[name].dtype):
            yield (
                f"{name}: found {found[name].dtype} {list(found[name].shape)}, "
                f"expected {expected[name].dtype} {list(expected[name].shape)}"
            )
        elif not same_bytes(found[name], expected[name]):
            yield f"{name}: the values differ"


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal in every byte, so that NaN equals itself and -0.0 is not 0.0."""
    flat = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return torch.equal(*flat)


def shapes(specs: Any) -> dict[str, tuple[int, ...]]:
    """Name to shape of a plan's ``sources`` or ``targets``."""
    return {tensor.name: tuple(tensor.shape) for tensor in specs}


def stored_as(plan: Plan, dtype: str) -> Plan:
    """The plan with all tensors of one dtype. A plan that was compiled without files can only guess what they hold."""
    ends = {end: [replace(t, dtype=dtype) for t in getattr(plan, end)] for end in ("sources", "targets")}
    return replace(plan, sources=tuple(ends["sources"]), targets=tuple(ends["targets"]))


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
