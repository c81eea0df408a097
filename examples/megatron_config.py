"""The config of a model of Megatron-core as the layout ``megatron`` has it, and as Megatron has it: flat.

    native = crosswalk.import_config(hf_config, to="megatron")
    fields = flat(native)                    # of TransformerConfig (MLATransformerConfig), and arguments of GPTModel
    config = crosswalk.export_config(native_of(fields), "megatron_llama")

``native_of`` takes the fields of a TransformerConfig, or the section ``model`` of ``run_config.yaml``; what is no field
of the layout is a setting of the run, and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import crosswalk

#: What the layout holds in another place than Megatron, or in another form.
ELSEWHERE = ("rope", "layers", "window_size")


def flat(native: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Megatron for a config of the layout. ``activation_func`` is the name of the function.

    The fields of ``yarn_*`` are no fields of the class TransformerConfig: set them as attributes of it."""
    layers = native["layers"]
    blocks = layers.get("blocks", {"": layers.get("block")})
    pattern = layers.get("pattern", [""])
    each = [blocks[pattern[index % len(pattern)]] for index in range(layers["num_blocks"])]
    experts, windows = ([int(block[name]) for block in each] for name in ("moe", "windowed"))
    fields = {key: value for key, value in native.items() if key not in ELSEWHERE} | native["rope"]
    fields |= {"num_layers": len(each), "mtp_num_layers": native["mtp_num_layers"] or None}
    fields["moe_layer_freq"] = 1 if all(experts) or native["num_moe_experts"] is None else experts
    fields["window_size"] = None if native["window_size"] is None else (native["window_size"], 0)
    fields["window_attn_skip_freq"] = None if all(windows) or native["window_size"] is None else windows
    return fields


def native_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the layout for fields of Megatron. Raises ``ValueError`` for a window that looks ahead."""
    count = fields["num_layers"]
    window = fields.get("window_size")
    if window is not None and window[1] != 0:
        raise ValueError(f"window_size is {window}: the layout has windows of earlier positions alone")
    experts = _each(fields.get("moe_layer_freq", 1), count, lambda index, step: index % step == 0)
    windows = _each(fields.get("window_attn_skip_freq"), count, lambda index, step: (index + 1) % step != 0)
    kinds = [
        {"moe": bool(has) and fields.get("num_moe_experts") is not None, "windowed": window is not None and bool(sees)}
        for has, sees in zip(experts, windows, strict=True)
    ]
    names = ["_".join(key for key, value in kind.items() if value) or "dense" for kind in kinds]
    known = _defaults()
    native = {key: fields[key] for key in known if key in fields and key not in ELSEWHERE}
    native["rope"] = {key: fields[key] for key in known["rope"] if fields.get(key) is not None}
    native["layers"] = {"type": "fixed", "block": kinds[0], "num_blocks": count}
    if len(set(names)) > 1:
        blocks = dict(zip(names, kinds, strict=True))
        native["layers"] = {"type": "pattern", "blocks": blocks, "pattern": names, "num_blocks": count}
    native["window_size"] = None if window is None else window[0]
    return native


def _each(said: Any, count: int, holds: Callable[[int, int], bool]) -> list[Any]:
    """What a field says of each layer: a list does, a number is a step, None is all of them."""
    if isinstance(said, list):
        return said
    return [said is None or holds(index, said) for index in range(count)]


def _defaults() -> dict[str, Any]:
    """A config of the layout with all its fields."""
    return crosswalk.normalize_native({"rope": {"position_embedding_type": "rope"}}, layout="megatron")
