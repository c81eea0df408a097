"""What stands beside the weights goes along, and comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import crosswalk
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError

SIZES = {
    "vocab_size": 61,
    "hidden_size": 30,
    "intermediate_size": 43,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "head_dim": 14,
}


def test_files_and_chat_templates_go_along_and_other_folders_are_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool.jinja").write_text("{{ messages }}")
    (source / "tokenizer.json").write_text("{}")
    (source / "checkpoint-7").mkdir()
    (source / "checkpoint-7/optimizer.pt").write_bytes(b"x")

    report = crosswalk.convert(source, tmp_path / "native")
    assert report.notes == ("folders are not carried along: checkpoint-7",)
    crosswalk.convert(tmp_path / "native", tmp_path / "back")

    def files(path: Path) -> dict[str, bytes]:
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}

    expected = files(source)
    del expected["checkpoint-7/optimizer.pt"]
    assert files(tmp_path / "back") == expected


MINE = """\
crosswalk: 1
extends: llama
architecture: LlamaForCausalLM
model_type: mine
files: [modeling_mine.py]
optional_files: [processing_mine.py, mine.txt]
"""


def test_optional_files_go_along_where_they_are_and_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the checkpoint, or from the folder of the model code, which gives what is listed and nothing else."""
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "mine.yaml").write_text(MINE)
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(tmp_path / "mappings"))
    catalog.cache_clear()
    source, code = tmp_path / "source", tmp_path / "code"
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(source)
    config = json.loads((source / "config.json").read_text()) | {"model_type": "mine"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "mine.txt").write_text("of the checkpoint")
    code.mkdir()
    for name in ("modeling_mine.py", "processing_mine.py", "mine.txt", "other.py"):
        (code / name).write_text(f"{name} of the folder")
    try:
        crosswalk.convert(source, tmp_path / "native")
        with pytest.raises(CrosswalkError, match=r"needs its model files modeling_mine\.py: it cannot be loaded"):
            crosswalk.convert(tmp_path / "native", tmp_path / "refused")
        crosswalk.convert(tmp_path / "native", tmp_path / "back", model_files=code)
        for name in ("processing_mine.py", "mine.txt"):
            (code / name).unlink()
        crosswalk.convert(source, tmp_path / "second")
        crosswalk.convert(tmp_path / "second", tmp_path / "again", model_files=code)
    finally:
        catalog.cache_clear()
    texts = {path.name: path.read_text() for path in (tmp_path / "back").iterdir() if path.suffix in (".py", ".txt")}
    assert texts == {
        "modeling_mine.py": "modeling_mine.py of the folder",
        "processing_mine.py": "processing_mine.py of the folder",
        "mine.txt": "mine.txt of the folder",
    }
    texts = {path.name: path.read_text() for path in (tmp_path / "again").iterdir() if path.suffix in (".py", ".txt")}
    assert texts == {"modeling_mine.py": "modeling_mine.py of the folder", "mine.txt": "of the checkpoint"}
