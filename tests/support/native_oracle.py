"""The native config of a Hugging Face config, written by hand from the original trainer's documentation.

A second opinion on importing: plain Python, one function a format, checked against the reference conversions and
compared with the compiler for drawn configs. Fields at their default are mostly left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from semantics import gemma4_layers, rope_of, windows_of

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


def _rms(epsilon: float) -> Native:
    return {"type": "rms_norm", "epsilon": epsilon}


def _bias(enabled: bool | None) -> Native:
    return {"bias": {"enabled": enabled}}


_QKV_BIASES = {f"{x}_layer": _bias(True) for x in ("query", "key", "value")} | {"dense_layer": _bias(False)}


def _rotary(rope: Config) -> Native:
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


def _attention(config: Config, **keys: Any) -> Native:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim")
    return {
        "type": "attention",
        "heads": heads,
        "head_groups": heads if config.get("num_key_value_heads") is None else config["num_key_value_heads"],
        "head_size": config["hidden_size"] // heads if head_dim is None else head_dim,
        "dropout": config.get("attention_dropout", 0.0),
        "rotary": _rotary(rope_of(config)),
        "add_linear_biases": False,
        **keys,
    }


def _mlp(config: Config, bias: bool = False) -> Native:
    return {
        "type": "mlp",
        "intermediate_size": config["intermediate_size"],
        "activation": ACTIVATION[config["hidden_act"]],
        "add_linear_biases": bias,
        "gated": True,
    }


def _block(config: Config, mixer: Native, mlp: Native) -> Native:
    return {"type": "decoder", "mixer": mixer, "mlp": mlp, "normalization": _rms(config["rms_norm_eps"])}


def _fixed(block: Native, count: int) -> Native:
    return {"type": "fixed", "block": block, "num_blocks": count}


def _model(config: Config, decoder: Native, **head: Any) -> Native:
    return {
        "embeddings": {"vocab_size": config["vocab_size"]},
        "decoder": decoder,
        "head": {"normalization": _rms(config["rms_norm_eps"]), **head},
        "hidden_size": config["hidden_size"],
        "tied_embedding_weight": config["tie_word_embeddings"],
    }


def llama(config: Config) -> Native:
    mixer = _attention(config, add_linear_biases=config.get("attention_bias", False))
    block = _block(config, mixer, _mlp(config, config.get("mlp_bias", False)))
    return _model(config, _fixed(block, config["num_hidden_layers"]))


def diffusion_llama(config: Config) -> Native:
    native = llama(config)
    native["decoder"]["block"]["mixer"]["causal"] = False
    return native


def dream(config: Config) -> Native:
    block = _block(config, _attention(config, causal=False, **_QKV_BIASES), _mlp(config))
    return _model(config, _fixed(block, config["num_hidden_layers"]))


def mtp_llama(config: Config) -> Native:
    native = llama(config)
    native["head"]["prediction_heads"] = config["prediction_heads"]
    return native


def mistral(config: Config) -> Native:
    window = config.get("sliding_window", 4096)  # what the class has when the file says nothing
    block = _block(config, _attention(config, window_size=window), _mlp(config))
    return _model(config, _fixed(block, config["num_hidden_layers"]))


def mixtral(config: Config) -> Native:
    experts = {
        "type": "moe",
        "experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "routing": "aux_loss",
        "shared_experts": 0,
    }
    block = _block(config, _attention(config, window_size=config.get("sliding_window")), _mlp(config) | experts)
    return _model(config, _fixed(block, config["num_hidden_layers"]))


def qwen2(config: Config) -> Native:
    return _windowed(config, **_QKV_BIASES)


def qwen3(config: Config) -> Native:
    norm = _rms(config["rms_norm_eps"])
    bias = config.get("attention_bias", False)
    return _windowed(config, add_linear_biases=bias, query_norm=norm, key_norm=norm)


def _windowed(config: Config, **mixer: Any) -> Native:
    windows = windows_of(config)
    blocks = [_block(config, _attention(config, window_size=w, **mixer), _mlp(config)) for w in windows]
    if len(set(windows)) == 1:
        return _model(config, _fixed(blocks[0], len(blocks)))
    names = ["full_attention" if w is None else "sliding_attention" for w in windows]
    return _model(config, _pattern(names, blocks))


def _pattern(names: list[str], blocks: list[Native]) -> Native:
    return {
        "type": "pattern",
        "pattern": names,
        "blocks": dict(zip(names, blocks, strict=True)),
        "num_blocks": len(names),
    }


def gemma4(config: Config) -> Native:
    epsilon, hidden = config["rms_norm_eps"], config["hidden_size"]
    norm, fixed = _rms(epsilon), {"type": "fixed_rms_norm", "epsilon": epsilon}
    dense = {
        "type": "mlp",
        "intermediate_size": config["intermediate_size"],
        "activation": ACTIVATION[config["hidden_activation"]],
        "add_linear_biases": False,
        "gated": True,
    }
    moe = config.get("enable_moe_block", False)
    if moe:
        around = {"pre_norm": norm, "post_norm": norm}
        routed = {
            "type": "moe",
            "intermediate_size": config["moe_intermediate_size"],
            "experts": config["num_experts"],
            "experts_per_token": config["top_k_experts"],
            "router_normalization": fixed,
            "router_scale": {"enabled": True},
            "router_per_expert_scale": {"enabled": True},
            "router_input_scale": hidden**-0.5,
        }
        mlp = {"type": "hybrid_moe", "dense": dense | around, "routed": dense | routed | around}
    else:
        mlp = dense

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
            "pre_mlp_normalization": {"type": "none"} if moe else norm,
            "post_mixer_normalization": norm,
            "post_mlp_normalization": norm,
            "output_scale": {"enabled": True, "lr_scale": 0.0},
        }

    kinds = config["layer_types"]
    blocks = [block(kind, sizes) for kind, sizes in zip(kinds, gemma4_layers(config), strict=True)]
    native = _model(config, _pattern(kinds, blocks), final_logit_softcap=config.get("final_logit_softcapping"))
    native["embeddings"]["embedding_scale"] = hidden**0.5
    return native


def _pixtral(vision: Config) -> Native:
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
    block = {"type": "decoder", "mixer": mixer, "mlp": _mlp(vision), "normalization": _rms(1e-5)}
    patch = vision["patch_size"]
    return {
        "hidden_size": vision["hidden_size"],
        "embeddings": {"patch_height": patch, "patch_width": patch, "normalization": _rms(1e-5)},
        "encoder": _fixed(block, vision["num_hidden_layers"]),
    }


def llava(config: Config) -> Native:
    text = config["text_config"]
    return _before_text(config, {"mistral": mistral, "llama": llama, "qwen2": qwen2}[text["model_type"]](text))


def llava_hybrid_ssm(config: Config) -> Native:
    return _before_text(config, apriel_hybrid_ssm(config["text_config"]))


def _before_text(config: Config, text: Native) -> Native:
    adapter = {
        "type": "mlp",
        "intermediate_size": text["hidden_size"],
        "activation": ACTIVATION[config["projector_hidden_act"]],
        "add_linear_biases": config["multimodal_projector_bias"],
        "gated": False,
    }
    return text | {
        "vision_encoder": _pixtral(config["vision_config"]) | {"adapter": adapter},
        "image_token_index": config["image_token_index"],
    }


def _mamba(mamba: Config, sizes: Config) -> Native:
    return {
        "type": "mamba",
        **sizes,
        "dt_layer": _bias(mamba.get("dt_proj_bias", True)),
        "convolution_layer": _bias(mamba.get("conv_bias", True)) | {"kernel_size": mamba.get("d_conv", 4)},
    }


def apriel_hybrid_ssm(config: Config) -> Native:
    hidden = config["hidden_size"]
    ssm, linear = config.get("ssm_cfg") or {}, config.get("linear_attn_config") or {}

    def mixer(code: str) -> Native:
        if code == "t":
            return _attention(config, window_size=config["sliding_window"])
        if code == "m2":
            rank, xb, inner = (ssm.get(key) for key in ("dt_rank", "d_xb", "d_inner"))
            sizes = {
                "state_size": ssm["d_state"],
                "d_inner": hidden * ssm.get("expand", 1) if inner is None else inner,
                "d_xb": hidden if xb is None else xb,
                "dt_rank": math.ceil(hidden / 16) if rank in (None, "auto") else rank,
                "add_linear_biases": ssm["bias"],
                "repeat_kv_before_conv": ssm.get("repeat_kv_before_conv", True),
            }
            return _mamba(ssm, sizes)
        if code == "gdn":
            return {
                "type": "gdn",
                "key_heads": linear["gdn_num_key_heads"],
                "value_heads": linear["gdn_num_value_heads"],
                "key_head_dim": linear["gdn_key_head_dim"],
                "value_head_dim": linear["gdn_value_head_dim"],
                "convolution_layer": {"kernel_size": linear["gdn_linear_conv_kernel_size"]},
            }
        kernel = {"kernel_size": linear["short_conv_kernel_size"]}
        return {
            "type": "kda",
            "heads": linear["num_heads"],
            "head_dim": linear["head_dim"],
            "convolution_layer": kernel,
        }

    codes = config["hybrid_block_layout"]
    return _model(config, _pattern(codes, [_block(config, mixer(code), _mlp(config)) for code in codes]))


def _apriel2_rotary(rotary: Config) -> Native:
    names = {"mistral_1d": "default", "pixtral_2d": "default_2d"}
    kept = {key: value for key, value in rotary.items() if key not in ("patch_size", "max_image_size")}
    return kept | {"type": names.get(rotary["type"], rotary["type"])}


def _apriel2_mixer(mixer: Config) -> Native:
    kind = mixer["type"]
    if kind == "attention":
        result = {key: value for key, value in mixer.items() if key != "cross_document_attention"}
        return result | {"rotary": _apriel2_rotary(mixer["rotary"])}
    if kind == "mamba":
        keys = ("state_size", "d_inner", "d_xb", "dt_rank", "add_linear_biases")
        return _mamba(mixer, {key: mixer[key] for key in keys})
    if kind == "stochastic":
        return {**mixer, "mixers": {name: _apriel2_mixer(leaf) for name, leaf in mixer["mixers"].items()}}
    result = copy.deepcopy(dict(mixer))
    if "norm_eps" in result:
        result["normalization"] = {"epsilon": result.pop("norm_eps")}
    return result


def _apriel2_block(block: Config) -> Native:
    mlp = {**block["mlp"], "activation": ACTIVATION[block["mlp"]["activation"]]}
    return {"mixer": _apriel2_mixer(block["mixer"]), "mlp": mlp, "normalization": block["normalization"]}


def _apriel2_decoder(decoder: Config) -> Native:
    if decoder["type"] == "fixed":
        return {**decoder, "block": _apriel2_block(decoder["block"])}
    return {**decoder, "blocks": {name: _apriel2_block(block) for name, block in decoder["blocks"].items()}}


def apriel2(config: Config) -> Native:
    native: Native = {
        "embeddings": {"vocab_size": config["vocab_size"]},
        "decoder": _apriel2_decoder(config["decoder"]),
        "head": copy.deepcopy(config["head"]),
        "hidden_size": config["hidden_size"],
        "tied_embedding_weight": config["tie_word_embeddings"],
    }
    if config.get("vision_encoder") is None:
        return native
    vision = config["vision_encoder"]
    embeddings = {key: value for key, value in vision["embeddings"].items() if key != "input_channels"}
    adapter = {**vision["adapter"], "activation": ACTIVATION[vision["adapter"]["activation"]]}
    return native | {
        "image_token_index": config.get("image_token_index"),
        "vision_encoder": {
            "hidden_size": vision["hidden_size"],
            "embeddings": embeddings,
            "encoder": _apriel2_decoder(vision["encoder"]),
            "adapter": adapter,
        },
    }


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


def layers(decoder: Config) -> list[Native]:
    """The block of every layer of a decoder, whatever the blocks are called."""
    count = decoder["num_blocks"]
    if decoder["type"] == "fixed":
        return [decoder["block"]] * count
    names = decoder["pattern"]
    return [decoder["blocks"][names[i % len(names)]] for i in range(count)]


def expanded(native: Config) -> Native:
    """A native config with its decoder as a plain list of blocks: what the model computes, not how it was said."""
    return {**native, "decoder": layers(native["decoder"])}


def effective(native: Any) -> Any:
    """A native config with every bias flag that is null replaced by what it stands for: ``add_linear_biases``."""
    if not isinstance(native, Mapping):
        return native
    result = {key: effective(value) for key, value in native.items()}
    for key, layer in result.items():
        if (
            "add_linear_biases" in result
            and isinstance(layer, dict)
            and layer.get("bias", {}).get("enabled", 0) is None
        ):
            result[key] = layer | {"bias": layer["bias"] | {"enabled": result["add_linear_biases"]}}
    return result
