"""Both directions agree with the original trainer: configs after defaults, tensors in every byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from comparing import differences, shapes, stored_as, tensor_differences
from golden_cases import CASES, NEWEST, Case, cases
from golden_differences import expected_export
from native_meaning import effective

import crosswalk
from crosswalk.runtime import execute


def _parametrize(*files: str) -> pytest.MarkDecorator:
    chosen = cases(*files)
    return pytest.mark.parametrize("case", chosen, ids=[case.name for case in chosen])


def _normalized(config: Mapping[str, Any], case: Case) -> dict[str, Any]:
    return crosswalk.normalize_native(config, root=case.root)


def _plan(case: Case, to: str) -> Any:
    config = case.hf_config() if to == "fast_llm" and case.has("hf_config.json") else case.native_config()
    return stored_as(crosswalk.compile_plan(config, format=case.format, to=to), "BF16")


def _specs(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@_parametrize("hf_config.json", "fast_llm_config.yaml")
def test_imported_config_is_the_references(case: Case) -> None:
    found = crosswalk.import_config(case.hf_config(), format=case.format)
    assert differences(_normalized(found, case), _normalized(case.native_config(), case)) == []


@_parametrize("hf_config.json", "fast_llm_config.yaml")
def test_format_is_detected_from_the_config(case: Case) -> None:
    found = crosswalk.import_config(case.hf_config())
    assert differences(_normalized(found, case), _normalized(case.native_config(), case)) == []


@_parametrize("fast_llm_config.yaml", "hf_config_export.json")
def test_exported_config_is_the_references_up_to_the_intended_differences(case: Case) -> None:
    found = crosswalk.export_config(case.native_config(), case.format, dialect=case.dialect)
    assert differences(found, expected_export(case.format, case.hf_config_export())) == []


@_parametrize("fast_llm_config.yaml")
def test_exported_config_comes_back(case: Case) -> None:
    exported = crosswalk.export_config(case.native_config(), case.format)
    again = crosswalk.import_config(exported, format=case.format)
    found, expected = (effective(_normalized(config, case)) for config in (again, case.native_config()))
    assert differences(found, expected) == []


@_parametrize("hf_config.json", "hf.safetensors", "fast_llm.safetensors")
def test_imported_tensors_are_the_references(case: Case) -> None:
    plan = _plan(case, "fast_llm")
    hf, native = case.hf_tensors(), case.native_tensors()
    assert shapes(plan.sources) == _specs(hf)
    assert shapes(plan.targets) == _specs(native)
    assert tensor_differences(dict(execute(plan, hf)), native) == []


@_parametrize("fast_llm_config.yaml", "hf.safetensors", "fast_llm.safetensors")
def test_exported_tensors_are_the_originals(case: Case) -> None:
    plan = _plan(case, "hf")
    hf, native = case.hf_tensors(), case.native_tensors()
    assert shapes(plan.sources) == _specs(native)
    assert shapes(plan.targets) == _specs(hf)
    assert tensor_differences(dict(execute(plan, native)), hf) == []


@_parametrize("hf_config.json", "fast_llm_config.yaml", "hf.safetensors")
def test_plans_are_bijective_and_inverse_of_each_other(case: Case) -> None:
    there, back = _plan(case, "fast_llm"), _plan(case, "hf")
    assert str(there.verify()) == str(back.verify()) == "bijective"
    assert there.inverse().digest == back.digest
    assert back.inverse().digest == there.digest


# Where the reference fails, this is what is right.


def test_gemma4_with_per_layer_overrides_is_the_model_of_the_older_dialect() -> None:
    """transformers 5.15 replaced ``global_head_dim`` by ``per_layer_config``; the reference cannot read such a file."""
    case, older = CASES["tf523__gemma4_dense"], CASES["gemma4_dense"]
    assert case.steps["config_import"] != "ok"
    found = crosswalk.import_config(case.hf_config(), format="gemma4")
    assert differences(_normalized(found, older), _normalized(older.native_config(), older)) == []
    exported = crosswalk.export_config(older.native_config(), "gemma4", dialect=NEWEST)
    assert exported["per_layer_config"] == {"2": {"head_dim": 16}}
    assert "global_head_dim" not in exported
    assert "num_global_key_value_heads" not in exported


def test_apriel_reads_the_keys_that_its_own_class_adds() -> None:
    """The reference refuses every config that the class of apriel_hybrid_ssm writes, for eleven keys of its own."""
    case = CASES["apriel_t_m2"]
    assert "layer_types" in case.steps["config_import"]["rejected_by_coverage_check"]
    config = case.hf_config()
    assert config["ssm_cfg"]["d_conv"] == 4
    found = crosswalk.import_config(config, format=case.format)
    assert differences(_normalized(found, case), _normalized(case.native_config(), case)) == []
    config["ssm_cfg"]["d_conv"] = 5
    blocks = _normalized(crosswalk.import_config(config, format=case.format), case)["decoder"]["blocks"]
    assert blocks["m2"]["mixer"]["convolution_layer"]["kernel_size"] == 5


@pytest.mark.parametrize("dialect", [NEWEST, "transformers-4"])
@pytest.mark.parametrize("name", ["llama_gqa", "llama_rope_llama3", "mistral_sliding", "mixtral_base", "qwen2_base"])
def test_every_dialect_reads_back_as_the_same_model(name: str, dialect: str) -> None:
    case = CASES[name]
    exported = crosswalk.export_config(case.native_config(), case.format, dialect=dialect)
    assert ("rope_parameters" in exported) == (dialect == NEWEST)
    assert ("rope_theta" in exported) == (dialect != NEWEST)
    again = crosswalk.import_config(exported, format=case.format)
    assert differences(_normalized(again, case), _normalized(case.native_config(), case)) == []
