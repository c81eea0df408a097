"""Tensor and expert parallelism by hand, as a trainer without DTensor does it. Every rank imports this."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from native_llama import assert_equal, native_state
from safetensors.torch import load_file
from sharded_models import Axes, piece
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

Tensors = dict[str, torch.Tensor]

#: Sizes that are all different, most of which neither 2 nor 4 divides. Key and value heads come with the case.
DENSE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 27,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "head_dim": 10,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 71,
    "hidden_size": 30,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "num_local_experts": 5,
    "num_experts_per_tok": 3,
    "sliding_window": None,
    "max_position_embeddings": 64,
}


def dense_by_hand(whole: Tensors, groups: int, axes: Axes) -> Tensors:
    """The shards of a llama: heads, groups of heads, the halves of the MLP and the vocabulary, each cut for itself."""
    hidden, heads, size = DENSE["hidden_size"], DENSE["num_attention_heads"], DENSE["head_dim"]
    result = {}
    for name, tensor in whole.items():
        if name.endswith("query.weight"):
            tensor = piece(tensor.view(heads, size, hidden), 0, axes["head"]).reshape(-1, hidden)
        elif name.endswith("key_value.weight"):
            key, value = tensor.view(2, groups, size * hidden)
            halves = piece(key, 0, axes["group"]), piece(value, 0, axes["group"])
            tensor = torch.cat(halves).reshape(-1, hidden)
        elif name.endswith("dense.weight"):
            tensor = piece(tensor.view(hidden, heads, size), 1, axes["head"]).reshape(hidden, -1)
        elif name.endswith("layer_1.weight"):
            gate, up = tensor.chunk(2)
            tensor = torch.cat([piece(gate, 0, axes["intermediate"]), piece(up, 0, axes["intermediate"])])
        elif name.endswith("layer_2.weight"):
            tensor = piece(tensor, 0, axes["intermediate"])
        elif "word_embeddings" in name or "output_weights" in name:
            tensor = piece(tensor, 0, axes["vocab"])
        result[name] = tensor
    return result


def experts_state(path: Path) -> Tensors:
    """The native tensors of a mixtral, made from the file by hand."""
    file = load_file(path / "model.safetensors")
    state = {
        "embeddings.word_embeddings_weight": file["model.embed_tokens.weight"],
        "head.final_norm.weight": file["model.norm.weight"],
        "head.output_weights": file["lm_head.weight"],
    }
    for i in range(EXPERTS["num_hidden_layers"]):
        old, new = f"model.layers.{i}", f"decoder.{i}"
        attention, moe = f"{old}.self_attn", f"{old}.block_sparse_moe"
        experts = [f"{moe}.experts.{e}" for e in range(EXPERTS["num_local_experts"])]
        state |= {
            f"{new}.norm_1.weight": file[f"{old}.input_layernorm.weight"],
            f"{new}.norm_2.weight": file[f"{old}.post_attention_layernorm.weight"],
            f"{new}.mixer.query.weight": file[f"{attention}.q_proj.weight"],
            f"{new}.mixer.key_value.weight": torch.cat([file[f"{attention}.{x}_proj.weight"] for x in "kv"]),
            f"{new}.mixer.dense.weight": file[f"{attention}.o_proj.weight"],
            f"{new}.mlp.router.weight": file[f"{moe}.gate.weight"],
            f"{new}.mlp.layer_1.weight": torch.cat([file[f"{e}.{w}.weight"] for e in experts for w in ("w1", "w3")]),
            f"{new}.mlp.layer_2.weight": torch.cat([file[f"{e}.w2.weight"].t() for e in experts]),
        }
    return state


def experts_by_hand(whole: Tensors, axes: Axes) -> Tensors:
    """The shards of a mixtral whose experts are distributed, and each cut again."""
    hidden, size, experts = EXPERTS["hidden_size"], EXPERTS["intermediate_size"], EXPERTS["num_local_experts"]
    result = {}
    for name, tensor in whole.items():
        if name.endswith("layer_1.weight"):
            mine = piece(tensor.view(experts, 2, size, hidden), 0, axes["expert"])
            tensor = piece(mine, 2, axes["intermediate"]).reshape(-1, hidden)
        elif name.endswith("layer_2.weight"):
            mine = piece(tensor.view(experts, size, hidden), 0, axes["expert"])
            tensor = piece(mine, 1, axes["intermediate"]).reshape(-1, hidden)
        result[name] = tensor
    return result


def tensor_parallel(rank: int, size: int, groups: int, checkpoint: Path, out: Path) -> int:
    """``size`` ranks, of which several hold the same group of heads."""
    axes = {"head": (rank, size), "group": (rank * groups // size, groups)}
    axes |= {"intermediate": (rank, size), "vocab": (rank, size)}
    expected = dense_by_hand(native_state(checkpoint), groups, axes)
    local = {name: torch.full(tensor.shape, math.nan) for name, tensor in expected.items()}
    return _through(checkpoint, out, "llama", axes, local, expected)


def expert_parallel(rank: int, checkpoint: Path, out: Path) -> int:
    """Two ranks for each part of the experts, each with a part of every one of them; norms are DTensors."""
    axes = {"expert": (rank // 2, 2), "intermediate": (rank % 2, 2)}
    expected = experts_by_hand(experts_state(checkpoint), axes)
    mesh = init_device_mesh("cpu", (4,))
    local: dict[str, Any] = {name: torch.full(tensor.shape, math.nan) for name, tensor in expected.items()}
    for name, tensor in local.items():
        if "norm" in name:
            local[name] = distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)
    _nobody(checkpoint, {**local, **experts_by_hand(experts_state(checkpoint), axes | {"expert": (0, 2)})}, axes)
    return _through(checkpoint, out, "mixtral", axes, local, expected)


def _nobody(checkpoint: Path, local: dict[str, Any], axes: Axes) -> None:
    """All ranks have the first experts, so that none has the others: they are named, whatever is asked."""
    config = crosswalk.import_config(json.loads((checkpoint / "config.json").read_text()))
    state = crosswalk.shards(local, config, axes | {"expert": (0, 2)})
    uncovered = r"of `decoder\.0\.mlp\.layer_1\.weight` \[[0-9, ]+\] are held by none"
    actions: list[Any] = [
        lambda: crosswalk.publisher(state, config, "mixtral"),
        lambda: crosswalk.save(state, config, checkpoint.with_name("nowhere"), "mixtral"),
    ]
    for action in actions:
        with pytest.raises(CrosswalkError, match=uncovered) as caught:
            action()
        assert {d.code for d in caught.value.diagnostics} == {"distributed/uncovered"}


def _through(checkpoint: Path, out: Path, format: str, axes: Axes, local: dict[str, Any], expected: Tensors) -> int:
    """Load into the local tensors, compare them with those made by hand, stream, publish and save."""
    config = crosswalk.import_config(json.loads((checkpoint / "config.json").read_text()))
    state = crosswalk.shards(local, config, axes)
    crosswalk.load(checkpoint, state, format)
    found = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in local.items()}
    assert_equal(found, expected)
    streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, config, format, 20_000)))
    assert_equal(streamed, load_file(checkpoint / "model.safetensors"))
    published = dict(itertools.chain.from_iterable(crosswalk.publisher(state, config, format).buckets(to=0)))
    assert_equal(published, streamed if dist.get_rank() == 0 else {})
    report: Any = crosswalk.save(state, config, out, format, max_shard_size="100KB")
    return int(report.bytes_written)
