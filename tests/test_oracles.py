"""The source specs of an import plan are the names, shapes and tie state of the real classes."""

from __future__ import annotations

from pathlib import Path

import native_oracle
import oracles
import pytest
from comparing import differences, shapes
from formats import CONFIGS, normalized
from golden_cases import Case, cases
from hypothesis import given
from hypothesis import strategies as st

import crosswalk

_GOLDEN = cases("hf_config.json", "hf.safetensors")
_WITH_CONFIG = cases("hf_config.json", "fast_llm_config.yaml")


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


@pytest.mark.parametrize("format", CONFIGS)
@given(data=st.data())
def test_import_agrees_with_the_second_opinion(format: str, data: st.DataObject) -> None:
    config = data.draw(CONFIGS[format])
    found, expected = crosswalk.import_config(config, format=format), native_oracle.BY_FORMAT[format](config)
    assert differences(normalized(found, format), normalized(expected, format)) == []


@pytest.mark.parametrize("case", _WITH_CONFIG, ids=[case.name for case in _WITH_CONFIG])
def test_second_opinion_agrees_with_the_reference(case: Case) -> None:
    found = native_oracle.BY_FORMAT[case.format](case.hf_config())
    assert differences(normalized(found, case.format), normalized(case.native_config(), case.format)) == []


@pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="transformers 4 misreads what transformers 5 writes")
@pytest.mark.parametrize("format", [f for f in CONFIGS if f in oracles.REAL_CLASSES])
@given(data=st.data())
def test_an_absent_key_means_what_the_class_says(format: str, data: st.DataObject) -> None:
    """A file imports as the same file with the class's own defaults filled in, in the class's own dialect."""
    config = data.draw(CONFIGS[format])
    found, expected = (crosswalk.import_config(c, format=format) for c in (config, oracles.as_saved(config)))
    assert differences(normalized(found, format), normalized(expected, format)) == []
