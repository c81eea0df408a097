"""Small models of the families that have a format of their own beside those of the original trainer: one config for
every way in which a family can differ, with odd sizes that are all different."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_SIZES: Config = {
    "vocab_size": 89,
    "hidden_size": 36,
    "intermediate_size": 55,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _rope(theta: float = 23456.0, **keys: Any) -> Config:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **keys}}


def _config(architecture: str, model_type: str, **keys: Any) -> Config:
    return {"architectures": [architecture], "model_type": model_type, **_SIZES, **_rope(), **keys}


def starcoder2(**keys: Any) -> Config:
    base = {"norm_epsilon": 3e-6, "hidden_act": "gelu_pytorch_tanh", "residual_dropout": 0.125}
    return _config("Starcoder2ForCausalLM", "starcoder2", **(base | keys))


def qwen3_moe(**keys: Any) -> Config:
    base = {"head_dim": 10, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 21}
    return _config("Qwen3MoeForCausalLM", "qwen3_moe", norm_topk_prob=True, rms_norm_eps=3e-6, **(base | keys))


#: Name -> config; what stands before the first ``-`` is the format.
CONFIGS: dict[str, Config] = {
    "starcoder2": starcoder2(),
    "starcoder2-window-tied": starcoder2(use_bias=False, sliding_window=5, tie_word_embeddings=True),
    "qwen3_moe": qwen3_moe(attention_bias=True),
    "qwen3_moe-window-tied": qwen3_moe(use_sliding_window=True, sliding_window=5, tie_word_embeddings=True),
}


def format_of(name: str) -> str:
    """The format of a case."""
    return name.partition("-")[0]
