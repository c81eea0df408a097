"""Apriel 2 (text) and Apriel hybrid: what their own classes write is read, and nothing is dropped in silence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import custom_oracles
import pytest
import torch
from apriel_strategies import MIXERS
from comparing import differences, shapes
from golden_cases import CASES, load_tensors
from safetensors.torch import save_file

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

Config = dict[str, Any]
FILES = {
    "apriel2_text": ("configuration_apriel2.py", "modeling_apriel2.py"),
    "apriel_hybrid_ssm": ("configuration_apriel_hybrid_ssm.py", "modeling_apriel_hybrid_ssm.py"),
}


def _apriel2(mixer: str = "attention") -> Config:
    return CASES[f"apriel2_{mixer}"].hf_config()


def _block(config: Config) -> Config:
    block = config["decoder"]["block"]
    assert isinstance(block, dict)
    return block


def _import(config: Config, format: str = "apriel2_text") -> Config:
    return crosswalk.import_config(config, format=format)


def _export(native: Config, format: str = "apriel2_text") -> Config:
    return crosswalk.export_config(native, format)


def _write(directory: Path, config: Config, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A checkpoint with its model code; random tensors unless given."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    for file in FILES[config["model_type"]]:
        (directory / file).write_text("# code\n")
    if tensors is None:
        shapes_of = custom_oracles.BY_MODEL_TYPE[config["model_type"]](config)
        generator = torch.Generator().manual_seed(3)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes_of.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


# Apriel 2: biases.


@pytest.mark.parametrize("biased", [True, False])
def test_absent_biases_are_those_of_the_tensors(biased: bool, tmp_path: Path) -> None:
    """Absent means true to the original converter and false to the model. The tensors tell; what is written says so."""
    config = _apriel2()
    _block(config)["mixer"]["add_linear_biases"] = biased
    tensors = {name: torch.randn(shape) for name, shape in custom_oracles.BY_MODEL_TYPE["apriel2_text"](config).items()}
    del _block(config)["mixer"]["add_linear_biases"]
    source = _write(tmp_path / "source", config, tensors)
    crosswalk.convert(source, tmp_path / "native", to="fast_llm")
    crosswalk.verify(source, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back", to="hf")
    found = load_tensors(tmp_path / "back" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in tensors.items()}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    again = crosswalk.import_config(json.loads((tmp_path / "back" / "config.json").read_text()))
    if not biased:  # what is absent would be read as true
        assert again["decoder"]["block"]["mixer"]["add_linear_biases"] is False


def test_absent_biases_without_tensors_are_those_of_the_original_converter() -> None:
    config = _apriel2()
    del _block(config)["mixer"]["add_linear_biases"]
    native = _import(config)
    assert native["decoder"]["block"]["mixer"]["add_linear_biases"] is True
    assert _block(_export(native))["mixer"]["add_linear_biases"] is True


@pytest.mark.parametrize("flag", [True, False])
def test_biases_are_always_written(flag: bool) -> None:
    config = _apriel2()
    _block(config)["mixer"]["add_linear_biases"] = flag
    assert _block(_export(_import(config)))["mixer"]["add_linear_biases"] is flag


def test_biases_of_single_layers_come_back_as_they_are() -> None:
    config = CASES["apriel2_attention_layer_bias"].hf_config()
    mixer = _block(_export(_import(config)))["mixer"]
    assert differences(mixer, _block(config)["mixer"]) == []
    assert "query_layer" not in _block(_export(_import(_apriel2())))["mixer"]


def test_keys_and_values_have_one_flag() -> None:
    """They are one matrix of the trainer, so both have a bias or neither."""
    config = CASES["apriel2_attention_layer_bias"].hf_config()
    _block(config)["mixer"]["value_layer"]["bias"]["enabled"] = False
    with pytest.raises(CrosswalkError, match=r"keys and values"):
        _import(config)


# Apriel 2: what has no key is refused, and what has one is kept.


@pytest.mark.parametrize(
    ("mixer", "field", "value"),
    [
        ("attention", "causal", False),
        ("attention", "softmax_scale_power", 1.0),
        ("attention", "shared_key_value", True),
        ("attention", "query_norm", {"type": "rms_norm"}),
        ("mamba", "repeat_kv_before_conv", False),
    ],
)
def test_what_has_no_key_is_refused_on_both_sides(mixer: str, field: str, value: Any) -> None:
    native = CASES[f"apriel2_{mixer}"].native_config()
    native["decoder"]["block"]["mixer"][field] = value
    with pytest.raises(CrosswalkError, match=field):
        _export(native)
    config = _apriel2(mixer)
    _block(config)["mixer"][field] = value
    with pytest.raises(CrosswalkError, match=field):
        _import(config)


def test_the_epsilon_of_a_gated_delta_net_is_kept() -> None:
    native = CASES["apriel2_gdn"].native_config()
    assert "norm_eps" not in _block(_export(native))["mixer"]
    native["decoder"]["block"]["mixer"]["normalization"] = {"epsilon": 3e-4}
    exported = _export(native)
    assert _block(exported)["mixer"]["norm_eps"] == 3e-4
    assert _import(exported)["decoder"]["block"]["mixer"]["normalization"]["epsilon"] == 3e-4


@pytest.mark.parametrize("type", ["layer_norm", "none"])
@pytest.mark.parametrize("place", ["decoder.block", "head"])
def test_norms_without_tensors_in_the_format_are_refused(type: str, place: str) -> None:
    config, native = _apriel2(), CASES["apriel2_attention"].native_config()
    for side in (config, native):
        owner = side["decoder"]["block"] if place == "decoder.block" else side["head"]
        owner["normalization"] = {"type": type}
    for refused in (lambda: _import(config), lambda: _export(native)):
        with pytest.raises(CrosswalkError, match=rf"{place}.normalization.*\n?.*the tensors of this format"):
            refused()


def test_a_sampling_strategy_is_written() -> None:
    native = CASES["apriel2_stochastic"].native_config()
    assert "sampling_strategy" not in _block(_export(native))["mixer"]
    native["decoder"]["block"]["mixer"]["sampling_strategy"] = "full_layout"
    assert _block(_export(native))["mixer"]["sampling_strategy"] == "full_layout"


@pytest.mark.parametrize("leaf", MIXERS)
def test_a_stochastic_mixer_holds_any_leaf(leaf: str) -> None:
    config = _apriel2(leaf)
    mixer = _block(config)["mixer"]
    _block(config)["mixer"] = {"type": "stochastic", "main_mixer_name": "x", "mixers": {"x": mixer, "a.b": mixer}}
    plan = crosswalk.compile_plan(config, format="apriel2_text")
    assert shapes(plan.sources) == custom_oracles.BY_MODEL_TYPE["apriel2_text"](config)
    assert any(".mixers.x." in name for name in shapes(plan.targets))
    assert differences(_block(_export(_import(config)))["mixer"], _block(config)["mixer"]) == []


def test_a_stochastic_mixer_holds_no_other() -> None:
    config = _apriel2("stochastic")
    mixer = _block(config)["mixer"]
    mixer["mixers"]["inner"] = copy.deepcopy(mixer)
    with pytest.raises(CrosswalkError, match=r"inner.type.*stochastic"):
        _import(config)


# Apriel 2: patterns.


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_pattern_may_be_shorter_or_longer_than_the_model(count: int) -> None:
    config = CASES["apriel2_pattern_short"].hf_config()
    config["decoder"]["num_blocks"] = count
    plan = crosswalk.compile_plan(config, format="apriel2_text")
    assert shapes(plan.sources) == custom_oracles.BY_MODEL_TYPE["apriel2_text"](config)
    assert differences(_export(_import(config))["decoder"], config["decoder"]) == []


def test_a_block_that_is_not_used_is_kept_and_has_no_tensors() -> None:
    config = CASES["apriel2_pattern_short"].hf_config()
    config["decoder"]["blocks"]["spare"] = copy.deepcopy(_block(_apriel2("kda")))
    exported = _export(_import(config))
    assert differences(exported["decoder"], config["decoder"]) == []
    plan = crosswalk.compile_plan(config, format="apriel2_text")
    assert not any("q_conv" in name for name in shapes(plan.sources))


def test_an_unknown_key_in_a_block_of_a_pattern_is_refused() -> None:
    config = CASES["apriel2_pattern_short"].hf_config()
    name = config["decoder"]["pattern"][0]
    config["decoder"]["blocks"][name]["mixer"]["surprise"] = 1
    with pytest.raises(CrosswalkError, match=rf"decoder.blocks.{name}.mixer.surprise"):
        _import(config)


def test_notes_reach_the_report(tmp_path: Path) -> None:
    """The class uses the epsilon of the head in every block: a difference is no error, and is not silent."""
    config = _apriel2()
    _block(config)["normalization"]["epsilon"] = 1e-3
    report = crosswalk.convert(_write(tmp_path / "source", config), tmp_path / "native", to="fast_llm")
    assert any("epsilon of the head" in note for note in report.notes)
    _block(config)["normalization"]["epsilon"] = config["head"]["normalization"]["epsilon"]
    report = crosswalk.convert(_write(tmp_path / "other", config), tmp_path / "native2", to="fast_llm")
    assert report.notes == ()


# Apriel hybrid.


def _hybrid(**changes: Any) -> Config:
    config = CASES["apriel_t_m2"].hf_config()
    config["linear_attn_config"] |= {
        "gdn_num_value_heads": 6,
        "gdn_num_key_heads": 3,
        "gdn_key_head_dim": 7,
        "gdn_value_head_dim": 5,
        "gdn_linear_conv_kernel_size": 3,
    }
    return config | changes


def _mixers(config: Config) -> list[str]:
    native = _import(config, "apriel_hybrid_ssm")
    decoder = native["decoder"]
    if decoder["type"] == "fixed":
        return [decoder["block"]["mixer"]["type"]] * decoder["num_blocks"]
    names = [decoder["pattern"][i % len(decoder["pattern"])] for i in range(decoder["num_blocks"])]
    return [decoder["blocks"][name]["mixer"]["type"] for name in names]


@pytest.mark.parametrize(
    ("layout", "mixers", "written"),
    [
        (["t", "m2", "t"], ["attention", "mamba", "attention"], ["t", "m2", "t"]),
        (["gdn", "kda", "m2"], ["gdn", "kda", "mamba"], ["gdn", "kda", "m2"]),
        (["kl", "kda", "t"], ["kda", "kda", "attention"], ["kda", "kda", "t"]),
        (["m2"], ["mamba"] * 3, ["m2", "m2", "m2"]),
        (["t", "gdn"], ["attention", "gdn", "attention"], ["t", "gdn", "t"]),
    ],
)
def test_codes_are_mixers_and_are_written_for_every_layer(
    layout: list[str], mixers: list[str], written: list[str]
) -> None:
    config = _hybrid(hybrid_block_layout=layout)
    assert _mixers(config) == mixers
    exported = _export(_import(config, "apriel_hybrid_ssm"), "apriel_hybrid_ssm")
    assert exported["hybrid_block_layout"] == written
    assert exported["num_hidden_layers"] == 3
    assert ("ssm_cfg" in exported) == ("mamba" in mixers)
    assert ("num_attention_heads" in exported) == ("attention" in mixers)
    assert _mixers(exported) == mixers
    full = config | {"hybrid_block_layout": ["kda" if code == "kl" else code for code in (layout * 3)[:3]]}
    plan = crosswalk.compile_plan(config, format="apriel_hybrid_ssm")
    assert shapes(plan.sources) == custom_oracles.BY_MODEL_TYPE["apriel_hybrid_ssm"](full)


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        (["t", "m2d", "t"], "m2d"),
        (["t", "i", "t"], "hybrid_block_layout.* i;"),
        (["t"] * 5, "5 entries for 3 layers"),
        (None, "hybrid_block_layout"),
        ([], "hybrid_block_layout"),
    ],
)
def test_other_layouts_are_refused(layout: Any, named: str) -> None:
    with pytest.raises(CrosswalkError, match=named):
        _import(_hybrid(hybrid_block_layout=layout), "apriel_hybrid_ssm")


def _mamba(change: Callable[[Config], Any]) -> Config:
    config = _hybrid(hybrid_block_layout=["m2"])
    change(config["ssm_cfg"])
    native = _import(config, "apriel_hybrid_ssm")
    mixer = native["decoder"]["block"]["mixer"]
    assert isinstance(mixer, dict)
    return mixer


def test_sizes_that_the_class_works_out() -> None:
    hidden = _hybrid()["hidden_size"]
    assert hidden == 36
    assert _mamba(lambda ssm: ssm.update(dt_rank="auto"))["dt_rank"] == 3  # 36 / 16, rounded up
    assert _mamba(lambda ssm: ssm.pop("dt_rank"))["dt_rank"] == 3
    assert _mamba(lambda ssm: ssm.update(d_xb=None))["d_xb"] == hidden
    assert _mamba(lambda ssm: ssm.update(d_inner=None, expand=2))["d_inner"] == 2 * hidden
    assert _mamba(lambda ssm: ssm.update(d_conv=5))["convolution_layer"]["kernel_size"] == 5
    assert _mamba(lambda ssm: ssm.update(repeat_kv_before_conv=False))["repeat_kv_before_conv"] is False


def test_the_kernel_size_and_effective_biases_are_written() -> None:
    native = CASES["apriel_from_fastllm_t_m2"].native_config()
    block = next(b for b in native["decoder"]["blocks"].values() if b["mixer"]["type"] == "mamba")
    block["mixer"] |= {"add_linear_biases": True, "convolution_layer": {"kernel_size": 3}, "dt_layer": {}}
    ssm = _export(native, "apriel_hybrid_ssm")["ssm_cfg"]
    assert (ssm["d_conv"], ssm["bias"], ssm["conv_bias"], ssm["dt_proj_bias"]) == (3, True, True, True)


@pytest.mark.parametrize("section", ["ssm_cfg", "linear_attn_config"])
def test_an_unknown_key_of_a_section_is_refused(section: str) -> None:
    config = _hybrid()
    config[section]["surprise"] = 1
    with pytest.raises(CrosswalkError, match=rf"{section}.surprise"):
        _import(config, "apriel_hybrid_ssm")


def test_keys_of_mixers_that_are_not_used_and_of_the_class_come_back(tmp_path: Path) -> None:
    config = _hybrid(hybrid_block_layout=["t", "m2", "t"])
    config["linear_attn_config"] = {"short_conv_kernel_size": 4, "head_dim": 128, "num_heads": 32}
    source = _write(tmp_path / "source", config)
    crosswalk.convert(source, tmp_path / "native", to="fast_llm")
    crosswalk.convert(tmp_path / "native", tmp_path / "back", to="hf")
    assert differences(json.loads((tmp_path / "back" / "config.json").read_text()), config) == []


def test_what_the_class_drops_is_said(tmp_path: Path) -> None:
    config = _hybrid(hybrid_block_layout=["t", "gdn", "t"])
    report = crosswalk.convert(_write(tmp_path / "source", config), tmp_path / "native", to="fast_llm")
    assert any("gdn_" in note for note in report.notes)


def test_blocks_of_one_code_must_agree() -> None:
    native = crosswalk.normalize_native(CASES["apriel_from_fastllm_t_m2"].native_config(), root="base_model")
    blocks, decoder = native["decoder"]["blocks"], native["decoder"]
    name = next(key for key, block in blocks.items() if block["mixer"]["type"] == "attention")
    blocks["other"] = copy.deepcopy(blocks[name])
    decoder |= {"pattern": [*decoder["pattern"], "other"], "num_blocks": len(decoder["pattern"]) + 1}
    assert _export(native, "apriel_hybrid_ssm")["hybrid_block_layout"].count("t") == 3
    blocks["other"]["mixer"]["heads"] *= 2
    with pytest.raises(CrosswalkError, match=r"num_attention_heads"):
        _export(native, "apriel_hybrid_ssm")
