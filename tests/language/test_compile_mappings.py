"""The build step: what it writes, what it says, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crosswalk.cli.build import command
from crosswalk.cli.commands import run_command
from crosswalk.runtime.errors import CrosswalkError
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


def test_classes_that_transformers_does_not_have_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = "crosswalk: 1\nextends: llama\nmodel_type: other\n"
    (tmp_path / "other.yaml").write_text(
        f"{header}architecture: LamaForCausalLM\nconfig_class: transformers.LlamaConfg\n"
    )
    with pytest.raises(CrosswalkError) as error:
        command.main(args=[str(tmp_path / "other.yaml")], standalone_mode=False)
    found = error.value.diagnostics
    assert [(p.code, p.position.line) for p in found if p.position] == [
        ("mapping/no-such-class", 5),
        ("mapping/no-such-class", 4),
    ]
    assert "did you mean `LlamaConfig`?" in str(found[0].hint)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main(args=[str(tmp_path / "other.yaml")], standalone_mode=False) == 0
