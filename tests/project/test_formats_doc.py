"""docs/formats.md is what the mappings say, and says something of each format."""

from __future__ import annotations

from pathlib import Path

import generate_formats
import pytest

from crosswalk.jobs.formats import catalog

DOCS = Path(__file__).parents[2] / "docs"


def test_the_document_is_up_to_date() -> None:
    assert generate_formats.render() == (DOCS / "formats.md").read_text(encoding="utf-8"), (
        "python docs/generate_formats.py"
    )


def test_every_format_has_a_section_with_a_note() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    formats = [name for name in catalog().formats() if catalog().mapping(name).layout == "fast_llm"]
    for name in formats:
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        about = section.strip().splitlines()[0]
        assert about[0].isalpha(), name
        assert not about.startswith("Config class"), f"docs/formats.yaml says nothing about {name}"
        assert "**Config keys**" in section
        assert "**Tensors**" in section or "[apriel" in section


@pytest.mark.parametrize(
    "line",
    [
        "| `hidden_size_per_layer_input` |  | `256` | always | must be `0`: the trainer has no embeddings for single",
        "| `transformers_5_5` | `global_head_dim` | `per_layer_config.{full_attention}.head_dim` | absent",
        "| attention | `q_proj` | `query` |",
        "not `layer_norm`: the tensors of this format are those of RMS norms (one weight each)",
        "`true`, or `false` if the tensors say so",
        "| `in_memory` | tensors `model.language_model.*` | `language_model.model.*` | told apart by the",
    ],
)
def test_it_says_what_the_mappings_say(line: str) -> None:
    assert line in (DOCS / "formats.md").read_text(encoding="utf-8")
