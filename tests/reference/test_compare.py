"""``compare``: the class of transformers and the reference side by side, and what is said where they differ."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import family_cases as families
import oracles
import pytest
import transformers
from golden_cases import GOLDEN, load_tensors
from real_configs import CONFIGS
from safetensors.torch import save_file

import crosswalk
from crosswalk.cli.commands import cli, run_command
from crosswalk.jobs.formats import catalog
from crosswalk.models.comparison import Comparison
from crosswalk.models.tiny import shrunk
from crosswalk.runtime.errors import CrosswalkError

MAPPINGS = Path(__file__).parents[2] / "mappings"


def _checkpoint(directory: Path, name: str = "qwen3", dtype: str = "float32", **keys: Any) -> Path:
    oracles.make_checkpoint(directory, CONFIGS[name] | keys, dtype=dtype)
    return directory


def _config_file(directory: Path, name: str) -> Path:
    if not hasattr(transformers, CONFIGS[name]["architectures"][0]):
        pytest.skip("this transformers does not have the class")
    (directory / "config.json").write_text(json.dumps(CONFIGS[name]))
    return directory


# what is compared


def test_a_checkpoint_and_its_conversion_are_the_same_model(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "hf", dtype="bfloat16")
    crosswalk.convert(source, tmp_path / "native")
    for found in (crosswalk.compare(source), crosswalk.compare(source, tmp_path / "native")):
        assert (found.format, found.reference) == ("qwen3", "Qwen3ForCausalLM")
        parts = ["embeddings", "decoder.0", "decoder.1", "decoder.2", "head.final_norm"]
        assert [*found.parts] == parts
        assert max(*found.parts.values(), found.logits) < 1e-5
        assert found.same
        assert found.first is None
        assert found.notes == ()


def test_the_first_part_that_differs_is_named(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "hf")
    crosswalk.convert(source, tmp_path / "native")
    file = tmp_path / "native" / "model_0.safetensors"
    tensors = load_tensors(file)
    tensors["decoder.1.mlp.layer_2.weight/weights"] *= 1.01
    save_file(tensors, file)
    found = crosswalk.compare(source, tmp_path / "native")
    assert found.first == "decoder.1"
    assert found.parts["decoder.0"] < 1e-5 < 1e-4 < found.parts["decoder.1"]
    assert crosswalk.compare(source, tmp_path / "native", tolerance=1.0).same


def test_what_is_not_a_number_is_not_the_same() -> None:
    assert Comparison("f", "C", 1, {"embeddings": 0.0, "decoder.0": math.nan}, 0.0).first == "decoder.0"
    assert Comparison("f", "C", 1, {"embeddings": 0.0}, math.inf).first == "logits"


def test_an_image_is_shown_to_a_model_that_takes_images(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path, "llava")
    parts = [*crosswalk.compare(source).parts]
    assert parts[:3] == ["vision_encoder.encoder.0", "vision_encoder.encoder.1", "embeddings"]


def test_a_window_that_the_tokens_do_not_reach_is_a_note(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path, "mistral-window")
    assert crosswalk.compare(source).notes == ()
    assert "5 tokens do not reach the window of 5" in crosswalk.compare(source, tokens=5).notes[0]


# small copies


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tiny_copy_is_the_same_model(name: str, tmp_path: Path) -> None:
    found = crosswalk.compare(_config_file(tmp_path, name), tiny=True)
    assert found.same, found
    assert found.notes == ()


def test_a_config_json_is_enough_for_a_tiny_copy() -> None:
    assert crosswalk.compare(GOLDEN / "mistral_sliding" / "hf_config.json", tiny=True).same


def test_a_tiny_copy_has_every_kind_of_layer_and_small_sizes() -> None:
    layers = (["sliding_attention"] * 5 + ["full_attention"]) * 8
    config = {
        "hidden_size": 3840, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
        "global_head_dim": 512, "num_hidden_layers": 48, "layer_types": layers, "vocab_size": 262144,
        "intermediate_size": 15360, "sliding_window": 1024, "query_pre_attn_scalar": 256, "pad_token_id": 262143,
        "eos_token_id": [1, 262000], "rms_norm_eps": 1e-6, "quantization_config": {"bits": 4},
        "per_layer_config": {"5": {"head_dim": 512}, "11": {"head_dim": 512}},
        "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14},
    }  # fmt: skip
    found = shrunk(config)
    assert found["num_hidden_layers"] == 6
    assert found["layer_types"] == layers[:6]
    assert found["per_layer_config"].keys() == {"5"}
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == (6, 2)
    assert (found["head_dim"], found["global_head_dim"], found["query_pre_attn_scalar"]) == (16, 32, 16)
    assert found["hidden_size"] == 6 * 20, "a head that is not the width by the number of heads stays one that is not"
    assert found["vocab_size"] > max(found["pad_token_id"], *found["eos_token_id"])
    assert (found["sliding_window"], found["rms_norm_eps"]) == (5, 1e-6)
    assert "quantization_config" not in found
    other = shrunk(config, more=1)
    assert (other["num_attention_heads"], other["num_key_value_heads"], other["head_dim"]) == (8, 4, 24)
    assert (other["hidden_size"], other["intermediate_size"], other["vocab_size"]) == (8 * 28, 78, 132)
    for factor, size in ((0.25, 16), (0.4, 20), (0.75, 16), (0.6, 20)):
        heads = {"hidden_size": 960, "num_attention_heads": 12, "partial_rotary_factor": factor}
        assert shrunk(heads)["hidden_size"] == 6 * size, "what is turned of a head is an even number of channels"
    assert found["vision_config"] == {
        "hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 3, "patch_size": 4,
    }  # fmt: skip


# mistakes in a mapping: file, what is replaced by what, the model, and where it is seen first

_KEY_VALUE = '"{k|v}_proj": key_value'
_GATE_UP = '"{gate|up}_proj": layer_1'
MISTAKES: dict[str, tuple[str, list[tuple[str, str]], str, str]] = {
    "keys and values swapped": ("llama", [(_KEY_VALUE, '"{v=k|k=v}_proj": key_value')], "qwen3", "decoder.0"),
    "gate and up swapped": ("llama", [(_GATE_UP, '"{up=gate|gate=up}_proj": layer_1')], "llama", "decoder.0"),
    "norms of a block swapped": (
        "llama",
        [
            ("input_layernorm: norm_1", "input_layernorm: norm_2"),
            ("post_attention_layernorm: norm_2", "post_attention_layernorm: norm_1"),
        ],
        "llama",
        "decoder.0",
    ),
    "norms of queries and keys swapped": (
        "qwen3",
        [("q_norm: query_norm", "q_norm: key_norm"), ("k_norm: key_norm", "k_norm: query_norm")],
        "qwen3",
        "decoder.0",
    ),
    "norms after mixer and MLP swapped": (
        "gemma4",
        [
            ("layernorm: post_mixer_norm", "layernorm: POST"),
            ("layernorm: post_mlp_norm", "layernorm: post_mixer_norm"),
            ("POST", "post_mlp_norm"),
        ],
        "gemma4-dense-tied",
        "decoder.0",
    ),
    "another activation": (
        "llama",
        [
            ("hidden_act: {is: activation, default: silu}", "hidden_act: ~"),
            ("sets: {gated: true}", "sets: {gated: true, activation: gelu}"),
        ],
        "llama",
        "decoder.0",
    ),
    "another base of the rotary embedding": (
        "llama",
        [
            ("        rope_theta: theta\n        partial", "        rope_theta: ~\n        partial"),
            ("    llama3:\n", "      sets: {theta: 10000.0}\n    llama3:\n"),
        ],
        "llama",
        "decoder.0",
    ),
    "another ramp of yarn": (
        "llama",
        [("beta_slow: {is: beta_slow, default: 1.0}", "beta_slow: {is: beta_slow, default: 4.0}")],
        "llama-yarn",
        "decoder.0",
    ),
    "another epsilon": (
        "llama",
        [("rms_norm_eps: {is: epsilon, default: 1.0e-06}", "rms_norm_eps: ~\n  sets: {epsilon: 0.01}")],
        "llama",
        "decoder.0",
    ),
    "no scale of the embeddings": (
        "gemma4",
        [("embedding_scale: = hidden ** 0.5", "embedding_scale: 1.0")],
        "gemma4-dense-tied",
        "embeddings",
    ),
    "a scale of the scores that there is not": (
        "gemma4",
        [("softmax_scale_power: 0.0", "softmax_scale_power: 0.5")],
        "gemma4-dense-tied",
        "decoder.0",
    ),
    "no scale of what the router sees": (
        "gemma4",
        [("router_input_scale: = hidden ** -0.5", "router_input_scale: 1.0")],
        "gemma4-moe",
        "decoder.0",
    ),
    "no cap on the logits": (
        "gemma4",
        [("{is: head.final_logit_softcap, default: null}", "~")],
        "gemma4-dense-k-is-v",
        "logits",
    ),
    "no window": (
        "mistral",
        [("sliding_window: {is: window_size, default: 4096}", "sliding_window: ~")],
        "mistral-window",
        "decoder.0",
    ),
    "windows on the wrong layers": (
        "qwen2",
        [
            (
                "full_attention:\n      attention: {sets: {window_size: null}}",
                "full_attention:\n      attention: {sets: {window_size: 4}}",
            )
        ],
        "qwen2-window",
        "decoder.0",
    ),
    "experts routed another way": ("mixtral", [("routing: aux_loss", "routing: sinkhorn")], "mixtral", "decoder.0"),
    "one expert for each element": (
        "mixtral",
        [
            ("num_experts_per_tok: {is: experts_per_token, default: 2}", "num_experts_per_tok: ~"),
            ("sets: {routing: aux_loss}", "sets: {routing: aux_loss, experts_per_token: 1}"),
        ],
        "mixtral",
        "decoder.0",
    ),
    "patches turned as a text": ("pixtral", [("default_2d", "default")], "llava", "vision_encoder.encoder.0"),
}


@pytest.fixture
def mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose mappings take the place of shipped ones; nothing is kept, so only what is needed is compiled."""
    folder = tmp_path / "mappings"
    folder.mkdir()
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    catalog.cache_clear()
    yield folder
    catalog.cache_clear()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_that_compiles_and_loses_nothing_is_found(mistake: str, mappings: Path, tmp_path: Path) -> None:
    name, changes, model, first = MISTAKES[mistake]
    text = (MAPPINGS / f"{name}.yaml").read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (mappings / f"{name}.yaml").write_text(text)
    source, format = _config_file(tmp_path, model), model.split("-")[0]
    assert str(crosswalk.compile_plan(CONFIGS[model], to="fast_llm", format=format).verify()) == "bijective"
    assert crosswalk.compare(source, tiny=True, format=format).first == first


