"""Padded models in training jobs: zeros are really written on every sharding, and what is saved, streamed or written by
torch.distributed.checkpoint is the checkpoint that was loaded."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import padding_ranks as cases
import pytest
import torch
from budgets import sample
from comparing import same_files
from native_llama import LLAMA, Tree, assert_equal, blank
from oracles import make_checkpoint
from ranks import Failed, results, run_ranks
from safetensors.torch import load_file

import crosswalk
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.publishing.publisher import Publisher
from crosswalk.runtime.training import load as live
from crosswalk.runtime.training import save as saving
from crosswalk.runtime.training.ranks import TIMEOUT, team
from crosswalk.runtime.training.stretches import WASTE


@pytest.fixture(scope="module")
def saved(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is saved of a model that was never padded."""
    state = blank(cases.padded_state(checkpoint, 97))
    config = crosswalk.load(checkpoint, state).config
    path = tmp_path_factory.mktemp("saved") / "hf"
    crosswalk.save(state, config, path, "llama", max_shard_size="100KB")
    return path


@pytest.mark.parametrize("size", sample([1, 2, 4, 8], [1, 4]))
def test_any_mesh_gets_its_zeros_and_writes_the_same_files(
    size: int, checkpoint: Path, saved: Path, tmp_path: Path
) -> None:
    found = results(size, cases.through, size, checkpoint, tmp_path)
    total = sum(tensor.nbytes for tensor in load_file(checkpoint / "model.safetensors").values())
    for name in found[0]:
        reports = [reports[name] for reports in found]
        # Zeros are not read from anywhere.
        assert all(held <= read <= WASTE * held for held, read, _ in reports)
        assert sum(written for *_, written in reports) == total
        assert same_files(tmp_path / name, saved)
        assert same_files(tmp_path / f"{name}-later", saved)


def test_distributed_checkpoint(checkpoint: Path, saved: Path, tmp_path: Path) -> None:
    refused = results(4, cases.plugged_in, checkpoint, tmp_path / "out")
    assert all("embeddings.word_embeddings_weight" in text for text in refused), refused
    assert same_files(tmp_path / "out", saved)


def test_explicit_shards(checkpoint: Path, saved: Path, tmp_path: Path) -> None:
    written = results(4, cases.in_two_intervals, checkpoint, tmp_path / "out")
    assert all(written)
    assert same_files(tmp_path / "out", saved)


def test_ranks_that_cut_differently_are_told(checkpoint: Path, tmp_path: Path) -> None:
    found = run_ranks(2, cases.with_different_sizes, checkpoint, tmp_path / "out")
    assert all(isinstance(result, Failed) and result.codes == ("distributed/differs",) for result in found), found
    assert all("truncate" in result.text for result in found)
    assert not (tmp_path / "out").exists()


def test_zeros_are_read_from_nowhere(checkpoint: Path) -> None:
    state = blank(cases.padded_state(checkpoint, 128))
    report = crosswalk.load(checkpoint, state, pad={"vocab": 128}).report
    size = sum(tensor.nbytes for tensor in load_file(checkpoint / "model.safetensors").values())
    assert report.bytes_read == report.bytes_held == size


def test_a_tied_meta_model_is_padded_on_the_way_in(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", {**LLAMA, "tie_word_embeddings": True})
    expected = cases.padded_state(tmp_path / "hf", 128)
    model = Tree(blank(expected, device="meta"), {"head.output_weights": "embeddings.word_embeddings_weight"})
    loaded = crosswalk.load(tmp_path / "hf", model, pad={"vocab": 128})
    assert model.head.output_weights is model.embeddings.word_embeddings_weight
    assert loaded.config["embeddings"]["vocab_size"] == 128
    state = model.state_dict()
    del state["head.output_weights"]
    assert_equal(state, expected)
    crosswalk.save(model, loaded.config, tmp_path / "out", loaded.format, truncate=loaded.truncate)
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_zeros_are_cast_and_fit_memory_that_is_not_contiguous(checkpoint: Path, dtype: torch.dtype) -> None:
    expected = cases.padded_state(checkpoint, 128)
    state = {}
    for name, tensor in expected.items():
        wide = torch.full([2 * size + 1 for size in reversed(tensor.shape)], torch.nan, dtype=dtype)
        state[name] = wide[tuple(slice(1, None, 2) for _ in tensor.shape)].permute(*reversed(range(tensor.dim())))
    crosswalk.load(checkpoint, state, pad={"vocab": 128})
    assert_equal(state, expected)


def test_a_model_of_another_size_is_refused(checkpoint: Path) -> None:
    state = blank(cases.padded_state(checkpoint, 97))
    with pytest.raises(CrosswalkError, match=r"has the shape \[97, 48\], the plan says \[128, 48\]"):
        crosswalk.load(checkpoint, state, pad={"vocab": 128})
    with pytest.raises(CrosswalkError, match="there is no axis `vocabulary` that may be padded"):
        crosswalk.load(checkpoint, state, pad={"vocabulary": 128})
    loaded = crosswalk.load(checkpoint, state, pad={"vocab": 97})
    assert loaded.truncate == {}
    with pytest.raises(CrosswalkError, match="it cannot be truncated to 128"):
        crosswalk.save(state, loaded.config, "never", "llama", truncate={"vocab": 128})


def test_torchtitan_is_padded_too(checkpoint: Path, tmp_path: Path) -> None:
    plan = crosswalk.compile_plan(crosswalk.export_config(crosswalk.load(checkpoint, blank(
        cases.padded_state(checkpoint, 97))).config, "llama"), to="torchtitan", pad={"vocab": 64})  # fmt: skip
    state: dict[str, Any] = {t.name: torch.full(t.shape, torch.nan) for t in plan.targets}
    loaded = crosswalk.load(checkpoint, state, layout="torchtitan", pad={"vocab": 64})
    source = load_file(checkpoint / "model.safetensors")
    for ours, theirs in (("tok_embeddings.weight", "model.embed_tokens.weight"), ("lm_head.weight", "lm_head.weight")):
        assert torch.equal(state[ours], torch.nn.functional.pad(source[theirs], (0, 0, 0, 31)))
    crosswalk.save(state, loaded.config, tmp_path / "out", loaded.format, truncate=loaded.truncate)
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), source)


def test_a_plan_that_pads_what_it_saves_and_streams(checkpoint: Path, tmp_path: Path) -> None:
    """The inverse of a plan that cuts: zeros where the model has nothing."""
    native = crosswalk.import_config(
        crosswalk.export_config(crosswalk.load(checkpoint, blank(cases.padded_state(checkpoint, 97))).config, "llama"),
        pad={"vocab": 128},
    )
    plan = crosswalk.compile_plan(native, "llama", "hf", truncate={"vocab": 97}).inverse()
    assert plan.padded
    source = load_file(checkpoint / "model.safetensors")
    expected = cases.padded_state(checkpoint, 128)
    ranks = team(None, TIMEOUT)
    assert_equal(dict(itertools.chain.from_iterable(Publisher(plan, source, ranks, 20_000).buckets())), expected)
    saving.save(plan, source, tmp_path / "out", ranks)
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), expected)
    state = blank(expected)
    live.load(plan, open_checkpoint(checkpoint), state, ranks)
    assert_equal(state, expected)
