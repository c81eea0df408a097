"""Checkpoints of every layout, in every kind of directory: each way there and back, against data that is not ours.

``golden_torchtitan`` and ``golden_megatron`` were recorded with the trainers' own classes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from comparing import tensor_differences
from golden_cases import load_tensors
from safetensors.torch import save_file
from small_checkpoints import LLAMA, CommandLine, assert_refused, contents, make, tensors_of
from titan_cases import FORMATS, hugging_face, state_dict, tensors

import crosswalk as cw
from crosswalk.runtime.errors import CrosswalkError

MEGATRON = Path(__file__).parents[1] / "golden_megatron"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def crosswalk(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def by_torch(folder: Path, like: Tensors) -> Tensors:
    """What torch's own ``dcp.load`` finds in a folder for a state dict."""
    state = {name: torch.full_like(tensor, 9) for name, tensor in like.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is not distributed
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = hugging_face(request.param, tmp_path / "hf")
    (path / "tokenizer.json").write_text("{}")
    return path


every_case = pytest.mark.parametrize(("source", "name"), [(name, name) for name in FORMATS], indirect=["source"])


# torchtitan.


@every_case
def test_to_torchtitan_and_back(source: Path, name: str, tmp_path: Path) -> None:
    short = FORMATS[name][0].removeprefix("torchtitan_")
    there = cw.convert(source, tmp_path / "titan", to="torchtitan")
    assert (there.format, there.to, there.verdict) == (short, "torchtitan", "bijective")
    zeros = {"__1_0.distcp"} if short in ("qwen3_moe", "gpt_oss") else set()  # of balanced routers
    names = {".metadata", "__0_0.distcp", "crosswalk.yaml", "tokenizer.json"} | zeros
    assert set(os.listdir(tmp_path / "titan")) == names
    expected = state_dict(name)
    assert tensor_differences(by_torch(tmp_path / "titan", expected), expected) == []
    back = cw.convert(tmp_path / "titan", tmp_path / "back")
    assert (back.format, back.to, back.defaults) == (short, "hf", {})
    assert contents(tmp_path / "back") == contents(source)
    assert cw.verify(source, tmp_path / "titan").targets == there.targets
    assert cw.verify(tmp_path / "titan", tmp_path / "back").targets == back.targets


@pytest.mark.parametrize(
    ("source", "name"),
    [(name, name) for name in ("llama3_separate_tied", "qwen3_moe", "deepseek_v3_mtp", "gpt_oss")],
    indirect=["source"],
)
def test_as_safetensors_and_from_kind_to_kind(source: Path, name: str, tmp_path: Path) -> None:
    cw.convert(source, tmp_path / "files", to="torchtitan", kind="safetensors")
    stored = tensors_of(tmp_path / "files")
    expected = {key: value for key, value in state_dict(name).items() if key in stored}
    assert tensor_differences(stored, expected) == []
    cw.convert(tmp_path / "files", tmp_path / "folder", to="torchtitan", kind="dcp")
    assert tensor_differences(by_torch(tmp_path / "folder", state_dict(name)), state_dict(name)) == []
    cw.verify(tmp_path / "files", tmp_path / "folder")
    cw.convert(tmp_path / "folder", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


def test_the_buffers_of_balanced_routers(tmp_path: Path) -> None:
    """Models of torchtitan have them; the class has no place for them, and does not miss them while they are zeros."""
    original = hugging_face("qwen3_moe", tmp_path / "hf")
    cw.convert(original, tmp_path / "titan", to="torchtitan")
    name = "layers.0.moe.expert_bias_E"
    like = state_dict("qwen3_moe") | {name: torch.empty(5)}
    state = by_torch(tmp_path / "titan", like)
    assert state[name].tolist() == [0.0] * 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=tmp_path / "stock", no_dist=True)
        dcp.save(state | {name: torch.arange(5.0)}, checkpoint_id=tmp_path / "trained", no_dist=True)
    report = cw.convert(tmp_path / "stock", tmp_path / "out", layout="torchtitan", like=original)
    assert f"left out, zeros: `{name}`" in report.notes
    assert tensor_differences(tensors_of(tmp_path / "out"), tensors("qwen3_moe", "hf")) == []
    trained = tmp_path / "trained"
    with pytest.raises(CrosswalkError, match=rf"`{name}` is not zero, and changes what.*\[lossy/state\]"):
        cw.check(trained, layout="torchtitan", like=original)
    report = cw.check(trained, layout="torchtitan", like=original, allow_lossy=True)
    assert f"left out, not all zeros: `{name}`" in report.notes


def test_tied_tensors_of_a_folder_are_compared(tmp_path: Path) -> None:
    name = "llama3_separate_tied"
    state = state_dict(name)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    original = hugging_face(name, tmp_path / "hf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=tmp_path / "step", no_dist=True)
    with pytest.raises(CrosswalkError, match=r"`lm_head\.weight` is not equal to `tok_embeddings\.weight`"):
        cw.convert(tmp_path / "step", tmp_path / "out", layout="torchtitan", like=original)
    cw.convert(tmp_path / "step", tmp_path / "out", layout="torchtitan", like=original, take_tied=True)
    assert tensor_differences(tensors_of(tmp_path / "out"), tensors(name, "hf")) == []


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"optimizer.a": torch.ones(2)}, checkpoint_id=tmp_path / "step", no_dist=True)
    with pytest.raises(CrosswalkError, match=r"is one of a model: `optimizer.*\[dcp/no-model\]"):
        cw.convert(tmp_path / "step", tmp_path / "out", layout="torchtitan")


