"""Keys of config.json that no mapping speaks of: absent, generic, harmless, kept by name, or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from family_cases import CONFIGS as FAMILIES
from small_checkpoints import LLAMA, LLAVA, CommandLine, config_of, edit_config, make, refuse
from transformers import GenerationConfig, PretrainedConfig

import crosswalk
from crosswalk import CrosswalkError
from crosswalk.jobs.detect import detect_format


def refusals(config: dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(CrosswalkError) as raised:
        crosswalk.import_config(config, **options)
    return [f"{found.message} | {found.hint}" for found in raised.value.diagnostics]


def there_and_back(source: Path, *options: str, command: CommandLine) -> Path:
    """The checkpoint converted to the trainer's layout with the options, verified, and converted back."""
    native, back = source.with_name("native"), source.with_name("back")
    for arguments in (("convert", source, native, *options), ("verify", source, native), ("convert", native, back)):
        ran = command(*arguments)
        assert ran.code == 0, ran.err
    assert command("verify", native, back).code == 0
    return back


# ---- absent ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, {}, []], ids=json.dumps)
def test_an_unknown_key_that_is_empty_is_absent(empty: Any) -> None:
    plain = crosswalk.import_config(LLAVA)
    for place in ((), ("text_config",), ("vision_config",)):
        config = json.loads(json.dumps(LLAVA))
        inner = config
        for key in place:
            inner = inner[key]
        inner["nobody_knows"] = empty
        assert crosswalk.import_config(config) == plain


def test_empty_keys_come_back_byte_for_byte(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda config: config.update(zeta=None, alpha={}, beta=[], pruned_heads={}))
    back = there_and_back(source, command=command)
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize("value", [0, False, "", 0.0])
def test_what_is_false_is_not_absent(value: Any) -> None:
    (said,) = refusals(LLAMA | {"nobody_knows": value})
    assert f"`nobody_knows` = {json.dumps(value)} has no counterpart" in said


# ---- generic ---------------------------------------------------------------------------------------------------------


def test_what_every_config_of_transformers_has_is_known() -> None:
    """The defaults of the real classes, of either major version."""
    dumped = {**GenerationConfig().to_dict(), **PretrainedConfig().to_dict(), **LLAMA}
    assert len(dumped) > len(LLAMA) + 5
    assert crosswalk.import_config(dumped) == crosswalk.import_config(LLAMA)


#: What the base class has written in one version or another, at values that nobody has by default.
GENERIC = {
    "output_past": True, "xla_device": True, "num_labels": 3, "eos_token_ids": [5], "finetuning_task": "mnli",
    "use_bfloat16": True, "torchscript": True, "tf_legacy_loss": True, "task_specific_params": {"a": {"top_k": 3}},
    "prefix": "summarise: ", "tokenizer_class": "LlamaTokenizer", "sep_token_id": 2, "decoder_start_token_id": 1,
    "do_sample": True, "max_length": 4096, "max_new_tokens": 20, "temperature": 0.6, "top_k": 40, "top_p": 0.9,
    "min_p": 0.1, "typical_p": 0.3, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5,
    "bad_words_ids": [[3]], "force_words_ids": [[7]], "forced_decoder_ids": [[1, 2]], "sequence_bias": {"[1]": 2.0},
    "_commit_hash": "abc", "_attn_implementation_autoset": True, "_attn_implementation": "eager",
    "attn_implementation": "sdpa", "_flash_attn_2_enabled": True, "gradient_checkpointing": True,
    "name_or_path": "x", "model_name": "mine", "custom_pipelines": {"a": {}}, "_pre_quantization_dtype": "bfloat16",
    "transformers.js_config": {"dtype": "q4"}, "chunk_size_feed_forward": 3, "keys_to_ignore_at_inference": ["x"],
}  # fmt: skip


def test_generic_keys_mean_nothing_and_are_restored(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda config: config.update(GENERIC))
    native = tmp_path / "native"
    assert command("convert", source, native).code == 0
    assert command("convert", native, tmp_path / "back", "--dtype", "bfloat16").code == 0
    written = config_of(tmp_path / "back")
    assert written["dtype"] == "bfloat16"
    assert {key: written[key] for key in GENERIC} == GENERIC


