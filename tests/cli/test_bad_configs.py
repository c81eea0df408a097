"""Wrong configs of Hugging Face checkpoints: one clear message a problem, and nothing written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import (
    LLAMA,
    LLAVA,
    MIXTRAL,
    CommandLine,
    Damage,
    Ran,
    assert_refused,
    edit_config,
    make,
    refuse,
)

from crosswalk import CrosswalkError, compile_plan, import_config

QWEN2 = {key: value for key, value in LLAMA.items() if key not in ("attention_bias", "mlp_bias", "head_dim")} | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
}


# ---- config.json -----------------------------------------------------------------------------------------------------


def config(**changes: Any) -> Damage:
    return lambda path: edit_config(path, lambda data: data.update(changes))


def rope(**changes: Any) -> Damage:
    return lambda path: edit_config(path, lambda data: data["rope_parameters"].update(changes))


def without(*keys: str) -> Damage:
    return lambda path: edit_config(path, lambda data: [data.pop(key) for key in keys])


def text(content: bytes) -> Damage:
    return lambda path: (path / "config.json").write_bytes(content)


CONFIGS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "unknown key": (config(foo=[1]), (":3: error: `foo` = [1] has no counterpart in mapping `llama`",)),
    "misspelt key": (config(hiden_size=3), ("`hiden_size` = 3 has no counterpart",)),
    "unknown key of rope": (rope(foo=1), (":5: error: `rope_parameters.foo` = 1 has no counterpart",)),
    "unknown key of the older rope": (
        lambda path: edit_config(
            path,
            lambda data: data.update(rope_scaling={**data.pop("rope_parameters"), "foo": 1, "rope_type": "default"}),
        ),
        (": error: `rope_scaling.foo` = 1 has no counterpart",),
    ),
    "generic metadata where none belongs": (
        rope(chunk_size_feed_forward=0),
        ("`rope_parameters.chunk_size_feed_forward` = 0 has no counterpart",),
    ),
    "three unknown keys and a bad value": (
        lambda path: (config(foo=1, bar={"x": None}, hidden_act="softplus")(path), rope(baz=True)(path)),
        ("3 keys have no counterpart in mapping `llama`", "`hidden_act` must be one of silu"),
    ),
    "unknown model_type": (config(model_type="lama"), ('no format fits this config.json (model_type "lama"',)),
    "model_type is a number": (config(model_type=3), ("no format fits this config.json (model_type 3",)),
    "no model_type, odd architectures": (
        lambda path: (without("model_type")(path), config(architectures=3)(path)),
        ("no format fits this config.json (model_type null",),
    ),
    "another architecture": (
        config(architectures=["LlamaForTokens"]),
        ('`architectures` must be ["LlamaForCausalLM"]',),
    ),
    "absent, of which the class has another default": (
        without("vocab_size"),
        (
            "tensor `model.embed_tokens.weight` is [71, 30] in the file, [32000, 30] by the config",
            "tensor `lm_head.weight` is [71, 30] in the file, [32000, 30] by the config",
        ),
    ),
    "absent": (
        rope(rope_type="llama3", factor=4.0, original_max_position_embeddings=64),
        ("`rope_parameters.low_freq_factor` is required, it is absent", "`rope_parameters.high_freq_factor` is"),
    ),
    "null": (
        rope(
            rope_type="llama3",
            factor=None,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
        ("`rope_parameters.factor` is required, it is null",),
    ),
    "text for a number": (config(num_attention_heads="6"), ('`num_attention_heads` must be of type int, it is "6"',)),
    "a float for a number": (config(hidden_size=30.0), ("`hidden_size` must be of type int, it is 30.0",)),
    "a number for a switch": (
        config(tie_word_embeddings=1),
        ("`tie_word_embeddings` must be of type bool, it is 1",),
    ),
    "negative": (config(hidden_size=-30), ("`hidden_size` must be > 0, it is -30",)),
    "two wrong types": (
        config(num_key_value_heads="2", vocab_size=[71]),
        ('`num_key_value_heads` must be of type int, it is "2"', "`vocab_size` must be of type int, it is [71]"),
    ),
    "a billion layers": (config(num_hidden_layers=10**9), ("`num_hidden_layers` must be a number of layers",)),
    "layers that no file holds": (
        config(num_hidden_layers=100_000),
        (
            "the config states 100000 `decoder.{i}`, which take 700001 tensors or more, but the files hold 30 tensors",
            "[config/size]",
        ),
    ),
    "more layers than the files hold": (
        config(num_hidden_layers=1_000),
        ("the config states 1000 `model.layers.{i}`, which take 2062 tensors or more, but the files hold 30 tensors",),
    ),
    "true layers": (config(num_hidden_layers=True), ("`num_hidden_layers` must be a number of layers, it is true",)),
    "heads that do not divide": (
        lambda path: (config(num_attention_heads=7)(path), without("head_dim")(path)),
        ("`hidden_size / num_attention_heads`: 30 is not a multiple of 7",),
    ),
    "groups that do not divide": (
        config(num_key_value_heads=4),
        (
            "heads must be a multiple of head_groups",
            "[layout/check]",
        ),
    ),
    "rope is text": (config(rope_parameters="default"), ('`rope_parameters` must be an object, it is "default"',)),
    "unknown rope": (rope(rope_type="longrope"), ("`rope_parameters.rope_type` must be one of default, llama3, yarn",)),
    "rope theta is text": (rope(rope_theta="x"), ('`rope_parameters.rope_theta` must be of type float, it is "x"',)),
    "a partial rope": (rope(partial_rotary_factor=0.5), ("`rope_parameters.partial_rotary_factor` must be 1.0",)),
    "two ropes that disagree": (
        config(rope_scaling={"rope_type": "linear", "factor": 2.0}),
        (
            '`rope_scaling.rope_type` says "linear" and `rope_parameters.rope_type` says "default"',
            "[config/dialects-differ]",
        ),
    ),
    "exact gelu": (
        config(hidden_act="gelu"),
        (
            '`hidden_act` is "gelu": the trainer computes the tanh approximation',
            "[config/lossy]",
        ),
    ),
    "no file": (
        lambda path: (path / "config.json").unlink(),
        (
            "config.json: error: cannot read it: No such file",
            "[config/read]",
        ),
    ),
    "empty": (text(b""), ("config.json:1:1: error: not valid JSON: Expecting value",)),
    "cut": (
        text(b'{\n  "model_type": "llama",\n'),
        ("config.json:3:1: error: not valid JSON: Expecting property name",),
    ),
    "a trailing comma": (
        text(b'{"model_type": "llama",}'),
        (
            "config.json:1:24: error: not valid JSON",
            "[config/json]",
        ),
    ),
    "a list": (text(b"[]"), ("config.json must be an object",)),
    "a key twice": (
        text(b'{\n  "model_type": "llama",\n  "model_type": "llama"\n}'),
        ("config.json:3:3: error: `model_type` is already written at ",),
    ),
    "a key twice, nested": (
        text(b'{"model_type": "llama",\n "rope_parameters": {"a": 1, "a": 1}}'),
        ("config.json:2:30: error: `a` is already written at ",),
    ),
    "not text": (
        text(b'{"\xe9": 1}'),
        (
            "config.json: error: this is not UTF-8 text",
            "[config/encoding]",
        ),
    ),
    "NaN": (
        config(rms_norm_eps=math.nan),
        (
            "`rms_norm_eps` must be of type float and finite, it is NaN",
            "[config/type]",
        ),
    ),
    "too deep": (text(b"[" * 100_000), ("config.json:1:41: error: more than 40 levels of nesting",)),
}


@pytest.mark.parametrize("number", [2_000, 100_000, 10**9])
def test_experts_that_no_file_holds(number: int, crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", MIXTRAL)
    config(num_local_experts=number)(source)
    (error,) = crosswalk("check", source).problems
    assert f"the config states {number} `block_sparse_moe.experts.{{expert}}." in error
    assert "tensors or more, but the files hold 65 tensors" in error


def test_layers_of_a_part_that_no_file_holds(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", LLAVA)
    below("vision_config", num_hidden_layers=90_000)(source)
    (error,) = crosswalk("check", source).problems
    assert "the config states 90000 `vision_encoder.encoder.{i}`" in error
    assert "but the files hold 54 tensors" in error


def test_a_few_layers_more_are_named_tensor_by_tensor(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    config(num_hidden_layers=40)(source)
    problems = crosswalk("check", source).problems
    assert len(problems) == 9
    assert "tensor `model.layers.{3..39}.self_attn.q_proj.weight` [84, 30] is missing (37 in all)" in problems[0]


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (LLAMA, {"num_hidden_layers": 100_000}),
        (MIXTRAL, {"num_local_experts": 10**9}),
        (LLAMA | {"model_type": "mtp_llama", "architectures": ["MTPLlamaForCausalLM"]}, {"prediction_heads": 10**9}),
    ],
    ids=["layers", "experts", "heads"],
)
def test_a_plan_without_files_is_bounded(base: dict[str, Any], changes: dict[str, int]) -> None:
    config = import_config({**base, **changes})
    for to, given in (("fast_llm", {**base, **changes}), ("hf", config)):
        with pytest.raises(CrosswalkError, match=r"the config states (10+|9+) `.*tensors or more: there can be 500000"):
            compile_plan(given, format=base["model_type"], to=to)


@pytest.mark.parametrize("name", CONFIGS)
def test_wrong_configs(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    damage, expected = CONFIGS[name]
    source = make(tmp_path / "source")
    damage(source)
    refuse(crosswalk, source, *expected)


def test_unknown_keys_show_the_line_and_what_may_have_been_meant(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda data: data.update(hiden_size=data.pop("hidden_size") // 10))
    line = (source / "config.json").read_text().splitlines().index('  "hiden_size": 3') + 1
    assert crosswalk("check", source).err.startswith(
        f"{source}/config.json:{line}:3: error: `hiden_size` = 3 has no counterpart in mapping `llama`, and what the"
        " model computes may depend on it [config/unknown-key]\n"
        f'  {line} |   "hiden_size": 3\n'
        "     |   ^^^^^^^^^^^^\n"
        "  hint: did you mean `hidden_size`? if the model is the same without it, carry it along, to be restored on"
        " export: --keep hiden_size (in Python, keep=)\n\n"
    )


def below(*keys: str, **changes: Any) -> Damage:
    def edit(data: dict[str, Any]) -> None:
        for key in keys:
            data = data[key]
        data.update(changes)

    return lambda path: edit_config(path, edit)


NESTED: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "text": (below("text_config", foo=1), ("error: `text_config.foo` = 1 has no counterpart in mapping",)),
    "rope of the text": (below("text_config", "rope_parameters", foo=1), ("`text_config.rope_parameters.foo` = 1",)),
    "vision": (
        below("vision_config", foo=1),
        ("error: `vision_config.foo` = 1 has no counterpart in mapping `llava`",),
    ),
    "rope of the vision": (
        below("vision_config", "rope_parameters", foo=1),
        ("`vision_config.rope_parameters.foo` = 1",),
    ),
    "metadata of a config in a plain object": (
        below("vision_config", "rope_parameters", chunk_size_feed_forward=0),
        ("`vision_config.rope_parameters.chunk_size_feed_forward` = 0",),
    ),
    "everywhere": (
        lambda path: [below(*at, foo=1)(path) for at in ((), ("text_config",), ("vision_config", "rope_parameters"))],
        ("  `foo` = 1\n  `text_config.foo` = 1\n  `vision_config.rope_parameters.foo` = 1\n",),
    ),
    "unknown text model": (
        below("text_config", model_type="foo"),
        ("`text_config.model_type` must be one of mistral, llama",),
    ),
    "text is null": (below(text_config=None), ("`text_config` is required",)),
    "text is text": (below(text_config="x"), ('`text_config` must be an object, it is "x"',)),
    "no vision": (without("vision_config"), ("`vision_config` is required",)),
    "type below": (below("text_config", hidden_size="x"), ('`hidden_size` must be of type int, it is "x"',)),
}


@pytest.mark.parametrize("name", NESTED)
def test_wrong_configs_of_parts(name: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    damage, expected = NESTED[name]
    source = make(tmp_path / "source", LLAVA)
    damage(source)
    refuse(crosswalk, source, *expected)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (["full_attention"] * 2, "`layer_types` has 2 entries for 3 layers"),
        (["full_attention", "linear", "full_attention"], "`layer_types` has linear; this mapping knows full_attention"),
        (["full_attention"] * 2 + ["sliding_attention"], "`sliding_window` is required, it is null"),
        ("full_attention", "`layer_types` must be a list of kinds of layers"),
    ],
)
def test_wrong_kinds_of_layers(types: Any, expected: str, crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", QWEN2)
    config(layer_types=types)(source)
    refuse(crosswalk, source, expected)


# Formats whose class transformers lacks: their configs are checked without files.


def compile_config(crosswalk: CommandLine, tmp_path: Path, format: str, data: dict[str, Any]) -> Ran:
    (tmp_path / "config.json").write_text(json.dumps(data))
    return crosswalk.compile(format, "--config", tmp_path / "config.json", "-o", tmp_path / "plan.json")


def golden_config(name: str) -> dict[str, Any]:
    from golden_cases import CASES

    return CASES[name].hf_config()


def test_unknown_keys_in_the_blocks_of_a_pattern(crosswalk: CommandLine, tmp_path: Path) -> None:
    data = golden_config("apriel2_pattern_short")
    for block in data["decoder"]["blocks"].values():
        block["mixer"]["foo"] = 1
    ran = compile_config(crosswalk, tmp_path, "apriel2_text", data)
    names = [f"  `decoder.blocks.{name}.mixer.foo` = 1\n" for name in data["decoder"]["blocks"]]
    assert len(names) > 1
    assert_refused(ran, "".join(names))
    assert not (tmp_path / "plan.json").exists()


def test_unknown_keys_of_ssm_cfg(crosswalk: CommandLine, tmp_path: Path) -> None:
    data = golden_config("apriel_t_m2")
    data["ssm_cfg"]["foo"] = 1
    ran = compile_config(crosswalk, tmp_path, "apriel_hybrid_ssm", data)
    assert_refused(ran, "`ssm_cfg.foo` = 1 has no counterpart in mapping `apriel_hybrid_ssm`")