# From one trainer to another.


def test_from_megatron_to_another_trainer(tmp_path: Path) -> None:
    """What a GPTModel holds, in safetensors files, with its vocabulary padded for the run."""
    case = json.loads((MEGATRON / "llama_untied" / "case.json").read_text())
    original = tmp_path / "hf"
    original.mkdir()
    (original / "config.json").write_text(json.dumps(case["hf_config"]))
    save_file(
        load_tensors(MEGATRON / "llama_untied" / "hf.safetensors"), original / "model.safetensors", {"format": "pt"}
    )
    cw.convert(original, tmp_path / "megatron", to="megatron", kind="safetensors", pad={"vocab": 64})
    found = tensors_of(tmp_path / "megatron")
    expected = load_tensors(MEGATRON / "llama_untied" / "megatron.safetensors")
    expected = {key: value for key, value in expected.items() if not key.endswith("_extra_state")}
    for key, value in expected.items():
        assert torch.equal(found[key][: len(value)], value)
    there = cw.convert(tmp_path / "megatron", tmp_path / "fast", to="fast_llm", pad={"vocab": 16})
    assert there.verdict.startswith("bijective")
    cw.convert(original, tmp_path / "direct", pad={"vocab": 16})
    assert tensor_differences(tensors_of(tmp_path / "fast"), tensors_of(tmp_path / "direct")) == []
    cw.convert(tmp_path / "fast", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(original)


def test_what_the_other_trainer_cannot_hold_is_named(tmp_path: Path) -> None:
    make(tmp_path / "hf", **{"attention_bias": True})
    cw.convert(tmp_path / "hf", tmp_path / "fast")
    with pytest.raises(CrosswalkError, match="attention_bias"):
        cw.convert(tmp_path / "fast", tmp_path / "titan", to="torchtitan")
    assert not (tmp_path / "titan").exists()


# A layout of one's own.

LAYOUT = """
crosswalk: 1
layout: mine
root: net
types:
  net:
    model: net
    fields:
      stack: Layers = fixed
      width: int > 0 = 8
      words: int > 0 = 8
      heads: int > 0 = 1
      groups: int > 0 = 1
      head_size: int > 0 = 8
      inner: int > 0 = 8
      eps: float > 0 = 1.0e-05
      theta: float > 0 = 10000.0
      tied: bool = false
    axes:
      width: width
      words: words
      head: (group per_group)
      group: groups
      per_group: heads / groups
      head_size: head_size
      inner: inner
    holes: {i: stack}
    children: {"block.{i}": "stack.{i}"}
    parameters:
      words: words width
      out: words <- width
      last: width
    ties: {out: {same_as: words, if: tied}}
  block:
    parameters:
      first: width
      qkv: "(group [q: per_group head_size | k: head_size | v: head_size]) <- width"
      o: width <- (head head_size)
      second: width
      gate_up: "([gate | up] inner) <- width"
      down: width <- inner
families:
  Layers:
    default: fixed
    sequence: true
    types:
      fixed: {fields: {block: block, num_blocks: int >= 0 = 2}}
      pattern: {fields: {blocks: dict of block, pattern: list of str, num_blocks: int >= 0 = 2}}
"""
MAPPING = """
crosswalk: 1
extends: huggingface
layout: mine
architecture: LlamaForCausalLM
model_type: llama
keeps: [attention_dropout]
net:
  config:
    hidden_size: width
    vocab_size: words
    num_attention_heads: heads
    num_key_value_heads: groups
    head_dim: head_size
    intermediate_size: inner
    rms_norm_eps: eps
    rope_parameters: {only: {rope_type: default, rope_theta: 23456.0}}
    tie_word_embeddings: tied
    hidden_act: {const: silu}
    attention_bias: {only: false}
    mlp_bias: {only: false}
  sets: {theta: 23456.0}
  tensors:
    model:
      embed_tokens.weight: words
      layers.{i}: block.{i}
      norm.weight: last
    lm_head.weight: out
Layers:
  count: num_hidden_layers
block:
  tensors:
    input_layernorm.weight: first
    self_attn:
      "{q|k|v}_proj.weight": qkv
      o_proj.weight: o
    post_attention_layernorm.weight: second
    mlp:
      "{gate|up}_proj.weight": gate_up
      down_proj.weight: down
"""


def test_a_layout_of_ones_own_from_outside_the_package(tmp_path: Path) -> None:
    mine, home = tmp_path / "mappings", tmp_path / "elsewhere"
    (mine / "layouts").mkdir(parents=True)
    home.mkdir()
    (mine / "layouts" / "mine.yaml").write_text(LAYOUT)
    (mine / "mine_llama.yaml").write_text(MAPPING)
    make(tmp_path / "hf")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CROSSWALK_MAPPINGS")}

    def run(*arguments: str) -> str:
        code = "from crosswalk.cli.commands import main; main()"
        command = [sys.executable, "-c", code, *arguments, "--mappings", str(mine)]
        ran = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "llama -> mine" in run("convert", "../hf", "../own", "--to", "mine")
    weights = tensors_of(tmp_path / "hf")
    own = tensors_of(tmp_path / "own")
    heads = [weights[f"model.layers.1.self_attn.{name}_proj.weight"].view(2, -1, 14, 30) for name in "qkv"]
    assert torch.equal(own["block.1.qkv"], torch.cat(heads, 1).reshape(-1, 30))
    run("convert", "../own", "../megatron", "--to", "megatron")
    run("convert", "../megatron", "../titan", "--to", "torchtitan")
    run("convert", "../titan", "../folder", "--to", "mine", "--as", "dcp")
    run("convert", "../folder", "../back")
    assert contents(tmp_path / "back") == contents(tmp_path / "hf")


# What is refused.


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ({"crosswalk": 2}, "`crosswalk` must be 1; it is 2"),
        ({"layout": None}, "`layout` is missing"),
        ({"layout": "titan"}, "there is no layout `titan`"),
        ({"model": "llama9"}, "layout `torchtitan` has no model `llama9`"),
        ({"config": []}, "`config` must be a mapping"),
        ({"origin": {"padded": 3}}, "`origin.padded` must be a mapping"),
        ({"origin": {"config": "{"}}, "`origin.config`"),
    ],
)
def test_a_crosswalk_yaml_that_is_wrong(
    damage: dict[str, Any], expected: str, tmp_path: Path, crosswalk: CommandLine
) -> None:
    make(tmp_path / "hf")
    cw.convert(tmp_path / "hf", tmp_path / "titan", to="torchtitan")
    file = tmp_path / "titan" / "crosswalk.yaml"
    document = yaml.safe_load(file.read_text())
    if isinstance(damage.get("origin"), dict):
        damage = {"origin": document["origin"] | damage["origin"]}
    file.write_text(yaml.safe_dump(document | damage))
    ran = crosswalk("convert", str(tmp_path / "titan"), str(tmp_path / "out"))
    assert_refused(ran, expected)
    assert "crosswalk.yaml:" in ran.err
    assert not (tmp_path / "out").exists()


