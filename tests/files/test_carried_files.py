"""What stands beside the weights goes along, and comes back."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

import crosswalk

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
