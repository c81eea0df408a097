"""Hypothesis strategies of config.json dicts, one per format, with every option that the format has.

Sizes are small, pairwise distinct, and odd wherever the architecture permits (rotary needs an even head size), so that
a swapped or forgotten axis cannot pass. Keys that a file may leave out are sometimes left out.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Config = dict[str, Any]
Draw = st.DrawFn

ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "relu", "relu2", "sigmoid")
EPSILONS = (1e-5, 3e-6, 1e-6)
_MISSING = object()


def odd(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low // 2, (high - 1) // 2).map(lambda n: 2 * n + 1)


def even(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers((low + 1) // 2, high // 2).map(lambda n: 2 * n)


def _maybe(draw: Draw, config: Config, **options: st.SearchStrategy[Any]) -> None:
    """Add each key with a drawn value, or leave it out."""
    for key, values in options.items():
        value = draw(st.one_of(st.just(_MISSING), values))
        if value is not _MISSING:
            config[key] = value


def _distinct(draw: Draw, *strategies: st.SearchStrategy[int], avoid: tuple[int, ...] = ()) -> list[int]:
    """One value of each strategy, all different from one another and from ``avoid``."""
    chosen: list[int] = []
    for strategy in strategies:
        chosen.append(draw(strategy.filter(lambda n: n not in chosen and n not in avoid)))
    return chosen


# What is not about the model's parameters.


def _metadata(draw: Draw, config: Config) -> None:
    """Keys without meaning for a trainer, that a conversion must carry."""
    token = st.integers(0, 20)
    _maybe(
        draw,
        config,
        bos_token_id=st.one_of(st.none(), token),
        eos_token_id=st.one_of(st.none(), token, st.lists(token, min_size=1, max_size=2)),
        pad_token_id=st.one_of(st.none(), token),
        initializer_range=st.sampled_from([0.02, 0.0125]),
        use_cache=st.booleans(),
        transformers_version=st.sampled_from(["4.57.6", "5.23.0"]),
    )
    config[draw(st.sampled_from(["dtype", "torch_dtype"]))] = draw(st.sampled_from(["bfloat16", "float32"]))


# Rotary embeddings, as the two dialects say them.


@st.composite
def rope(draw: Draw, theta: float, scaled: bool = True) -> Config:
    """One ``rope_parameters`` dict; optional keys of yarn are sometimes omitted."""
    kind = draw(st.sampled_from(["default", "llama3", "yarn"] if scaled else ["default"]))
    result: Config = {"rope_type": kind, "rope_theta": draw(st.sampled_from([theta, 23456.0, 500000.0]))}
    if kind == "default":
        if draw(st.integers(0, 3)) == 0:
            result["partial_rotary_factor"] = 1.0
        return result
    result["factor"] = draw(st.sampled_from([2.0, 3.5, 8.0]))
    if kind == "llama3":
        result |= {"low_freq_factor": 1.25, "high_freq_factor": draw(st.sampled_from([3.5, 4.0]))}
        result["original_max_position_embeddings"] = draw(st.sampled_from([64, 128]))
        return result
    _maybe(
        draw,
        result,
        attention_factor=st.sampled_from([1.0, 1.375]),
        beta_fast=st.sampled_from([32.0, 24.0]),
        beta_slow=st.sampled_from([1.0, 2.0]),
        original_max_position_embeddings=st.sampled_from([64, 128]),
        truncate=st.just(True),
        mscale=st.none(),
        mscale_all_dim=st.none(),
    )
    return result


def put_rope(draw: Draw, config: Config, parameters: Config, legacy_type: bool = True) -> None:
    """Write the parameters as one dialect says them, or as both in one file."""
    dialect = draw(st.sampled_from(["transformers-5", "transformers-4", "both"]))
    if dialect != "transformers-4":
        config["rope_parameters"] = dict(parameters)
    if dialect != "transformers-5":
        config["rope_theta"] = parameters["rope_theta"]
        scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
        if parameters["rope_type"] != "default":
            if legacy_type and dialect == "transformers-4" and draw(st.booleans()):
                scaling["type"] = scaling.pop("rope_type")
            config["rope_scaling"] = scaling
        elif draw(st.booleans()):
            config["rope_scaling"] = None


# Llama and what extends it.


def _text(draw: Draw, architecture: str, model_type: str, explicit_head_dim: bool | None = None) -> Config:
    """Sizes, norms, ties and rotary of a llama-like text model. ``explicit_head_dim``: None leaves it to chance."""
    groups, per_group = draw(st.sampled_from([(3, 3), (3, 1), (1, 5), (5, 3), (2, 3)]))
    heads = groups * per_group
    explicit = draw(st.booleans()) if explicit_head_dim is None else explicit_head_dim
    if explicit:
        head_dim = draw(even(6, 18))
        hidden = heads * draw(odd(3, 11).filter(lambda n: n != head_dim))
    else:
        head_dim = draw(even(4, 12))
        hidden = heads * head_dim
    taken = (hidden, heads * head_dim, groups * head_dim, head_dim)
    vocab, intermediate = _distinct(draw, odd(23, 99), odd(23, 99), avoid=taken)
    config: Config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "rms_norm_eps": draw(st.sampled_from(EPSILONS)),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "attention_dropout": draw(st.sampled_from([0.0, 0.25])),
        "tie_word_embeddings": draw(st.booleans()),
        "max_position_embeddings": draw(st.sampled_from([256, 512])),
    }
    if explicit:
        config["head_dim"] = head_dim
    elif explicit_head_dim is None and draw(st.booleans()):
        config["head_dim"] = None
    parameters = draw(rope(10000.0))
    if parameters["rope_type"] != "default" and model_type in ("mistral", "mixtral") and not explicit:
        config["head_dim"] = head_dim  # some versions of these classes leave null in place and then fail on it
    put_rope(draw, config, parameters)
    _metadata(draw, config)
    return config


@st.composite
def llama(draw: Draw, architecture: str = "LlamaForCausalLM", model_type: str = "llama") -> Config:
    config = _text(draw, architecture, model_type)
    config |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    if config["num_key_value_heads"] == config["num_attention_heads"]:  # null or absent means one for every head
        form = draw(st.sampled_from(["number", "null", "absent"]))
        if form != "number":
            del config["num_key_value_heads"]
        if form == "null":
            config["num_key_value_heads"] = None
    _maybe(draw, config, pretraining_tp=st.just(1))
    return config


@st.composite
def mistral(draw: Draw) -> Config:
    config = _text(draw, "MistralForCausalLM", "mistral")
    _maybe(draw, config, sliding_window=st.sampled_from([None, 5, 24]))
    return config


@st.composite
def mixtral(draw: Draw) -> Config:
    config = _text(draw, "MixtralForCausalLM", "mixtral")
    _maybe(draw, config, sliding_window=st.sampled_from([None, 5, 24]))
    config["num_local_experts"] = draw(st.sampled_from([3, 5, 7]))
    config["num_experts_per_tok"] = draw(st.integers(1, 2))
    _maybe(
        draw,
        config,
        router_aux_loss_coef=st.sampled_from([0.001, 0.02]),
        router_jitter_noise=st.sampled_from([0.0, 0.01]),
        output_router_logits=st.just(False),
    )
    return config


def _qwen2(draw: Draw, architecture: str, model_type: str, layer_types: bool, head_dim: bool = False) -> Config:
    config = _text(draw, architecture, model_type, explicit_head_dim=head_dim)
    layers = config["num_hidden_layers"]
    kinds = [draw(st.sampled_from(["full_attention", "sliding_attention"])) for _ in range(layers)]
    if not layer_types or draw(st.booleans()):
        first = draw(st.integers(0, layers + 1))
        config["max_window_layers"] = first
        config["use_sliding_window"] = draw(st.booleans())
        config["sliding_window"] = draw(st.sampled_from([5, 24])) if config["use_sliding_window"] else None
        if layer_types and draw(st.booleans()):
            windowed = first if config["use_sliding_window"] else layers
            config["layer_types"] = (["full_attention"] * windowed + ["sliding_attention"] * layers)[:layers]
    else:
        config["layer_types"] = kinds
        config["use_sliding_window"] = "sliding_attention" in kinds
        config["sliding_window"] = draw(st.sampled_from([5, 24])) if config["use_sliding_window"] else None
        _maybe(draw, config, max_window_layers=st.just(28))
    return config


@st.composite
def qwen2(draw: Draw) -> Config:
    config = _qwen2(draw, "Qwen2ForCausalLM", "qwen2", layer_types=True)
    _maybe(draw, config, use_mrope=st.just(False))
    return config


@st.composite
def qwen3(draw: Draw) -> Config:
    config = _qwen2(draw, "Qwen3ForCausalLM", "qwen3", layer_types=True, head_dim=True)
    _maybe(draw, config, attention_bias=st.booleans())
    return config


@st.composite
def dream(draw: Draw) -> Config:
    config = _qwen2(draw, "DreamModel", "dream", layer_types=False)
    config["mask_token_id"] = draw(st.integers(0, 20))
    return config


@st.composite
def diffusion_llama(draw: Draw) -> Config:
    config = draw(llama("DiffusionLlamaModel", "diffusion_llama"))
    config["mask_token_id"] = draw(st.integers(0, 20))
    return config


@st.composite
def mtp_llama(draw: Draw) -> Config:
    config = draw(llama("MTPLlamaForCausalLM", "mtp_llama"))
    config["prediction_heads"] = draw(st.integers(1, 4))
    return config


# Two kinds of layers, and text with vision.


@st.composite
def gemma4(draw: Draw) -> Config:
    """The dialect with ``global_head_dim``; the class itself writes the newer one (see ``oracles.as_saved``)."""
    groups, per_group = draw(st.sampled_from([(3, 3), (3, 1), (1, 5), (2, 3)]))
    heads = groups * per_group
    head_dim, global_head_dim = draw(st.sampled_from([(6, 16), (10, 8), (14, 24)]))
    taken = (heads * head_dim, groups * head_dim, heads * global_head_dim, groups * global_head_dim)
    sizes = _distinct(draw, *[odd(23, 99)] * 4, avoid=taken)
    kinds = st.sampled_from(["sliding_attention", "full_attention"])
    before = draw(st.lists(kinds, max_size=3))
    moe, shared = draw(st.booleans()), draw(st.booleans())
    config: Config = {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "vocab_size": sizes[0],
        "hidden_size": sizes[1],
        "intermediate_size": sizes[2],
        "num_hidden_layers": len(before) + 1,
        "layer_types": [*before, "full_attention"],
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "global_head_dim": global_head_dim,
        "num_global_key_value_heads": draw(st.sampled_from([1, heads])) if shared else None,
        "attention_k_eq_v": shared,
        "attention_bias": False,
        "attention_dropout": draw(st.sampled_from([0.0, 0.25])),
        "sliding_window": draw(st.sampled_from([5, 24])),
        "hidden_activation": draw(st.sampled_from(ACTIVATIONS)),
        "rms_norm_eps": draw(st.sampled_from(EPSILONS)),
        "final_logit_softcapping": draw(st.sampled_from([None, 30.0])),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": draw(st.sampled_from([10000.0, 12345.0]))},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": draw(st.sampled_from([1000000.0, 543210.0])),
                "partial_rotary_factor": draw(st.sampled_from([0.25, 0.5])),
            },
        },
        "enable_moe_block": moe,
        "num_experts": draw(st.sampled_from([3, 5])) if moe else None,
        "top_k_experts": draw(st.integers(1, 2)) if moe else None,
        "moe_intermediate_size": sizes[3] if moe else None,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "tie_word_embeddings": draw(st.booleans()),
        "max_position_embeddings": 256,
    }
    _maybe(draw, config, use_bidirectional_attention=st.none(), vocab_size_per_layer_input=st.just(262144))
    _metadata(draw, config)
    return config


@st.composite
def llava(draw: Draw) -> Config:
    """A Pixtral tower before a Mistral, a Llama or a Qwen2."""
    text = draw(st.one_of(mistral(), llama(), qwen2()))
    text.pop("transformers_version", None)  # written at the root only
    return before_text(draw, "LlavaForConditionalGeneration", "llava", text)


def before_text(draw: Draw, architecture: str, model_type: str, text: Config) -> Config:
    """A Pixtral tower before a text model."""
    heads, head_dim = draw(st.sampled_from([(3, 12), (5, 4), (1, 20)]))
    patch = draw(st.sampled_from([3, 5]))
    vision: Config = {
        "model_type": "pixtral",
        "hidden_size": heads * head_dim,
        "head_dim": head_dim,
        "intermediate_size": draw(odd(23, 99).filter(lambda n: n != text["intermediate_size"])),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "num_attention_heads": heads,
        "num_channels": 3,
        "patch_size": patch,
        "image_size": 6 * patch,
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "attention_dropout": draw(st.sampled_from([0.0, 0.25])),
    }
    theta = draw(st.sampled_from([10000.0, 7777.0]))
    if draw(st.booleans()):
        vision["rope_theta"] = theta
    else:
        vision["rope_parameters"] = {"rope_type": draw(st.sampled_from(["axial", "default"])), "rope_theta": theta}
    _maybe(draw, vision, initializer_range=st.just(0.02))
    config: Config = {
        "architectures": [architecture],
        "model_type": model_type,
        "text_config": text,
        "vision_config": vision,
        "image_token_index": draw(st.integers(1, text["vocab_size"] - 1)),
        "multimodal_projector_bias": draw(st.booleans()),
        "projector_hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    _maybe(
        draw,
        config,
        image_seq_length=st.just(576),
        tie_word_embeddings=st.just(text["tie_word_embeddings"]),
        dtype=st.just("bfloat16"),
    )
    return config
