"""Blocks of a picture: put together they are the tensor that executing the plan makes, whatever is cut or turned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_cases import CONFIGS as FAMILIES
from real_configs import CONFIGS
from small_checkpoints import make

import crosswalk
from crosswalk.cli.commands import cli, run_command
from crosswalk.pictures.blocks import Span, Tile, columns_of, picture
from crosswalk.pictures.terminal import drawing
from crosswalk.runtime.plan.model import Plan

EVERY = {**CONFIGS, **FAMILIES}
PLANS = [("llama", "fast_llm"), ("llama", "megatron"), ("qwen2", "megatron"), ("mixtral", "fast_llm"),
         ("gemma4-moe", "fast_llm"), ("llama-tied-llama3", "torchtitan")]  # fmt: skip


def indices(span: Span) -> torch.Tensor:
    return torch.arange(span.start, span.stop, span.step)


def put_together(plan: Plan, name: str, sources: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """A target made of its blocks; None if a picture cannot show it."""
    drawn = picture(plan, name)
    assert drawn is not None
    if drawn.scattered or drawn.more:
        return None
    result = torch.full((drawn.tensor.shape[0], columns_of(drawn.tensor)), -1.0)
    for block in drawn.blocks:
        other = sources[block.other.name].reshape(block.other.shape[0], -1)
        part = other[indices(block.other_rows)][:, indices(block.other_columns)]
        result[indices(block.rows)[:, None], indices(block.columns)] = part.T if block.transposed else part
    return result.reshape(drawn.tensor.shape)


@pytest.mark.parametrize(("model", "layout"), PLANS)
def test_the_blocks_of_every_tensor_are_the_tensor(model: str, layout: str) -> None:
    config = EVERY[model]
    plan = crosswalk.compile_plan(config, to=layout, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    sources = {spec.name: torch.randn(spec.shape, generator=generator) for spec in plan.sources}
    shown = 0
    for name, expected in crosswalk.runtime.execute(plan, sources):
        found = put_together(plan, name, sources)
        if found is not None:
            assert torch.equal(found, expected), name
            shown += 1
    assert shown >= 0.9 * len(plan.targets)


def test_a_drawing_shows_the_blocks_with_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "source")
    assert run_command(cli, ["explain", str(source), "decoder.1.mixer.key_value.weight"]) == 0
    out = capsys.readouterr().out
    assert (
        """
decoder.1.mixer.key_value.weight: [k: group head_dim | v: group head_dim] <- hidden

 0 ┌───────────────────────────────────────┐
   │                   a                   │
28 ├───────────────────────────────────────┤
   │                   b                   │
56 └───────────────────────────────────────┘

a <- model.layers.1.self_attn.k_proj.weight [28, 30]
b <- model.layers.1.self_attn.v_proj.weight [28, 30]

a  rows 0-27 = rows 0-27
b  rows 28-55 = rows 0-27
"""
        in out
    )
    assert run_command(cli, ["explain", str(source), "decoder.1.mlp.layer_2.weight"]) == 0
    assert "a  rows 0-36 = columns 0-36, transposed\n" in capsys.readouterr().out
    assert run_command(cli, ["explain", str(source), "model.layers.1.self_attn.v_proj.weight"]) == 0
    assert "a -> decoder.1.mixer.key_value.weight [56, 30]\n\na  rows 0-27 = rows 28-55\n" in capsys.readouterr().out


def test_a_drawing_of_many_blocks_leaves_some_out() -> None:
    """On Megatron-core queries, keys and values of a group stand together."""
    config = EVERY["llama"] | {"num_attention_heads": 18, "num_key_value_heads": 9, "hidden_size": 36, "head_dim": 4}
    plan = crosswalk.compile_plan(config, to="megatron", dtype="float32")
    name = next(spec.name for spec in plan.targets if "qkv.weight" in spec.name)
    drawn = picture(plan, name)
    assert drawn is not None
    assert len(drawn.blocks) == 27
    lines = list(drawing(drawn))
    assert len([line for line in lines if "⋮" in line]) == 1
    assert max(map(len, lines)) < 100
    first = drawn.blocks[0]
    assert first.rows == Span(0, 8)
    assert isinstance(first, Tile)