# errors


def test_without_transformers_there_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _checkpoint(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        CrosswalkError, match=r"this needs transformers, which is not installed \[compare/transformers\]"
    ) as caught:
        crosswalk.compare(source)
    assert len(caught.value.diagnostics) == 1
    assert "pip install" in str(caught.value)


def test_a_class_that_transformers_does_not_have_is_named() -> None:
    with pytest.raises(CrosswalkError, match=r"has no class `DreamModel` \[compare/class\]"):
        crosswalk.compare(GOLDEN / "dream_base" / "hf_config.json", tiny=True)


def test_a_checkpoint_that_the_class_cannot_load_is_one_message(tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "hf")
    crosswalk.convert(source, tmp_path / "native")
    tensors = load_tensors(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CrosswalkError, match=r"does not find 1 of its parameters.*layers\.1\.mlp\.up_proj"):
        crosswalk.compare(source, tmp_path / "native")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CrosswalkError, match=r"`Qwen3ForCausalLM` of transformers .* cannot load the checkpoint"):
        crosswalk.compare(source, tmp_path / "native")
    (source / "model.safetensors").write_bytes(b"nothing")  # which is said before the class is asked
    with pytest.raises(CrosswalkError, match="not a safetensors file: it has 7 bytes and no header"):
        crosswalk.compare(source, tmp_path / "native")


