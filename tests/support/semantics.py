"""What a config.json means, apart from how it says it: the normalisations that a conversion may make, and no others.

1. Rotary keys are those of either dialect, with or without the optional keys that hold the class's defaults.
2. A derived size may be written out: ``head_dim``, ``num_key_value_heads``.
3. A key at the default of its class may be written out: ``attention_bias``, ``mlp_bias``, ``sliding_window``.
4. Qwen2 says the window of each layer in three ways, Dream says one that does not count; Gemma 4 says
   the sizes of its full-attention layers in two.
5. ``torch_dtype`` is the older name of ``dtype``; the root of a llava repeats the tie of its text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

_ROPE = ("rope_parameters", "rope_theta", "rope_scaling")
_WINDOW = ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers")
_LLAMA = ("llama", "mtp_llama", "diffusion_llama")
_QWEN2 = ("qwen2", "qwen3")
_APRIEL2 = ("apriel2", "apriel2_text")


def meaning(config: Config) -> dict[str, Any]:
    """The config in one canonical form; two files of the same meaning have equal forms."""
    result = copy.deepcopy(dict(config))
    kind = result["model_type"]
    if "torch_dtype" in result:
        result.setdefault("dtype", result.pop("torch_dtype"))
    if kind in _APRIEL2:
        return result
    if kind in ("llava", "llava_hybrid"):
        result["text_config"] = meaning(result["text_config"])
        vision = result["vision_config"]
        rope = rope_of(vision, "axial") | {"rope_type": "axial"}
        result["vision_config"] = _without(vision, *_ROPE) | {"rope": rope}
        result["tie_word_embeddings"] = (
            result.get("tie_word_embeddings", False) or result["text_config"]["tie_word_embeddings"]
        )
        return result
    if kind == "gemma4_text":
        layers = gemma4_layers(result)
        return _without(result, "per_layer_config", "global_head_dim", "num_global_key_value_heads") | {
            "layers": layers
        }
    result["rope"] = rope_of(result)
    result = _without(result, *_ROPE)
    if result.get("num_key_value_heads") is None:
        result["num_key_value_heads"] = result["num_attention_heads"]
    if kind in _QWEN2:
        result = _without(result, *_WINDOW) | {"windows": windows_of(result)}
    elif kind == "dream":  # its class looks at no window
        result = _without(result, *_WINDOW)
    elif result.get("head_dim") is None:
        result["head_dim"] = result["hidden_size"] // result["num_attention_heads"]
    if kind in ("mistral", "mixtral"):
        result.setdefault("sliding_window", 4096 if kind == "mistral" else None)
    if kind in (*_LLAMA, "qwen3"):
        result.setdefault("attention_bias", False)
    if kind in _LLAMA:
        result.setdefault("mlp_bias", False)
    return result


def _without(config: Config, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def rope_of(config: Config, default_type: str = "default") -> dict[str, Any]:
    """The rotary embedding of one object in the newest dialect, optional keys filled in."""
    parameters, theta, scaling = (config.get(key) for key in _ROPE)
    rope = {"rope_theta": theta, **(parameters or {}), **(scaling or {})}
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or default_type
    # Without effect at these values: other values are refused.
    for key, value in {"partial_rotary_factor": 1.0, "truncate": True, "mscale": None, "mscale_all_dim": None}.items():
        if key in rope and rope[key] == value:
            del rope[key]
    if rope["rope_type"] == "yarn":
        rope = {
            "attention_factor": None,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": config["max_position_embeddings"],
            **rope,
        }
        if rope["attention_factor"] is None:
            rope["attention_factor"] = 0.1 * math.log(rope["factor"]) + 1.0
    return rope


def windows_of(config: Config) -> list[int | None]:
    """The window of every layer of a Qwen2, null for full attention."""
    types, used, window, first = (config.get(key) for key in _WINDOW)
    window = window if used else None
    layers = range(config["num_hidden_layers"])
    if types is None:
        return [window if i >= (28 if first is None else first) else None for i in layers]
    return [window if types[i] == "sliding_attention" else None for i in layers]


def gemma4_layers(config: Config) -> list[dict[str, int]]:
    """Head size and key/value heads of every layer of a Gemma 4, from either dialect."""
    overrides = {int(index): sizes for index, sizes in config.get("per_layer_config", {}).items()}
    of_full = {"head_dim": config.get("global_head_dim", config["head_dim"])}
    if config["attention_k_eq_v"] and config.get("num_global_key_value_heads") is not None:
        of_full["num_key_value_heads"] = config["num_global_key_value_heads"]
    base = {"head_dim": config["head_dim"], "num_key_value_heads": config["num_key_value_heads"]}
    return [
        base | (of_full if kind == "full_attention" else {}) | overrides.get(index, {})
        for index, kind in enumerate(config["layer_types"])
    ]
