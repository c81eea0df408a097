"""Traps of converting between a trainer and Hugging Face, each of which some converter fell into."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import family_cases
import oracles
import pytest
from changing import changed, mixer_of
from golden_cases import CASES, NEWEST, TRANSFORMERS_4
from small_checkpoints import (
    LLAMA,
    LLAVA,
    MIXTRAL,
    CommandLine,
    config_of,
    contents,
    edit_config,
    make,
)

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

QWEN2 = {key: value for key, value in LLAMA.items() if key not in ("attention_bias", "mlp_bias", "head_dim")} | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
}
MISTRAL = {key: value for key, value in LLAMA.items() if key not in ("attention_bias", "mlp_bias")} | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
}


MIXER = ("decoder", "block", "mixer")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("apriel2_attention", "causal", False),
        ("apriel2_attention", "softmax_scale_power", 0.25),
        ("apriel2_mamba", "repeat_kv_before_conv", False),
        ("llama_gqa", "causal", False),
        ("llama_gqa", "dropout", 0.5),
        ("llama_gqa", "query_norm", {"type": "rms_norm"}),
        ("qwen2_base", "softmax_scale_power", 0.0),
    ],
)
def test_01_ignored_is_not_safe(name: str, field: str, value: Any) -> None:
    """What a format cannot hold is exported only at the value that means "not used"."""
    case = CASES[name]
    config = case.native_config()
    mixers = [block["mixer"] for block in _blocks(config["decoder"])]
    before = crosswalk.export_config(config, case.format)
    for mixer in mixers:
        mixer[field] = value
    if field == "dropout":  # this one has a place
        assert crosswalk.export_config(config, case.format) == {**before, "attention_dropout": value}
        return
    with pytest.raises(CrosswalkError, match=field):
        crosswalk.export_config(config, case.format)


def _blocks(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return list(decoder["blocks"].values()) if "blocks" in decoder else [decoder["block"]]


def test_01_the_norm_of_gdn_is_not_dropped() -> None:
    case = CASES["apriel2_gdn"]
    config = case.native_config()
    for block in _blocks(config["decoder"]):
        if block["mixer"]["type"] == "gdn":
            block["mixer"].setdefault("normalization", {})["epsilon"] = 2.5e-4
    again = crosswalk.import_config(crosswalk.export_config(config, case.format), case.format)
    found = [b["mixer"]["normalization"]["epsilon"] for b in _blocks(again["decoder"]) if b["mixer"]["type"] == "gdn"]
    assert found
    assert set(found) == {2.5e-4}


def test_02_absent_means_different_defaults_on_both_sides() -> None:
    """``add_linear_biases`` of apriel2 is true to one reader and false to the other: it is always written."""
    case = CASES["apriel2_attention"]
    exported = crosswalk.export_config(case.native_config(), case.format)
    mixers = [block["mixer"] for block in _blocks(exported["decoder"]) if block["mixer"]["type"] == "attention"]
    assert mixers
    assert all("add_linear_biases" in mixer for mixer in mixers)


@pytest.mark.parametrize("base", [LLAMA, MISTRAL, MIXTRAL], ids=lambda base: base["model_type"])
@pytest.mark.parametrize("value", [None, ...], ids=["null", "absent"])
def test_03_a_fallback_fires_for_null_as_for_absent(base: dict[str, Any], value: Any) -> None:
    assert mixer_of(crosswalk.import_config(changed(base, "head_dim", value=value)))["head_size"] == 30 // 6
    config = changed({**base, "num_attention_heads": 24}, "num_key_value_heads", value=value)
    absent = 24 if base is LLAMA else 8  # the default of the class
    assert mixer_of(crosswalk.import_config(config))["head_groups"] == (24 if value is None else absent)


@pytest.mark.parametrize("value", [None, ...], ids=["null", "absent"])
def test_03_attention_factor_of_yarn(value: Any) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 5.0, "factor": 6.0, "original_max_position_embeddings": 64}
    config = changed({**LLAMA, "rope_parameters": rope}, "rope_parameters", "attention_factor", value=value)
    rotary = mixer_of(crosswalk.import_config(config))["rotary"]
    expected = 0.1 * math.log(6.0) + 1  # as transformers computes it, and the trainer for a null
    assert rotary["attention_factor"] in ((expected,) if value is ... else (expected, None))
    assert (rotary["beta_fast"], rotary["beta_slow"]) == (32.0, 1.0)


@pytest.mark.parametrize("value", [None, ...], ids=["null", "absent"])
def test_03_d_xb_of_mamba(value: Any) -> None:
    case = CASES["apriel_t_m2"]
    given = case.hf_config()
    expected = {**given, "ssm_cfg": {**given["ssm_cfg"], "d_xb": given["hidden_size"]}}
    found = crosswalk.import_config(changed(given, "ssm_cfg", "d_xb", value=value), case.format)
    assert found == crosswalk.import_config(expected, case.format)


def test_05_what_is_written_follows_the_argument_not_the_installed_version() -> None:
    config = crosswalk.import_config(LLAMA)
    assert "rope_theta" not in crosswalk.export_config(config, "llama", dialect=NEWEST)
    assert "rope_parameters" not in crosswalk.export_config(config, "llama", dialect=TRANSFORMERS_4)


def test_07_sub_trees_are_checked() -> None:
    for keys in (("text_config",), ("text_config", "rope_parameters"), ("vision_config",)):
        with pytest.raises(CrosswalkError, match=r"`[\w.]*unheard_of` = 1 has no counterpart"):
            crosswalk.import_config(changed(LLAVA, *keys, "unheard_of", value=1))
    for name in ("apriel2_attention", "apriel2_pattern_short", "apriel2_stochastic", "apriel2_mm_fixed"):
        case = CASES[name]
        config = case.hf_config()
        for block in _blocks(config["decoder"]):
            mixer = block["mixer"]
            (next(iter(mixer["mixers"].values())) if "mixers" in mixer else mixer)["unheard_of"] = 1
        with pytest.raises(CrosswalkError, match="unheard_of"):
            crosswalk.import_config(config, case.format)


def test_08_indices_of_prediction_heads() -> None:
    """The first head is the model's own; head j + 1 is the j-th further one; layers are not counted among them."""
    case = CASES["mtp_llama_3heads"]
    plan = crosswalk.compile_plan(case.hf_config())
    assert case.hf_config()["prediction_heads"] == 3

    def target(name: str) -> set[str]:
        return {item["target"].name for item in plan.explain(name)}

    assert target("model.mtp_norms.0.weight") == {"head.final_norm.weight"}
    for j in range(2):
        assert target(f"model.mtp_norms.{j + 1}.weight") == {f"multi_token_prediction.heads.{j}.final_norm.weight"}
        assert target(f"model.mtp_heads.{j}.mlp.down_proj.weight") == {
            f"multi_token_prediction.blocks.{j}.mlp.layer_2.weight"
        }
    assert not any(tensor.name.startswith(("model.mtp_heads.2", "model.mtp_norms.3")) for tensor in plan.sources)
    layers = {tensor.name.split(".")[2] for tensor in plan.sources if tensor.name.startswith("model.layers.")}
    assert layers == {str(i) for i in range(case.hf_config()["num_hidden_layers"])}