#: Values that turn something on, and what the refusal calls it.
FEATURES = {
    "is_encoder_decoder": (True, "an encoder beside the decoder"),
    "is_decoder": (True, "a decoder beside an encoder"),
    "tie_encoder_decoder": (True, "an encoder beside the decoder"),
    "add_cross_attention": (True, "cross attention"),
    "cross_attention_hidden_size": (512, "cross attention"),
    "pruned_heads": ({"0": [1]}, "attention heads that were pruned"),
    "kv_lora_rank": (512, "latent attention (MLA)"),
    "n_shared_experts": (1, "shared experts"),
    "num_experts": (8, "experts (MoE)"),
    "partial_rotary_factor": (0.5, "partial rotary embeddings"),
    "rope_interleaved": (True, "rotary embeddings of neighbours"),
    "attn_logit_softcapping": (50.0, "capped attention scores"),
    "residual_multiplier": (0.22, "scaled residuals"),
    "sliding_window": (4096, "a sliding window"),
    "add_swa_attention_sink_bias": (True, "attention sinks"),
    "num_nextn_predict_layers": (1, "layers that predict further tokens (MTP)"),
    "qkv_bias": (True, "biases of queries, keys and values"),
}
HARMLESS = {
    "is_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False, "pruned_heads": {},
    "n_shared_experts": 0, "num_experts": 0, "partial_rotary_factor": 1, "rope_interleaved": False,
    "residual_multiplier": 1.0, "shared_expert_intermediate_size": 0, "qkv_bias": False, "is_llama_config": True,
    "sliding_window": None, "alibi": False,
}  # fmt: skip


@pytest.mark.parametrize("key", FEATURES)
def test_a_key_that_turns_something_on_is_refused_by_name(key: str) -> None:
    value, feature = FEATURES[key]
    (said,) = refusals(LLAMA | {key: value})
    assert f"`{key}` = {json.dumps(value)} asks for {feature}" in said
    assert refusals(LLAMA | {key: value}, keep=key) == [said]
    (said,) = refusals({**LLAVA, "text_config": {**LLAVA["text_config"], key: value}})
    assert key in said
    assert feature in said or key == "sliding_window"  # of which the text model of LLaVA says more


def test_harmless_values_are_accepted() -> None:
    plain = crosswalk.import_config(LLAMA)
    assert crosswalk.import_config(LLAMA | HARMLESS) == plain
    for key, value in HARMLESS.items():
        assert crosswalk.import_config(LLAMA | {key: value}) == plain


def test_qwen3_has_the_norms_that_use_qk_norm_asks_for() -> None:
    qwen3 = {key: value for key, value in LLAMA.items() if key != "mlp_bias"}
    qwen3 |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    assert crosswalk.import_config(qwen3 | {"use_qk_norm": True}) == crosswalk.import_config(qwen3)
    (said,) = refusals(qwen3 | {"use_qk_norm": False})
    assert "queries and keys without norms" in said
    (said,) = refusals(LLAMA | {"use_qk_norm": True})
    assert "norms of queries and keys" in said


# ---- kept ------------------------------------------------------------------------------------------------------------

STRANGE = {"unsloth_fixed": True, "nested": {"b": [1, {"c": None}]}, "ratio": 0.1}


def test_kept_keys_are_noted_remembered_and_restored(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda config: config.update(STRANGE))
    listed = '  `unsloth_fixed` = true\n  `nested` = {"b": [1, {"c": null}]}\n  `ratio` = 0.1\n'
    flag = "--keep unsloth_fixed,nested,ratio"
    refuse(command, source, "3 keys have no counterpart in mapping `llama`")
    said = command("check", source).err
    assert listed in said
    assert flag in said
    assert "{only:" not in said
    ran = command("check", source, "--keep", "unsloth_fixed,nested", "--keep", "ratio")
    assert ran.code == 0
    assert "kept as it is, though not understood: `unsloth_fixed`, `nested`, `ratio`" in ran.out
    back = there_and_back(source, "--keep", "unsloth_fixed,nested,ratio", command=command)
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()
    metadata = yaml.safe_load((tmp_path / "native" / "metadata.yaml").read_text())
    assert metadata["metadata"]["crosswalk"]["kept"] == ["unsloth_fixed", "nested", "ratio"]
    ran = command("convert", tmp_path / "native", tmp_path / "cast", "--dtype", "float16")
    assert "restored as it was, though not understood: `unsloth_fixed`, `nested`, `ratio`" in ran.out
    assert {key: config_of(tmp_path / "cast")[key] for key in STRANGE} == STRANGE


