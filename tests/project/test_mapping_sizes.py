"""Mappings are read by people: every file says what it is, stays small, and what it adds to its base is short."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from family_cases import CONFIGS, format_of

from crosswalk.compiler.catalog import Catalog

FOLDER = Path(Catalog().mapping("llama").file).parent
FILES = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("layouts/*.yaml")])

#: Lines without comments and blank lines that a mapping, or several for one architecture, may have.
LIMITS = {
    "llama": 95,
    "mistral": 20,
    "qwen2": 45,
    "qwen3": 45,
    "mixtral": 35,
    "mtp_llama": 30,
    "dream": 30,
    "diffusion_llama": 20,
    "gemma4": 130,
    "apriel2_text": 140,
    "apriel_hybrid_ssm": 80,
    "llava llava_llama pixtral": 110,
    "llava_hybrid_ssm": 30,
    "apriel2 apriel2_vision": 110,
    "huggingface": 293,
    "torchtitan_llama3": 90,
    "torchtitan_qwen3": 45,
    "torchtitan_qwen3_moe": 60,
    "torchtitan_deepseek_v3": 135,
    "torchtitan_gpt_oss": 90,
    "starcoder2": 45,
    "qwen3_moe": 65,
    "smollm3": 45,
    "gpt2": 80,
    "llama_partial": 50,
    "nemotron": 45,
    "phi3": 50,
    "stablelm": 45,
    "seed_oss": 40,
    "ministral3": 50,
    "granite": 50,
    "helium": 45,
    "glm4": 45,
    "exaone4": 55,
    "ernie4_5": 35,
    "arcee": 25,
    "gemma3_text": 95,
    "gemma": 35,
    "glm": 15,
    "cwm": 50,
    "ministral": 20,
    "jais2": 30,
    "granitemoe": 35,
    "granitemoeshared": 25,
    "hyperclovax": 30,
    "gpt_bigcode": 35,
    "megatron_llama": 85,
    "megatron_mistral": 30,
    "megatron_gemma": 40,
    "megatron_qwen2": 45,
    "megatron_qwen3": 30,
    "megatron_mixtral": 35,
    "megatron_qwen3_moe": 60,
    "megatron_deepseek_v3": 120,
    "megatron_glm4_moe": 95,
    "megatron_gpt_oss": 90,
    "megatron_fields megatron_arguments": 220,
}


def lines(name: str) -> list[str]:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("names", LIMITS)
def test_mapping_is_small(names: str) -> None:
    assert sum(len(lines(name)) for name in names.split()) <= LIMITS[names]


def test_half_of_the_families_take_forty_lines_at_most() -> None:
    assert statistics.median(len(lines(name)) for name in {format_of(name) for name in CONFIGS}) <= 40


def test_every_mapping_has_a_limit() -> None:
    limited = {name for names in LIMITS for name in names.split()}
    assert limited == {file.stem for file in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file_begins_by_saying_what_it_is_and_fits_a_screen(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert ". " in text or text.splitlines()[0].endswith(".")
    assert [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 120] == []
    assert text.endswith("\n")
    assert "\t" not in text
    assert not any(line != line.rstrip() for line in text.splitlines())
