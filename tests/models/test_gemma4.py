"""Gemma 4: two kinds of layers in one flat config, in the dialects of transformers 5.5 and 5.15."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import oracles
import pytest
import strategies
import torch
from comparing import differences, shapes
from golden_cases import CASES, GEMMA4_OLD, NEWEST
from hypothesis import given
from hypothesis import strategies as st
from real_configs import CONFIGS

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

pytestmark = pytest.mark.skipif(not oracles.available("gemma4"), reason="this transformers has no Gemma 4")

OLD = CASES["gemma4_dense"].hf_config()
NEW = CASES["tf523__gemma4_dense"].hf_config()
MOE = CASES["gemma4_moe_k_eq_v"].hf_config()
SLIDING, FULL = "sliding_attention", "full_attention"


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _import(config: dict[str, Any]) -> dict[str, Any]:
    return crosswalk.import_config(config, format="gemma4")


def _sources(config: dict[str, Any]) -> oracles.Shapes:
    return shapes(crosswalk.compile_plan(config, format="gemma4", to="fast_llm").sources)


VARIANTS: dict[str, dict[str, Any]] = {
    "old": OLD,
    "new": NEW,
    "moe": MOE,
    "all full": OLD | {"layer_types": [FULL] * 3},
    "all full, keys are values": OLD
    | {"layer_types": [FULL] * 3, "attention_k_eq_v": True, "num_global_key_value_heads": 3},
    "keys are values, as many as in sliding layers": OLD | {"attention_k_eq_v": True},
    "keys are values, of their own number": OLD | {"attention_k_eq_v": True, "num_global_key_value_heads": 3},
    "own number of key heads in the newest dialect": NEW
    | {"per_layer_config": {"2": {"head_dim": 16, "num_key_value_heads": 3}}},
    "nothing differs": NEW | {"per_layer_config": {}},
    "an override that says what holds anyway": NEW
    | {"per_layer_config": {"0": {"head_dim": 8}, "2": {"head_dim": 16}}},
    "neither dialect: 512": _without(NEW, "per_layer_config"),
    "absent head_dim": _without(OLD, "head_dim"),
    "absent layer_types": _without(OLD, "layer_types") | {"num_hidden_layers": 7},
    "null layer_types": OLD | {"layer_types": None, "num_hidden_layers": 6},
    "untied": OLD | {"tie_word_embeddings": False},
    "tied if absent": _without(OLD, "tie_word_embeddings"),
}


@pytest.mark.parametrize("dialect", [NEWEST, GEMMA4_OLD])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_class_builds_the_same_model_before_and_after(name: str, dialect: str) -> None:
    config = VARIANTS[name]
    expected = oracles.names_and_shapes(config)
    assert _sources(config) == expected
    if name.startswith("own number") and dialect == GEMMA4_OLD:
        with pytest.raises(CrosswalkError, match=r"num_global_key_value_heads.*attention_k_eq_v"):
            crosswalk.export_config(_import(config), "gemma4", dialect=dialect)
        return
    exported = crosswalk.export_config(_import(config), "gemma4", dialect=dialect)
    assert ("per_layer_config" in exported) == (dialect == NEWEST)
    assert ("global_head_dim" in exported) == (dialect == GEMMA4_OLD)
    assert oracles.names_and_shapes(exported) == expected
    assert differences(_import(exported), _import(config)) == []


@given(data=st.data())
def test_drawn_configs_are_the_same_model_in_both_dialects(data: st.DataObject) -> None:
    config = data.draw(strategies.gemma4())
    native = _import(config)
    for dialect in (NEWEST, GEMMA4_OLD):
        exported = crosswalk.export_config(native, "gemma4", dialect=dialect)
        assert oracles.names_and_shapes(exported) == oracles.names_and_shapes(config)
        assert differences(_import(exported), native) == []


def test_absent_rotary_embeddings_are_those_of_the_class() -> None:
    read = oracles.as_saved(_without(OLD, "rope_parameters"))
    assert differences(_import(_without(OLD, "rope_parameters")), _import(read)) == []


@pytest.mark.parametrize("name", ["all full", "keys are values, of their own number"])
def test_logits_are_equal_in_both_dialects(name: str, tmp_path: Path) -> None:
    config = CONFIGS["gemma4-dense-tied"] | {
        key: VARIANTS[name][key] for key in ("layer_types", "attention_k_eq_v", "num_global_key_value_heads")
    }
    oracles.make_checkpoint(tmp_path / "original", config)
    crosswalk.convert(tmp_path / "original", tmp_path / "native", to="fast_llm")
    for dialect in (NEWEST, GEMMA4_OLD):
        crosswalk.convert(tmp_path / "native", tmp_path / dialect, to="hf", dialect=dialect)
        assert torch.equal(oracles.logits(tmp_path / dialect), oracles.logits(tmp_path / "original"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input.*\n.*embeddings for single layers"),
        ({"num_kv_shared_layers": 1}, "num_kv_shared_layers.*\n.*keys and values of another layer"),
        ({"use_double_wide_mlp": True}, "use_double_wide_mlp.*\n.*intermediate size"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention.*\n.*causal"),
        ({"attention_bias": True}, "attention_bias"),
        ({"layer_types": [FULL, FULL, SLIDING]}, "last layer"),
        ({"layer_types": [SLIDING] * 3}, "last layer"),
        ({"layer_types": [SLIDING, "chunked_attention", FULL]}, "layer_types.*chunked_attention"),
        ({"layer_types": [SLIDING, FULL]}, "layer_types.*2 entries for 3 layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_converted_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CrosswalkError, match=named):
        _import(OLD | change)


def test_an_absent_size_of_embeddings_for_single_layers_means_that_there_are_some() -> None:
    with pytest.raises(CrosswalkError, match=r"hidden_size_per_layer_input"):
        _import(_without(OLD, "hidden_size_per_layer_input"))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"2": {"head_dim": 16, "intermediate_size": 60}}, "per_layer_config.2.intermediate_size"),
        ({"0": {"head_dim": 12}, "2": {"head_dim": 16}}, "layers 0 and 1 are both `sliding_attention`"),
        ({"3": {"head_dim": 12}}, "per_layer_config.3"),
    ],
)
def test_overrides_that_the_class_cannot_build_are_refused(overrides: dict[str, Any], named: str) -> None:
    config = NEW | {"per_layer_config": overrides}
    with pytest.raises(Exception):  # noqa: B017, PT011  (the class has an error of its own for each)
        oracles.names_and_shapes(config)
    with pytest.raises(CrosswalkError, match=named):
        _import(config)


def test_both_dialects_in_one_file_must_agree() -> None:
    assert differences(_import(NEW | {"global_head_dim": 16}), _import(NEW)) == []
    for wrong in (NEW | {"global_head_dim": 12}, NEW | {"global_head_dim": 12, "per_layer_config": {}}):
        with pytest.raises(CrosswalkError, match=r"global_head_dim"):
            _import(wrong)


#: Fields that the flat config has once, below a block -> another value. Both kinds of blocks must have the same.
SHARED: dict[str, Any] = {
    "mixer.heads": 12,
    "mixer.dropout": 0.25,
    "mixer.query_norm.epsilon": 1e-4,
    "mixer.key_norm.epsilon": 1e-4,
    "mixer.value_norm.epsilon": 1e-4,
    "normalization.epsilon": 1e-4,
    "post_mixer_normalization.epsilon": 1e-4,
    "post_mlp_normalization.epsilon": 1e-4,
    "mlp.intermediate_size": 60,
    "mlp.activation": "silu",
}
SHARED_MOE: dict[str, Any] = {
    "mlp.dense.intermediate_size": 60,
    "mlp.dense.pre_norm.epsilon": 1e-4,
    "mlp.dense.post_norm.epsilon": 1e-4,
    "mlp.routed.pre_norm.epsilon": 1e-4,
    "mlp.routed.post_norm.epsilon": 1e-4,
    "mlp.routed.intermediate_size": 24,
    "mlp.routed.experts": 7,
    "mlp.routed.experts_per_token": 1,
    "mlp.routed.router_normalization.epsilon": 1e-4,
}
#: What every block must have in this format.
FIXED: dict[str, Any] = {
    "mixer.softmax_scale_power": 0.5,
    "mixer.add_linear_biases": True,
    "mixer.causal": False,
    "mixer.query_norm": None,
    "mixer.key_norm": {"type": "fixed_rms_norm"},
    "mixer.value_norm": None,
    "post_mixer_normalization": None,
    "post_mlp_normalization": None,
    "output_scale.enabled": False,
    "mlp.gated": False,
    "mlp.add_linear_biases": True,
}


def _changed(native: dict[str, Any], block: str, path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(native)
    place = result["decoder"]["blocks"][block]
    *parents, leaf = path.split(".")
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    return result


@pytest.mark.parametrize("block", [SLIDING, FULL])
@pytest.mark.parametrize(
    ("base", "path", "value"),
    [
        *(("gemma4_dense", path, value) for path, value in (SHARED | FIXED).items()),
        *(("gemma4_moe_k_eq_v", path, value) for path, value in SHARED_MOE.items()),
    ],
)
def test_what_both_blocks_share_must_agree(block: str, base: str, path: str, value: Any) -> None:
    native = crosswalk.normalize_native(CASES[base].native_config(), root="base_model")
    changed = _changed(native, block, path, value)
    if path == "mixer.causal":
        changed["decoder"]["blocks"][block]["mixer"]["window_size"] = None
    for dialect in (NEWEST, GEMMA4_OLD):
        with pytest.raises(CrosswalkError) as caught:
            crosswalk.export_config(changed, "gemma4", dialect=dialect)
        leaf, above = path.split(".")[-1], path.split(".")[-2] if "." in path else ""
        known = {"epsilon": "rms_norm_eps", "activation": "hidden_activation", "experts_per_token": "top_k_experts"}
        assert any(name in str(caught.value) for name in (leaf, known.get(leaf, leaf), above or leaf))


def test_one_dense_and_one_with_experts_is_refused() -> None:
    native = crosswalk.normalize_native(CASES["gemma4_moe_k_eq_v"].native_config(), root="base_model")
    dense = CASES["gemma4_dense"].native_config()["decoder"]["blocks"]
    native["decoder"]["blocks"][FULL]["mlp"] = dense[FULL]["mlp"]
    with pytest.raises(CrosswalkError, match=r"mlp|enable_moe_block"):
        crosswalk.export_config(native, "gemma4")


def test_two_full_blocks_of_different_size_are_refused() -> None:
    """transformers wants all layers of one kind alike, and says so with an error."""
    native = crosswalk.normalize_native(CASES["gemma4_dense"].native_config(), root="base_model")
    other = copy.deepcopy(native["decoder"]["blocks"][FULL])
    other["mixer"]["head_size"] = 12
    native["decoder"]["blocks"]["other"] = other
    native["decoder"] |= {"num_blocks": 3, "pattern": [SLIDING, "other", FULL]}
    with pytest.raises(CrosswalkError, match=r"head_dim.*full_attention"):
        crosswalk.export_config(native, "gemma4")


def test_final_and_block_epsilon_are_one_key() -> None:
    native = crosswalk.normalize_native(CASES["gemma4_dense"].native_config(), root="base_model")
    native["head"]["normalization"]["epsilon"] = 1e-4
    with pytest.raises(CrosswalkError, match=r"rms_norm_eps"):
        crosswalk.export_config(native, "gemma4")


@pytest.mark.parametrize("scale", [1.0, 5.9])
def test_the_scale_of_embeddings_follows_from_their_size(scale: float) -> None:
    native = crosswalk.normalize_native(CASES["gemma4_dense"].native_config(), root="base_model")
    assert native["embeddings"]["embedding_scale"] == 6.0
    native["embeddings"]["embedding_scale"] = scale
    with pytest.raises(CrosswalkError, match=r"embedding_scale"):
        crosswalk.export_config(native, "gemma4")


@pytest.mark.parametrize("cap", [None, 30.0])
def test_the_soft_cap_is_kept(cap: float | None) -> None:
    native = _import(OLD | {"final_logit_softcapping": cap})
    assert native["head"]["final_logit_softcap"] == cap
    assert crosswalk.export_config(native, "gemma4")["final_logit_softcapping"] == cap
