"""The same bad checkpoint gives the same diagnostics, positions included, whoever opens it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import edit_config, edit_tensors, make

import crosswalk
from crosswalk.runtime.errors import Diagnostic

Entry = Callable[[Path], object]

#: What opens a Hugging Face checkpoint.
ENTRIES: dict[str, Entry] = {
    "check": crosswalk.check,
    "convert": lambda path: crosswalk.convert(path, path.with_name("out")),
    "verify": lambda path: crosswalk.verify(path, _native(path)),
    "load": lambda path: crosswalk.load(path, dict[str, torch.Tensor]()),
    "reader": crosswalk.reader,
}
#: What opens its config only.
CONFIG_ENTRIES: dict[str, Entry] = {
    "import_config": lambda path: crosswalk.import_config(_config(path)),
    "compile_plan": lambda path: crosswalk.compile_plan(_config(path)),
}


def _config(path: Path) -> Any:
    return json.loads((path / "config.json").read_text())


def _native(path: Path) -> Path:
    out = path.with_name("native")
    if not out.exists():
        crosswalk.convert(make(path.with_name("good")), out)
    return out


def _problems(entry: Entry, path: Path) -> list[Diagnostic]:
    with pytest.raises(crosswalk.CrosswalkError) as raised:
        entry(path)
    return list(raised.value.diagnostics)


def _place(path: Path, key: str) -> str:
    """``file:line:column`` of a key of config.json."""
    lines = (path / "config.json").read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if f'"{key}"' in line]
    return f"{path}/config.json:{number}:{lines[number - 1].index(key)}"


def _spoil(path: Path) -> None:
    """An unknown key; a tensor of another shape, one too many and one too few."""
    edit_config(path, lambda config: config.update(hidden_dropout=0.25))

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:17]
        tensors["stray.weight"] = torch.ones(5)
        del tensors["model.layers.1.mlp.up_proj.weight"]

    edit_tensors(path, edit)


def test_a_bad_key_and_bad_tensors_are_the_same_problems_for_every_entry(tmp_path: Path) -> None:
    path = make(tmp_path / "bad")
    _spoil(path)
    expected = _problems(crosswalk.check, path)
    assert [(d.code, d.message.split("`")[1]) for d in expected] == [
        ("config/unknown-key", "hidden_dropout"),
        ("tensors/missing", "model.layers.1.mlp.up_proj.weight"),
        ("tensors/unexpected", "stray.weight"),
        ("tensors/shape", "model.norm.weight"),
    ]
    assert str(expected[0].position) == _place(path, "hidden_dropout")
    assert all(found.position for found in expected)
    for name, entry in ENTRIES.items():
        assert _problems(entry, path) == expected, name


def test_a_missing_key_and_a_wrong_value_are_the_same_problems_for_every_entry(tmp_path: Path) -> None:
    path = make(tmp_path / "bad")
    config = _config(path)
    config["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 23456.0}  # without its factor
    (path / "config.json").write_text(json.dumps(config | {"hidden_act": "mish", "hidden_dropout": 0.25}, indent=2))
    expected = _problems(crosswalk.check, path)
    assert {d.code for d in expected} == {"config/missing-key", "config/choice", "config/unknown-key"}
    for name, entry in ENTRIES.items():
        assert _problems(entry, path) == expected, name
    for name, entry in CONFIG_ENTRIES.items():
        assert [(d.code, d.message) for d in _problems(entry, path)] == [(d.code, d.message) for d in expected], name


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}'])
def test_a_config_that_is_none_is_the_same_problem_for_every_entry(tmp_path: Path, text: str) -> None:
    path = make(tmp_path / "bad")
    (path / "config.json").write_text(text)
    expected = _problems(crosswalk.check, path)
    for name, entry in ENTRIES.items():
        assert _problems(entry, path) == expected, name


def test_a_directory_that_is_none_is_the_same_problem_for_every_entry(tmp_path: Path) -> None:
    expected = _problems(crosswalk.check, tmp_path / "nowhere")
    assert [(d.code, str(d.position)) for d in expected] == [("source/not-a-directory", f"{tmp_path}/nowhere")]
    for name, entry in ENTRIES.items():
        assert _problems(entry, tmp_path / "nowhere") == expected, name
