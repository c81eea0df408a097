"""The reference computes what the original trainer computes, in every part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_cases import load_tensors
from native_cases import FOLDERS, inputs, native, relative

from crosswalk.reference import ForwardOutput, forward

TOLERANCE = 1e-5


def _logits(output: ForwardOutput, expected: torch.Tensor) -> torch.Tensor:
    """As the trainer gives them: the heads that predict further tokens beside the first."""
    return output.logits if expected.dim() == 2 else torch.stack([output.logits, *output.further], dim=1)


@pytest.mark.parametrize("name", FOLDERS)
def test_hidden_states_and_logits_are_the_trainers(name: str) -> None:
    config, parameters = native(name)
    tokens, images = inputs(config)
    found, expected = forward(config, parameters, tokens, images), load_tensors(FOLDERS[name] / "trainer.safetensors")
    differences = {"logits": relative(_logits(found, expected["logits"]), expected["logits"])}
    for part, hidden in found.hidden.items():
        if f"hidden.{part}" in expected:
            # It pads the patches of images to the number of tokens.
            differences[part] = relative(hidden, expected[f"hidden.{part}"][: len(hidden)])
    assert {"logits", "embeddings", "head.final_norm"} <= differences.keys()
    assert {part: difference for part, difference in differences.items() if not difference < TOLERANCE} == {}


def test_in_double_precision_the_trainer_is_as_far_away() -> None:
    """What is left is the rounding of the trainer: more digits here change nothing."""
    config, parameters = native("rotaries")
    expected = load_tensors(FOLDERS["rotaries"] / "trainer.safetensors")["logits"]
    found = forward(config, parameters, inputs(config)[0], dtype=torch.float64).logits
    assert found.dtype == torch.float64
    assert relative(found, expected) < TOLERANCE


#: A change of one field of a case, which the logits must feel.
CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "window": ("embeddings_norms_heads", lambda c: _block(c, 0)["mixer"].update(window_size=None)),
    "softmax_scale_power": ("embeddings_norms_heads", lambda c: _block(c, 0)["mixer"].update(softmax_scale_power=0.5)),
    "embedding_scale": ("embeddings_norms_heads", lambda c: c["embeddings"].update(embedding_scale=1.0)),
    "softcap": ("embeddings_norms_heads", lambda c: c["head"].update(final_logit_softcap=None)),
    "logits_scale": ("embeddings_norms_heads", lambda c: c["head"].update(logits_scale_factor=0.5)),
    "epsilon": ("embeddings_norms_heads", lambda c: c["head"]["normalization"].update(epsilon=1e-2)),
    "output_scale": ("embeddings_norms_heads", lambda c: _block(c, 0)["output_scale"].update(enabled=False)),
    "theta": ("rotaries", lambda c: _block(c, 0)["mixer"]["rotary"].update(theta=901.0)),
    "attention_factor": ("rotaries", lambda c: _block(c, 2)["mixer"]["rotary"].update(attention_factor=None)),
    "partial": ("rotaries", lambda c: _block(c, 3)["mixer"]["rotary"].update(partial_rotary_factor=0.6)),
    "activation": ("rotaries", lambda c: _block(c, 0)["mlp"].update(activation="silu")),
    "routing": ("experts", lambda c: _block(c, 2)["mlp"].update(routing="aux_loss")),
    "experts_per_token": ("experts", lambda c: _block(c, 0)["mlp"].update(experts_per_token=3)),
    "router_input_scale": ("experts", lambda c: _block(c, 0)["mlp"].update(router_input_scale=1.0)),
    "causal": ("both_directions", lambda c: _block(c, 0)["mixer"].update(causal=True)),
    "main_mixer": ("recurrent", lambda c: _block(c, 5)["mixer"].update(main_mixer_name="a")),
    "image_theta": ("images", lambda c: _vision(c, "two")["mixer"]["rotary"].update(theta=91.0)),
}


def _block(config: dict[str, Any], index: int) -> Any:
    return config["decoder"]["blocks"][f"b{index}"]


def _vision(config: dict[str, Any], name: str) -> Any:
    return config["vision_encoder"]["encoder"]["blocks"][name]


@pytest.mark.parametrize("change", CHANGES)
def test_another_value_of_a_field_is_another_model(change: str) -> None:
    name, apply = CHANGES[change]
    config, parameters = native(name)
    tokens, images = inputs(config)
    before = forward(config, parameters, tokens, images).logits
    apply(config)
    assert relative(forward(config, parameters, tokens, images).logits, before) > 1e-4
