"""Tensor names and shapes of the classes that ship with their checkpoints, written from their documentation.

Sizes are spelled out per tensor on purpose: no table is shared with a mapping. Linear weights are (out, in).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def _linear(name: str, out: int, inputs: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (out, inputs), **({f"{name}.bias": (out,)} if bias else {})}


def _attention(hidden: int, heads: int, groups: int, head_dim: int, qkv_bias: bool, out_bias: bool) -> Shapes:
    return {
        **_linear("q_proj", heads * head_dim, hidden, qkv_bias),
        **_linear("k_proj", groups * head_dim, hidden, qkv_bias),
        **_linear("v_proj", groups * head_dim, hidden, qkv_bias),
        **_linear("o_proj", hidden, heads * head_dim, out_bias),
    }


def _gated_mlp(hidden: int, intermediate: int, bias: bool) -> Shapes:
    return {
        **_linear("gate_proj", intermediate, hidden, bias),
        **_linear("up_proj", intermediate, hidden, bias),
        **_linear("down_proj", hidden, intermediate, bias),
    }


def _norms(hidden: int) -> Shapes:
    return {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}


def _head_dim(config: Config) -> int:
    given = config.get("head_dim")
    return int(config["hidden_size"] // config["num_attention_heads"] if given is None else given)


def _groups(config: Config) -> int:
    given = config.get("num_key_value_heads")
    return int(config["num_attention_heads"] if given is None else given)


def _llama_block(config: Config, qkv_bias: bool, out_bias: bool, mlp_bias: bool) -> Shapes:
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"]
    attention = _attention(hidden, heads, _groups(config), _head_dim(config), qkv_bias, out_bias)
    return {
        **_norms(hidden),
        **_under("self_attn", attention),
        **_under("mlp", _gated_mlp(hidden, config["intermediate_size"], mlp_bias)),
    }


def _text_ends(config: Config, norm: str = "model.norm") -> Shapes:
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    head = {} if config.get("tie_word_embeddings", False) else {"lm_head.weight": (vocab, hidden)}
    return {"model.embed_tokens.weight": (vocab, hidden), f"{norm}.weight": (hidden,), **head}


def _layers(prefix: str, blocks: list[Shapes]) -> Shapes:
    return {k: v for i, block in enumerate(blocks) for k, v in _under(f"{prefix}.{i}", block).items()}


def diffusion_llama(config: Config) -> Shapes:
    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)
    block = _llama_block(config, attention, attention, mlp)
    return {**_text_ends(config), **_layers("model.layers", [block] * config["num_hidden_layers"])}


def dream(config: Config) -> Shapes:
    block = _llama_block(config, True, False, False)
    return {**_text_ends(config), **_layers("model.layers", [block] * config["num_hidden_layers"])}


def mtp_llama(config: Config) -> Shapes:
    attention, mlp = config.get("attention_bias", False), config.get("mlp_bias", False)
    block = _llama_block(config, attention, attention, mlp)
    heads = config["prediction_heads"]
    return {
        **_text_ends(config, "model.mtp_norms.0"),
        **_layers("model.layers", [block] * config["num_hidden_layers"]),
        **_layers("model.mtp_heads", [block] * (heads - 1)),
        **{f"model.mtp_norms.{j}.weight": (config["hidden_size"],) for j in range(1, heads)},
    }


def _mamba(hidden: int, inner: int, xb: int, rank: int, state: int, kernel: int, wide: bool = True) -> Shapes:
    """Without biases; ``wide``: the convolution sees the repeated x, of size ``inner`` instead of ``xb``."""
    return {
        "in_proj.weight": (2 * inner + 2 * xb, hidden),
        "dt_in_proj.weight": (rank, hidden),
        "dt_proj.weight": (inner, rank),
        "conv1d.weight": (inner if wide else xb, 1, kernel),
        "A_log": (inner, state),
        "D": (inner,),
        "out_proj.weight": (hidden, inner),
    }


def _biases(shapes: Shapes, present: Mapping[str, bool]) -> Shapes:
    """Add ``name.bias`` with the output size of ``name.weight`` for every name that is present."""
    added = {f"{name}.bias": shapes[f"{name}.weight"][:1] for name, bias in present.items() if bias}
    return {**shapes, **added}


def _gdn(hidden: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int) -> Shapes:
    keys, values = key_heads * key_dim, value_heads * value_dim
    return {
        "in_proj_qkvz.weight": (2 * keys + 2 * values, hidden),
        "in_proj_ba.weight": (2 * value_heads, hidden),
        "convolution.weight": (2 * keys + values, 1, kernel),
        "out_proj.weight": (hidden, values),
        "dt_bias": (value_heads,),
        "A_log": (value_heads,),
        "norm.weight": (value_dim,),
    }


def _kda(hidden: int, heads: int, head_dim: int, kernel: int) -> Shapes:
    inner = heads * head_dim
    return {
        **{f"{x}_proj.weight": (inner, hidden) for x in "qkv"},
        **{f"{x}_conv.weight": (inner, 1, kernel) for x in "qkv"},
        **{f"{x}_a_proj.weight": (head_dim, hidden) for x in "fg"},
        **{f"{x}_b_proj.weight": (inner, head_dim) for x in "fg"},
        "beta_proj.weight": (heads, hidden),
        "o_proj.weight": (hidden, inner),
        "dt_bias": (inner,),
        "A_log": (heads,),
        "norm.weight": (head_dim,),
    }


def apriel_hybrid_ssm(config: Config) -> Shapes:
    hidden = config["hidden_size"]
    ssm, linear = config.get("ssm_cfg") or {}, config.get("linear_attn_config") or {}
    around = {**_norms(hidden), **_under("mlp", _gated_mlp(hidden, config["intermediate_size"], False))}

    def mamba() -> Shapes:
        inner = ssm["d_inner"] if ssm.get("d_inner") is not None else hidden * ssm.get("expand", 1)
        xb = ssm["d_xb"] if ssm.get("d_xb") is not None else hidden
        rank = ssm.get("dt_rank", "auto")
        rank = math.ceil(hidden / 16) if rank == "auto" else rank
        wide = ssm.get("repeat_kv_before_conv", True)
        shapes = _mamba(hidden, inner, xb, rank, ssm["d_state"], ssm.get("d_conv", 4), wide)
        bias = ssm["bias"]
        conv, dt = ssm.get("conv_bias", True), ssm.get("dt_proj_bias", True)
        return _biases(shapes, {"in_proj": bias, "dt_in_proj": bias, "out_proj": bias, "conv1d": conv, "dt_proj": dt})

    def block(code: str) -> Shapes:
        if code == "t":
            return {**around, **_under("self_attn", _mistral_attention(config))}
        if code == "m2":
            return {**around, **_under("mixer", mamba())}
        if code == "gdn":
            names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "linear_conv_kernel_size")
            return {**around, **_under("mixer", _gdn(hidden, *(linear[f"gdn_{name}"] for name in names)))}
        assert code == "kda", code
        kda = _kda(hidden, linear["num_heads"], linear["head_dim"], linear["short_conv_kernel_size"])
        return {**around, **_under("mixer", kda)}

    return {**_text_ends(config), **_layers("model.layers", [block(c) for c in config["hybrid_block_layout"]])}


def _mistral_attention(config: Config) -> Shapes:
    sizes = config["num_attention_heads"], _groups(config), _head_dim(config)
    return _attention(config["hidden_size"], *sizes, False, False)


def _enabled(section: Config, layer: str) -> bool:
    own = section.get(layer, {}).get("bias", {}).get("enabled")
    return bool(section["add_linear_biases"] if own is None else own)


def _apriel2_mixer(mixer: Config, hidden: int) -> Shapes:
    kind = mixer["type"]
    if kind == "attention":
        shapes = _attention(hidden, mixer["heads"], mixer["head_groups"], mixer["head_size"], False, False)
        key_value = _enabled(mixer, "key_layer") and _enabled(mixer, "value_layer")
        query, dense = _enabled(mixer, "query_layer"), _enabled(mixer, "dense_layer")
        return _biases(shapes, {"q_proj": query, "k_proj": key_value, "v_proj": key_value, "o_proj": dense})
    if kind == "mamba":
        sizes = (mixer[key] for key in ("d_inner", "d_xb", "dt_rank", "state_size", "d_conv"))
        shapes = _mamba(hidden, *sizes)
        bias, conv, dt = mixer["add_linear_biases"], mixer["conv_bias"], mixer["dt_proj_bias"]
        return _biases(shapes, {"in_proj": bias, "dt_in_proj": bias, "out_proj": bias, "conv1d": conv, "dt_proj": dt})
    if kind == "gdn":
        keys, values = mixer["key_heads"], mixer["value_heads"]
        kernel = mixer["convolution_layer"]["kernel_size"]
        return _gdn(hidden, keys, values, mixer["key_head_dim"], mixer["value_head_dim"], kernel)
    if kind == "kda":
        return _kda(hidden, mixer["heads"], mixer["head_dim"], mixer["convolution_layer"]["kernel_size"])
    assert kind == "stochastic", kind
    return {
        k: v
        for name, leaf in mixer["mixers"].items()
        for k, v in _under(f"mixers.{name}", _apriel2_mixer(leaf, hidden)).items()
    }


def _apriel2_mlp(mlp: Config, hidden: int) -> Shapes:
    size, first, second = mlp["intermediate_size"], _enabled(mlp, "layer_1"), _enabled(mlp, "layer_2")
    gate = _linear("gate_proj", size, hidden, first) if mlp["gated"] else {}
    return {**gate, **_linear("up_proj", size, hidden, first), **_linear("down_proj", hidden, size, second)}


def _apriel2_block(block: Config, hidden: int) -> Shapes:
    return {
        **_norms(hidden),
        **_under("mixer", _apriel2_mixer(block["mixer"], hidden)),
        **_under("mlp", _apriel2_mlp(block["mlp"], hidden)),
    }


def _apriel2_blocks(decoder: Config) -> list[Config]:
    count = decoder["num_blocks"]
    if decoder["type"] == "fixed":
        return [decoder["block"]] * count
    pattern = decoder["pattern"]
    return [decoder["blocks"][pattern[i % len(pattern)]] for i in range(count)]


def apriel2_text(config: Config) -> Shapes:
    hidden = config["hidden_size"]
    blocks = [_apriel2_block(block, hidden) for block in _apriel2_blocks(config["decoder"])]
    return {**_text_ends(config), **_layers("model.decoder.blocks", blocks)}


def apriel2(config: Config) -> Shapes:
    if config.get("vision_encoder") is None:
        return apriel2_text(config)
    vision = config["vision_encoder"]
    hidden, embeddings, adapter = vision["hidden_size"], vision["embeddings"], vision["adapter"]
    blocks = [_apriel2_block(vision["encoder"]["block"], hidden)] * vision["encoder"]["num_blocks"]
    size, bias = adapter["intermediate_size"], adapter["add_linear_biases"]
    patch = (hidden, 3, embeddings["patch_height"], embeddings["patch_width"])
    tower = {
        "embeddings.patch_embeddings.weight": patch,
        "embeddings.normalization.weight": (hidden,),
        **_layers("encoder.blocks", blocks),
        **_linear("adapter.linear_1", size, hidden, bias),
        **_linear("adapter.linear_2", config["hidden_size"], size, bias),
    }
    return {**apriel2_text(config), **_under("model.vision_encoder", tower)}


def _pixtral(vision: Config) -> Shapes:
    hidden, patch = vision["hidden_size"], vision["patch_size"]
    heads = vision["num_attention_heads"]
    block = {
        "attention_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        **_under("attention", _attention(hidden, heads, heads, hidden // heads, False, False)),
        **_under("feed_forward", _gated_mlp(hidden, vision["intermediate_size"], False)),
    }
    return {
        "patch_conv.weight": (hidden, 3, patch, patch),
        "ln_pre.weight": (hidden,),
        **_layers("transformer.layers", [block] * vision["num_hidden_layers"]),
    }


def llava_hybrid(config: Config) -> Shapes:
    vision, text = config["vision_config"], config["text_config"]
    inner, outer, bias = vision["hidden_size"], text["hidden_size"], config["multimodal_projector_bias"]
    return {
        **_under("vision_tower", _pixtral(vision)),
        **_linear("multi_modal_projector.linear_1", outer, inner, bias),
        **_linear("multi_modal_projector.linear_2", outer, outer, bias),
        **_under("language_model", apriel_hybrid_ssm(text)),
    }


BY_MODEL_TYPE: dict[str, Callable[[Config], Shapes]] = {
    "mtp_llama": mtp_llama,
    "dream": dream,
    "diffusion_llama": diffusion_llama,
    "apriel_hybrid_ssm": apriel_hybrid_ssm,
    "apriel2_text": apriel2_text,
    "apriel2": apriel2,
    "llava_hybrid": llava_hybrid,
}