def test_what_cannot_be_made_small_is_one_message(tmp_path: Path) -> None:
    config = CONFIGS["llama"] | {"intermediate_size": 7, "num_attention_heads": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CrosswalkError):
        crosswalk.compare(tmp_path, tiny=True)


def test_problems_of_the_config_are_said_of_the_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["llama"] | {"strange_key": 3}, indent=1))
    with pytest.raises(CrosswalkError, match="`strange_key` = 3 has no counterpart") as caught:
        crosswalk.compare(tmp_path, tiny=True)
    position = caught.value.diagnostics[0].position
    assert position is not None
    assert position.file == str(tmp_path / "config.json")
    assert crosswalk.compare(tmp_path, tiny=True, keep="strange_key").same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dst": "x", "tiny": True}, "a tiny copy has no conversion yet"),
        ({"tokens": 0}, "0 tokens are too few"),
        ({"tokens": 10**20}, "100000000000000000000 tokens are too many"),
    ],
)
def test_wrong_use(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CrosswalkError, match=message) as caught:
        crosswalk.compare(tmp_path, **options)
    assert caught.value.diagnostics[0].code == "usage/compare"


def test_the_two_may_stand_the_other_way_round(tmp_path: Path) -> None:
    crosswalk.convert(_checkpoint(tmp_path / "hf"), tmp_path / "native")
    found = crosswalk.compare(tmp_path / "native", tmp_path / "hf")
    assert found == crosswalk.compare(tmp_path / "hf", tmp_path / "native")
    assert found.same
    with pytest.raises(CrosswalkError, match="no class of transformers can run it") as caught:
        crosswalk.compare(tmp_path / "native")
    assert "give the Hugging Face checkpoint" in str(caught.value.diagnostics[0].hint)
    with pytest.raises(CrosswalkError, match="no class of transformers can run it"):
        crosswalk.compare(tmp_path / "native", tmp_path / "native")


