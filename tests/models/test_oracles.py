"""The source specs of an import plan are the names, shapes and tie state of the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import native_oracle
import oracles
import pytest
from comparing import differences, shapes
from formats import CONFIGS, normalized
from golden_cases import Case, cases
from hypothesis import given
from hypothesis import strategies as st
from real_configs import CONFIGS as REAL
from variants import REFUSED, VARIANTS

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

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


@pytest.mark.parametrize("format", VARIANTS)
def test_variants_import_as_the_config_in_full(format: str) -> None:
    for full, variant in VARIANTS[format]:
        expected = normalized(native_oracle.BY_FORMAT[format](full), format)
        assert differences(normalized(crosswalk.import_config(full, format=format), format), expected) == []
        assert differences(normalized(crosswalk.import_config(variant, format=format), format), expected) == []


@pytest.mark.parametrize("format", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(format: str) -> None:
    for config, word in REFUSED[format]:
        with pytest.raises(CrosswalkError, match=word):
            crosswalk.import_config(config, format=format)


@pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="transformers 4 misreads what transformers 5 writes")
@pytest.mark.parametrize("name", REAL)
def test_leaving_out_any_key_is_refused_or_read_as_the_class_reads_it(name: str) -> None:
    (format,) = (f for f, architecture in oracles.REAL_CLASSES.items() if architecture in REAL[name]["architectures"])
    for key in REAL[name]:
        config = {k: v for k, v in REAL[name].items() if k != key}
        try:
            saved = oracles.as_saved(config)
            oracles.names_and_shapes(config)
        except Exception:
            continue  # not a config of this class
        found = _imported(config, format)
        assert found is None or differences(found, _imported(saved, format)) == [], key


def _imported(config: dict[str, Any], format: str) -> dict[str, Any] | None:
    """The native config; None if it is refused."""
    try:
        return normalized(crosswalk.import_config(config, format=format), format)
    except CrosswalkError:
        return None