def test_11_a_short_pattern_repeats() -> None:
    case = CASES["apriel2_pattern_short"]
    decoder = case.native_config()["decoder"]
    assert len(decoder["pattern"]) < decoder["num_blocks"]
    plan = crosswalk.compile_plan(case.hf_config(), case.format)
    kinds = [decoder["pattern"][i % len(decoder["pattern"])] for i in range(decoder["num_blocks"])]
    assert len(set(kinds)) > 1
    names = {
        kind: {
            frozenset(t.name.split(".", 2)[2] for t in plan.targets if t.name.startswith(f"decoder.{i}."))
            for i, k in enumerate(kinds)
            if k == kind
        }
        for kind in kinds
    }
    assert all(len(found) == 1 for found in names.values())
    assert len({next(iter(found)) for found in names.values()}) == len(names)


def test_11_a_long_pattern_and_unused_blocks() -> None:
    case = CASES["apriel2_pattern_short"]
    config = case.native_config()
    decoder = config["decoder"]
    expected = {t.name for t in crosswalk.compile_plan(config, case.format, to="hf").targets}
    decoder["pattern"] = decoder["pattern"] * decoder["num_blocks"]
    assert {t.name for t in crosswalk.compile_plan(config, case.format, to="hf").targets} == expected
    decoder["blocks"]["unused"] = copy.deepcopy(next(iter(decoder["blocks"].values())))
    assert {t.name for t in crosswalk.compile_plan(config, case.format, to="hf").targets} == expected
    decoder["pattern"][0] = "unheard_of"
    with pytest.raises(CrosswalkError, match=r"`decoder\.pattern` names.*\[layout/pattern\]"):
        crosswalk.compile_plan(config, case.format, to="hf")


