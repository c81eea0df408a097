"""What a native config means, apart from how it says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from native_parts import Config, Native


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
