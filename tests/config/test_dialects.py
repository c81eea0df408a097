"""Both dialects of transformers: read by content, written on request, one by one and both in one file.

The file passes under transformers 4 and 5: what we write is read by the real config class of whichever is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import transformers
from comparing import differences
from formats import normalized
from golden_cases import NEWEST, TRANSFORMERS_4
from real_configs import CONFIGS

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

BOTH = f"{NEWEST},{TRANSFORMERS_4}"
INSTALLED = NEWEST if oracles.TRANSFORMERS_MAJOR >= 5 else TRANSFORMERS_4
FORMATS = ("llama", "mistral", "mixtral", "qwen2")

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 23456.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 4.0,
        "low_freq_factor": 1.25,
        "high_freq_factor": 3.5,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 34567.0,
        "factor": 3.5,
        "attention_factor": 1.375,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "original_max_position_embeddings": 64,
    },
}


def _without_rope(format: str) -> dict[str, Any]:
    config = dict(CONFIGS[{"mistral": "mistral-window", "qwen2": "qwen2-window"}.get(format, format)])
    for key in ("rope_parameters", "rope_theta", "rope_scaling"):
        config.pop(key, None)
    return config


def _say(config: dict[str, Any], rope: dict[str, Any], dialect: str, type_key: str = "rope_type") -> dict[str, Any]:
    """The config with its rotary embedding said in a dialect."""
    result = dict(config)
    if dialect != TRANSFORMERS_4:
        result["rope_parameters"] = dict(rope)
    if dialect != NEWEST:
        result["rope_theta"] = rope["rope_theta"]
        scaling = {type_key if key == "rope_type" else key: value for key, value in rope.items() if key != "rope_theta"}
        result["rope_scaling"] = scaling if rope["rope_type"] != "default" else None
    return result


def _native(config: dict[str, Any], format: str) -> dict[str, Any]:
    return normalized(crosswalk.import_config(config, format=format), format)


def _rope_as_the_class_reads_it(config: dict[str, Any]) -> dict[str, Any]:
    read = oracles.real_config(config)
    if oracles.TRANSFORMERS_MAJOR >= 5:
        return dict(read.rope_parameters)
    scaling = getattr(read, "rope_scaling", None) or {"rope_type": "default"}
    return {"rope_theta": read.rope_theta, **{key: value for key, value in scaling.items() if key != "type"}}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_dialect_is_read_as_the_same_model(format: str, rope: str) -> None:
    bare = _without_rope(format)
    rotary = _native(_say(bare, ROPES[rope], NEWEST), format)["decoder"][0]["mixer"]["rotary"]
    assert (rotary["type"], rotary["theta"]) == (rope, ROPES[rope]["rope_theta"])
    expected = _native(_say(bare, ROPES[rope], NEWEST), format)
    for config in (
        _say(bare, ROPES[rope], TRANSFORMERS_4),
        _say(bare, ROPES[rope], TRANSFORMERS_4, type_key="type"),
        _say(bare, ROPES[rope], BOTH),
    ):
        assert differences(_native(config, format), expected) == []


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_dialect_is_written_on_request(format: str, rope: str) -> None:
    native = crosswalk.import_config(_say(_without_rope(format), ROPES[rope], NEWEST), format=format)
    newest, old, both = (crosswalk.export_config(native, format, dialect=d) for d in (NEWEST, TRANSFORMERS_4, BOTH))
    scaling = {key: value for key, value in ROPES[rope].items() if key != "rope_theta"} if rope != "default" else None
    for config in (newest, both):
        assert differences(config["rope_parameters"], ROPES[rope]) == []
    for config in (old, both):
        assert config["rope_theta"] == ROPES[rope]["rope_theta"]
        assert differences(config.get("rope_scaling"), scaling) == []
    assert not {"rope_theta", "rope_scaling"} & set(newest)
    assert "rope_parameters" not in old
    for config in (newest, old, both):
        assert differences(_native(config, format), _native(newest, format)) == []


@pytest.mark.parametrize("dialect", [INSTALLED, BOTH])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("format", FORMATS)
def test_the_installed_class_reads_what_is_written(format: str, rope: str, dialect: str) -> None:
    native = crosswalk.import_config(_say(_without_rope(format), ROPES[rope], NEWEST), format=format)
    exported = crosswalk.export_config(native, format, dialect=dialect)
    assert differences(_rope_as_the_class_reads_it(exported), ROPES[rope]) == []
    read = oracles.real_config(exported)
    assert (read.hidden_size, read.num_key_value_heads, read.rms_norm_eps) == (36, 2, 3e-6)


def test_an_unknown_dialect_is_refused_by_name() -> None:
    native = crosswalk.import_config(_say(_without_rope("llama"), ROPES["default"], NEWEST))
    with pytest.raises(CrosswalkError, match=r"transformers.3"):
        crosswalk.export_config(native, "llama", dialect="transformers-3")


def test_dialects_that_disagree_about_the_scaling_are_refused() -> None:
    config = _say(_without_rope("llama"), ROPES["llama3"], BOTH)
    config["rope_scaling"]["factor"] = 5.0
    with pytest.raises(CrosswalkError, match=r"rope_parameters\.factor.*4\.0"):
        crosswalk.import_config(config)


def test_a_stale_theta_beside_rope_parameters_yields() -> None:
    """Classes written for transformers 4 fill in their default ``rope_theta``; transformers 5 does not look at it."""
    config = _say(_without_rope("llama"), ROPES["default"], BOTH) | {"rope_theta": 10000.0}
    native = crosswalk.import_config(config)
    assert native["decoder"]["block"]["mixer"]["rotary"]["theta"] == 23456.0
    if oracles.TRANSFORMERS_MAJOR >= 5:
        assert _rope_as_the_class_reads_it(config)["rope_theta"] == 23456.0


@pytest.mark.parametrize("dialect", [INSTALLED, BOTH])
@pytest.mark.parametrize("name", ["llama-tied-llama3", "llama-yarn", "mixtral", "qwen2-window", "llava"])
def test_logits_are_equal_in_every_dialect_that_the_installed_class_knows(
    name: str, dialect: str, tmp_path: Path
) -> None:
    oracles.make_checkpoint(tmp_path / "original", CONFIGS[name])
    crosswalk.convert(tmp_path / "original", tmp_path / "native", to="fast_llm")
    crosswalk.convert(tmp_path / "native", tmp_path / "back", to="hf", dialect=dialect)
    assert torch.equal(oracles.logits(tmp_path / "back"), oracles.logits(tmp_path / "original"))


# Gemma 4 has dialects of its own: one head size for all full-attention layers, or overrides by layer.


@pytest.mark.skipif(not oracles.available("gemma4"), reason=f"transformers {transformers.__version__} has no Gemma 4")
def test_gemma4_as_the_installed_class_writes_it_is_the_older_dialect() -> None:
    old = CONFIGS["gemma4-moe-k-is-v"]
    new = oracles.as_saved(old)
    assert new["per_layer_config"] == {"2": {"head_dim": 16, "num_key_value_heads": 1}}
    assert not {"global_head_dim", "num_global_key_value_heads"} & set(new)
    assert differences(_native(new, "gemma4"), _native(old, "gemma4")) == []


@pytest.mark.skipif(not oracles.available("gemma4"), reason=f"transformers {transformers.__version__} has no Gemma 4")
def test_gemma4_pads_the_index_of_a_layer_and_reads_it_padded() -> None:
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 2
    config = CONFIGS["gemma4-dense-tied"] | {"num_hidden_layers": 12, "layer_types": kinds}
    saved = oracles.as_saved(config)
    assert saved["per_layer_config"] == {"05": {"head_dim": 16}, "11": {"head_dim": 16}}
    native = crosswalk.import_config(saved, format="gemma4")
    assert differences(crosswalk.export_config(native, "gemma4")["per_layer_config"], saved["per_layer_config"]) == []


@pytest.mark.skipif(not oracles.available("gemma4"), reason=f"transformers {transformers.__version__} has no Gemma 4")
def test_gemma4_global_key_value_heads_count_only_where_keys_are_values() -> None:
    """The class ignores ``num_global_key_value_heads`` unless ``attention_k_eq_v``; so must the plan."""
    config = CONFIGS["gemma4-dense-tied"] | {"num_global_key_value_heads": 1, "attention_k_eq_v": False}
    try:
        plan = crosswalk.compile_plan(config, format="gemma4", to="fast_llm")
    except CrosswalkError as error:
        assert "num_global_key_value_heads" in str(error)  # noqa: PT017  (refusing it by name is as good)
    else:
        assert {t.name: t.shape for t in plan.sources} == oracles.names_and_shapes(config)
