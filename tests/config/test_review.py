"""Configs that say something in a place, or in a form, where it was once overlooked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import LLAMA, edit_config, make

import crosswalk
from crosswalk.compiler.config.coverage import restore_kept
from crosswalk.compiler.text.positioned import Map
from crosswalk.compiler.text.values import same_value
from crosswalk.jobs.formats import format_named
from crosswalk.runtime.errors import CrosswalkError

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((GOLDEN / name / "hf_config.json").read_text()), **changes}


def refused(config: dict[str, Any], *expected: str) -> None:
    with pytest.raises(CrosswalkError) as error:
        crosswalk.import_config(config)
    for text in expected:
        assert text in str(error.value)


# ---- overrides of single layers -------------------------------------------------------------------------------------

FULL = 2  # the only full layer of the golden Gemma


def gemma(overrides: Any) -> dict[str, Any]:
    config = golden("gemma4_dense", per_layer_config=overrides)
    return {key: config[key] for key in config.keys() - {"global_head_dim", "num_global_key_value_heads"}}


@pytest.mark.parametrize("overrides", [[], [1], "x", 0, False])
def test_overrides_that_are_no_object_are_not_overlooked(overrides: Any) -> None:
    refused(gemma(overrides), f"`per_layer_config` must be an object, it is {json.dumps(overrides)}")


def test_two_overrides_of_one_layer() -> None:
    refused(gemma({"2": {"head_dim": 20}, "02": {"head_dim": 40}}), "`per_layer_config.02`: named twice")


@pytest.mark.parametrize("key", ["9" * 5000, "-1", "\u0662", "x", ""])
def test_overrides_of_no_layer(key: str) -> None:
    refused(gemma({key: {"head_dim": 20}}), "no such layer")


def test_overrides_that_are_null_are_absent() -> None:
    absent = gemma(None)
    del absent["per_layer_config"]
    assert crosswalk.import_config(gemma(None)) == crosswalk.import_config(absent)


# ---- old places beside new ones -------------------------------------------------------------------------------------


def test_an_old_place_counts_beside_a_null_at_the_new_one() -> None:
    config = {**LLAMA, "rope_parameters": None, "rope_theta": 34567.0}
    block = crosswalk.import_config(config)["decoder"]["block"]
    assert block["mixer"]["rotary"]["theta"] == 34567.0


@pytest.mark.parametrize("rope", [[], "default", 3])
def test_an_old_place_beside_what_is_no_object(rope: Any) -> None:
    config = {**LLAMA, "rope_parameters": rope, "rope_theta": 34567.0}
    refused(config, f"`rope_parameters` must be an object for `rope_theta`, it is {json.dumps(rope)}")


# ---- values of the wrong kind ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[], 0, "x", [1], False])
def test_what_is_no_object_where_keys_are_read_is_not_overlooked(value: Any) -> None:
    refused(golden("apriel2_pattern_short", embeddings=value), "`embeddings` must be an object, it is ")


def test_what_is_no_object_in_a_part() -> None:
    config = golden("apriel2_mm_fixed")
    config["vision_encoder"]["embeddings"] = 5
    refused(config, "`vision_encoder.embeddings` must be an object, it is 5")


def test_what_is_no_object_is_said_once() -> None:
    with pytest.raises(CrosswalkError) as error:
        crosswalk.import_config({**LLAMA, "rope_parameters": 5})
    assert len(error.value.diagnostics) == 1


def test_an_int_beyond_all_floats() -> None:
    refused({**LLAMA, "rms_norm_eps": 10**400}, "`rms_norm_eps` must be of type float")
    native = crosswalk.import_config(LLAMA)
    native["embeddings"]["dropout"] = 10**400
    with pytest.raises(CrosswalkError, match=r"`embeddings\.dropout` must be of type float"):
        crosswalk.export_config(native, "llama")


@pytest.mark.parametrize("depth", [41, 600])
def test_a_config_nested_too_deeply(depth: int, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    nested: list[Any] = []
    for _ in range(depth - 2):
        nested = [nested]
    edit_config(source, lambda config: config.update(id2label=nested))
    with pytest.raises(CrosswalkError, match="more than 40 levels of nesting"):
        crosswalk.check(source)


@pytest.mark.parametrize("config", [None, [], "llama"])
def test_a_config_that_is_no_object(config: Any) -> None:
    refused(config, f"a config must be an object, it is {json.dumps(config)}")


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_what_is_kept_of_a_part_that_the_model_has_no_more() -> None:
    old = golden("apriel2_mm_fixed", use_cache=False)
    old["vision_encoder"]["initializer_range"] = 0.03
    native = crosswalk.import_config(old)
    native |= {"vision_encoder": None, "image_token_index": None}
    config = crosswalk.export_config(native, "apriel2")
    restore_kept(format_named("apriel2"), config, old)
    assert config["vision_encoder"] is None
    assert config["use_cache"] is False
    assert config["embeddings"] == old["embeddings"]


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_a_dtype_of_torch() -> None:
    dtype: Any = torch.bfloat16
    assert {target.dtype for target in crosswalk.compile_plan(LLAMA, dtype=dtype).targets} == {"BF16"}


def test_the_older_key_of_the_dtype_counts_beside_a_null() -> None:
    plan = crosswalk.compile_plan({**LLAMA, "dtype": None, "torch_dtype": "bfloat16"})
    assert {source.dtype for source in plan.sources} == {"BF16"}


def test_a_directory_of_model_files_that_is_not_there(tmp_path: Path) -> None:
    crosswalk.convert(make(tmp_path / "source"), tmp_path / "native")
    with pytest.raises(CrosswalkError, match=r"there is no such directory.*\[files/not-a-directory\]"):
        crosswalk.convert(tmp_path / "native", tmp_path / "back", model_files=tmp_path / "none")


# ---- values in messages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"enable_moe_block": "x"}, '`enable_moe_block` must be one of false, true; it is "x"'),
        ({"use_bidirectional_attention": "all"}, 'must be null or false or "vision" to be converted, it is "all"'),
        ({"attention_k_eq_v": 10**5000}, "`attention_k_eq_v` must be of type bool, it is a very large number"),
        ({"attention_k_eq_v": "\u202e\x07é"}, '`attention_k_eq_v` must be of type bool, it is "\\u202e\\u0007\\u00e9"'),
        ({"attention_k_eq_v": ["b"] * 90}, f"it is {json.dumps(['b'] * 90)[:200]}…"),
    ],
)
def test_values_are_spelled_as_in_the_file(changes: dict[str, Any], expected: str) -> None:
    """Printable, and cut where they are long."""
    refused(golden("gemma4_dense", **changes), expected)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (1, 1.0, True), (True, 1, False), (0, False, False), (math.nan, math.nan, True), (None, False, False),
        ([1, (2,)], [1.0, [2]], True), ([1], [True], False), ({"a": [1]}, Map(), False), ({"a": 1}, {"a": 1.0}, True),
        ("1", 1, False), (2**53 + 1, float(2**53), False), (-0.0, 0, True),
    ],
)  # fmt: skip
def test_equality_of_values(left: Any, right: Any, same: bool) -> None:
    assert same_value(left, right) == same_value(right, left) == same
    assert same_value({"a": [left]}, {"a": (right,)}) == same