def test_what_makes_no_sense_is_refused(tmp_path: Path, crosswalk: CommandLine) -> None:
    make(tmp_path / "hf", LLAMA)
    cw.convert(tmp_path / "hf", tmp_path / "titan", to="torchtitan")
    out = str(tmp_path / "out")
    for source, options, expected in (
        ("titan", ("--to", "torchtitan"), "this is a torchtitan checkpoint (.metadata) already"),
        ("titan", ("--layout", "fast_llm"), "this is said to be of layout `torchtitan`, not `fast_llm`"),
        ("titan", ("--as", "dcp"), "what goes to `hf` is a Hugging Face directory"),
        ("titan", ("--text-only",), "a text tower is taken from a Hugging Face checkpoint"),
        ("hf", ("--to", "hf", "--as", "dcp"), "this is a Hugging Face checkpoint (config.json) already"),
    ):
        assert_refused(crosswalk("convert", str(tmp_path / source), out, *options), expected, code=2)


def test_compare_takes_any_layout(tmp_path: Path, crosswalk: CommandLine) -> None:
    pytest.importorskip("transformers")
    make(tmp_path / "hf")
    cw.convert(tmp_path / "hf", tmp_path / "titan", to="torchtitan")
    ran = crosswalk("compare", str(tmp_path / "hf"), str(tmp_path / "titan"))
    assert ran.code == 0, ran.err
    assert "the same, within" in ran.out
