"""Ranks of a Megatron job: their tensors cut by hand as Megatron cuts them. Every rank imports this."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from native_llama import assert_equal
from safetensors.torch import load_file
from shard_cases import DENSE, EXPERTS

import crosswalk
from crosswalk.runtime import execute

Tensors = dict[str, torch.Tensor]

DENSE_2_GROUPS = DENSE | {"num_key_value_heads": 2, "vocab_size": 104, "intermediate_size": 28}
EXPERTS_6 = EXPERTS | {"num_local_experts": 6, "vocab_size": 72, "intermediate_size": 38}


def whole(checkpoint: Path) -> Tensors:
    """The model as one process has it."""
    config = json.loads((checkpoint / "config.json").read_text())
    plan = crosswalk.compile_plan(config, to="megatron")
    return dict(execute(plan, load_file(checkpoint / "model.safetensors")))


def tensor_parallel(name: str, tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """Rows or columns of one of ``size`` ranks; gate and up each for itself."""
    if "linear_fc1" in name and "layer_norm" not in name:
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    if re.search(r"linear_qkv\.weight|word_embeddings|output_layer", name):
        return tensor.chunk(size)[rank].clone()
    if re.search(r"linear_proj|linear_fc2", name):
        return tensor.chunk(size, 1)[rank].clone()
    return tensor


def groups_of_heads(rank: int, checkpoint: Path, out: Path) -> None:
    """Four ranks, of which two share a group of heads: each has an even part of the rows of ``linear_qkv``."""
    expected = {name: tensor_parallel(name, value, rank, 4) for name, value in whole(checkpoint).items()}
    axes = {"head": (rank, 4), "linear_qkv.weight[0]": (rank, 4), "ffn": (rank, 4), "vocab": (rank, 4)}
    local = _blank(expected)
    _through(checkpoint, out, "megatron_llama", _sharded(local, checkpoint, axes), local, expected)


def stages(rank: int, checkpoint: Path, out: Path) -> None:
    """Two stages of a layer each, two ranks each, with the numbers that the layers have in the whole model."""
    stage, part = divmod(rank, 2)
    ends = ("embedding", "decoder.layers.0"), ("decoder.layers.1", "decoder.final_layernorm", "output_layer")
    mine = {name: value for name, value in whole(checkpoint).items() if name.startswith(ends[stage])}
    expected = {name: tensor_parallel(name, value, part, 2) for name, value in mine.items()}
    axes = {"group": (part, 2), "expert_ffn": (part, 2), "vocab": (part, 2)}
    local = _blank(expected)
    _through(checkpoint, out, "megatron_mixtral", _sharded(local, checkpoint, axes), local, expected)


def experts(rank: int, checkpoint: Path, out: Path) -> None:
    """Two ranks with three of six experts each, which each of them counts from 0."""
    expected = {}
    for name, value in whole(checkpoint).items():
        number = re.search(r"experts\.linear_fc\d\.weight(\d)$", name)
        if number is None:
            expected[name] = value
        elif int(number[1]) // 3 == rank:
            expected[f"{name[:-1]}{int(number[1]) % 3}"] = value
    local = _blank(expected)
    state = _sharded(local, checkpoint, {"expert": (rank, 2)})
    _through(checkpoint, out, "megatron_mixtral", state, local, expected)


def _blank(tensors: Tensors) -> Tensors:
    return {name: torch.full(value.shape, math.nan) for name, value in tensors.items()}


def _sharded(local: Tensors, checkpoint: Path, axes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    config = crosswalk.import_config(json.loads((checkpoint / "config.json").read_text()), to="megatron")
    return crosswalk.shards(local, config, axes, layout="megatron")


def _through(
    checkpoint: Path, out: Path, format: str, state: dict[str, Any], local: Tensors, expected: Tensors
) -> None:
    """Load into the local tensors, compare them with those made by hand, stream, publish and save."""
    loaded = crosswalk.load(checkpoint, state, format)
    assert_equal(local, expected)
    streamed: Iterator[Any] = itertools.chain.from_iterable(crosswalk.stream(state, loaded, bucket_bytes=20_000))
    assert_equal(dict(streamed), load_file(checkpoint / "model.safetensors"))
    published = crosswalk.publisher(state, loaded, bucket_bytes=20_000).buckets(to=0)
    expected = load_file(checkpoint / "model.safetensors") if dist.get_rank() == 0 else {}
    assert_equal(dict(itertools.chain.from_iterable(published)), expected)
    crosswalk.save(state, loaded, out)
