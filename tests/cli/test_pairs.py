"""From every layout to every other in one pass: round trips that go each way between Hugging Face and trainers once.

Whatever comes by Hugging Face on the way must be the checkpoint that set out, byte for byte. That each layout is what
its trainer has is tested where the layout is.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from small_checkpoints import CommandLine, contents
from titan_cases import hugging_face

import crosswalk as cw

TRAINERS = ("fast_llm", "torchtitan", "megatron")
#: Of the first so many of Hugging Face and two or three trainers, each ordered pair once.
ROUND = {2: (0, 1, 2, 0, 2, 1, 0), 3: (0, 1, 2, 3, 0, 2, 1, 3, 2, 0, 3, 1, 0)}
CASES = {
    "llama3": TRAINERS[:2],  # with numbers of the rotary embedding that are constants in Megatron-core
    "llama3_separate_tied": TRAINERS,
    "qwen3": TRAINERS,
    "qwen3_moe": TRAINERS,
    "gpt_oss": TRAINERS[1:],
}


def test_rounds_go_each_way_once() -> None:
    for number, places in ROUND.items():
        ways = set(pairwise(places))
        assert len(ways) == len(places) - 1 == number * (number + 1)
        assert not any(a == b for a, b in ways)


@pytest.mark.parametrize("name", CASES)
def test_each_way_between_layouts(name: str, tmp_path: Path) -> None:
    original = hugging_face(name, tmp_path / "hf")
    (original / "tokenizer.json").write_text("{}")
    expected = contents(original)
    layouts = ("hf", *CASES[name])
    here = tmp_path / "here"
    shutil.copytree(original, here)
    for _, to in pairwise(layouts[place] for place in ROUND[len(layouts) - 1]):
        there = tmp_path / "there"
        report = cw.convert(here, there, to=to)
        assert report.to == to
        assert report.verdict.startswith("bijective")
        if name == "qwen3_moe":
            cw.verify(here, there)
        if to == "hf":
            assert contents(there) == expected
        shutil.rmtree(here)
        there.rename(here)


def test_what_can_be_asked_of_a_way_between_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crosswalk = CommandLine(capsys)
    original = hugging_face("qwen3_moe", tmp_path / "hf")
    megatron = str(tmp_path / "megatron")
    cw.convert(original, megatron, to="megatron")
    tensor = "layers.1.moe.routed_experts.inner_experts.w1_EFD"
    for command, expected in (
        (("check", megatron, "--to", "torchtitan"), "qwen3_moe -> torchtitan"),
        (("plan", megatron, "--to", "fast_llm"), "qwen3_moe -> fast_llm"),
        (("explain", megatron, tensor, "--to", "torchtitan"), "decoder.layers.1.mlp.experts.linear_fc1.weight0"),
        (("compare", str(original), megatron), "decoder.1"),
    ):
        ran = crosswalk(*command)
        assert ran.code == 0, ran.err
        assert expected in ran.out
