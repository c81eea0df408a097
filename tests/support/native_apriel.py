"""The native configs of the Apriel formats, written by hand from their documentation."""

from __future__ import annotations

import copy
import math

import native_parts as parts
from native_parts import ACTIVATION, Config, Native


def _mamba(mamba: Config, sizes: Config) -> Native:
    return {
        "type": "mamba",
        **sizes,
        "dt_layer": parts.bias(mamba.get("dt_proj_bias", True)),
        "convolution_layer": parts.bias(mamba.get("conv_bias", True)) | {"kernel_size": mamba.get("d_conv", 4)},
    }


def apriel_hybrid_ssm(config: Config) -> Native:
    hidden = config["hidden_size"]
    ssm, linear = config.get("ssm_cfg") or {}, config.get("linear_attn_config") or {}

    def mixer(code: str) -> Native:
        if code == "t":
            return parts.attention(config, window_size=config["sliding_window"])
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
    return parts.model(
        config, parts.pattern(codes, [parts.block(config, mixer(code), parts.mlp(config)) for code in codes])
    )


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
