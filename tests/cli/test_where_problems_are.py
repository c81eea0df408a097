"""A rule that a config breaks: the message is at the key in the user's file, and names the line of the mapping too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden_cases import CASES
from safetensors.torch import save_file
from small_checkpoints import CommandLine

import crosswalk as api
from crosswalk.runtime.errors import CrosswalkError, Diagnostic

MAPPINGS = Path(__file__).parents[2] / "mappings"

#: Of transformers 4: sections speak of `rope_parameters.rope_theta`.
OLD = ("rope_theta",)
#: (golden case, keys that lead to what is changed, new value, the key whose line is shown, the mapping, its line)
PLACES: dict[str, tuple[str, tuple[str, ...], Any, str, str, str]] = {
    "a choice": ("llama_gqa", ("hidden_act",), "selu", "hidden_act", "llama", "hidden_act"),
    "a type": ("llama_gqa", ("num_attention_heads",), "9", "num_attention_heads", "llama", "num_attention_heads"),
    "a case": ("llama_gqa", ("rope_parameters", "rope_type"), "ntk", "rope_type", "llama", "Rotary"),
    "an old place": ("llama_rope_llama3", OLD, "x", "rope_theta", "llama", "rope_theta"),
    "of a part": ("llava_pixtral", ("text_config", "hidden_act"), "selu", "hidden_act", "llama", "hidden_act"),
    "a fixed value": (
        "llava_pixtral", ("vision_feature_layer",), -3, "vision_feature_layer", "llava", "vision_feature_layer"),
    "no number of layers": (
        "gemma4_dense", ("num_hidden_layers",), "x", "num_hidden_layers", "gemma4", "Sequence"),
    "no object": ("apriel2_pattern_short", ("head",), 3, "head", "apriel2_text", "head"),
}  # fmt: skip


def _case(name: str, directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CASES[name].hf_config(), indent=2))
    save_file(CASES[name].hf_tensors(), directory / "model.safetensors")
    return directory


def _change(file: Path, keys: tuple[str, ...], value: Any) -> None:
    config = json.loads(file.read_text())
    if keys == OLD:
        config["rope_scaling"] = config.pop("rope_parameters")
        del config["rope_scaling"]["rope_theta"]
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(config, indent=2))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def _problems(directory: Path) -> list[Diagnostic]:
    with pytest.raises(CrosswalkError) as caught:
        api.check(directory)
    return list(caught.value.diagnostics)


@pytest.mark.parametrize("what", PLACES)
def test_a_problem_is_at_the_key_and_its_rule_beside_it(what: str, tmp_path: Path) -> None:
    case, keys, value, shown, mapping, line = PLACES[what]
    directory = _case(case, tmp_path / "hf")
    _change(directory / "config.json", keys, value)
    found = next(p for p in _problems(directory) if p.rule is not None)
    assert found.position is not None
    assert found.rule is not None
    assert found.position.file == str(directory / "config.json")
    written = (directory / "config.json").read_text().splitlines()[found.position.line - 1]
    assert written.strip().startswith(f'"{shown}":')
    assert Path(found.rule.file) == MAPPINGS / f"{mapping}.yaml"
    assert (MAPPINGS / f"{mapping}.yaml").read_text().splitlines()[found.rule.line - 1].strip().startswith(line)


def test_a_key_that_is_not_there_is_a_problem_of_the_file(tmp_path: Path) -> None:
    directory = _case("llava_pixtral", tmp_path / "hf")
    config = json.loads((directory / "config.json").read_text())
    del config["vision_config"]
    (directory / "config.json").write_text(json.dumps(config))
    (found,) = _problems(directory)
    assert str(found.position) == str(directory / "config.json")
    assert found.message == "`vision_config` is required"
    assert found.rule is not None
    assert Path(found.rule.file).name == "llava.yaml"


def test_the_terminal_shows_the_line_of_the_user_and_where_the_rule_is(tmp_path: Path, command: CommandLine) -> None:
    directory = _case("llama_gqa", tmp_path / "hf")
    _change(directory / "config.json", ("hidden_act",), "selu")
    shown = command("check", directory).err.splitlines()
    number = 1 + next(
        i for i, line in enumerate((directory / "config.json").read_text().splitlines()) if "hidden_act" in line
    )
    assert shown[0].startswith(f"{directory}/config.json:{number}:3: error: `hidden_act` must be one of silu,")
    assert shown[1] == f'  {number} |   "hidden_act": "selu",'
    assert shown[2].endswith("^^^^^^^^^^^^")
    assert shown[3].startswith(f"  rule: {MAPPINGS / 'llama.yaml'}:")


def test_a_field_of_the_trainer_that_has_no_place_is_shown_in_its_metadata(tmp_path: Path) -> None:
    api.convert(_case("llama_gqa", tmp_path / "hf"), tmp_path / "native")
    file = tmp_path / "native" / "metadata.yaml"
    file.write_text(file.read_text().replace("causal: true", "causal: false"))
    (found,) = _problems(tmp_path / "native")
    assert found.code == "export/unused-feature"
    assert found.position is not None
    assert found.position.file == str(file)
    assert file.read_text().splitlines()[found.position.line - 1].strip() == "causal: false"
    assert found.rule is not None
    assert Path(found.rule.file).name == "llama.yaml"


def test_without_a_file_the_rule_is_the_place() -> None:
    with pytest.raises(CrosswalkError) as caught:
        api.import_config(CASES["llama_gqa"].hf_config() | {"hidden_act": "selu"})
    (found,) = caught.value.diagnostics
    assert found.position is None
    assert found.place == found.rule
    assert str(found).startswith(f"{MAPPINGS / 'llama.yaml'}:")


def test_a_tensor_that_is_missing_is_a_problem_of_the_folder(tmp_path: Path) -> None:
    """Spelt in other cases it is found; the mapping's line is beside it."""
    directory = _case("llama_gqa", tmp_path / "hf")
    tensors = CASES["llama_gqa"].hf_tensors()
    tensors = {name.upper() if name == "model.norm.weight" else name: tensor for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors")
    missing, unexpected = _problems(directory)
    assert str(missing.position) == str(directory)
    assert missing.hint == "there is `MODEL.NORM.WEIGHT`, which nothing needs"
    assert missing.rule is not None
    assert Path(missing.rule.file).name == "llama.yaml"
    assert unexpected.code == "tensors/unexpected"


def test_many_keys_and_long_ones_are_a_short_message(tmp_path: Path) -> None:
    config = CASES["llama_gqa"].hf_config()
    for extra in ({f"key_{number}": number for number in range(9_000)}, {"k" * 90_000: 1, "l" * 90_000: 2}):
        with pytest.raises(CrosswalkError) as caught:
            api.import_config(config | extra)
        (found,) = caught.value.diagnostics
        assert found.code == "config/unknown-key"
        assert len(str(found)) < 5_000
