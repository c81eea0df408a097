"""The example that turns configs of the layout into those of Megatron and back, against recorded ones."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import crosswalk

TESTS = Path(__file__).parents[1]
CASES = sorted(path.parent.name for path in (TESTS / "golden_megatron").glob("*/case.json"))


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("megatron_config", TESTS.parent / "examples" / "megatron_config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config of Hugging Face, and the fields of Megatron that a converter made of it."""
    case = json.loads((TESTS / "golden_megatron" / name / "case.json").read_text())
    fields: dict[str, Any] = case["transformer_config"]
    fields["activation_func"] = fields["activation_func"].removeprefix("callable:")
    return case["hf_config"], fields


def plain(value: Any) -> Any:
    """Without the difference between 32 and 32.0, and between a tuple and a list."""
    if isinstance(value, (list, tuple)):
        return list(map(plain, value))
    return float(value) if isinstance(value, int) else value


@pytest.mark.parametrize("name", CASES)
def test_fields_are_those_of_the_converter(name: str) -> None:
    config, fields = recorded(name)
    found = example().flat(crosswalk.import_config(config, to="megatron"))
    compared = {key for key, value in fields.items() if key in found and value is not None} - {"window_attn_skip_freq"}
    assert {"num_layers", "hidden_size", "ffn_hidden_size", "kv_channels", "moe_layer_freq", "rotary_base"} <= compared
    assert {key: plain(found[key]) for key in compared} == {key: plain(fields[key]) for key in compared}


@pytest.mark.parametrize("name", CASES)
def test_fields_of_the_converter_are_the_same_model(name: str) -> None:
    config, fields = recorded(name)
    native = crosswalk.normalize_native(example().native_of(fields), layout="megatron")
    expected = crosswalk.import_config(config, to="megatron")
    format = f"megatron_{config['model_type']}"
    assert crosswalk.export_config(native, format) == crosswalk.export_config(expected, format)


@pytest.mark.parametrize("name", CASES)
def test_fields_there_and_back(name: str) -> None:
    native = crosswalk.import_config(recorded(name)[0], to="megatron")
    there = example().native_of(example().flat(native))
    assert example().flat(crosswalk.normalize_native(there, layout="megatron")) == example().flat(native)


def test_no_layer_of_some_kind_is_said() -> None:
    """A model of Megatron has experts, and a window, on every layer unless told otherwise."""
    config = recorded("deepseek_v3")[0]
    dense = crosswalk.import_config(config | {"first_k_dense_replace": 99}, to="megatron")
    assert example().flat(dense)["moe_layer_freq"] == [0] * config["num_hidden_layers"]
    config = recorded("gpt_oss")[0]
    full = ["full_attention"] * config["num_hidden_layers"]
    seen = crosswalk.import_config(config | {"layer_types": full}, to="megatron")
    assert example().flat(seen)["window_attn_skip_freq"] == [0] * len(full)
    for native in (dense, seen):
        there = example().native_of(example().flat(native))
        assert example().flat(crosswalk.normalize_native(there, layout="megatron")) == example().flat(native)


def test_a_window_that_looks_ahead() -> None:
    with pytest.raises(ValueError, match="earlier positions alone"):
        example().native_of(recorded("gpt_oss")[1] | {"window_size": [3, 1]})