def test_11_a_list_of_layers_has_as_many_as_there_are() -> None:
    for count in (2, 4):
        with pytest.raises(CrosswalkError, match=rf"`layer_types` has {count} entries for 3 layers.*\[config/length\]"):
            crosswalk.import_config({**QWEN2, "layer_types": ["full_attention"] * count})


def test_12_equal_blocks_of_a_pattern_are_one_block() -> None:
    fixed = crosswalk.import_config(LLAMA)
    block = fixed["decoder"]["block"]
    pattern = copy.deepcopy(fixed)
    pattern["decoder"] = {
        "type": "pattern", "num_blocks": 3, "pattern": ["a", "b"], "blocks": {"a": block, "b": copy.deepcopy(block)},
    }  # fmt: skip
    assert crosswalk.export_config(pattern, "llama") == crosswalk.export_config(fixed, "llama")
    plan = crosswalk.compile_plan(pattern, "llama", to="hf")
    assert plan.digest == crosswalk.compile_plan(fixed, "llama", to="hf").digest
    pattern["decoder"]["blocks"]["b"]["mixer"]["rotary"]["theta"] = 7.0
    with pytest.raises(CrosswalkError, match=r"rope_theta.*\[export/conflict\]"):
        crosswalk.export_config(pattern, "llama")


def test_12_kinds_that_differ_stay_apart() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    config = {**QWEN2, "sliding_window": 17, "use_sliding_window": True, "layer_types": kinds}
    decoder = crosswalk.import_config(config)["decoder"]
    assert decoder["type"] == "pattern"
    windows = [decoder["blocks"][name]["mixer"]["window_size"] for name in decoder["pattern"]]
    assert [windows[i % len(windows)] for i in range(3)] == [None, 17, None]
    assert crosswalk.import_config({**config, "layer_types": ["full_attention"] * 3})["decoder"]["type"] == "fixed"


@pytest.mark.parametrize("hidden", [35, 48, 1152, 2560])
def test_13_a_root_of_the_hidden_size_is_compared_as_it_is_computed(hidden: int) -> None:
    case = CASES["gemma4_dense"]
    config = changed(case.hf_config(), "hidden_size", value=hidden)
    imported = crosswalk.import_config(config, case.format)
    assert imported["embeddings"]["embedding_scale"] == hidden**0.5
    assert crosswalk.export_config(imported, case.format)["hidden_size"] == hidden
    wrong = changed(imported, "embeddings", "embedding_scale", value=hidden**0.5 * 1.01)
    with pytest.raises(CrosswalkError, match="embedding_scale"):
        crosswalk.export_config(wrong, case.format)


