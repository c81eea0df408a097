"""The native config of a Hugging Face config, written by hand from the original trainer's documentation.

A second opinion on importing: plain Python, one function a format, checked against the reference conversions and
compared with the compiler for drawn configs. Fields at their default are mostly left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import native_parts as parts
from native_apriel import apriel2, apriel_hybrid_ssm
from native_parts import ACTIVATION, Config, Native
from semantics import gemma4_layers, windows_of


def llama(config: Config) -> Native:
    mixer = parts.attention(config, add_linear_biases=config.get("attention_bias", False))
    block = parts.block(config, mixer, parts.mlp(config, config.get("mlp_bias", False)))
    return parts.model(config, parts.fixed(block, config["num_hidden_layers"]))


def diffusion_llama(config: Config) -> Native:
    native = llama(config)
    native["decoder"]["block"]["mixer"]["causal"] = False
    return native


def dream(config: Config) -> Native:
    block = parts.block(config, parts.attention(config, causal=False, **parts.QKV_BIASES), parts.mlp(config))
    return parts.model(config, parts.fixed(block, config["num_hidden_layers"]))


def mtp_llama(config: Config) -> Native:
    native = llama(config)
    native["head"]["prediction_heads"] = config["prediction_heads"]
    return native


def mistral(config: Config) -> Native:
    window = config.get("sliding_window", 4096)  # what the class has when the file says nothing
    block = parts.block(config, parts.attention(config, window_size=window), parts.mlp(config))
    return parts.model(config, parts.fixed(block, config["num_hidden_layers"]))


def mixtral(config: Config) -> Native:
    experts = {
        "type": "moe",
        "experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "routing": "aux_loss",
        "shared_experts": 0,
    }
    block = parts.block(
        config, parts.attention(config, window_size=config.get("sliding_window")), parts.mlp(config) | experts
    )
    return parts.model(config, parts.fixed(block, config["num_hidden_layers"]))


def qwen2(config: Config) -> Native:
    return _windowed(config, **parts.QKV_BIASES)


def qwen3(config: Config) -> Native:
    norm = parts.rms(config["rms_norm_eps"])
    bias = config.get("attention_bias", False)
    return _windowed(config, add_linear_biases=bias, query_norm=norm, key_norm=norm)


def _windowed(config: Config, **mixer: Any) -> Native:
    windows = windows_of(config)
    blocks = [parts.block(config, parts.attention(config, window_size=w, **mixer), parts.mlp(config)) for w in windows]
    if len(set(windows)) == 1:
        return parts.model(config, parts.fixed(blocks[0], len(blocks)))
    names = ["full_attention" if w is None else "sliding_attention" for w in windows]
    return parts.model(config, parts.pattern(names, blocks))


def _gemma4_mlp(config: Config, norm: Native, fixed: Native) -> Native:
    dense = {
        "type": "mlp",
        "intermediate_size": config["intermediate_size"],
        "activation": ACTIVATION[config["hidden_activation"]],
        "add_linear_biases": False,
        "gated": True,
    }
    if not config.get("enable_moe_block", False):
        return dense
    around = {"pre_norm": norm, "post_norm": norm}
    routed = {
        "type": "moe",
        "intermediate_size": config["moe_intermediate_size"],
        "experts": config["num_experts"],
        "experts_per_token": config["top_k_experts"],
        "router_normalization": fixed,
        "router_scale": {"enabled": True},
        "router_per_expert_scale": {"enabled": True},
        "router_input_scale": config["hidden_size"] ** -0.5,
    }
    return {"type": "hybrid_moe", "dense": dense | around, "routed": dense | routed | around}


def gemma4(config: Config) -> Native:
    epsilon = config["rms_norm_eps"]
    norm, fixed = parts.rms(epsilon), {"type": "fixed_rms_norm", "epsilon": epsilon}
    mlp = _gemma4_mlp(config, norm, fixed)

    def block(kind: str, sizes: Config) -> Native:
        full = kind == "full_attention"
        rope = config["rope_parameters"][kind]
        rotary = {"type": "default", "theta": rope["rope_theta"]}
        if full:
            rotary = rotary | {"type": "proportional", "partial_rotary_factor": rope["partial_rotary_factor"]}
        mixer = {
            "type": "attention",
            "heads": config["num_attention_heads"],
            "head_groups": sizes["num_key_value_heads"],
            "head_size": sizes["head_dim"],
            "dropout": config.get("attention_dropout", 0.0),
            "add_linear_biases": False,
            "softmax_scale_power": 0.0,
            "rotary": rotary,
            "window_size": None if full else config["sliding_window"],
            "query_norm": norm,
            "key_norm": norm,
            "value_norm": fixed,
            "shared_key_value": full and config["attention_k_eq_v"],
        }
        return {
            "type": "decoder",
            "mixer": mixer,
            "mlp": mlp,
            "normalization": norm,
            "pre_mlp_normalization": {"type": "none"} if mlp["type"] == "hybrid_moe" else norm,
            "post_mixer_normalization": norm,
            "post_mlp_normalization": norm,
            "output_scale": {"enabled": True, "lr_scale": 0.0},
        }

    kinds = config["layer_types"]
    blocks = [block(kind, sizes) for kind, sizes in zip(kinds, gemma4_layers(config), strict=True)]
    native = parts.model(
        config, parts.pattern(kinds, blocks), final_logit_softcap=config.get("final_logit_softcapping")
    )
    native["embeddings"]["embedding_scale"] = config["hidden_size"] ** 0.5
    return native


def llava(config: Config) -> Native:
    text = config["text_config"]
    return parts.before_text(config, {"mistral": mistral, "llama": llama, "qwen2": qwen2}[text["model_type"]](text))


def llava_hybrid_ssm(config: Config) -> Native:
    return parts.before_text(config, apriel_hybrid_ssm(config["text_config"]))


BY_FORMAT: dict[str, Callable[[Config], Native]] = {
    "llama": llama,
    "diffusion_llama": diffusion_llama,
    "mtp_llama": mtp_llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "dream": dream,
    "gemma4": gemma4,
    "llava": llava,
    "llava_hybrid_ssm": llava_hybrid_ssm,
    "apriel_hybrid_ssm": apriel_hybrid_ssm,
    "apriel2_text": apriel2,
    "apriel2": apriel2,
}
