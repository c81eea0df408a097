"""The source specs of an import plan are the names, shapes and tie state of the real classes."""

from __future__ import annotations

from pathlib import Path

import oracles
import pytest
from comparing import differences, shapes
from formats import CONFIGS
from golden_cases import Case, cases
from hypothesis import given
from hypothesis import strategies as st

import crosswalk

_GOLDEN = cases("hf_config.json", "hf.safetensors")


def _require(format: str) -> None:
    if format in oracles.REAL_CLASSES and not oracles.available(format):
        pytest.skip(f"this transformers has no {oracles.REAL_CLASSES[format]}")


@pytest.mark.parametrize("case", _GOLDEN, ids=[case.name for case in _GOLDEN])
def test_oracle_agrees_with_the_files_of_the_reference(case: Case) -> None:
    _require(case.format)
    assert oracles.names_and_shapes(case.hf_config()) == oracles.header(case.path / "hf.safetensors")


@pytest.mark.parametrize("name", ["llama_all_bias_tied", "mixtral_base", "llava_pixtral", "gemma4_moe_k_eq_v"])
def test_oracle_agrees_with_save_pretrained(name: str, tmp_path: Path) -> None:
    case = next(case for case in _GOLDEN if case.name == name)
    _require(case.format)
    oracles.make_checkpoint(tmp_path, case.hf_config())
    assert oracles.names_and_shapes(case.hf_config()) == oracles.header(tmp_path / "model.safetensors")


@pytest.mark.parametrize("format", CONFIGS)
@given(data=st.data())
def test_plans_name_exactly_the_tensors_of_the_real_class(format: str, data: st.DataObject) -> None:
    _require(format)
    config = data.draw(CONFIGS[format])
    expected = oracles.names_and_shapes(config)
    there = crosswalk.compile_plan(config, format=format, to="fast_llm")
    assert shapes(there.sources) == expected
    native = crosswalk.import_config(config, format=format)
    back = crosswalk.compile_plan(native, format=format, to="hf")
    assert shapes(back.targets) == expected
    assert shapes(back.sources) == shapes(there.targets)


@pytest.mark.parametrize("format", [f for f in CONFIGS if f in oracles.REAL_CLASSES])
@given(data=st.data())
def test_an_absent_key_means_what_the_class_says(format: str, data: st.DataObject) -> None:
    """A file imports as the same file with the class's own defaults filled in, in the class's own dialect."""
    _require(format)
    config = data.draw(CONFIGS[format])
    found, expected = (crosswalk.import_config(c, format=format) for c in (config, oracles.as_saved(config)))
    root = "multimodal_model" if "vision_encoder" in expected else "base_model"
    normalized = [crosswalk.normalize_native(native, root=root) for native in (found, expected)]
    assert differences(*normalized) == []
