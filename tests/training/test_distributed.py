"""Sharded models on several ranks (gloo): placements, loading, saving, streaming, and ranks that fail."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases as cases
import torch
from comparing import same_files
from hypothesis import given
from hypothesis import strategies as st
from native_llama import native_state
from ranks import results, run_ranks
from safetensors.torch import load_file

from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.training.ranks import share_out
from crosswalk.runtime.training.stretches import WASTE

# Which rank holds what


def test_boxes_of_every_placement() -> None:
    assert results(4, cases.boxes_of_dtensors)[0] > 100


def test_boxes_of_fsdp_and_tensor_parallel() -> None:
    """Sizes that nothing divides included: together, the ranks hold every element of the parameter, at its place."""
    for number, held in enumerate(zip(*results(4, cases.boxes_of_fsdp_and_tensor_parallel), strict=True)):
        shape = held[0][0]
        whole = torch.full(shape, -1.0)
        for _, parts in held:
            for box, values in parts:
                view = whole[tuple(slice(a, b) for a, b in box)]
                view.copy_(torch.tensor(values).view_as(view))
        expected = torch.arange(whole.numel()).view(shape) + 1000.0 * (number % 4)
        assert torch.equal(whole, expected), shape


intervals = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda ends: (min(ends), max(ends)))


@given(tables=st.lists(st.lists(st.tuples(intervals, intervals), max_size=3), min_size=1, max_size=4))
def test_every_element_is_written_once_or_its_absence_is_an_error(tables: Any) -> None:
    spec = TensorSpec("weight", (6, 6), "F32")

    def cells(boxes: Any) -> list[tuple[int, int]]:
        return [cell for rows, columns in boxes for cell in itertools.product(range(*rows), range(*columns))]

    held = [set(cells(boxes)) for boxes in tables]
    named = [{"weight": [box for box in boxes if cells([box])]} for boxes in tables]
    if set().union(*held) != set(itertools.product(range(6), range(6))):
        with pytest.raises(CrosswalkError, match="held by none"):
            share_out(named, [spec])
        return
    shared = [cells(owned.get("weight", ())) for owned in share_out(named, [spec])]
    assert sorted(itertools.chain.from_iterable(shared)) == sorted(itertools.product(range(6), range(6)))
    assert all(set(written) <= there for written, there in zip(shared, held, strict=True))


def test_replicas_share_the_writing() -> None:
    tables = [{"a": [((0, 4),)], "b": [((0, 4),)], "c": [((0, 2),)]} for _ in range(3)]
    specs = [TensorSpec("a", (4,), "F32"), TensorSpec("b", (4,), "F32"), TensorSpec("c", (2,), "F32")]
    assert share_out(tables, specs) == [{"a": [((0, 4),)]}, {"b": [((0, 4),)]}, {"c": [((0, 2),)]}]


# Loading and saving


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_any_mesh_reads_its_share_and_writes_the_same_files(
    size: int, checkpoint: Path, saved: Path, tmp_path: Path
) -> None:
    found = results(size, cases.through, size, checkpoint, tmp_path)
    total = sum(tensor.nbytes for tensor in load_file(checkpoint / "model.safetensors").values())
    for name in cases.of_size(size):
        reports = [reports[name] for reports in found]
        for report in reports:
            assert report["held"] == report["size"]
            # Where rows of the file are columns of a parameter, what lies between is read along.
            assert report["held"] <= report["read"] <= WASTE * report["held"]
        if name in ("one", "replicas"):
            assert {report["read"] for report in reports} == {total}
        # Every byte once, whoever holds it.
        assert sum(report["written"] for report in reports) == total
        assert same_files(tmp_path / f"{name}-blocking", saved)
        assert same_files(tmp_path / f"{name}-later", saved)


def test_shards_of_rows_read_exactly_their_bytes(checkpoint: Path) -> None:
    for read, held in results(4, cases.bytes_of_rows, checkpoint):
        assert read == held


def test_fsdp_from_meta(checkpoint: Path, saved: Path, tmp_path: Path) -> None:
    found = results(2, cases.fsdp_from_meta, checkpoint, tmp_path / "out")
    assert sorted(found[0]) == sorted(native_state(checkpoint))
    assert same_files(tmp_path / "out", saved)


def test_dcp(checkpoint: Path, saved: Path, tmp_path: Path) -> None:
    for terms, loading, saving in results(4, cases.dcp, checkpoint, tmp_path / "out"):
        assert "is no part of a stored value [live/placement]" in terms
        assert "is not one box of the tensor" in loading
        assert "[dcp/placement]" in loading
        assert saving != "nothing was refused"  # torch sees by itself that the boxes overlap
    assert same_files(tmp_path / "out", saved)


# Failure


@pytest.mark.parametrize("blocking", [True, False])
def test_disk_full_on_one_rank(checkpoint: Path, tmp_path: Path, blocking: bool) -> None:
    for result in run_ranks(2, cases.disk_full, checkpoint, tmp_path / "out", blocking):
        assert result.codes == ("write/failed",)
        assert "rank 1: writing tensor" in result.text
        assert "No space left on device" in result.text
    assert not list(tmp_path.iterdir())


def test_a_rank_that_dies(checkpoint: Path, tmp_path: Path) -> None:
    found = run_ranks(3, cases.dies, checkpoint, tmp_path / "out")
    assert found[1] is None
    for code, seconds in (found[0], found[2]):
        assert code == "distributed/lost"
        assert seconds < 15
    assert not list(tmp_path.iterdir())


def test_a_rank_that_does_not_come(checkpoint: Path) -> None:
    assert run_ranks(2, cases.absent, checkpoint) == ["distributed/lost", "elsewhere"]


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("dtype", "distributed/differs", 'do not agree on `dtype`: rank 0 has null; rank 1 has "bfloat16"'),
        ("config", "distributed/differs", "do not agree on `native_config.head.normalization.epsilon`"),
        ("shard", "distributed/differs", "the ranks do not agree on `files.model.safetensors`"),
        ("destination", "distributed/differs", "elsewhere"),
        ("parameter", "distributed/uncovered", "24 of 48 elements of `decoder.1.norm_2.weight` [48] are held by none"),
        ("mesh", "distributed/uncovered", "elements of `decoder.0.mixer.dense.weight` [48, 48] are held by none"),
    ],
)
def test_ranks_that_differ(checkpoint: Path, tmp_path: Path, what: str, code: str, text: str) -> None:
    found = run_ranks(2, cases.different, checkpoint, tmp_path / "out", what)
    for result in found[:1] if what == "mesh" else found:
        assert code in result.codes, result.text
        assert text in result.text
    assert not list(tmp_path.iterdir())


# The example


def test_train_and_publish(tmp_path: Path) -> None:
    """The example checks by itself that transformers gives the logits of the live model."""
    example = Path(__file__).parents[2] / "examples" / "train_and_publish.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(example)]
    options = ["--output", str(tmp_path), "--steps", "4", "--publish-every", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-4"]
    assert done.stdout.count("logits differ by") == 2
