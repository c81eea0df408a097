"""Cases that differ in a tensor name only: reading takes the one that config.json says, writing remembers it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_checkpoints import LLAMA, MIXER, CommandLine, Tensors, config_of, make, metadata, tensors_of

import crosswalk
from crosswalk.compiler.config import read, write
from crosswalk.jobs.formats import catalog
from crosswalk.runtime import execute

#: Two ways to name the layers of a feed-forward, told by a key beside its sizes, and two kinds of layers.
NAMES = """crosswalk: 1
extends: llama
model_type: named
architecture: NamedForCausalLM

block:
  config: {mlp: mlp}

Mlp:
  by: naming
  cases:
    new: {of: mlp}
    old:
      of: mlp
      tensors: {"fc_{gate=gate|up=up}": layer_1, fc_out: layer_2}
"""
KINDS = """crosswalk: 1
extends: llama
model_type: kinds
architecture: KindsForCausalLM

Sequence:
  each: layer_names
  kinds:
    new: {}
    old:
      block: {tensors: {before: norm_1}}
"""
RENAMED = {"gate_proj": "fc_gate", "up_proj": "fc_up", "down_proj": "fc_out"}


@pytest.fixture(autouse=True)
def _formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "mappings"
    folder.mkdir()
    (folder / "named.yaml").write_text(NAMES)
    (folder / "kinds.yaml").write_text(KINDS)
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(folder))
    catalog.cache_clear()
    yield
    catalog.cache_clear()


def _named(naming: str) -> dict[str, Any]:
    config = copy.deepcopy(LLAMA) | {"model_type": "named", "architectures": ["NamedForCausalLM"]}
    inner = {key: config.pop(key) for key in ("intermediate_size", "hidden_act", "mlp_bias")}
    return config | {"mlp": {"naming": naming, **inner}}


def _kinds(*kinds: str) -> dict[str, Any]:
    names = {"model_type": "kinds", "architectures": ["KindsForCausalLM"], "layer_names": list(kinds)}
    return copy.deepcopy(LLAMA) | names


def _old_names(name: str) -> str:
    for new, old in RENAMED.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _checkpoint(path: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config, indent=2))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "model.safetensors", {"format": "pt"})
    return path


def _source(tmp_path: Path, naming: str) -> Path:
    given = tensors_of(make(tmp_path / "llama"))
    tensors = {_old_names(name) if naming == "old" else name: tensor for name, tensor in given.items()}
    return _checkpoint(tmp_path / "source", _named(naming), tensors)


def _tensors(tmp_path: Path, *old: int) -> Tensors:
    """Those of a Llama, with the first norm of the layers ``old`` under its other name."""
    found = tensors_of(make(tmp_path / "llama"))
    pattern = re.compile(rf"layers\.({'|'.join(map(str, old)) or 'none'})\.input_layernorm")
    return {pattern.sub(r"layers.\1.before", name): tensor for name, tensor in found.items()}


def _same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("naming", ["new", "old"])
def test_the_case_that_config_json_says_is_read_and_written_back(
    naming: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = CommandLine(capsys)
    source = _source(tmp_path, naming)
    tensors = tensors_of(source)
    assert command("convert", source, tmp_path / "native").code == 0
    plain = tensors_of(tmp_path / "native")
    assert command("convert", tmp_path / "llama", tmp_path / "expected").code == 0
    assert _same(plain, tensors_of(tmp_path / "expected"))
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert _same(tensors_of(tmp_path / "back"), tensors)
    assert command("verify", source, tmp_path / "native").code == 0
    assert command("verify", tmp_path / "native", tmp_path / "back").code == 0


@pytest.mark.parametrize("naming", ["new", "old"])
def test_the_case_of_the_origin_is_remembered_for_another_config(
    naming: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where config.json is written anew, because the model is no longer what the old one says."""
    command = CommandLine(capsys)
    source = _source(tmp_path, naming)
    tensors = tensors_of(source)
    assert command("convert", source, tmp_path / "native").code == 0
    metadata(*MIXER, "rotary", theta=777.0)(tmp_path / "native")
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    config = config_of(tmp_path / "back")
    assert config["mlp"]["naming"] == naming
    assert config["rope_parameters"]["rope_theta"] == 777.0
    assert _same(tensors_of(tmp_path / "back"), tensors)


def test_without_an_origin_the_first_case_is_written_with_its_names() -> None:
    native = crosswalk.import_config(_named("old"))
    assert crosswalk.export_config(native, "named")["mlp"]["naming"] == "new"
    plan = crosswalk.compile_plan(native, "named", "hf")
    assert {name for name in (t.name for t in plan.targets) if "layers.1.mlp" in name} == {
        f"model.layers.1.mlp.{name}.weight" for name in RENAMED
    }


def test_the_tensors_of_another_case_than_the_config_says_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _checkpoint(tmp_path / "source", _named("old"), tensors_of(make(tmp_path / "llama")))
    ran = CommandLine(capsys)("convert", source, tmp_path / "native")
    assert ran.code == 1
    assert "fc_gate.weight` [37, 30] is missing" in ran.err


@pytest.mark.parametrize("old", [(), (1,), (0, 2), (0, 1, 2)], ids=str)
def test_kinds_of_layers_that_differ_in_a_name_only_come_back(
    old: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = CommandLine(capsys)
    config = _kinds(*("old" if layer in old else "new" for layer in range(3)))
    source = _checkpoint(tmp_path / "source", config, _tensors(tmp_path, *old))
    assert command("convert", source, tmp_path / "native").code == 0
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert config_of(tmp_path / "back") == config
    assert _same(tensors_of(tmp_path / "back"), tensors_of(source))


def test_a_model_whose_layers_are_listed_otherwise_is_filled_from_each_kind(tmp_path: Path) -> None:
    """One block for all layers, as a trainer lists them, where the checkpoint has two kinds."""
    config = _kinds("new", "old", "new")
    native = crosswalk.import_config(_kinds("new", "new", "new"))
    assert native["decoder"]["type"] == "fixed"
    plan = crosswalk.compile_plan(config, native_config=native)
    tensors = _tensors(tmp_path, 1)
    found = dict(execute(plan, tensors))
    assert torch.equal(found["decoder.1.norm_1.weight"], tensors["model.layers.1.before.weight"])
    assert torch.equal(found["decoder.2.norm_1.weight"], tensors["model.layers.2.input_layernorm.weight"])


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a config was read and how often one was written."""
    counted = {"read": 0, "write": 0}

    def count(which: str, walk: Any) -> Any:
        def counting(*arguments: Any) -> Any:
            counted[which] += 1
            return walk(*arguments)

        return counting

    monkeypatch.setattr(read._Read, "__init__", count("read", read._Read.__init__))
    monkeypatch.setattr(write._Write, "__init__", count("write", write._Write.__init__))
    return counted


def test_a_conversion_reads_a_config_at_most_once_and_writes_one_at_most_once(
    folds: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, source = CommandLine(capsys), make(tmp_path / "source")
    assert command("convert", source, tmp_path / "native").code == 0
    assert folds == {"read": 1, "write": 0}
    folds |= {"read": 0, "write": 0}
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert folds == {"read": 1, "write": 1}  # the config.json of the origin, and the new one


def test_what_is_written_of_a_native_config_alone_is_read_again(folds: dict[str, int]) -> None:
    """The config with both dialects in it, and each of the two alone, must be the model that was written."""
    native = crosswalk.import_config(LLAMA)
    folds |= {"read": 0, "write": 0}
    crosswalk.compile_plan(native, "llama", "hf")
    assert folds == {"read": 3, "write": 3}
