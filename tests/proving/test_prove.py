"""``prove``: mistakes that compile, lose nothing and come back byte for byte are found by what the class knows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import oracles
import pytest
from family_cases import CONFIGS as FAMILIES
from golden_cases import CASES
from real_configs import CONFIGS, llava_hybrid

import crosswalk
from crosswalk.cli.commands import cli, run_command
from crosswalk.jobs.formats import catalog as crosswalk_catalog
from crosswalk.proving.findings import Proof
from crosswalk.runtime.errors import CrosswalkError

MAPPINGS = Path(__file__).parents[2] / "mappings"
pytestmark = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="classes and defaults of transformers 5")
EVERY = {**CONFIGS, **FAMILIES}


def config_file(directory: Path, model: str) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps(EVERY[model]))
    return file


# ---- shipped mappings ------------------------------------------------------------------------------------------------

#: The model of a format where it is not the first that tests have of it.
OTHERS = {"gemma4": "gemma4-moe-k-is-v", "nemotron": "nemotron-other", "phi3": "phi3-partial"}
FORMATS = {name: crosswalk_catalog().mapping(name) for name in crosswalk_catalog().formats()}
WITH_CLASS = [name for name, mapping in FORMATS.items() if str(mapping.config_class).startswith("transformers.")]
#: Formats whose class comes with checkpoints, and such a checkpoint.
ALONE = {
    "apriel2": "apriel2_mm_fixed", "apriel2_text": "apriel2_stochastic", "apriel_hybrid_ssm": "apriel_t_m2",
    "diffusion_llama": "diffusion_llama_base", "dream": "dream_base", "mtp_llama": "mtp_llama_3heads",
    "llava_hybrid_ssm": "",
}  # fmt: skip


def test_every_shipped_format_is_proved_one_way_or_the_other() -> None:
    assert sorted((*WITH_CLASS, *ALONE)) == sorted(FORMATS)


@pytest.mark.parametrize("name", WITH_CLASS)
def test_nothing_is_found_in_a_shipped_mapping(name: str, tmp_path: Path) -> None:
    """One of the keys of each, another for every format; ``crosswalk prove`` tries them all."""
    mapping = FORMATS[name]
    config = {"architectures": [mapping.architecture], "model_type": mapping.model_types[0]}
    known = [OTHERS[name]] if name in OTHERS else [model for model in EVERY if model.partition("-")[0] == name]
    (tmp_path / "config.json").write_text(json.dumps(EVERY[known[0]] if known else config))
    proof = crosswalk.prove(name, tmp_path, keys=1, seed=len(name), logits=name == "llama")
    assert proof.holds, [str(found) for found in proof.findings]
    assert proof.reference == mapping.architecture
    assert not proof.alone
    assert all(proof.tried[check] for check in ("exported", "names"))
    assert bool(proof.tried["logits"]) == (name == "llama")


@pytest.mark.parametrize("name", ALONE)
def test_without_the_class_what_can_be_proved_is(name: str, tmp_path: Path) -> None:
    config = CASES[ALONE[name]].hf_config() if ALONE[name] else llava_hybrid()
    (tmp_path / "config.json").write_text(json.dumps(config))
    proof = crosswalk.prove(name, tmp_path, keys=2)
    assert proof.holds, [str(found) for found in proof.findings]
    assert proof.alone
    assert all(proof.tried[check] for check in ("exported", "names", "native"))
    assert not proof.tried["left out"]
    assert f"`{FORMATS[name].architecture}` comes with its checkpoints, and was not asked" in proof.notes[0]


def test_without_the_class_an_export_that_is_read_as_another_model_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (MAPPINGS / "mtp_llama.yaml").read_text()
    line = "prediction_heads: {is: head.prediction_heads, default: 1}"
    assert line in text
    (tmp_path / "mtp_llama.yaml").write_text(text.replace(line, line[:-1] + ", omit: 4}"))
    config = CASES["mtp_llama_3heads"].hf_config()
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["prove", str(tmp_path / "mtp_llama.yaml"), str(tmp_path), "--keys", "prediction_heads"]
    assert run_command(cli, arguments) == 1
    out = capsys.readouterr().out
    assert out.startswith("mtp_llama: by itself\n`MTPLlamaForCausalLM` comes with its checkpoints, and was not asked")
    assert "prediction_heads" in out


# ---- mistakes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """``changes`` of the text of ``mapping``, tried at ``keys`` of ``model``: the ``code`` of what is found, and words
    of its line and of its message."""

    mapping: str
    changes: dict[str, str]
    model: str
    keys: tuple[str, ...]
    code: str
    line: str = ""
    words: str = ""
    logits: bool = False


HEADS = "head_dim: {is: head_size, default: = hidden_size / num_attention_heads}"
NORM = "  sets: {normalization: layer_norm}\n"
HEAD = "  sets: {head.normalization: layer_norm}"
FULL, SLIDING = "    full_attention:", "    sliding_attention:"
MISTAKES = {
    "another default": Mistake(
        "starcoder2", {"head_groups, default: 2}": "head_groups, default: 3}"},
        "starcoder2", ("num_key_value_heads",), "prove/default", "num_key_value_heads", "the class takes 2",
    ),
    "a default that forgets another key": Mistake(
        "ministral",
        {"'full_attention' if sliding_window == null else 'sliding_attention'": "'sliding_attention'"},
        "ministral", ("layer_types", "sliding_window"), "prove/default", "Sequence:", "with `sliding_window` = null",
    ),
    "a default of one way of rotation": Mistake(
        "llama", {"beta_fast, default: 32.0": "beta_fast, default: 6.0"},
        "llama", ("rope_parameters",), "prove/logits", "crosswalk: 1", "yarn", logits=True,
    ),
    "the default of another model": Mistake(
        "mixtral", {"rope_theta: 1000000.0": "rope_theta: 10000.0"},
        "mixtral", ("rope_parameters",), "prove/default", "rope_parameters", "1000000.0",
    ),
    "a size that is the one of a tiny model": Mistake(
        "llama", {HEADS: HEADS.replace("= hidden_size / num_attention_heads", "16")},
        "llama", ("head_dim",), "prove/default", "head_dim", "the mapping takes 16",
    ),
    "a key that matters is kept": Mistake(
        "starcoder2",
        {"    sliding_window: {is: window_size, default: null}\n": "", NORM: NORM + "  keeps: [sliding_window]\n"},
        "starcoder2", ("sliding_window",), "prove/ignored", "sliding_window", "`sliding_window` = 5",
    ),
    "a key that matters is dropped": Mistake(
        "qwen3_moe",
        {"{const: true, default: false, why: scores of the chosen experts add up to 1 in the trainer}": "~"},
        "qwen3_moe", ("norm_topk_prob",), "prove/ignored", "norm_topk_prob", "`norm_topk_prob` = false",
    ),
    "a key that kernels of attention alone look at": Mistake(
        "gemma",
        {"{only: [null, false], why: the format is that of a causal model}": "~"},
        "gemma", ("use_bidirectional_attention",), "prove/ignored", "use_bidirectional", "trains in another way",
    ),
    "a key that the class does not look at": Mistake(
        "qwen3_moe",
        {"config: {sliding_window: ~} ": "config: {sliding_window: {is: window_size, default: null}} ",
         "      sets: {window_size: null}\n": ""},
        "qwen3_moe", ("sliding_window",), "prove/idle", "sliding_window", "the class computes the same",
    ),
    "a key that is left out where the class takes something else": Mistake(
        "starcoder2", {"{is: window_size, default: null}": "{is: window_size, default: null, omit: 5}"},
        "starcoder2", ("sliding_window",), "prove/export", "", "would be read as null",
    ),
    "a field of no effect": Mistake(
        "qwen3_moe",
        {"config: {sliding_window: ~} ": "config: {sliding_window: {is: window_size, default: null}} ",
         "      sets: {window_size: null}\n": ""},
        "qwen3_moe", ("sliding_window",), "prove/native", "sliding_window", "the class computes the same with",
    ),
    "kinds of layers taken for each other": Mistake(
        "qwen2", {FULL: "    other:", SLIDING: FULL, "    other:": SLIDING},
        "qwen2-window", ("layer_types",), "prove/export", "", "the class computes something else",
    ),
    "tied where the class is not": Mistake(
        "starcoder2",
        {"{is: tied_embedding_weight, default: true}": "~", HEAD: HEAD[:-1] + ", tied_embedding_weight: true}"},
        "starcoder2", ("tie_word_embeddings",), "prove/names", "", "is tied to",
    ),
    "a tensor that is not there": Mistake(
        "starcoder2",
        {"gelu_pytorch_tanh}\n    use_bias: {is: add_linear_biases, default: true}\n  sets: {":
         "gelu_pytorch_tanh}\n    use_bias: ~\n  sets: {add_linear_biases: true, "},
        "starcoder2", ("use_bias",), "prove/names", "", "bias",
    ),
    "gate and up taken for each other": Mistake(
        "qwen3_moe", {"{gate|up}_proj": "{gate=up|up=gate}_proj"},
        "qwen3_moe", ("hidden_act",), "prove/logits", "", "from `decoder.0` on", True,
    ),
}  # fmt: skip


def found(mistake: Mistake, directory: Path) -> Proof:
    text = (MAPPINGS / f"{mistake.mapping}.yaml").read_text()
    for old, new in mistake.changes.items():
        assert old in text, old
        text = text.replace(old, new)
    (directory / f"{mistake.mapping}.yaml").write_text(text)
    file = config_file(directory, mistake.model)
    return crosswalk.prove(directory / f"{mistake.mapping}.yaml", file, keys=mistake.keys, logits=mistake.logits)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_that_compiles_and_loses_nothing_is_found(name: str, tmp_path: Path) -> None:
    mistake = MISTAKES[name]
    proof = found(mistake, tmp_path)
    of_code = [finding for finding in proof.findings if finding.code == mistake.code]
    assert [finding for finding in of_code if mistake.words in finding.message], [str(f) for f in proof.findings]
    assert not proof.holds
    position = of_code[0].position
    assert position is not None
    assert mistake.line in Path(position.file).read_text().splitlines()[position.line - 1]


def test_defaults_are_those_of_the_config_class_of_the_model_type(tmp_path: Path) -> None:
    """A family whose models are Llamas, with a config class of its own."""
    named = {"architectures": ["LlamaForCausalLM"], "model_type": "internlm3"}
    (tmp_path / "config.json").write_text(json.dumps(EVERY["llama"] | named))
    header = "crosswalk: 1\nextends: llama\narchitecture: LlamaForCausalLM\nmodel_type: internlm3\n"
    (tmp_path / "mine.yaml").write_text(f"{header}config_class: transformers.InternLM3Config\n")
    proof = crosswalk.prove(tmp_path / "mine.yaml", tmp_path, keys=["intermediate_size", "hidden_act"])
    (found,) = proof.findings
    assert found.code == "prove/default"
    assert "the class takes 10240" in found.message


def test_a_key_to_try_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(CrosswalkError, match=r"--keys: error: there is no key `hiden_act` to try \[usage/prove\]"):
        crosswalk.prove("llama", config_file(tmp_path, "llama"), keys=["hidden_size", "hiden_act"])


def test_what_is_refused_though_the_class_takes_it_is_a_warning(tmp_path: Path) -> None:
    proof = crosswalk.prove("qwen2", config_file(tmp_path, "qwen2-window"), keys=["sliding_window"])
    (warning,) = [found for found in proof.findings if found.code == "prove/default"]
    assert warning.severity == "warning"
    assert "`sliding_window` is required, it is absent" in warning.message
    assert proof.holds


@pytest.mark.parametrize(
    ("model", "key", "values"),
    [("granite", "residual_multiplier", {}), ("gpt2", "activation_function", {"activation_function": "gelu_new"})],
)
def test_what_is_computed_in_another_way_but_for_rounding_is_no_finding(
    model: str, key: str, values: dict[str, str], tmp_path: Path
) -> None:
    config_file(tmp_path, model).write_text(json.dumps(EVERY[model] | values))
    proof = crosswalk.prove(model, tmp_path, keys=[key])
    assert not proof.findings, [str(found) for found in proof.findings]
    assert proof.tried["exported"] > 1


def test_a_config_that_would_lose_something_is_proved_at_what_the_trainer_computes(tmp_path: Path) -> None:
    config_file(tmp_path, "starcoder2").write_text(json.dumps(EVERY["starcoder2"] | {"hidden_act": "gelu"}))
    proof = crosswalk.prove("starcoder2", tmp_path, keys=["hidden_act"])
    assert proof.notes == ['`hidden_act` is "gelu_pytorch_tanh" in the tiny model, as "gelu" loses something']
    assert proof.holds


def test_what_is_wrong_with_every_model_is_said_once(tmp_path: Path) -> None:
    text = (MAPPINGS / "qwen3.yaml").read_text()
    stated = "  sets: {query_norm: rms_norm, key_norm: rms_norm"
    (tmp_path / "qwen3.yaml").write_text(text.replace(stated, stated + ", dense_layer.bias.enabled: true"))
    config_file(tmp_path, "qwen3").write_text(json.dumps(EVERY["qwen3"] | {"attention_bias": False}))
    proof = crosswalk.prove(tmp_path / "qwen3.yaml", tmp_path, keys=["vocab_size"])
    messages = [found.message.partition(", of the model")[0] for found in proof.findings]
    assert len(messages) == len(set(messages)) > 0


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_the_command_shows_what_was_tried_and_each_finding_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path, "starcoder2")
    arguments = ["prove", "starcoder2", "--config", str(file), "--keys", "norm_epsilon"]
    assert run_command(cli, arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("starcoder2: held against Starcoder2ForCausalLM in a tiny model\n")
    assert out.endswith("\nnothing found\n")
    text = (MAPPINGS / "starcoder2.yaml").read_text()
    line = text[: text.index("norm_epsilon: {")].count("\n") + 1
    (tmp_path / "mine.yaml").write_text(text.replace("epsilon, default: 1.0e-05", "epsilon, default: 1.0e-06"))
    assert run_command(cli, ["prove", str(tmp_path / "mine.yaml"), str(tmp_path), "--keys", "norm_epsilon"]) == 1
    out = capsys.readouterr().out
    assert f"mine.yaml:{line}:5: error: without `norm_epsilon` the class takes 1e-05" in out
    assert f"  {line} |     norm_epsilon: {{is: epsilon, default: 1.0e-06}}\n" in out
    assert out.endswith("\n1 finding\n")


def test_wrong_usage_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config_file(tmp_path, "qwen3")
    assert run_command(cli, ["prove", "qwen3"]) == 2
    assert "give either CHECKPOINT or --config FILE" in capsys.readouterr().err
    with pytest.raises(
        CrosswalkError, match=r"the reference is that of layout `fast_llm`, not of `torchtitan` \[usage/prove\]"
    ):
        crosswalk.prove("torchtitan_qwen3", file, logits=True)
    with pytest.raises(CrosswalkError, match="there is no format `qwen33`"):
        crosswalk.prove("qwen33", file)
    with pytest.raises(CrosswalkError, match="must be"):
        crosswalk.prove("mixtral", file)
    file.write_text(json.dumps(EVERY["qwen3"] | {"architectures": ["NobodyForCausalLM"]}))
    with pytest.raises(CrosswalkError, match="has no class `NobodyForCausalLM`"):
        crosswalk.prove("qwen3", file)
