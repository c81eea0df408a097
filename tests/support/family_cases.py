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


def granite(**keys: Any) -> Config:
    base = {"embedding_multiplier": 12.5, "logits_scaling": 13.0, "attention_multiplier": 0.21}
    return _config("GraniteForCausalLM", "granite", rms_norm_eps=3e-6, **(base | keys))


def helium(**keys: Any) -> Config:
    return _config("HeliumForCausalLM", "helium", head_dim=6, rms_norm_eps=3e-6, **keys)


def gemma3_text(**keys: Any) -> Config:
    kinds = {"sliding_attention": 12345.0, "full_attention": 543210.0}
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in kinds.items()}
    base = {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 5, "rms_norm_eps": 3e-6}
    base |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_parameters": rope}
    return _config("Gemma3ForCausalLM", "gemma3_text", **(base | keys))


def smollm3(**keys: Any) -> Config:
    return _config("SmolLM3ForCausalLM", "smollm3", rms_norm_eps=3e-6, **({"no_rope_layers": [1, 0, 1]} | keys))


#: Name -> config; what stands before the first ``-`` is the format.
CONFIGS: dict[str, Config] = {
    "starcoder2": starcoder2(),
    "starcoder2-window-tied": starcoder2(use_bias=False, sliding_window=5, tie_word_embeddings=True),
    "qwen3_moe": qwen3_moe(attention_bias=True),
    "qwen3_moe-window-tied": qwen3_moe(use_sliding_window=True, sliding_window=5, tie_word_embeddings=True),
    "qwen3_moe-some": qwen3_moe(mlp_only_layers=[1], num_hidden_layers=4, decoder_sparse_step=2),
    "qwen3_moe-dense": qwen3_moe(mlp_only_layers=[1, 0, 2]),
    "smollm3": smollm3(),
    "smollm3-all-bias": smollm3(no_rope_layers=[1, 1, 1], attention_bias=True, mlp_bias=True),
    "smollm3-interval": smollm3(no_rope_layers=None, no_rope_layer_interval=2, tie_word_embeddings=True),
    "granite": granite(residual_multiplier=0.22, attention_bias=True),
    "granite-tied-plain": granite(residual_multiplier=1.0, tie_word_embeddings=True, mlp_bias=True),
    "helium": helium(),
    "helium-bias-tied": helium(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "gemma3_text": gemma3_text(tie_word_embeddings=True),
    "gemma3_text-capped": gemma3_text(final_logit_softcapping=30.0, query_pre_attn_scalar=10, attention_bias=True),
}


def format_of(name: str) -> str:
    """The format of a case."""
    return name.partition("-")[0]
