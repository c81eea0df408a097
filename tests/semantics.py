"""What a config.json means, apart from how it says it: the normalisations that a conversion may make, and no others.

1. Rotary keys are those of either dialect, with or without the optional keys that hold the class's defaults.
2. A derived size may be written out: ``head_dim``, ``num_key_value_heads``.
3. A flag at the default of its class may be written out: ``attention_bias``, ``mlp_bias``.
4. Qwen2 says the window of each layer in three ways.
5. ``torch_dtype`` is the older name of ``dtype``; the root of a llava repeats the tie of its text.
"""

from __future__ import annotations

import copy
from typing import Any

Config = dict[str, Any]

_ROPE = ("rope_parameters", "rope_theta", "rope_scaling")
_WINDOW = ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers")
_LLAMA = ("llama", "mtp_llama", "diffusion_llama")
_QWEN2 = ("qwen2", "dream")
_APRIEL2 = ("apriel2", "apriel2_text")


def meaning(config: Config) -> dict[str, Any]:
    """The config in one canonical form; two files of the same meaning have equal forms."""
    result = copy.deepcopy(dict(config))
    kind = result["model_type"]
    if "torch_dtype" in result:
        result.setdefault("dtype", result.pop("torch_dtype"))
    if kind in _APRIEL2:
        return result
    if kind == "llava":
        result["text_config"] = meaning(result["text_config"])
        result["vision_config"] = _vision(result["vision_config"])
        result.setdefault("tie_word_embeddings", False)
        result["tie_word_embeddings"] |= result["text_config"]["tie_word_embeddings"]
        return result
    if kind == "gemma4_text":
        return _gemma4(result)
    result["rope"] = _rope(result)
    if result.get("num_key_value_heads") is None:
        result["num_key_value_heads"] = result["num_attention_heads"]
    if kind in _QWEN2:
        result["window"] = _windows(result)
    elif result.get("head_dim") is None:
        result["head_dim"] = result["hidden_size"] // result["num_attention_heads"]
    if kind in _LLAMA:
        result.setdefault("attention_bias", False)
        result.setdefault("mlp_bias", False)
    return result


def _rope(config: dict[str, Any], default_type: str = "default") -> dict[str, Any]:
    parameters, theta, scaling = (config.pop(key, None) for key in _ROPE)
    rope = {"rope_theta": theta, **(parameters or {}), **(scaling or {})}
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or default_type
    if rope["rope_type"] == "yarn":
        factor = {"attention_factor": None, "beta_fast": 32.0, "beta_slow": 1.0}
        rope = {**factor, "original_max_position_embeddings": config["max_position_embeddings"], **rope}
        if rope["attention_factor"] is None:
            import math

            rope["attention_factor"] = 0.1 * math.log(rope["factor"]) + 1.0
    return rope


def _windows(config: dict[str, Any]) -> list[int | None]:
    """The window of every layer of a Qwen2."""
    types, used, window, first = (config.pop(key, None) for key in _WINDOW)
    window = window if used else None
    layers = range(config["num_hidden_layers"])
    if types is None:
        return [window if i >= (28 if first is None else first) else None for i in layers]
    return [window if types[i] == "sliding_attention" else None for i in layers]


def _vision(vision: dict[str, Any]) -> dict[str, Any]:
    vision = copy.deepcopy(vision)
    vision["rope"] = _rope(vision, "axial") | {"rope_type": "axial"}
    return vision


def _gemma4(config: dict[str, Any]) -> dict[str, Any]:
    """Head size and key/value heads of every layer, from either dialect."""
    overrides = {int(k): v for k, v in config.pop("per_layer_config", {}).items()}
    global_head_dim = config.pop("global_head_dim", config["head_dim"])
    global_groups = config.pop("num_global_key_value_heads", None)
    layers = []
    for i, kind in enumerate(config["layer_types"]):
        own = {"head_dim": config["head_dim"], "num_key_value_heads": config["num_key_value_heads"]}
        if kind == "full_attention":
            own["head_dim"] = global_head_dim
            if global_groups is not None and config["attention_k_eq_v"]:
                own["num_key_value_heads"] = global_groups
        layers.append(own | overrides.get(i, {}))
    return config | {"layers": layers}