def test_programs_keep_keys_too(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    plain = crosswalk.compile_plan(config_of(source))
    edit_config(source, lambda config: config.update(STRANGE))
    config = config_of(source)
    for refused in (lambda: crosswalk.reader(source), lambda: crosswalk.check(source)):
        with pytest.raises(CrosswalkError, match="3 keys have no counterpart"):
            refused()
    assert crosswalk.reader(source, keep=list(STRANGE))
    assert any("`nested`" in note for note in crosswalk.check(source, keep=",".join(STRANGE)).notes)
    assert crosswalk.compile_plan(config, keep=STRANGE).digest == plain.digest


def test_nested_keys_are_kept_by_dots(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", LLAVA)

    def edit(config: dict[str, Any]) -> None:
        config["text_config"]["foo"] = 1
        config["vision_config"]["rope_parameters"]["bar"] = [2]

    edit_config(source, edit)
    keep = "text_config.foo,vision_config.rope_parameters.bar"
    assert f"--keep {keep}" in command("check", source).err
    assert command("convert", source, tmp_path / "native", "--keep", keep).code == 0
    assert command("convert", tmp_path / "native", tmp_path / "back", "--dtype", "bfloat16").code == 0
    written = config_of(tmp_path / "back")
    assert written["text_config"]["foo"] == 1
    assert written["vision_config"]["rope_parameters"]["bar"] == [2]


def test_what_the_older_dialect_holds_is_kept_in_the_form_that_is_written(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")

    def edit(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope["rope_theta"]
        config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                  "original_max_position_embeddings": 111, "foo": 1}  # fmt: skip

    edit_config(source, edit)
    assert "--keep rope_scaling.foo " in command("check", source).err
    back = there_and_back(source, "--keep", "rope_scaling.foo", command=command)
    assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()
    for dialect, place in (("transformers-5", "rope_parameters"), ("transformers-4", "rope_scaling")):
        out = tmp_path / dialect
        assert command("convert", tmp_path / "native", out, "--dialect", dialect).code == 0
        assert config_of(out)[place]["foo"] == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hidden_size", "`hidden_size` cannot be kept as it is: format `llama` knows what it means"),
        ("rope_parameters.rope_theta", "`rope_parameters.rope_theta` cannot be kept as it is"),
        ("hiden_size", "there is no key `hiden_size` to keep"),
        ("rope_parameters.foo", "there is no key `rope_parameters.foo` to keep"),
        ("model_type", "`model_type` cannot be kept as it is"),
    ],
)
def test_what_cannot_be_kept(name: str, expected: str, command: CommandLine, tmp_path: Path) -> None:
    ran = command("check", make(tmp_path / "source"), "--keep", name)
    assert ran.code == 2
    assert expected in ran.err


def test_a_typo_is_pointed_at_only_where_the_right_key_is_missing() -> None:
    without = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    (said,) = refusals(without | {"num_key_value_head": 2})
    assert "did you mean `num_key_value_heads`?" in said
    (said,) = refusals(LLAMA | {"num_key_value_head": 2})
    assert "did you mean" not in said


# ---- constants -------------------------------------------------------------------------------------------------------


def test_infinity_and_nan_are_numbers_of_python(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    strange = {"time_step_limit": [0.0, math.inf], "floor": -math.inf, "nothing": math.nan}
    edit_config(source, lambda config: config.update(strange, task_specific_params={"x": math.nan}))
    text = (source / "config.json").read_text()
    assert "Infinity" in text
    assert "-Infinity" in text
    assert "NaN" in text
    back = there_and_back(source, "--keep", "time_step_limit,floor,nothing", command=command)
    assert (back / "config.json").read_text() == text
    metadata = yaml.safe_load((tmp_path / "native" / "metadata.yaml").read_text())
    assert metadata["metadata"]["crosswalk"]["config"] == text
    assert command("convert", tmp_path / "native", tmp_path / "cast", "--dtype", "float16").code == 0
    written = config_of(tmp_path / "cast")
    assert written["time_step_limit"] == [0.0, math.inf]
    assert written["floor"] == -math.inf
    assert math.isnan(written["nothing"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_key_that_means_something_has_to_be_finite(value: float) -> None:
    (said,) = refusals(LLAMA | {"rms_norm_eps": value})
    assert f"`rms_norm_eps` must be of type float and finite, it is {json.dumps(value)}" in said


# ---- architectures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [None, [], ["FSDPLlamaForCausalLM"], ["DDPLlamaForCausalLM"], ["OptimizedModule"]])
@pytest.mark.parametrize("options", [(), ("--format", "llama")])
def test_architectures_that_say_nothing_or_name_a_wrapper(
    said: Any, options: tuple[str, ...], command: CommandLine, tmp_path: Path
) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda config: config.update(architectures=said))
    if options:
        edit_config(source, lambda config: config.pop("model_type"))
    ran = command("convert", source, tmp_path / "native", *options)
    assert ran.code == 0, ran.err
    assert "read, and written, as LlamaForCausalLM" in ran.out
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert config_of(tmp_path / "back")["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("name", ["FSDPFSDPLlamaForCausalLM", "PeftModelForCausalLM", "LLaMAForCausalLM", None])
def test_names_of_the_class_that_mean_the_same(name: str | None) -> None:
    plain = crosswalk.import_config(LLAMA)
    assert crosswalk.import_config(LLAMA | {"architectures": [name]}) == plain
    assert crosswalk.import_config(LLAMA | {"architectures": [name], "model_type": None}, "llama") == plain


def test_a_null_model_type_is_absent(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda config: config.update(model_type=None))
    ran = command("convert", source, tmp_path / "native")
    assert "`model_type` is null: read, and written, as llama" in ran.out
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert config_of(tmp_path / "back")["model_type"] == "llama"


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "FSDPMistralForCausalLM", "LlamaForCausalLMEagle3"])
def test_another_class_is_refused(name: str) -> None:
    for format in (None, "llama"):
        (said,) = refusals(LLAMA | {"architectures": [name]}, format=format)
        assert '`architectures` must be ["LlamaForCausalLM"]' in said


# ---- formats of other layouts ----------------------------------------------------------------------------------------


def test_a_type_that_another_layout_has_is_found_there() -> None:
    (said,) = refusals(LLAMA | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, to="torchtitan")
    assert "layout `fast_llm` has `mixtral`" in said
    assert "did you mean" not in said


def test_the_features_of_a_type_that_nobody_knows_are_those_of_its_keys() -> None:
    (said,) = refusals({"model_type": "brand_new", "kv_lora_rank": 512, "num_local_experts": 8, "n_shared_experts": 2})
    assert "latent attention (MLA), shared experts" in said
    assert "experts (MoE)" not in said  # mixtral has them


def test_the_first_release_of_dream_is_read() -> None:
    for name in ("dream", "Dream"):
        assert detect_format({"model_type": name}).name == "dream"


# ---- one message, that helps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.0, "finetuned": True},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "factor": 2.0},
        {"type": "mrope", "mrope_section": [16, 24, 24]},
    ],
    ids=lambda scaling: str(scaling),
)
def test_of_an_object_of_a_kind_that_there_is_not_only_the_kind_is_said(scaling: dict[str, Any]) -> None:
    key = "type" if "type" in scaling else "rope_type"
    (said,) = refusals({**LLAMA, "rope_parameters": None, "rope_theta": 1e4, "rope_scaling": scaling})
    assert (
        said
        == f"`rope_parameters.rope_type` must be one of default, llama3, yarn; it is {json.dumps(scaling[key])} | None"
    )


