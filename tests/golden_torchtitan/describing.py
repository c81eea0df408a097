"""What the config dataclasses of a model of torchtitan say: as config.json of Hugging Face, and as nested objects."""

from __future__ import annotations

from typing import Any

from torchtitan.models.common.attention import FusedQKVLinear
from torchtitan.models.deepseek_v3 import DeepSeekV3Model
from torchtitan.models.gpt_oss import GptOssModel
from torchtitan.models.llama3.model import Llama3Model
from torchtitan.models.qwen3.model import Qwen3Model


def hf_config(config: Any) -> dict[str, Any]:
    """config.json of the same model, with the keys that say what it is."""
    first, layer = config.layers[0], config.layers[-1]
    attention, rope = layer.attention, layer.attention.rope
    kind = next(name for model, name in KINDS.items() if isinstance(config, model))
    if kind == "Qwen3" and layer.moe is not None:
        kind = "Qwen3Moe"
    result = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": MODEL_TYPES[kind],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": getattr(attention, "n_kv_heads", None) or attention.n_heads,
        "hidden_act": "silu",
        "max_position_embeddings": rope.max_seq_len,
        "rms_norm_eps": layer.attention_norm.eps,
        "tie_word_embeddings": config.enable_weight_tying,
        "rope_parameters": hf_rope(kind, attention),
        "attention_bias": kind == "GptOss",
    }
    if kind == "DeepseekV3":
        sizes = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        result |= {"q_lora_rank": attention.q_lora_rank or None} | {name: getattr(attention, name) for name in sizes}
    else:
        result["head_dim"] = attention.head_dim or config.dim // attention.n_heads
    if first.feed_forward is not None:
        result["intermediate_size"] = first.feed_forward.w1.out_features
    if layer.moe is not None:
        result |= hf_experts(kind, config)
    return result


KINDS = {
    Llama3Model.Config: "Llama",
    Qwen3Model.Config: "Qwen3",
    DeepSeekV3Model.Config: "DeepseekV3",
    GptOssModel.Config: "GptOss",
}
MODEL_TYPES = {
    "Llama": "llama",
    "Qwen3": "qwen3",
    "Qwen3Moe": "qwen3_moe",
    "DeepseekV3": "deepseek_v3",
    "GptOss": "gpt_oss",
}


def hf_rope(kind: str, attention: Any) -> dict[str, Any]:
    rope = attention.rope
    result = {"rope_type": "default", "rope_theta": float(rope.theta)}
    if rope.scaling == "llama":
        result |= {
            "rope_type": "llama3",
            "factor": rope.scaling_factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        }
    if rope.scaling == "yarn":
        result |= {
            "rope_type": "yarn",
            "factor": rope.rope_factor,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "original_max_position_embeddings": rope.original_seq_len,
            "truncate": rope.truncate,
        }
        if kind == "DeepseekV3":
            result |= {"mscale": attention.mscale, "mscale_all_dim": attention.mscale}
    return result


def hf_experts(kind: str, config: Any) -> dict[str, Any]:
    moe = config.layers[-1].moe
    size = moe.routed_experts.inner_experts.hidden_dim
    result = {"num_experts_per_tok": moe.router.top_k}
    if kind == "GptOss":
        windows = [layer.attention.sliding_window_size for layer in config.layers]
        types = ["full_attention" if window is None else "sliding_attention" for window in windows]
        return result | {
            "num_local_experts": moe.num_experts,
            "intermediate_size": size,
            "layer_types": types,
            "sliding_window": max(window or 0 for window in windows),
        }
    result |= {"moe_intermediate_size": size, "norm_topk_prob": moe.router.route_norm}
    if kind == "Qwen3Moe":
        return result | {"num_experts": moe.num_experts}
    return result | {
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.shared_experts.w1.out_features // size,
        "n_group": moe.router.num_expert_groups or 1,
        "topk_group": moe.router.num_limited_groups or 1,
        "routed_scaling_factor": moe.router.route_scale,
        "first_k_dense_replace": sum(layer.moe is None for layer in config.layers),
        "num_nextn_predict_layers": len(config.mtp_layers),
    }


def native_config(config: Any) -> dict[str, Any]:
    """The config dataclasses as nested objects, without the sizes that follow from others."""
    blocks = [native_block(layer) for layer in config.layers]
    layers: dict[str, Any] = {"type": "fixed", "num_blocks": len(blocks), "block": blocks[0]}
    if any(block != blocks[0] for block in blocks):
        names = ["first" if block == blocks[0] else "other" for block in blocks]
        layers = {"type": "pattern", "num_blocks": len(blocks), "pattern": names}
        layers["blocks"] = dict(zip(names, blocks, strict=True))
    result = {
        "dim": config.dim,
        "vocab_size": config.vocab_size,
        "enable_weight_tying": config.enable_weight_tying,
        "norm": {"eps": config.norm.eps},
        "layers": layers,
    }
    return result | ({"num_mtp_layers": len(config.mtp_layers)} if hasattr(config, "mtp_layers") else {})


def native_block(layer: Any) -> dict[str, Any]:
    block: dict[str, Any] = {
        "attention": native_attention(layer.attention),
        "attention_norm": {"eps": layer.attention_norm.eps},
        "ffn_norm": {"eps": layer.ffn_norm.eps},
    }
    if layer.moe is None:
        return block | {"feed_forward": {"hidden_dim": layer.feed_forward.w1.out_features}}
    router, experts = layer.moe.router, layer.moe.routed_experts.inner_experts
    names = ("top_k", "score_func", "route_norm", "route_scale", "num_expert_groups", "num_limited_groups")
    inner = {"hidden_dim": experts.hidden_dim}
    if hasattr(experts, "swiglu_limit"):
        inner |= {"type": "clamped_experts", "swiglu_limit": experts.swiglu_limit}
    block["moe"] = {
        "num_experts": layer.moe.num_experts,
        "load_balance_coeff": layer.moe.load_balance_coeff,
        "router": {name: getattr(router, name) for name in names} | {"bias": router.gate.bias},
        "routed_experts": {"inner_experts": inner},
    }
    if layer.moe.shared_experts is not None:
        block["moe"]["shared_experts"] = {"hidden_dim": layer.moe.shared_experts.w1.out_features}
    return block


def native_attention(attention: Any) -> dict[str, Any]:
    rope = attention.rope
    result: dict[str, Any] = {"n_heads": attention.n_heads}
    result["rope"] = {name: getattr(rope, name) for name in rope.__dataclass_fields__ if name in ROPE_FIELDS}
    if hasattr(attention, "kv_lora_rank"):
        sizes = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "mscale")
        result |= {name: getattr(attention, name) for name in sizes}
        norms = {name: {"eps": getattr(attention, name).eps} for name in ("q_norm", "kv_norm")}
        return result | norms | {"type": "latent_attention", "q_lora_rank": attention.q_lora_rank or None}
    result |= {name: getattr(attention, name) for name in ("n_kv_heads", "head_dim")}
    result["qkv_linear"] = {"type": "fused" if isinstance(attention.qkv_linear, FusedQKVLinear.Config) else "separate"}
    if hasattr(attention, "sliding_window_size"):
        window = attention.sliding_window_size
        return result | {"type": "sink_attention", "bias": attention.wo.bias, "sliding_window_size": window}
    return result | {"qk_norm": None if attention.qk_norm is None else {"eps": attention.qk_norm.eps}}


ROPE_FIELDS = {
    "max_seq_len", "theta", "scaling", "scaling_factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "rope_factor", "beta_fast", "beta_slow", "original_seq_len", "truncate",
}  # fmt: skip
