"""Ranks that do not come to a load, a save or a stream, and ranks that have a part of the model only."""

from __future__ import annotations

import re
from pathlib import Path

import absent_cases as cases
import torch
from native_llama import LLAMA
from oracles import make_checkpoint
from ranks import Failed, run_ranks
from safetensors.torch import load_file


def test_who_does_not_come_is_named_and_the_next_call_works(checkpoint: Path, saved: Path, tmp_path: Path) -> None:
    first, second = run_ranks(2, cases.alone_then_together, checkpoint, tmp_path, limit=300)
    assert not isinstance(first, Failed), first.text
    assert not isinstance(second, Failed), second.text
    code, text = first["load"]
    assert code == "distributed/lost"
    assert "rank 0, loading, comparing what the ranks have: rank 1 did not come within 0.5 s" in text
    assert any("rank 0 has waited" in line and "for rank 1" in line for line in first["logged at first"])
    code, text = first["save"]
    assert code == "distributed/lost"
    # Ranks that have met know where the other is.
    assert re.search(r"rank 1 \([^ ]+, process \d+\) did not come within 1 s", text)
    assert any(re.search(r"waited \d+ s for rank 1 \([^ ]+, process \d+\)", line) for line in first["logged"])
    assert not (tmp_path / "alone").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in saved.iterdir()}
    code, text = first["stream"]
    assert code == "distributed/lost"
    assert "gathering parameters to stream: rank 1" in text
    assert first["streamed"] == second["streamed"] == sorted(load_file(checkpoint / "model.safetensors"))
    for result in (first, second):
        assert result["other call"][0] == "distributed/differs"
        assert "rank 0: loading" in result["other call"][1]
        assert "rank 1: streaming" in result["other call"][1]
    assert first["interrupted"][0] == "distributed/lost"
    assert "rank 1 was broken off" in first["interrupted"][1]


def test_a_rank_that_dies_is_not_waited_for(checkpoint: Path, tmp_path: Path) -> None:
    (code, text), _ = run_ranks(2, cases.a_rank_dies, checkpoint, tmp_path)
    assert code == "distributed/lost"
    assert f"process {(tmp_path / 'pid').read_text()}) died" in text


def test_a_group_that_lost_a_message_is_replaced_on_all_ranks(checkpoint: Path, tmp_path: Path) -> None:
    assert run_ranks(2, cases.large_messages, checkpoint, tmp_path) == [[], []]


def test_stages_of_a_pipeline(checkpoint: Path, saved: Path, tmp_path: Path) -> None:
    """Together the ranks have everything; what is missing over all of them is named."""
    found = run_ranks(2, cases.stages, checkpoint, tmp_path)
    for result in found:
        assert not isinstance(result, Failed), result.text
        assert result["streamed"] == []
        for name in ("load", "save"):
            code, text = result[name]
            assert (code, "decoder.1.norm_2.weight" in text) in {("live/missing", True), ("tensors/missing", True)}
    for file in saved.iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name


def test_stages_with_copies_of_a_tied_parameter(tmp_path: Path) -> None:
    """Each stage fills its own; they are written as one if they are equal, whatever parts they are held in."""
    source = tmp_path / "hf"
    make_checkpoint(source, {**LLAMA, "tie_word_embeddings": True})
    differs = "parameter `head.output_weights` is not equal to `embeddings.word_embeddings_weight`"
    for result in run_ranks(2, cases.tied_stages, source, tmp_path):
        assert not isinstance(result, Failed), result.text
        assert (result["wrong"], result["streamed"]) == ([], [])
        for name in ("save", "stream"):
            code, text = result[name]
            assert (code, differs in text) == ("tie/differs", True), text
        assert differs in result["dcp"]
    expected = load_file(source / "model.safetensors")
    for name in ("save", "dcp"):
        written = load_file(tmp_path / name / "model.safetensors")
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[key], expected[key]) for key in expected)
    assert not (tmp_path / "no").exists()
