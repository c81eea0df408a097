"""Matrices that are transposed while they are read, against the same made by torch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from moved_files import load, noise, same, save, spec

from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.dtypes import dtype_name
from crosswalk.runtime.files import convert, schedule, transposing, workers
from crosswalk.runtime.files.convert import write_checkpoint
from crosswalk.runtime.files.tasks import Panel
from crosswalk.runtime.plan.model import TensorSpec, make_plan

Found = tuple[transposing.Matrix, str, int]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Found]:
    """The matrices that workers with small buffers find: how each is read, and in how many stripes it is written."""
    monkeypatch.setattr(convert, "_has_torch", lambda: False)
    monkeypatch.setattr(workers, "PANEL", 1 << 20)
    for module in (schedule, workers):
        monkeypatch.setattr(module, "STRIPE", 40 << 10)
    monkeypatch.setattr(schedule, "SEEK", 512)
    monkeypatch.setattr(schedule, "WRITE", 512)
    monkeypatch.setattr(transposing, "_HOT", 24 << 10)
    matrix_of, matrices = transposing.matrix_of, []

    def finding(panel: Panel, width: int, room: int) -> transposing.Matrix | None:
        matrix = matrix_of(panel, width, room)
        if matrix:
            (block,) = panel.blocks
            read = "together" if block.together else "runs" if block.runs.axes else "whole"
            matrices.append((matrix, read, len(panel.stripes)))
        return matrix

    monkeypatch.setattr(transposing, "matrix_of", finding)
    return matrices


def check_transposed(home: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """A matrix of noise of this shape comes out of the engine as its transpose."""
    tensor = noise(*shape, dtype=dtype)
    rows, columns = shape
    source, target = spec("a", tensor), TensorSpec("a", (columns, rows), dtype_name(dtype))
    plan = make_plan([source], [target], [("a", "a", (columns, rows), 0, (1, columns), 0, (rows, 1), 0)])
    write_checkpoint(plan, open_checkpoint(save({"a": tensor}, home / "in")), home / "out")
    assert same(load(home / "out")["a"], tensor.t())


@pytest.mark.parametrize(
    ("shape", "dtype", "read"),
    [
        ((131, 257), torch.bfloat16, ["whole"]),  # of 131 rows, 3 make no whole word
        ((1031, 1203), torch.bfloat16, ["runs"] * 3),
        ((2053, 345), torch.int16, ["whole"] * 2),  # square tiles
        ((1019, 1300), torch.uint8, ["runs", "together"]),  # the second panel is narrow
        ((515, 1263), torch.float32, ["runs"] * 3),
        ((64, 96), torch.float32, ["whole"]),
    ],
)
def test_a_transposed_matrix(
    tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype, read: list[str], found: list[Found]
) -> None:
    check_transposed(tmp_path, shape, dtype)
    assert sum(matrix.rows * matrix.columns for matrix, _, _ in found) == math.prod(shape)
    assert sorted(way for _, way, _ in found) == read
    assert sum(stripes for _, _, stripes in found) > len(found) or shape[0] == 64


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((97, 31), torch.bfloat16), ((31, 97), torch.bfloat16), ((67, 45), torch.float64)],
    ids=["few columns", "few rows", "elements are words"],
)
def test_what_is_no_such_matrix_comes_out_the_same(
    tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype, found: list[Found]
) -> None:
    check_transposed(tmp_path, shape, dtype)
    assert found == []