@pytest.mark.parametrize("part", ["key", "value"])
def test_15_keys_and_values_agree_on_their_biases(part: str) -> None:
    config = crosswalk.import_config(QWEN2)
    config["decoder"]["block"]["mixer"][f"{part}_layer"] = {"bias": {"enabled": False}}
    with pytest.raises(CrosswalkError, match=rf"{part}_layer"):
        crosswalk.compile_plan(config, "qwen2", to="hf")
    case = CASES["apriel2_attention_layer_bias"]
    apriel = case.native_config()
    for block in _blocks(apriel["decoder"]):
        if block["mixer"]["type"] == "attention":
            for name in ("key", "value"):
                block["mixer"][f"{name}_layer"] = {"bias": {"enabled": name == part}}
    with pytest.raises(CrosswalkError, match=r"key_value|bias"):
        crosswalk.compile_plan(apriel, case.format, to="hf")


@pytest.mark.parametrize("everywhere", [True, False])
def test_16_a_bias_that_is_null_is_that_of_the_attention(everywhere: bool) -> None:
    config = crosswalk.import_config({**LLAMA, "attention_bias": everywhere})
    for part in ("query", "key", "value", "dense"):
        config["decoder"]["block"]["mixer"][f"{part}_layer"] = {"bias": {"enabled": None}}
    plan = crosswalk.compile_plan(config, "llama", to="hf")
    biases = {tensor.name.split(".")[-2] for tensor in plan.targets if tensor.name.endswith(".bias")}
    assert biases == ({"q_proj", "k_proj", "v_proj", "o_proj"} if everywhere else set())


def test_18_no_format_is_untested_and_no_factor_is_at_its_default() -> None:
    """Every format that is shipped has a reference conversion, a strategy or a family, and yarn keeps its factor."""
    import formats

    tested = {case.format for case in CASES.values()} | set(formats.CONFIGS)
    tested |= {family_cases.format_of(name) for name in family_cases.CONFIGS}
    fast_llm = set(crosswalk.formats("fast_llm"))
    assert fast_llm - tested <= {"llava_hybrid_ssm"}  # llava with the text model of another tested format
    rope = {
        "rope_type": "yarn", "rope_theta": 5.0, "factor": 6.5, "attention_factor": 1.25, "beta_fast": 30.0,
        "beta_slow": 1.5, "original_max_position_embeddings": 65,
    }  # fmt: skip
    imported = crosswalk.import_config({**LLAMA, "rope_parameters": rope})
    assert mixer_of(imported)["rotary"]["scale_factor"] == 6.5
    assert crosswalk.export_config(imported, "llama")["rope_parameters"] == rope


@pytest.mark.parametrize("key", ["dtype", "transformers_version", "architectures", "id2label", "use_cache"])
def test_19_generic_metadata_is_known_only_where_it_belongs(key: str) -> None:
    for place in ((), ("text_config",), ("vision_config",)):
        value = ["LlavaForConditionalGeneration"] if (key, place) == ("architectures", ()) else None
        crosswalk.import_config(changed(LLAVA, *place, key, value=value))
    for place in (("text_config", "rope_parameters"), ("vision_config", "rope_parameters")):
        with pytest.raises(CrosswalkError, match=f"{key}` = null has no counterpart"):
            crosswalk.import_config(changed(LLAVA, *place, key, value=None))


def test_20_true_is_not_one() -> None:
    for key, value in {
        "attention_bias": 1, "tie_word_embeddings": 0, "num_hidden_layers": True, "num_key_value_heads": True,
        "rms_norm_eps": True,
    }.items():  # fmt: skip
        with pytest.raises(CrosswalkError, match=f"`{key}` must be"):
            crosswalk.import_config({**LLAMA, key: value})
    with pytest.raises(CrosswalkError, match="`use_mrope` must be"):
        crosswalk.import_config({**QWEN2, "use_mrope": 0})
    with pytest.raises(CrosswalkError, match="partial_rotary_factor"):
        crosswalk.import_config(changed(LLAMA, "rope_parameters", "partial_rotary_factor", value=True))
    crosswalk.import_config(changed(LLAMA, "rope_parameters", "partial_rotary_factor", value=1))  # a number is a number
    with pytest.raises(CrosswalkError, match="gated"):
        crosswalk.export_config(
            changed(crosswalk.import_config(LLAMA), "decoder", "block", "mlp", "gated", value=1), "llama"
        )


