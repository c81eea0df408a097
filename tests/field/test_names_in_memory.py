"""Experts as the classes of transformers 5 hold them: ``save_pretrained(save_original_format=False)``, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import transformers
from comparing import shapes, tensor_differences
from golden_cases import CASES, NEWEST, load_tensors
from safetensors.torch import save_file
from titan_cases import hugging_face

import crosswalk
from crosswalk.compiler.catalog import Catalog
from crosswalk.runtime.errors import CrosswalkError

pytestmark = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="transformers 4 has the names of files")
CASE = CASES["mixtral_base"]
WEIGHTS = "model.safetensors"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as it is published."""
    return _checkpoint(tmp_path_factory.mktemp("files") / "hf", CASE.hf_config(), CASE.hf_tensors())


@pytest.fixture(scope="module")
def saved(files: Path) -> Path:
    """The same model as its own class saves what it has in memory."""
    return _save_from_memory(files, files.parent / "memory")


@pytest.fixture(scope="module")
def native(saved: Path) -> Path:
    crosswalk.convert(saved, saved.parent / "native")
    return saved.parent / "native"


def _checkpoint(directory: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / WEIGHTS)
    return directory


def _save_from_memory(source: Path, target: Path) -> Path:
    config = transformers.AutoConfig.from_pretrained(source)
    model = getattr(transformers, config.architectures[0]).from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(target, save_original_format=False)
    assert load_tensors(target / WEIGHTS).keys() == model.state_dict().keys()
    return target


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in directory.glob("*.safetensors"):
        found |= {name.removesuffix("/weights"): tensor for name, tensor in load_tensors(file).items()}
    return found


def test_fused_experts_are_found_by_their_names(native: Path) -> None:
    assert tensor_differences(_tensors(native), CASE.native_tensors()) == []


def test_the_names_of_the_source_come_back_with_its_bytes(saved: Path, native: Path) -> None:
    back = native.parent / "back"
    crosswalk.convert(native, back, to="hf")
    assert tensor_differences(_tensors(back), _tensors(saved)) == []
    assert (back / "config.json").read_bytes() == (saved / "config.json").read_bytes()
    crosswalk.verify(native, back)
    crosswalk.verify(saved, native)
    assert torch.equal(oracles.logits(back), oracles.logits(saved))


def test_the_names_of_files_are_written_where_they_are_asked_for(files: Path, native: Path) -> None:
    asked = native.parent / "asked"
    crosswalk.convert(native, asked, to="hf", dialect=NEWEST)
    assert tensor_differences(_tensors(asked), CASE.hf_tensors()) == []
    crosswalk.verify(native, asked)


def test_the_names_of_memory_are_written_where_they_are_asked_for(files: Path, saved: Path, tmp_path: Path) -> None:
    crosswalk.convert(files, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "memory", to="hf", dialect="in-memory")
    assert tensor_differences(_tensors(tmp_path / "memory"), _tensors(saved)) == []
    # Only the names were asked for: the config stays what it was.
    assert (tmp_path / "memory" / "config.json").read_bytes() == (files / "config.json").read_bytes()
    crosswalk.verify(tmp_path / "native", tmp_path / "memory")


def test_names_of_both_kinds_are_refused_with_one_of_each(saved: Path, files: Path, tmp_path: Path) -> None:
    ours, theirs = _tensors(saved), _tensors(files)
    mixed = {name: tensor for name, tensor in ours.items() if name.startswith("model.layers.0.")}
    mixed |= {name: tensor for name, tensor in theirs.items() if not name.startswith("model.layers.0.")}
    with pytest.raises(CrosswalkError) as caught:
        crosswalk.check(_checkpoint(tmp_path / "mixed", CASE.hf_config(), mixed))
    (problem,) = caught.value.diagnostics
    assert problem.code == "dialect/mixed"
    assert "`model.layers.0.mlp.experts." in problem.message
    assert "(in_memory) and `model.layers.1.block_sparse_moe.experts." in problem.message


def test_a_fused_tensor_of_another_shape_is_named(saved: Path, tmp_path: Path) -> None:
    wrong = _tensors(saved)
    wrong[FUSED] = wrong[FUSED].transpose(1, 2).contiguous()
    with pytest.raises(CrosswalkError) as caught:
        crosswalk.check(_checkpoint(tmp_path / "wrong", CASE.hf_config(), wrong))
    (problem,) = caught.value.diagnostics
    experts, outputs, inputs = _tensors(saved)[FUSED].shape
    assert FUSED in problem.message
    assert f"[{experts}, {outputs}, {inputs}]" in problem.message


def test_qwen3_moe_is_the_same_model_from_either_names(tmp_path: Path) -> None:
    files = hugging_face("qwen3_moe", tmp_path / "files")
    memory = _save_from_memory(files, tmp_path / "memory")
    for source in (files, memory):
        crosswalk.convert(source, tmp_path / f"native_{source.name}", format="qwen3_moe")
    assert tensor_differences(_tensors(tmp_path / "native_memory"), _tensors(tmp_path / "native_files")) == []
    crosswalk.convert(tmp_path / "native_memory", tmp_path / "back", to="hf")
    assert tensor_differences(_tensors(tmp_path / "back"), _tensors(memory)) == []


def test_qwen3_moe_fills_a_model_of_torchtitan_from_either_names(tmp_path: Path) -> None:
    files = hugging_face("qwen3_moe", tmp_path / "files")
    memory = _save_from_memory(files, tmp_path / "memory")
    assert "model.layers.0.mlp.experts.gate_up_proj" in _tensors(memory)
    filled = []
    for source in (files, memory):
        config = json.loads((source / "config.json").read_text())
        plan = crosswalk.compile_plan(config, to="torchtitan")
        model = {t.name: torch.zeros(t.shape, dtype=torch.bfloat16) for t in plan.targets}
        crosswalk.load(source, model, format="torchtitan_qwen3_moe")
        filled.append(model)
    assert tensor_differences(filled[1], filled[0]) == []


def test_a_plan_into_memory_names_the_tensors_of_the_class() -> None:
    plan = crosswalk.compile_plan(CASE.native_config(), format="mixtral", to="hf", dialect="in-memory")
    assert shapes(plan.targets) == oracles.names_and_shapes(CASE.hf_config(), in_memory=True)


def test_a_mistake_in_the_sections_of_a_dialect_is_found_when_compiling() -> None:
    text = """\
crosswalk: 1
extends: mixtral
dialects:
  other:
    sections:
      moe:
        tensors:
          experts.gate_up: {is: layer_1.weight, axes: "expert ([gate|up] intermediate) hiden"}
"""
    with pytest.raises(CrosswalkError) as caught:
        Catalog(texts={"mine": text}).compiled("mine")
    (problem,) = caught.value.diagnostics
    assert "hiden" in problem.message
    assert str(problem.position).startswith("mine.yaml:8")
