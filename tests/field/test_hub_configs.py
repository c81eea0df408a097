"""Configs of released models: what is accepted, what is refused, and what the refusal says.

``hub_configs.json`` says for each config: ``accept``; ``keep`` with the keys that the refusal offers to carry along;
``lossy``, accepted with ``allow_lossy``; or ``refuse``, with words that the refusal must contain. ``torchtitan`` is the
format of that layout.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_verdicts import CORPUS, read

import crosswalk
from crosswalk import CrosswalkError

EXPECTED: dict[str, dict[str, Any]] = json.loads(CORPUS.with_suffix(".json").read_text(encoding="utf-8"))
ROOT = Path(__file__).parents[2]
_HOME = Path(os.environ.get("CROSSWALK_VENV", ROOT / ".venv"))
OTHER_TRANSFORMERS = _HOME.with_name(f"{_HOME.name}-transformers-4") / "bin" / "python"


GPT2 = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head"}


def named(verdict: str) -> list[str]:
    return [name for name, expected in EXPECTED.items() if expected["verdict"] == verdict]


def refusal(config: dict[str, Any], format: str | None = None, **options: Any) -> CrosswalkError:
    with pytest.raises(CrosswalkError) as raised:
        crosswalk.import_config(config, format, **options)
    return raised.value


def test_every_config_has_an_expectation() -> None:
    assert sorted(EXPECTED) == sorted(path.name for path in CORPUS.glob("*.json"))
    assert len(EXPECTED) == 115


@pytest.mark.parametrize("name", named("accept"))
def test_accepted(name: str) -> None:
    config = read(name)
    native = crosswalk.import_config(config)
    decoder = native["decoder"]
    config = {**{key: config[name] for key, name in GPT2.items() if name in config}, **config}
    assert decoder["num_blocks"] == config["num_hidden_layers"]
    block = decoder["block"] if decoder["type"] == "fixed" else decoder["blocks"][decoder["pattern"][0]]
    assert native["hidden_size"] == config["hidden_size"]
    assert native["embeddings"]["vocab_size"] == config["vocab_size"]
    assert block["mixer"]["heads"] == config["num_attention_heads"]


@pytest.mark.parametrize("name", named("keep"))
def test_accepted_with_the_keys_that_the_refusal_names(name: str) -> None:
    config, keys = read(name), EXPECTED[name]["keep"]
    (problem,) = refusal(config).diagnostics
    assert problem.code == "config/unknown-key"
    for key in keys:
        assert f"`{key}` = {json.dumps(config[key])}" in problem.message
    assert f"--keep {shlex.quote(','.join(keys))} " in str(problem.hint)
    plain = crosswalk.import_config({key: value for key, value in config.items() if key not in keys})
    assert crosswalk.import_config(config, keep=keys) == plain
    assert crosswalk.import_config(config, keep=",".join(keys)) == plain


@pytest.mark.parametrize("name", named("lossy"))
def test_accepted_as_lossy(name: str) -> None:
    (problem,) = refusal(read(name)).diagnostics
    for word in EXPECTED[name]["words"]:
        assert word in str(problem)
    assert crosswalk.import_config(read(name), allow_lossy=True)


@pytest.mark.parametrize("name", named("refuse"))
def test_refused_with_what_is_missing(name: str) -> None:
    text = str(refusal(read(name)))
    for word in EXPECTED[name]["words"]:
        assert word in text, text
    assert "add a line" not in text
    assert "relate it to a field" not in text


@pytest.mark.parametrize("name", [name for name in named("refuse") if read(name)["model_type"] != "llama"])
def test_no_other_family_is_taken_for_a_llama(name: str) -> None:
    found = {problem.code for problem in refusal(read(name), "llama").diagnostics}
    # the model_type, which may be that of a model around a Llama: its text tower has to be asked for
    assert found & {"config/unsupported", "format/tower"}


@pytest.mark.parametrize("name", [name for name in EXPECTED if "torchtitan" in EXPECTED[name]])
def test_formats_of_the_other_layout(name: str) -> None:
    config = read(name)
    native = crosswalk.import_config(config, EXPECTED[name]["torchtitan"])
    assert native["dim"] == config["hidden_size"]
    assert crosswalk.import_config(config, to="torchtitan") == native


def test_no_verdict_depends_on_what_is_installed() -> None:
    """With the transformers of this environment, with the other major version, and with none: the same native configs
    and the same messages, and no import."""
    runs = [(sys.executable,), (sys.executable, "--blocked")]
    runs += [(str(OTHER_TRANSFORMERS),)] if OTHER_TRANSFORMERS.is_file() else []
    script = Path(__file__).with_name("hub_verdicts.py")
    said = [
        subprocess.run((python, str(script), *options), capture_output=True, check=True, timeout=500).stdout
        for python, *options in runs
    ]
    first = json.loads(said[0])
    assert first["imported"] == []
    assert len(first) == len(EXPECTED) + 1
    assert all(text == said[0] for text in said[1:])
