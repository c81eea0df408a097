"""Where our configs are meant to differ from those that the reference imports and exports, and why.

Everything that is not listed here must be equal. An entry is a change of the reference's dict, applied to it before the
comparison; ``GONE`` removes a key. A value that is a function is called with the reference's dict.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class _Gone:
    def __repr__(self) -> str:
        return "GONE"


GONE = _Gone()


@dataclass(frozen=True, slots=True)
class Difference:
    path: str
    value: Any | Callable[[dict[str, Any]], Any]
    reason: str


def _layers(config: dict[str, Any]) -> Any:
    return config["num_hidden_layers"]


_QWEN2_WINDOW = [
    Difference(
        "layer_types",
        lambda config: ["full_attention"] * _layers(config),
        "the window of every layer is said, since the reference drops it silently",
    ),
    Difference("use_sliding_window", False, "follows from layer_types; the class forces sliding_window to null by it"),
    Difference("max_window_layers", _layers, "follows from layer_types: the first layer with a window"),
]

_BIDIRECTIONAL = [
    Difference(
        "decoder.block.mixer.causal",
        False,
        "the class attends in both directions; the reference leaves the default, and computes another model",
    )
]

#: Where our imported config is meant to differ from the native one of the reference.
NATIVE_DIFFERENCES: dict[str, list[Difference]] = {"dream": _BIDIRECTIONAL, "diffusion_llama": _BIDIRECTIONAL}

DIFFERENCES: dict[str, list[Difference]] = {
    "qwen2": _QWEN2_WINDOW,
    "llava": [
        Difference("type", GONE, "the reference leaks the type of the adapter to the root"),
        Difference("text_config.model_type", "mistral", "without it the class reads the text half as a llama"),
        Difference(
            "vision_config.head_dim",
            lambda config: config["vision_config"]["hidden_size"] // config["vision_config"]["num_attention_heads"],
            "the class always writes it",
        ),
    ],
    "gemma4": [
        Difference(
            "final_logit_softcapping",
            lambda config: config.get("final_logit_softcapping"),
            "always written, as the class does, so that nothing hangs on its default",
        ),
        Difference("use_bidirectional_attention", GONE, "null is the default of the class"),
        Difference(
            "num_global_key_value_heads",
            lambda config: config["num_global_key_value_heads"] or config["num_key_value_heads"],
            "an older place holds the number that is in effect; null means the same",
        ),
    ],
    "apriel_hybrid_ssm": [
        Difference("ssm_cfg.d_conv", 4, "the reference does not export the kernel size of the convolution"),
    ],
}


def expected_export(format: str, reference: dict[str, Any]) -> dict[str, Any]:
    """The reference's exported config with the intended differences of the format applied."""
    return _changed(reference, DIFFERENCES.get(format, []))


def expected_native(format: str, reference: dict[str, Any]) -> dict[str, Any]:
    """The reference's native config with the intended differences of the format applied."""
    return _changed(reference, NATIVE_DIFFERENCES.get(format, []))


def _changed(reference: dict[str, Any], differences: list[Difference]) -> dict[str, Any]:
    result = copy.deepcopy(reference)
    for difference in differences:
        *parents, leaf = difference.path.split(".")
        place = result
        for parent in parents:
            place = place[parent]
        value = difference.value(reference) if callable(difference.value) else difference.value
        if value is GONE:
            del place[leaf]
        else:
            place[leaf] = value
    return result
