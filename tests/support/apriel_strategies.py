"""Hypothesis strategies for the Apriel formats: mixers of every kind, fixed and patterned decoders, vision."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from strategies import ACTIVATIONS, EPSILONS, Config, Draw, before_text, even, odd, put_rope, rope

MIXERS = ("attention", "mamba", "gdn", "kda")
HIDDEN = 35


def _rotary(draw: Draw) -> Config:
    theta = draw(st.sampled_from([10000.0, 23456.0]))
    kind = draw(st.sampled_from(["mistral_1d", "llama3", "yarn"]))
    if kind == "mistral_1d":
        return {"type": kind, "theta": theta}
    result: Config = {"type": kind, "theta": theta, "scale_factor": 4.0, "original_context_length": 64}
    if kind == "llama3":
        return result | {"low_frequency_factor": 1.25, "high_frequency_factor": 3.5}
    return result | {"attention_factor": 1.375, "beta_fast": 24.0, "beta_slow": 2.0}


def _biases(draw: Draw, *layers: str) -> Config:
    """Biases of single layers, left out where the flag of the whole section holds."""
    drawn = {layer: draw(st.sampled_from([None, True, False])) for layer in layers}
    return {layer: {"bias": {"enabled": enabled}} for layer, enabled in drawn.items() if enabled is not None}


def _mixer(draw: Draw, kind: str) -> Config:
    if kind == "attention":
        groups, per_group = draw(st.sampled_from([(3, 1), (1, 5), (2, 3)]))
        result: Config = {
            "type": kind,
            "heads": groups * per_group,
            "head_groups": groups,
            "head_size": draw(even(6, 14)),
            "rotary": _rotary(draw),
            "add_linear_biases": draw(st.booleans()),
            **_biases(draw, "query_layer", "dense_layer"),
        }
        key_value = draw(st.sampled_from([None, True, False]))
        if key_value is not None:  # one fused parameter of the trainer: both or neither
            result |= {layer: {"bias": {"enabled": key_value}} for layer in ("key_layer", "value_layer")}
        if draw(st.booleans()):
            result["window_size"] = 24
        return result
    if kind == "mamba":
        state = draw(st.sampled_from([3, 5]))
        groups, repeats = draw(st.sampled_from([(3, 5), (1, 7), (5, 1)]))
        return {
            "type": kind,
            "state_size": state,
            "d_inner": state * groups * repeats,
            "d_xb": state * groups,
            "dt_rank": draw(st.sampled_from([2, 11])),
            "d_conv": draw(st.sampled_from([3, 4])),
            "add_linear_biases": draw(st.booleans()),
            "conv_bias": draw(st.booleans()),
            "dt_proj_bias": draw(st.booleans()),
        }
    if kind == "gdn":
        keys, ratio = draw(st.sampled_from([(3, 2), (1, 5), (2, 1)]))
        epsilon = draw(st.sampled_from([None, 3e-6]))
        return {
            **({} if epsilon is None else {"norm_eps": epsilon}),
            "type": kind,
            "key_heads": keys,
            "value_heads": keys * ratio,
            "key_head_dim": draw(st.sampled_from([7, 9])),
            "value_head_dim": draw(st.sampled_from([5, 11])),
            "convolution_layer": {"kernel_size": draw(st.sampled_from([3, 4]))},
        }
    return {
        "type": "kda",
        "heads": draw(st.sampled_from([3, 5])),
        "head_dim": draw(st.sampled_from([7, 9])),
        "convolution_layer": {"kernel_size": draw(st.sampled_from([3, 4]))},
        "normalization": {"epsilon": draw(st.sampled_from(EPSILONS))},
    }


def _stochastic(draw: Draw) -> Config:
    kinds = draw(st.lists(st.sampled_from(MIXERS), min_size=1, max_size=3, unique=True))
    names = [f"{kind}_{index}" for index, kind in enumerate(kinds)]
    mixers = {name: _mixer(draw, kind) for name, kind in zip(names, kinds, strict=True)}
    strategy = draw(st.sampled_from([{}, {"sampling_strategy": "full_layout"}]))
    return {"type": "stochastic", "mixers": mixers, "main_mixer_name": draw(st.sampled_from(names)), **strategy}


def _norm(draw: Draw) -> Config:
    return {"type": "rms_norm", "epsilon": draw(st.sampled_from(EPSILONS))}


def _mlp(draw: Draw, layer_biases: bool = True) -> Config:
    """The class has no biases in a gated MLP."""
    gated = draw(st.booleans())
    return {
        "type": "mlp",
        "intermediate_size": draw(odd(41, 79)),
        "gated": gated,
        "add_linear_biases": draw(st.booleans()) and not gated,
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        **(_biases(draw, "layer_1", "layer_2") if layer_biases and not gated else {}),
    }


def _block(draw: Draw, norm: Config) -> Config:
    kind = draw(st.sampled_from([*MIXERS, "stochastic"]))
    mixer = _stochastic(draw) if kind == "stochastic" else _mixer(draw, kind)
    return {"mixer": mixer, "mlp": _mlp(draw), "normalization": dict(norm)}


def _decoder(draw: Draw, norm: Config) -> Config:
    if draw(st.booleans()):
        return {"type": "fixed", "num_blocks": draw(st.integers(1, 2)), "block": _block(draw, norm)}
    names = draw(st.sampled_from([["a"], ["z", "b"]]))
    pattern = [*names, *draw(st.lists(st.sampled_from(names), max_size=2))]  # every block is used at least once
    return {
        "type": "pattern",
        "num_blocks": draw(st.integers(len(names), 5)),  # shorter and longer than the pattern
        "pattern": pattern,
        "blocks": {name: _block(draw, norm) for name in names},
    }


def _token_ids(draw: Draw) -> Config:
    return {"bos_token_id": draw(st.sampled_from([None, 1])), "eos_token_id": 2, "dtype": "bfloat16"}


@st.composite
def apriel2_text(draw: Draw) -> Config:
    norm = _norm(draw)  # the class uses the epsilon of the head in every block
    return {
        "architectures": ["Apriel2ForCausalLM"],
        "model_type": "apriel2_text",
        "vocab_size": draw(odd(81, 99)),
        "hidden_size": HIDDEN,
        "tie_word_embeddings": draw(st.booleans()),
        "embeddings": {"max_position_embeddings": 512},
        "head": {"normalization": norm},
        "decoder": _decoder(draw, norm),
        **_token_ids(draw),
    }


@st.composite
def apriel2(draw: Draw) -> Config:
    config = draw(apriel2_text())
    config |= {"architectures": ["Apriel2ForConditionalGeneration"], "model_type": "apriel2"}
    if not draw(st.integers(0, 3)):  # text only, as its class writes it
        return config | {"vision_encoder": None}
    heads, ratio = draw(st.sampled_from([(3, 1), (2, 3)]))
    patch = draw(st.sampled_from([3, 5]))
    rotary: Config = {"type": "pixtral_2d", "theta": 7777.0, "patch_size": patch, "max_image_size": 1024}
    if not draw(st.integers(0, 3)):
        rotary = {"type": "mistral_1d", "theta": 7777.0}
    mixer = {
        "type": "attention",
        "heads": heads * ratio,
        "head_groups": heads,
        "head_size": draw(st.sampled_from([4, 12])),
        "add_linear_biases": draw(st.booleans()),
        "causal": draw(st.booleans()),
        "cross_document_attention": False,
        "rotary": rotary,
    }
    blocks = draw(st.integers(1, 2))
    block = {"mixer": mixer, "mlp": _mlp(draw, layer_biases=False), "normalization": _norm(draw)}
    adapter = _mlp(draw, layer_biases=False) | {"gated": False}
    vision = {
        "hidden_size": 39,
        "num_channels": 3,
        "patch_size": patch,
        "num_hidden_layers": blocks,
        "embeddings": {
            "patch_height": patch,
            "patch_width": patch,
            "input_channels": 3,
            "normalization": _norm(draw),
        },
        "encoder": {"type": "fixed", "num_blocks": blocks, "block": block},
        "adapter": adapter,
    }
    return config | {"vision_encoder": vision, "image_token_index": draw(st.integers(1, 80))}


@st.composite
def apriel_hybrid_ssm(draw: Draw) -> Config:
    codes = draw(st.lists(st.sampled_from(["t", "m2", "gdn", "kda"]), min_size=1, max_size=4))
    groups, per_group = draw(st.sampled_from([(3, 1), (1, 5), (2, 3)]))
    heads = groups * per_group
    config: dict[str, Any] = {
        "architectures": ["AprielHybridSSMForCausalLM"],
        "model_type": "apriel_hybrid_ssm",
        "vocab_size": draw(odd(81, 99)),
        "hidden_size": heads * 7,
        "intermediate_size": draw(odd(43, 79)),
        "num_hidden_layers": len(codes),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": draw(even(8, 14)),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "rms_norm_eps": draw(st.sampled_from(EPSILONS)),
        "attention_dropout": 0.0,
        "sliding_window": draw(st.sampled_from([None, 24])),
        "tie_word_embeddings": draw(st.booleans()),
        "hybrid_block_layout": codes,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    put_rope(draw, config, draw(rope(10000.0)))
    if "m2" in codes:
        mamba = _mixer(draw, "mamba")
        config["ssm_cfg"] = {
            "d_state": mamba["state_size"],
            "d_inner": mamba["d_inner"],
            "d_xb": mamba["d_xb"],
            "dt_rank": draw(st.sampled_from(["auto", mamba["dt_rank"]])),
            "d_conv": mamba["d_conv"],
            "bias": mamba["add_linear_biases"],
            "conv_bias": mamba["conv_bias"],
            "dt_proj_bias": mamba["dt_proj_bias"],
            "repeat_kv_before_conv": draw(st.booleans()),
            "expand": 1,
        }
    if {"gdn", "kda"} & set(codes):
        gdn, kda = _mixer(draw, "gdn"), _mixer(draw, "kda")
        names = ("key_heads", "value_heads")
        config["linear_attn_config"] = {
            "short_conv_kernel_size": kda["convolution_layer"]["kernel_size"],
            "head_dim": kda["head_dim"],
            "num_heads": kda["heads"],
            **{f"gdn_num_{name}": gdn[name] for name in names},
            "gdn_key_head_dim": gdn["key_head_dim"],
            "gdn_value_head_dim": gdn["value_head_dim"],
            "gdn_linear_conv_kernel_size": gdn["convolution_layer"]["kernel_size"],
        }
    return config


@st.composite
def llava_hybrid_ssm(draw: Draw) -> Config:
    text = draw(apriel_hybrid_ssm())
    return before_text(draw, "LlavaHybridForConditionalGeneration", "llava_hybrid", text)
