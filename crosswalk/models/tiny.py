"""A small copy of a model: the same kinds of layers, few of them, small sizes, random weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .classes import class_of, config_object, one_message

#: Most layers that a copy has, and fewest.
MOST, FEWEST = 12, 3
VOCABULARY, HEAD_DIM, HEADS, GROUPS = 131, 16, 6, 2
#: Most parameters of a copy: more means that a size has a name that is not known here.
LARGEST = 20_000_000
#: Sizes by the names that configs have for them: what is larger becomes this.
SIZES: dict[str, int] = {
    "vocab_size": VOCABULARY,
    "intermediate_size": 77, "n_inner": 77, "ffn_hidden_size": 77, "ffn_dim": 77, "mlp_hidden_size": 77,
    "moe_intermediate_size": 29, "shared_expert_intermediate_size": 37, "shared_intermediate_size": 37,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8,
    "num_experts_per_tok": 4, "top_k_experts": 4, "num_experts_per_token": 4, "moe_topk": 4,
    "n_group": 4, "topk_group": 2,
    "sliding_window": 5, "attention_window_size": 5, "window_size": 5, "attention_window": 5,
    "linear_num_key_heads": 3, "linear_num_value_heads": 6, "linear_key_head_dim": 7, "linear_value_head_dim": 5,
    "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,  # classes leave these layers out
    "patch_size": 4, "image_size": 32,
}  # fmt: skip
WIDTHS = ("hidden_size", "n_embd", "d_model")
HEAD_COUNTS = ("num_attention_heads", "n_head", "num_heads")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
#: Sizes that another one is a multiple of.
STEPPED = (
    "patch_size", "image_size", "linear_num_key_heads", "linear_num_value_heads", "n_routed_experts", "n_group",
    "topk_group", "num_experts_per_tok",
)  # fmt: skip
#: The part of a head whose channels are turned.
ROTATED = ("partial_rotary_factor", "rotary_pct", "rotary_percent")
#: Keys that count layers from one kind to the next.
STEPS = ("_interval", "_pattern", "_step", "_freq")


def make_tiny(config: Mapping[str, Any], where: str, directory: Path) -> None:
    """Write a small random model of the class that ``config`` names into ``directory``, as the class saves it.

    Every parameter and saved buffer is random, so that no two of them can be mistaken for each other. Raises
    ``CrosswalkError`` if there is no such class, or none of the small sizes.
    """
    kind = class_of(config, where)
    full = config_object(config, where)
    small = shrunk(full.to_dict())
    with one_message(f"`{kind.__name__}` cannot be made small", where):
        reduced = type(full).from_dict(small)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in kind(reduced).parameters())
        if size > LARGEST:
            raise ValueError(f"it still has {size:,} parameters")
        model = kind(reduced).to(torch.float32)
        _randomize(model)
        model.save_pretrained(directory)


def _randomize(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                centre = 1.0 if tensor.dim() == 1 and not name.endswith("bias") else 0.0
                width = 0.3 if tensor.dim() < 2 else tensor.shape[-1] ** -0.5
                tensor.copy_(centre + width * torch.randn(tensor.shape, generator=generator))


def shrunk(config: Mapping[str, Any], more: int = 0) -> dict[str, Any]:
    """A config of the same model, in what its layers are, with small sizes and few layers; what is nested in it too.
    ``more``: another one, of which no size that others follow from is the same."""
    # Labels, and overrides of single layers, are keyed by numbers; a random copy is not quantized.
    config = {str(key): value for key, value in config.items() if key != "quantization_config"}
    result = {
        key: shrunk(value, more) if isinstance(value, dict) else copy.deepcopy(value) for key, value in config.items()
    }
    _shrink_layers(config, result)
    _shrink_heads(config, result, more)
    for key, value in config.items():
        if key in SIZES and _is_int(value):
            result[key] = min(value, SIZES[key] + (0 if key in STEPPED else more))
        elif key.endswith(("_token_id", "_token_index")):
            result[key] = _token(value)
    return result


def _shrink_layers(config: Mapping[str, Any], result: dict[str, Any]) -> None:
    key = _first(LAYER_COUNTS, config)
    if key is None:
        return
    before = config[key]
    after = min(before, MOST, max(_needed(config, before)))
    result[key] = after
    for name, value in config.items():
        if isinstance(value, list) and len(value) == before:
            result[name] = value[:after]
        elif name.endswith("_layers") and isinstance(value, list) and all(map(_is_int, value)):
            result[name] = [index for index in value if index < after]
        elif isinstance(value, dict) and value and all(str(index).isdigit() for index in value):
            result[name] = {index: inner for index, inner in result[name].items() if int(index) < after}
        elif name.startswith("max_") and name.endswith("_layers") and _is_int(value):
            result[name] = min(value, after)


def _needed(config: Mapping[str, Any], count: int) -> Iterator[int]:
    """How many layers it takes until every kind of them has been seen."""
    yield FEWEST
    for name, value in config.items():
        if isinstance(value, list) and len(value) == count:
            texts = [repr(item) for item in value]
            yield max(texts.index(text) for text in texts) + 1
        elif name.endswith("_layers") and isinstance(value, list) and value and all(map(_is_int, value)):
            yield min(value) + 2
        elif name.endswith(STEPS) and _is_int(value):
            yield value


def _shrink_heads(config: Mapping[str, Any], result: dict[str, Any], more: int) -> None:
    """Fewer heads of fewer channels, in the same relation to each other and to the width."""
    width, heads = _first(WIDTHS, config), _first(HEAD_COUNTS, config)
    size = _head_dim(config, HEAD_DIM + 8 * more)
    if heads is None:
        _narrow_heads(config, result, config.get("head_dim"), size)
        return
    before = config[heads]
    result[heads] = min(before, HEADS + 2 * more)
    groups: Any = config.get("num_key_value_heads")
    if _is_int(groups):
        result["num_key_value_heads"] = result[heads] if groups == before else min(groups, GROUPS + 2 * more)
        if result[heads] % result["num_key_value_heads"]:
            result["num_key_value_heads"] = 1
    if width is not None:
        plain = config.get("head_dim") in (None, config[width] // before)
        result[width] = result[heads] * (size if plain else size + 4)
        _narrow_heads(config, result, config.get("head_dim") or config[width] // before, size)


def _head_dim(config: Mapping[str, Any], least: int) -> int:
    """The size of a head, of which each part that is turned is an even number of channels."""
    turned = [value for value in _at(config, ROTATED) if isinstance(value, float) and 0 < value < 1]
    parts = ((size, [size * part for part in turned]) for size in range(least, 8 * least, 4))
    return next((size for size, all_of in parts if all(abs(x - 2 * round(x / 2)) < 1e-6 for x in all_of)), least)


def _at(config: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Any]:
    for key, value in config.items():
        if key in names:
            yield value
        elif isinstance(value, Mapping):
            yield from _at(value, names)


def _narrow_heads(config: Mapping[str, Any], result: dict[str, Any], before: Any, size: int) -> None:
    """Sizes of heads, kinds of heads that are larger than others, and scales that are the size of a head."""
    for key, value in config.items():
        if key.endswith("head_dim") and key not in SIZES and _is_int(value):
            result[key] = size if before is None else max(8, size * value // before // 4 * 4)
    if before is not None and config.get("query_pre_attn_scalar") == before:
        result["query_pre_attn_scalar"] = size


def _token(value: Any) -> Any:
    if isinstance(value, list):
        return [_token(item) for item in value]
    return value if not _is_int(value) or value < VOCABULARY else VOCABULARY - 3 - value % 7


def _first(names: tuple[str, ...], config: Mapping[str, Any]) -> str | None:
    return next((name for name in names if _is_int(config.get(name))), None)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
