"""The build step: what it writes, what it says, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crosswalk.cli.build import command
from crosswalk.cli.commands import run_command
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.plan.model import Plan

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 103,
    "hidden_size": 39,
    "intermediate_size": 55,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "dtype": "bfloat16",
}


def test_every_shipped_mapping_compiles_and_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command, ["-o", str(tmp_path / "out")]) == 0
    written = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()}
    concrete = [name for name in catalog().names() if not catalog().mapping(name).abstract]
    assert sorted(written) == sorted(concrete)
    assert written["llama"]["architecture"] == "LlamaForCausalLM"
    # Each relation says where it was written, so that a tool can lead back to the line.
    head_dim = [r for r in _nodes(written["llama"]) if r.get("theirs") == ["head_dim"]]
    assert [r["node"] for r in head_dim] == ["FieldRule"]
    assert head_dim[0]["default"] == {"expression": "hidden_size / num_attention_heads"}
    assert head_dim[0]["position"].startswith("llama.yaml:")
    assert "llama" in capsys.readouterr().out


def test_the_same_mapping_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        assert run_command(command, ["qwen2", "-o", str(tmp_path / folder)]) == 0
    assert (tmp_path / "first/qwen2.json").read_bytes() == (tmp_path / "second/qwen2.json").read_bytes()


def test_a_config_gives_a_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    arguments = ["llama", "--config", str(tmp_path / "config.json"), "--to", "fast_llm", "-o", str(tmp_path / "p.json")]
    assert run_command(command, arguments) == 0
    plan = Plan.from_json((tmp_path / "p.json").read_text())
    assert plan.verify().bijective
    assert {t.dtype for t in plan.sources} == {"BF16"}
    (target,) = (t for t in plan.targets if t.name == "decoder.1.mixer.key_value.weight")
    assert target.shape == (2 * 2 * 10, 39)


def test_a_file_of_ones_own_is_compiled_and_its_mistakes_are_all_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = "crosswalk: 1\nextends: llama\narchitecture: MineForCausalLM\nmodel_type: mine\n"
    (tmp_path / "mine.yaml").write_text(good)
    assert run_command(command, [str(tmp_path / "mine.yaml")]) == 0
    (tmp_path / "mine.yaml").write_text(good + "attention:\n  config:\n    a: headz\n    b: head_sise\n")
    capsys.readouterr()
    assert run_command(command, [str(tmp_path / "mine.yaml")]) == 1
    shown = capsys.readouterr().err
    assert "mine.yaml:7:8" in shown
    assert "mine.yaml:8:8" in shown
    assert "`heads`" in shown
    assert "`head_size`" in shown


def _nodes(value: object) -> list[dict]:
    if isinstance(value, dict):
        return [value, *(node for item in value.values() for node in _nodes(item))]
    if isinstance(value, list):
        return [node for item in value for node in _nodes(item)]
    return []
