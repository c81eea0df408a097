"""Live models of Megatron on several ranks: tensor, pipeline and expert parallelism, loaded, streamed and saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import megatron_ranks
import pytest
import torch
from oracles import make_checkpoint
from ranks import run_ranks
from safetensors.torch import load_file

import crosswalk
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.training.placement import Shards


@pytest.mark.parametrize(
    ("job", "size", "config"),
    [
        (megatron_ranks.groups_of_heads, 4, megatron_ranks.DENSE_2_GROUPS),
        (megatron_ranks.stages, 4, megatron_ranks.EXPERTS_6),
        (megatron_ranks.experts, 2, megatron_ranks.EXPERTS_6),
    ],
)
def test_ranks_have_what_megatron_gives_them(
    job: Callable[..., None], size: int, config: dict[str, Any], tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "hf", config)
    failures = [found.text for found in run_ranks(size, job, tmp_path / "hf", tmp_path / "out") if found is not None]
    assert not failures, "\n".join(failures)
    before, after = (load_file(tmp_path / part / "model.safetensors") for part in ("hf", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def mixtral() -> dict[str, Any]:
    return crosswalk.import_config(megatron_ranks.EXPERTS_6, to="megatron")


def test_experts_get_the_numbers_of_the_whole_model() -> None:
    name = "decoder.layers.1.mlp.experts.linear_fc1.weight"
    state = {f"{name}{e}": torch.empty(2 * 19, 30) for e in range(3)}
    axes = {"expert": (1, 2), "expert_ffn": (1, 2)}
    found = crosswalk.shards(state, mixtral(), axes, layout="megatron")
    assert list(found) == [f"{name}{e}" for e in (3, 4, 5)]
    for value in found.values():
        assert isinstance(value, Shards)
        assert [box for box, _ in value.parts] == [((19, 38), (0, 30)), ((57, 76), (0, 30))]
    whole = {f"{name}{e}": torch.empty(2 * 38, 30) for e in range(3)}
    found = crosswalk.shards(whole, mixtral(), {"expert": (1, 2)}, layout="megatron")
    assert all(found[f"{name}{e + 3}"] is whole[f"{name}{e}"] for e in range(3))
    nothing = crosswalk.shards({}, mixtral(), {"expert": (6, 7)}, layout="megatron")
    assert nothing == {}


@pytest.mark.parametrize(
    ("key", "shard", "code"),
    [
        ("qkv.weight[0]", (0, 2), "axis"),
        ("linear_qkv.weight[2]", (0, 2), "axis"),
        ("linear_qkv.weight[0]", (2, 2), "index"),
    ],
)
def test_rows_of_no_parameter(key: str, shard: tuple[int, int], code: str) -> None:
    with pytest.raises(CrosswalkError) as error:
        crosswalk.shards({}, mixtral(), {key: shard}, layout="megatron")
    assert [found.code for found in error.value.diagnostics] == [f"shards/{code}"]


def test_a_number_that_no_expert_of_the_rank_has() -> None:
    name = "decoder.layers.0.mlp.experts.linear_fc2.weight"
    state = {f"{name}{e}": torch.empty(30, 38) for e in range(6)}
    with pytest.raises(CrosswalkError, match=r"weight\{3\.\.5\}` is none of this rank's") as error:
        crosswalk.shards(state, mixtral(), {"expert": (0, 2)}, layout="megatron")
    assert [found.code for found in error.value.diagnostics] == ["shards/name"]