@pytest.mark.parametrize(("kind", "near"), [("LLaMA", "llama"), ("Mistral", "mistral"), ("llama2", "llama")])
def test_a_model_type_that_is_nearly_one_is_named(kind: str, near: str) -> None:
    (said,) = refusals(LLAMA | {"model_type": kind})
    assert f"(model_type {json.dumps(kind)}" in said
    assert said.endswith(f"did you mean `{near}`?")


def test_an_empty_quantisation_is_none() -> None:
    assert crosswalk.import_config(LLAMA | {"quantization_config": {}}) == crosswalk.import_config(LLAMA)


def test_the_flag_names_long_keys_in_full() -> None:
    key = "k" * 300
    (said,) = refusals(LLAMA | {key: 1})
    assert f"--keep {key} " in said
    assert crosswalk.import_config(LLAMA | {key: 1}, keep=key)


def test_keys_of_released_models_that_their_classes_do_not_look_at() -> None:
    """StarCoder2 15B, and SmolLM3 3B."""
    starcoder, smollm = FAMILIES["starcoder2"], FAMILIES["smollm3"]
    stated = {"mlp_type": "default", "norm_type": "layer_norm"}
    assert crosswalk.import_config(starcoder | stated) == crosswalk.import_config(starcoder)
    (said,) = refusals(starcoder | {"norm_type": "rms_norm"})
    assert "`norm_type`" in said
    assert crosswalk.import_config(smollm | {"max_window_layers": 28}) == crosswalk.import_config(smollm)