# the command


def test_the_command_says_what_differs_and_exits_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(_checkpoint(tmp_path))
    assert run_command(cli, ["compare", source]) == 0
    text = capsys.readouterr().out
    assert "qwen3: Qwen3ForCausalLM and the reference, 64 tokens, fp32" in text
    assert "the same, within 0.0001" in text
    assert run_command(cli, ["compare", source, "--tolerance", "1e-12", "--tokens", "9"]) == 1
    text = capsys.readouterr().out
    assert "9 tokens" in text
    assert "differs first" in text
    assert "not the same: `decoder.0` differs by more than 1e-12" in text
    assert run_command(cli, ["compare", source, source, "--tiny"]) == 2
    assert "leave out DST or --tiny" in capsys.readouterr().err


def test_help_is_quick_and_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, crosswalk.cli.commands; print({'torch', 'transformers', 'rich'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert found.stdout.strip() == "set()"


def test_hidden_states_of_another_size_are_said_apart_from_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the trainer's Granite are those of the class divided by a number, also where the MLP is wrong."""
    oracles.make_checkpoint(tmp_path / "hf", families.CONFIGS["granite"])
    text = (Path(catalog().mapping("granite").file)).read_text()
    swapped = '\nmlp:\n  tensors:\n    "{gate_proj=up|up_proj=gate}": layer_1\n'
    (tmp_path / "granite.yaml").write_text(text + swapped)
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(tmp_path))
    catalog.cache_clear()
    try:
        found = crosswalk.compare(tmp_path / "hf", tokens=19)
    finally:
        catalog.cache_clear()
    assert found.first == "embeddings"
    (note,) = found.notes
    assert note.startswith("the embeddings are 4.54545 times those of the class")  # 1 / 0.22
    assert note.endswith("as such, the first to differ is `decoder.0`")
