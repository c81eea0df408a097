"""A real model, saved, converted to the trainer's layout and back, gives the same logits."""

from __future__ import annotations

from pathlib import Path

import oracles
import pytest
import torch
import transformers
from comparing import tensor_differences
from golden_cases import load_tensors
from real_configs import CONFIGS

import crosswalk


@pytest.fixture(params=list(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with a real random BF16 model."""
    config = CONFIGS[request.param]
    if not hasattr(transformers, config["architectures"][0]):
        pytest.skip(f"this transformers has no {config['architectures'][0]}")
    oracles.make_checkpoint(tmp_path / "original", config, dtype="bfloat16")
    return tmp_path / "original"


def test_logits_are_equal_after_the_round_trip(checkpoint: Path, tmp_path: Path) -> None:
    native, back = tmp_path / "native", tmp_path / "back"
    crosswalk.convert(checkpoint, native, to="fast_llm")
    crosswalk.convert(native, back, to="hf")
    expected = oracles.logits(checkpoint)
    assert torch.equal(oracles.logits(back), expected)
    tensors = (load_tensors(folder / "model.safetensors") for folder in (back, checkpoint))
    assert tensor_differences(*tensors) == []


@pytest.mark.parametrize("name", ["qwen2-window", "qwen3-window-tied", "mistral-window", "llava"])
def test_the_window_is_felt(name: str, tmp_path: Path) -> None:
    """The inputs are longer than the window: a conversion that loses it could not give equal logits."""
    config = CONFIGS[name]
    oracles.make_checkpoint(tmp_path / "with", config)
    text = {"sliding_window": None, "use_sliding_window": False}
    without = config | text if "text_config" not in config else config | {"text_config": config["text_config"] | text}
    oracles.make_checkpoint(tmp_path / "without", without)
    found, other = (oracles.logits(tmp_path / folder) for folder in ("with", "without"))
    assert not torch.allclose(found, other, atol=1e-2)
