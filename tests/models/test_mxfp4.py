"""Experts in MXFP4, by a mapping of a test: turned by its axes, and refused where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comparing import tensor_differences
from safetensors.torch import save_file
from small_checkpoints import (
    MIXTRAL,
    CommandLine,
    assert_refused,
    config_of,
    edit_tensors,
    tensors_of,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import crosswalk
from crosswalk.jobs.formats import catalog


def decoded(path: Path) -> Path:
    return path.with_name(f"{path.name}-decoded")


# ---- MXFP4, by a mapping of a test -----------------------------------------------------------------------------------

#: As gpt-oss keeps its experts: in bfloat16 inputs first, with gate and up interleaved; encoded, outputs first.
EXPERTS = """crosswalk: 1
extends: mixtral
architecture: StackedForCausalLM
model_type: stacked
moe:
  tensors:
    experts.gate_up_proj:
      is: layer_1.weight
      axes: expert hidden (intermediate [gate|up])
      encoded: expert (intermediate [gate|up]) hidden
    experts.down_proj:
      is: layer_2.weight
      axes: expert intermediate output
      encoded: expert output intermediate
"""
STACKED = MIXTRAL | {
    "architectures": ["StackedForCausalLM"],
    "model_type": "stacked",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_local_experts": 5,
}
EXPERT_SHAPES = {"gate_up_proj": (5, 2 * 96, 64), "down_proj": (5, 64, 96)}


@pytest.fixture
def stacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An MXFP4 checkpoint of a format that only this test has, and the bfloat16 one that transformers makes of it."""
    torch.manual_seed(0)
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "stacked.yaml").write_text(EXPERTS)
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(tmp_path / "mappings"))
    catalog.cache_clear()
    rest = crosswalk.compile_plan({**STACKED, "dtype": "bfloat16"}, "stacked").sources
    tensors = {s.name: torch.randn(s.shape).bfloat16() for s in rest if ".experts." not in s.name}
    floats = dict(tensors)
    for layer in range(2):
        for name, (*outer, inputs) in EXPERT_SHAPES.items():
            blocks = torch.randint(0, 256, (*outer, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(100, 140, (*outer, inputs // 32), dtype=torch.uint8)
            key = f"model.layers.{layer}.block_sparse_moe.experts.{name}"
            tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
            floats[key] = convert_moe_packed_tensors(blocks, scales)
    for path, found, said in (
        (tmp_path / "mxfp4", tensors, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}),
        (tmp_path / "mxfp4-decoded", floats, None),
    ):
        path.mkdir()
        save_file(found, path / "model.safetensors", {"format": "pt"})
        config = {**STACKED, "dtype": "bfloat16"} | ({"quantization_config": said} if said else {})
        (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    yield tmp_path / "mxfp4"
    catalog.cache_clear()


def test_experts_in_mxfp4_are_turned_by_the_axes_of_the_mapping(stacked: Path, tmp_path: Path) -> None:
    report = crosswalk.convert(stacked, tmp_path / "native")
    assert "4 tensors decoded from MXFP4 groups of 32" in report.verdict
    crosswalk.convert(decoded(stacked), tmp_path / "plain")
    assert tensor_differences(tensors_of(tmp_path / "native"), tensors_of(tmp_path / "plain")) == []
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert tensor_differences(tensors_of(tmp_path / "back"), tensors_of(decoded(stacked))) == []
    assert config_of(tmp_path / "back") == config_of(decoded(stacked))
    crosswalk.verify(stacked, tmp_path / "native")


def test_a_tensor_stands_in_the_files_once(stacked: Path, command: CommandLine) -> None:
    name = "model.layers.1.block_sparse_moe.experts.down_proj"
    edit_tensors(stacked, lambda found: found.update({name: torch.zeros(5, 96, 64, dtype=torch.bfloat16)}))
    assert_refused(command("check", stacked), f"`{name}` stands in the files twice, as it is and encoded as `{name}_b")


def test_a_payload_of_another_shape_is_refused(stacked: Path, command: CommandLine) -> None:
    name = "model.layers.1.block_sparse_moe.experts.down_proj"
    edit_tensors(stacked, lambda found: found.update({f"{name}_blocks": found[f"{name}_blocks"].flatten()}))
    assert_refused(
        command("check", stacked),
        f"`{name}_blocks` has the shape [15360], which no payload",
        f"`{name}` [5, 96, 64] is m",
    )


def test_mxfp4_that_does_not_fit_is_refused(stacked: Path, command: CommandLine) -> None:
    def spoil(found: dict[str, torch.Tensor]) -> None:
        names = sorted(name for name in found if name.endswith("_scales"))
        found[names[0]] = found[names[0]][:, :-1].clone()
        del found[names[1]]

    edit_tensors(stacked, spoil)
    assert_refused(
        command("check", stacked),
        "down_proj_scales` has the shape [5, 63, 3]; MXFP4 groups of 32 have [5, 64, 3]",
        "gate_up_proj_blocks` (1 in all) is encoded, and its scales `{name}_scales` are missing",
        "[tensors/encoding]",
    )
