"""The formats under test: strategies of their configs, and the native config type that each is the root of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import apriel_strategies
import strategies
from hypothesis import strategies as st
from native_meaning import expanded

import crosswalk

#: Format name to a strategy of config.json dicts.
CONFIGS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "llama": strategies.llama(),
    "mistral": strategies.mistral(),
    "mixtral": strategies.mixtral(),
    "qwen2": strategies.qwen2(),
    "qwen3": strategies.qwen3(),
    "mtp_llama": strategies.mtp_llama(),
    "dream": strategies.dream(),
    "diffusion_llama": strategies.diffusion_llama(),
    "gemma4": strategies.gemma4(),
    "llava": strategies.llava(),
    "apriel2_text": apriel_strategies.apriel2_text(),
    "apriel_hybrid_ssm": apriel_strategies.apriel_hybrid_ssm(),
    "apriel2": apriel_strategies.apriel2(),
    "llava_hybrid_ssm": apriel_strategies.llava_hybrid_ssm(),
}


def root_of(format: str) -> str:
    """The native config type that a format converts."""
    return "multimodal_model" if format in ("llava", "llava_hybrid_ssm", "apriel2") else "base_model"


def normalized(native: Mapping[str, Any], format: str) -> dict[str, Any]:
    """A native config with every default filled in and the decoder as a plain list of blocks."""
    return expanded(crosswalk.normalize_native(native, root=root_of(format)))
