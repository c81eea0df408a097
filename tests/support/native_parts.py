"""What the native configs of all formats are made of, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semantics import rope_of

Config = Mapping[str, Any]
Native = dict[str, Any]

ACTIVATION = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "relu2": "squared_relu",
    "identity": "identity",
    "sigmoid": "sigmoid",
}


def rms(epsilon: float) -> Native:
    return {"type": "rms_norm", "epsilon": epsilon}


def bias(enabled: bool | None) -> Native:
    return {"bias": {"enabled": enabled}}


QKV_BIASES = {f"{x}_layer": bias(True) for x in ("query", "key", "value")} | {"dense_layer": bias(False)}


def rotary(rope: Config) -> Native:
    kind, theta = rope["rope_type"], rope["rope_theta"]
    if kind == "default":
        return {"type": "default", "theta": theta}
    scaled = {
        "type": kind,
        "theta": theta,
        "scale_factor": rope["factor"],
        "original_context_length": rope["original_max_position_embeddings"],
    }
    if kind == "llama3":
        return scaled | {
            "low_frequency_factor": rope["low_freq_factor"],
            "high_frequency_factor": rope["high_freq_factor"],
        }
    assert kind == "yarn", kind
    return scaled | {key: rope[key] for key in ("attention_factor", "beta_fast", "beta_slow")}


def attention(config: Config, **keys: Any) -> Native:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim")
    return {
        "type": "attention",
        "heads": heads,
        "head_groups": heads if config.get("num_key_value_heads") is None else config["num_key_value_heads"],
        "head_size": config["hidden_size"] // heads if head_dim is None else head_dim,
        "dropout": config.get("attention_dropout", 0.0),
        "rotary": rotary(rope_of(config)),
        "add_linear_biases": False,
        **keys,
    }


def mlp(config: Config, bias: bool = False) -> Native:
    return {
        "type": "mlp",
        "intermediate_size": config["intermediate_size"],
        "activation": ACTIVATION[config["hidden_act"]],
        "add_linear_biases": bias,
        "gated": True,
    }


def block(config: Config, mixer: Native, mlp: Native) -> Native:
    return {"type": "decoder", "mixer": mixer, "mlp": mlp, "normalization": rms(config["rms_norm_eps"])}


def fixed(block: Native, count: int) -> Native:
    return {"type": "fixed", "block": block, "num_blocks": count}


def model(config: Config, decoder: Native, **head: Any) -> Native:
    return {
        "embeddings": {"vocab_size": config["vocab_size"]},
        "decoder": decoder,
        "head": {"normalization": rms(config["rms_norm_eps"]), **head},
        "hidden_size": config["hidden_size"],
        "tied_embedding_weight": config["tie_word_embeddings"],
    }


def pattern(names: list[str], blocks: list[Native]) -> Native:
    return {
        "type": "pattern",
        "pattern": names,
        "blocks": dict(zip(names, blocks, strict=True)),
        "num_blocks": len(names),
    }


def pixtral(vision: Config) -> Native:
    heads = vision["num_attention_heads"]
    mixer = {
        "type": "attention",
        "heads": heads,
        "head_groups": heads,
        "head_size": vision["hidden_size"] // heads,
        "dropout": vision.get("attention_dropout", 0.0),
        "add_linear_biases": False,
        "causal": False,
        "rotary": {"type": "default_2d", "theta": rope_of(vision, "axial")["rope_theta"]},
    }
    block = {"type": "decoder", "mixer": mixer, "mlp": mlp(vision), "normalization": rms(1e-5)}
    patch = vision["patch_size"]
    return {
        "hidden_size": vision["hidden_size"],
        "embeddings": {"patch_height": patch, "patch_width": patch, "normalization": rms(1e-5)},
        "encoder": fixed(block, vision["num_hidden_layers"]),
    }


def before_text(config: Config, text: Native) -> Native:
    adapter = {
        "type": "mlp",
        "intermediate_size": text["hidden_size"],
        "activation": ACTIVATION[config["projector_hidden_act"]],
        "add_linear_biases": config["multimodal_projector_bias"],
        "gated": False,
    }
    return text | {
        "vision_encoder": pixtral(config["vision_config"]) | {"adapter": adapter},
        "image_token_index": config["image_token_index"],
    }
