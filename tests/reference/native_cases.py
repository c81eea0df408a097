"""What the original trainer computes: hidden states and logits of its own forward pass in fp32, on a CPU.

Beside the conversions in ``tests/golden`` there are models here, below ``golden``, that no format of Hugging Face has:
between them every field of the layout has another value than its default.

fast_llm_config.yaml, fast_llm.safetensors, case.json   as in ``tests/golden``
trainer.safetensors                                     ``logits`` and ``hidden.NAME``, for the inputs below

The trainer has Mamba's scan on GPUs only: its plain definition stood in for that one function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from golden_cases import GOLDEN, load_tensors, read_yaml

import crosswalk

FOLDERS = {
    folder.name: folder
    for parent in (GOLDEN, Path(__file__).parent / "golden")
    for folder in sorted(parent.iterdir())
    if (folder / "trainer.safetensors").exists()
}


def native(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The complete native config and the parameters of a case."""
    folder = FOLDERS[name]
    model = json.loads((folder / "case.json").read_text())["model_type"]
    root = {"gpt": "base_model", "multimodal": "multimodal_model"}[model]
    config = crosswalk.normalize_native(read_yaml(folder / "fast_llm_config.yaml"), root=root)
    return config, load_tensors(folder / "fast_llm.safetensors")


def inputs(config: Mapping[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The tokens and images that the trainer was given."""
    tokens = (torch.arange(17) * 7 + 3) % (config["embeddings"]["vocab_size"] - 2)
    if config.get("vision_encoder") is None:
        return tokens, []
    patch = config["vision_encoder"]["embeddings"]
    height, width = patch["patch_height"], patch["patch_width"]
    sizes = [(2 * height, 3 * width)] + ([(3 * height, width)] if height != width else [])
    tokens[1:7] = config["image_token_index"]
    if len(sizes) > 1:
        tokens[9:12] = config["image_token_index"]
    generator = torch.Generator().manual_seed(1)
    return tokens, [torch.randn(3, *size, generator=generator) for size in sizes]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The size of the difference in that of what is expected; NaN if anything is."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())
