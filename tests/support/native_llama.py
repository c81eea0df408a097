"""A small llama, and its parameters in the trainer's layout made by hand from what transformers wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

#: Sizes that no mesh of 2 or 4 divides evenly are among them.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def native_state(path: Path) -> dict[str, torch.Tensor]:
    """The native tensors of a llama, made from the file by hand; without the head if it is tied."""
    file = load_file(path / "model.safetensors")
    state = {
        "embeddings.word_embeddings_weight": file["model.embed_tokens.weight"],
        "head.final_norm.weight": file["model.norm.weight"],
    }
    if "lm_head.weight" in file:
        state["head.output_weights"] = file["lm_head.weight"]
    for i in range(LLAMA["num_hidden_layers"]):
        old, new = f"model.layers.{i}", f"decoder.{i}"
        attention, mlp = f"{old}.self_attn", f"{old}.mlp"
        state |= {
            f"{new}.norm_1.weight": file[f"{old}.input_layernorm.weight"],
            f"{new}.norm_2.weight": file[f"{old}.post_attention_layernorm.weight"],
            f"{new}.mixer.query.weight": file[f"{attention}.q_proj.weight"],
            f"{new}.mixer.key_value.weight": torch.cat(
                [file[f"{attention}.k_proj.weight"], file[f"{attention}.v_proj.weight"]]
            ),
            f"{new}.mixer.dense.weight": file[f"{attention}.o_proj.weight"],
            f"{new}.mlp.layer_1.weight": torch.cat([file[f"{mlp}.gate_proj.weight"], file[f"{mlp}.up_proj.weight"]]),
            f"{new}.mlp.layer_2.weight": file[f"{mlp}.down_proj.weight"].t().contiguous(),
        }
    return state


def blank(state: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
    return {name: torch.full(tensor.shape, math.nan, **options) for name, tensor in state.items()}


def assert_equal(found: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.to(found[name].dtype), rtol=0, atol=0, msg=name)


class Tree(torch.nn.Module):
    """A module whose parameters have the given dotted names."""

    def __init__(self, state: dict[str, torch.Tensor], ties: dict[str, str] | None = None) -> None:
        super().__init__()
        made = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
        made |= {name: made[of] for name, of in (ties or {}).items()}
        for name, parameter in made.items():
            *path, leaf = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, parameter)
