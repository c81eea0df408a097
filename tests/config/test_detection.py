"""Which format a checkpoint has: from model_type, from the architecture, from its tensors; or an error that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import CASES
from real_configs import llava_hybrid
from safetensors.torch import save_file

import crosswalk
from crosswalk.jobs.detect import detect_format
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import TensorSpec

#: A config of every format.
CONFIGS: dict[str, dict[str, Any]] = {
    **{case.format: case.hf_config() for case in CASES.values() if case.has("hf_config.json")},
    "llava_hybrid_ssm": llava_hybrid(),
}
FORMATS = sorted(CONFIGS)


def _specs(format: str) -> list[TensorSpec]:
    return list(crosswalk.compile_plan(CONFIGS[format], format=format).sources)


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def test_there_is_a_config_of_every_original_format() -> None:
    original = {"llama", "mistral", "mixtral", "qwen2", "mtp_llama", "dream", "diffusion_llama", "gemma4",
                "apriel2_text", "apriel_hybrid_ssm", "apriel2", "llava", "llava_hybrid_ssm"}  # fmt: skip
    assert set(FORMATS) == original
    assert original <= set(crosswalk.formats())


@pytest.mark.parametrize("format", FORMATS)
def test_model_type_decides(format: str) -> None:
    config = _without(CONFIGS[format], "architectures")
    assert detect_format(config).name == format
    assert detect_format(config, _specs(format)).name == format


@pytest.mark.parametrize("format", FORMATS)
def test_the_architecture_decides_where_there_is_no_model_type(format: str) -> None:
    assert detect_format(_without(CONFIGS[format], "model_type")).name == format


def test_no_two_formats_have_a_model_type_in_common() -> None:
    mappings = [catalog().mapping(name) for name in catalog().formats()]
    seen = [(mapping.layout, kind) for mapping in mappings for kind in mapping.model_types]
    assert len(seen) == len(set(seen))


def test_a_text_model_and_the_same_with_vision_are_told_apart() -> None:
    assert detect_format(CONFIGS["apriel2"]).name == "apriel2"
    assert detect_format(CONFIGS["apriel2"] | {"vision_encoder": None}).name == "apriel2"
    assert detect_format(CONFIGS["apriel2_text"]).name == "apriel2_text"


@pytest.mark.parametrize("format", ["gemma4", "mixtral", "apriel2", "mtp_llama", "apriel_hybrid_ssm"])
def test_the_tensors_decide_where_the_config_says_nothing(format: str) -> None:
    config = _without(CONFIGS[format], "model_type", "architectures")
    assert detect_format(config, _specs(format)).name == format


def test_what_fits_several_formats_is_an_error_that_names_them() -> None:
    config = _without(CONFIGS["llama"], "model_type", "architectures", "attention_bias", "mlp_bias")
    config |= {"sliding_window": None}
    specs = _specs("mistral")
    with pytest.raises(CrosswalkError, match=r"format/(ambiguous|undetected)"):
        detect_format(config, specs)
    plain = _without(CONFIGS["llama"], "model_type", "architectures")
    with pytest.raises(
        CrosswalkError, match=r"several formats fit.*llama.*\[format/ambiguous\]\n.*pass --format"
    ) as caught:
        detect_format(plain, _specs("llama"))
    assert "diffusion_llama" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "bert.*BertForMaskedLM"),
        ({"model_type": "llamas"}, "llamas"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({}, "model_type null"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": 3, "architectures": "LlamaForCausalLM"}, "model_type 3"),
    ],
)
def test_what_fits_no_format_is_an_error_that_says_what_was_found(config: dict[str, Any], said: str) -> None:
    with pytest.raises(CrosswalkError, match=said) as caught:
        detect_format(config)
    assert "format/undetected" in str(caught.value)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(CrosswalkError, match=r"gemma4_text"):
        detect_format({"model_type": "gemma4_txt"})


def test_a_format_of_another_architecture_is_refused_by_name() -> None:
    """``auto`` goes by model_type; a class that is not the format's is not overlooked."""
    with pytest.raises(CrosswalkError, match=r"architectures.*LlamaForSequenceClassification"):
        crosswalk.import_config(CONFIGS["llama"] | {"architectures": ["LlamaForSequenceClassification"]})
    with pytest.raises(CrosswalkError, match=r"LlamaModel.*: that class has no output layer, as models of embeddings"):
        crosswalk.import_config(CONFIGS["llama"] | {"architectures": ["LlamaModel"]})


@pytest.mark.parametrize("format", ["auto", None])
def test_checkpoints_are_converted_without_a_format(format: str | None, tmp_path: Path) -> None:
    config = CONFIGS["gemma4"]
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    tensors = {spec.name: torch.zeros(spec.shape) for spec in _specs("gemma4")}
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    assert crosswalk.check(tmp_path / "source", format=format).format == "gemma4"
