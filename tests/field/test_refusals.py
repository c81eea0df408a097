"""docs/formats.md is a promise: what it lists as refused is refused, by that name. Each row makes its own config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CONFIGS as FAMILIES
from golden_cases import CASES
from safetensors.torch import load_file, save_file
from small_checkpoints import LLAMA, MIXTRAL, make

import crosswalk
from crosswalk import CrosswalkError

TEXT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
REFUSED = TEXT[TEXT.index("\n# What is refused\n") :]
Config = dict[str, Any]

#: Configs to ask for a feature in: a format that has it claims the key, and others refuse it.
BASES: list[Config] = [LLAMA, MIXTRAL, CASES["mistral_sliding"].hf_config(), FAMILIES["helium"]]


def _table(head: str, text: str = REFUSED) -> list[list[str]]:
    """The rows below a head, as their cells."""
    lines = text[text.index(f"\n| {head}") :].strip().split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def _values(text: str) -> list[Any]:
    """The values between backquotes: JSON, or a bare text."""
    return [
        json.loads(value) if re.match(r"[-\d{\[\"]|null|true|false", value) else value
        for value in re.findall(r"`([^`]*)`", text)
    ]


def _other(values: list[Any]) -> Any:
    """A value that is none of these, and that such a key could have."""
    match values[0]:
        case bool(value):
            return not value
        case int() | float() | None:
            return next(number for number in (3, 0.25) if number not in values)
        case str():
            return "another"
        case list():
            return [1]
    return {"0": [1]}


def _heard(config: Config, format: str | None = None) -> str:
    """The refusal, or nothing."""
    try:
        crosswalk.import_config(config, format)
    except CrosswalkError as error:
        return str(error)
    return ""


FEATURES = [
    (feature, key, harmless)
    for feature, keys in _table("feature | keys, and where they are harmless")
    for key, harmless in re.findall(r"`([^`]+)` \(([^)]*)\)", keys)
]


@pytest.mark.parametrize(("feature", "key", "harmless"), FEATURES, ids=[key for _, key, _ in FEATURES])
def test_a_feature_is_refused_by_its_name(feature: str, key: str, harmless: str) -> None:
    asked = _other(_values(harmless))
    heard = [_heard(base | {key: asked}) for base in BASES]
    images = CASES["apriel2_mm_fixed"].hf_config()
    images["vision_encoder"][key] = asked  # which has nothing that all text models have
    heard.append(_heard(images))
    assert any(f"{key}` = {json.dumps(asked)} asks for {feature}" in said for said in heard), heard


KINDS = _table("`model_type`, or ending of the class")


@pytest.mark.parametrize(("kind", "what"), KINDS, ids=[kind for kind, _ in KINDS])
def test_a_model_that_has_no_format_is_refused_with_what_it_has(kind: str, what: str) -> None:
    name = kind.strip("`")
    config = LLAMA | ({"architectures": [f"Llama{name}"]} if name[0].isupper() else {"model_type": name})
    if not name[0].isupper():
        config["architectures"] = ["SomeForCausalLM"]
    assert what in _heard(config)


# ---- the tables of the formats ---------------------------------------------------------------------------------------


def _bases() -> dict[str, list[Config]]:
    """Configs of each format."""
    found: dict[str, list[Config]] = {}
    for case in CASES.values():
        if (case.path / "hf_config.json").is_file():
            found.setdefault(case.format, []).append(case.hf_config())
    for config in FAMILIES.values():
        found.setdefault(config["model_type"], []).append(config)
    for config in list(found["apriel2_text"]):  # each of them also layer by layer, and as the format with images
        if config["decoder"]["type"] == "fixed":
            decoder = {
                "type": "pattern",
                "num_blocks": 2,
                "pattern": ["b"],
                "blocks": {"b": config["decoder"]["block"]},
            }
            found["apriel2_text"].append({**config, "decoder": decoder})
    as_root = {"model_type": "apriel2", "architectures": ["Apriel2ForConditionalGeneration"]}
    found["apriel2"] += [{**config, **as_root} for config in found["apriel2_text"]]
    return found


_BASES = _bases()
#: What else a file has to say for a key to be looked at.
_ROTARY: dict[str, Config] = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}


def _rules() -> Iterator[tuple[str, list[str], list[Any], str, str]]:
    """Every row that says which values a key must have: format, key, values, why, and where it holds."""
    for format in _BASES:
        section = TEXT.split(f"\n## {format}\n")[1].split("\n## ")[0]
        for key, *_, hold, where in _table("key of config.json", section):
            if hold.startswith("must be "):
                allowed, _, why = hold.removeprefix("must be ").partition(": ")
                if values := _values(allowed):  # the others follow from other keys
                    yield format, key.strip("`").split("."), values, why, where


RULES = list(_rules())


def _put(config: Config, keys: list[str], value: Any, where: str) -> bool:
    """Set a key, in every entry where it stands for all; whether the config has the place."""
    place: Any = config
    for key in keys[:-1]:
        if key.startswith("{"):
            inner = keys[keys.index(key) + 1 :]
            return sum([_put(entry, inner, value, where) for entry in place.values()]) > 0
        place = place.setdefault(key, {}) if key in ("rope_parameters", "rope_scaling") else place.get(key)
        if not isinstance(place, dict):
            return False
    for kind in re.findall(r"rope_type `(\w+)`", where):
        place |= {"rope_type": kind, **_ROTARY.get(kind, {})}
    place[keys[-1]] = value
    return True


@pytest.mark.parametrize("rule", RULES, ids=[f"{rule[0]}-{'.'.join(rule[1])}-{rule[4]}" for rule in RULES])
def test_a_value_that_a_format_cannot_have_is_refused(rule: tuple[str, list[str], list[Any], str, str]) -> None:
    format, keys, values, why, where = rule
    configs = [json.loads(json.dumps(base)) for base in _BASES[format]]
    heard = [_heard(config, format) for config in configs if _put(config, keys, _other(values), where)]
    assert any(f"{keys[-1]}`" in said and why in said for said in heard), heard


# ---- tensors ---------------------------------------------------------------------------------------------------------

TENSORS = _table("tensor | made by")


def test_tensors_that_are_quantised_are_refused_with_who_makes_them(tmp_path: Path) -> None:
    """All rows in one file: each name beside the weight of another projection."""
    tensors, expected = {}, {}
    for number, (name, tools) in enumerate(TENSORS):
        stem = f"model.layers.{number}.mlp.up_proj"
        tensors[name.strip("`").replace("{name}", stem)] = torch.zeros(1)
        expected[name.strip("`").replace("{name}", f"model.layers.{number}.mlp.up_proj")] = tools
    source = make(tmp_path / "source")
    save_file(load_file(source / "model.safetensors") | tensors, source / "model.safetensors")
    with pytest.raises(CrosswalkError) as raised:
        crosswalk.check(source)
    said = str(raised.value)
    for name, tools in expected.items():
        assert all(tool.strip() in said for tool in tools.split(",")), (name, said)