def test_20_a_conflict_is_seen_whatever_the_types() -> None:
    config = {**LLAMA, "rope_scaling": {"rope_type": "default"}}
    crosswalk.import_config(config)
    with pytest.raises(CrosswalkError, match="factor"):
        crosswalk.import_config(
            {
                **LLAMA,
                "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 5.0, "factor": 1.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
                },
                "rope_scaling": {"factor": True},
            }
        )  # fmt: skip


@pytest.mark.parametrize("base", [MISTRAL, MIXTRAL], ids=lambda base: base["model_type"])
def test_21_the_head_size_that_a_class_writes_as_null(
    base: dict[str, Any], command: CommandLine, tmp_path: Path
) -> None:
    """Versions of the classes of Mistral and Mixtral write ``head_dim: null``: the file comes back with its null."""
    source = make(tmp_path / "source", {**base, "head_dim": None, "num_attention_heads": 3, "num_key_value_heads": 1})
    edit_config(source, lambda config: config.update(head_dim=None))
    assert command("convert", source, tmp_path / "native").code == 0
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert contents(tmp_path / "back") == contents(source)
    assert config_of(tmp_path / "back")["head_dim"] is None


def test_22_both_layouts_of_gemma4_are_one_model() -> None:
    """The newer one keeps the sizes of single layers in ``per_layer_config``."""
    new, old = CASES["tf523__gemma4_dense"].hf_config(), CASES["gemma4_dense"].hf_config()
    assert "per_layer_config" in new
    assert "global_head_dim" in old
    assert crosswalk.import_config(new, "gemma4") == crosswalk.import_config(old, "gemma4")


def test_24_llava_says_what_its_text_model_is() -> None:
    config = changed(LLAVA, "text_config", "model_type", value="mistral")
    for key in ("attention_bias", "mlp_bias"):
        config["text_config"].pop(key, None)
    config["text_config"]["sliding_window"] = 19
    exported = crosswalk.export_config(crosswalk.import_config(config), "llava")
    assert exported["text_config"]["model_type"] == "mistral"
    assert exported["text_config"]["sliding_window"] == 19
    assert "type" not in exported
    if oracles.available("llava"):
        saved = oracles.as_saved(exported)
        assert (saved["text_config"]["model_type"], saved["text_config"]["sliding_window"]) == ("mistral", 19)


def test_25_apriel_reads_what_its_own_class_adds() -> None:
    """The class adds ``layer_types`` and ten keys of ``ssm_cfg``, which the original converter refuses."""
    case = CASES["apriel_t_m2"]
    config = case.hf_config()
    assert "layer_types" in config
    assert config["ssm_cfg"].keys() >= {"d_conv", "dt_init", "n_v_heads", "d_xb"}
    crosswalk.import_config(config, case.format)
    assert crosswalk.formats().count("llava_hybrid_ssm") == 1


def test_26_mtp_llama_writes_no_stale_theta() -> None:
    """Its class puts ``rope_theta: 10000`` beside ``rope_parameters``: it yields on reading, and both are written."""
    theta = 23456.0
    rope = {"rope_type": "default", "rope_theta": theta}
    config = {**CASES["mtp_llama_3heads"].hf_config(), "rope_theta": 10000.0, "rope_parameters": rope}
    native_config = crosswalk.import_config(config)
    assert mixer_of(native_config)["rotary"]["theta"] == theta
    exported = crosswalk.export_config(native_config, "mtp_llama")
    assert exported["rope_theta"] == exported["rope_parameters"]["rope_theta"] == theta
