"""Checkpoints of random bits for a config, with the model code that a custom class brings along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oracles
import torch
from golden_cases import load_tensors
from safetensors.torch import save_file


def random_tensors(specs: oracles.Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """BF16 tensors of random bits, NaN and negative zero included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=generator).view(torch.bfloat16)
        for name, shape in specs.items()
    }


#: The model code that a checkpoint of a custom class brings along.
MODEL_FILES = {
    "mtp_llama": ("configuration_mtp_llama.py", "modeling_mtp_llama.py"),
    "dream": ("configuration_dream.py", "modeling_dream.py", "generation_utils.py"),
    "diffusion_llama": ("configuration_diffusion_llama.py", "modeling_diffusion_llama.py", "generation_utils.py"),
    "apriel_hybrid_ssm": ("configuration_apriel_hybrid_ssm.py", "modeling_apriel_hybrid_ssm.py"),
    "apriel2_text": ("configuration_apriel2.py", "modeling_apriel2.py"),
    "apriel2": ("configuration_apriel2.py", "modeling_apriel2.py"),
    "llava_hybrid": ("configuration_llava_hybrid.py", "modeling_llava_hybrid.py"),
}


def write_checkpoint(directory: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 7}))
    for name in MODEL_FILES.get(config["model_type"], ()):
        (directory / name).write_text(f"# {name}\n")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def read_checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_tensors(path)
    return json.loads((directory / "config.json").read_text()), tensors
