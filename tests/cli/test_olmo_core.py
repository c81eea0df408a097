"""A layout and a mapping from outside of the package, for what OLMo-core saves (``examples/olmo_core``): all commands.
The names are those of its own conversion (``olmo_core/nn/hf/convert.py``).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from comparing import tensor_differences
from small_checkpoints import CommandLine, assert_refused, contents, make, tensors_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "olmo_core"
#: Parts of names there, and here: the longest first.
NAMES = {
    "model.embed_tokens": "embeddings",
    "model.norm": "lm_head.norm",
    "lm_head.weight": "lm_head.w_out.weight",
    "model.layers": "blocks",
    "self_attn.q_proj": "attention.w_q",
    "self_attn.k_proj": "attention.w_k",
    "self_attn.v_proj": "attention.w_v",
    "self_attn.o_proj": "attention.w_out",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
}


def renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return make(
        tmp_path / "hf", hidden_size=36, head_dim=6, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )


@pytest.fixture
def step(original: Path, tmp_path: Path) -> Path:
    """As the trainer saves a step: model and optimizer in one folder."""
    model = {f"model.{renamed(name)}": tensor for name, tensor in tensors_of(original).items()}
    state = {name.replace("model.", "optim.state.", 1) + ".exp_avg": torch.ones(3) for name in model}
    folder = tmp_path / "step1000" / "model_and_optim"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({**model, **state, "optim.param_groups": [{"lr": 0.1}]}, checkpoint_id=folder, no_dist=True)
    return folder


def test_what_the_trainer_saves_in_every_command(
    original: Path, step: Path, tmp_path: Path, crosswalk: CommandLine
) -> None:
    given = ("--layout", "olmo_core", "--like", str(original), "--mappings", str(EXAMPLE))

    def run(*arguments: str | Path) -> str:
        ran = crosswalk(*map(str, arguments))
        assert ran.code == 0, ran.err
        return ran.out

    assert "optim" in run("check", step, *given)
    outer = crosswalk("check", step.parent, *given)
    assert_refused(outer, "the checkpoint is not here, but in the folder model_and_optim", "[source/not-found]")
    run("plan", step, *given)
    assert "blocks.1.attention.w_k.weight" in run("explain", step, "model.layers.1.self_attn.k_proj.weight", *given)
    run("convert", step, tmp_path / "out", *given)
    assert tensor_differences(tensors_of(tmp_path / "out"), tensors_of(original)) == []
    run("verify", step, tmp_path / "out", *given)
    for layout in ("fast_llm", "torchtitan", "megatron"):
        there, back = tmp_path / layout, tmp_path / f"from-{layout}"
        run("convert", step, there, "--to", layout, *given)
        run("convert", there, back, "--to", "olmo_core", "--mappings", EXAMPLE)
        run("convert", back, tmp_path / f"{layout}-out", "--mappings", EXAMPLE)
        assert tensor_differences(tensors_of(tmp_path / f"{layout}-out"), tensors_of(original)) == []


def test_what_is_written_has_the_names_of_the_trainer(original: Path, tmp_path: Path, crosswalk: CommandLine) -> None:
    made = tmp_path / "made"
    assert crosswalk("convert", str(original), str(made), "--to", "olmo_core", "--mappings", str(EXAMPLE)).code == 0
    expected = {renamed(name): tensor for name, tensor in tensors_of(original).items()}
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=made, no_dist=True)
    assert tensor_differences(state, expected) == []
    assert crosswalk("convert", str(made), str(tmp_path / "back"), "--mappings", str(EXAMPLE)).code == 0
    assert contents(tmp_path / "back") == contents(original)
