"""The formats under test: a strategy of their configs, and where their text keys are."""

from __future__ import annotations

from typing import Any

import apriel_strategies
import strategies
from hypothesis import strategies as st

#: Format name to a strategy of config.json dicts.
CONFIGS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "llama": strategies.llama(),
    "mistral": strategies.mistral(),
    "mixtral": strategies.mixtral(),
    "qwen2": strategies.qwen2(),
    "mtp_llama": strategies.mtp_llama(),
    "dream": strategies.dream(),
    "diffusion_llama": strategies.diffusion_llama(),
    "gemma4": strategies.gemma4(),
    "llava": strategies.llava(),
    "apriel2_text": apriel_strategies.apriel2_text(),
    "apriel_hybrid_ssm": apriel_strategies.apriel_hybrid_ssm(),
    "apriel2": apriel_strategies.apriel2(),
}
