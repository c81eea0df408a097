"""What ``plan``, ``check -v`` and ``formats NAME`` print: a line for each relation, in the order of the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from small_checkpoints import MIXTRAL, CommandLine, make

from crosswalk.jobs.formats import catalog
from crosswalk.runtime.plan.model import Plan

ROOT = Path(__file__).parents[2]
SWAPPED = """\
crosswalk: 1
extends: llama
architecture: LlamaForCausalLM
model_type: llama
config_class: transformers.LlamaConfig

block:
  tensors:
    input_layernorm: norm_2
    post_attention_layernorm: norm_1
"""
LLAMA_PLAN = """
model.embed_tokens.weight                         -> embeddings.word_embeddings_weight       8.52 kB
model.layers.{0..1}.self_attn.q_proj.weight       -> decoder.{0..1}.mixer.query.weight      20.16 kB
model.layers.{0..1}.self_attn.k_proj.weight       -> decoder.{0..1}.mixer.key_value.weight   6.72 kB
model.layers.{0..1}.self_attn.v_proj.weight       -> decoder.{0..1}.mixer.key_value.weight   6.72 kB
model.layers.{0..1}.self_attn.o_proj.weight       -> decoder.{0..1}.mixer.dense.weight      20.16 kB
model.layers.{0..1}.mlp.gate_proj.weight          -> decoder.{0..1}.mlp.layer_1.weight       8.88 kB
model.layers.{0..1}.mlp.up_proj.weight            -> decoder.{0..1}.mlp.layer_1.weight       8.88 kB
model.layers.{0..1}.mlp.down_proj.weight          -> decoder.{0..1}.mlp.layer_2.weight       8.88 kB
model.layers.{0..1}.input_layernorm.weight        -> decoder.{0..1}.norm_1.weight              240 B
model.layers.{0..1}.post_attention_layernorm.weight -> decoder.{0..1}.norm_2.weight            240 B
model.norm.weight                                 -> head.final_norm.weight                    120 B
lm_head.weight                                    -> head.output_weights                     8.52 kB
"""
MIXTRAL_PLAN = """
model.embed_tokens.weight                         -> embeddings.word_embeddings_weight       8.52 kB
model.layers.{0..1}.self_attn.q_proj.weight       -> decoder.{0..1}.mixer.query.weight      20.16 kB
model.layers.{0..1}.self_attn.k_proj.weight       -> decoder.{0..1}.mixer.key_value.weight   6.72 kB
model.layers.{0..1}.self_attn.v_proj.weight       -> decoder.{0..1}.mixer.key_value.weight   6.72 kB
model.layers.{0..1}.self_attn.o_proj.weight       -> decoder.{0..1}.mixer.dense.weight      20.16 kB
model.layers.{0..1}.block_sparse_moe.gate.weight  -> decoder.{0..1}.mlp.router.weight        1.92 kB
model.layers.{0..1}.block_sparse_moe.experts.{0..7}.w1.weight
                                                  -> decoder.{0..1}.mlp.layer_1.weight      71.04 kB
model.layers.{0..1}.block_sparse_moe.experts.{0..7}.w3.weight
                                                  -> decoder.{0..1}.mlp.layer_1.weight      71.04 kB
model.layers.{0..1}.block_sparse_moe.experts.{0..7}.w2.weight
                                                  -> decoder.{0..1}.mlp.layer_2.weight      71.04 kB
model.layers.{0..1}.input_layernorm.weight        -> decoder.{0..1}.norm_1.weight              240 B
model.layers.{0..1}.post_attention_layernorm.weight -> decoder.{0..1}.norm_2.weight            240 B
model.norm.weight                                 -> head.final_norm.weight                    120 B
lm_head.weight                                    -> head.output_weights                     8.52 kB
"""


def relations(out: str) -> str:
    """What is printed below the facts."""
    return out.split("\n\n", 1)[1]


def test_two_layers_of_llama(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", num_hidden_layers=2)
    assert relations(crosswalk("plan", source).out) == LLAMA_PLAN[1:]


def test_layers_and_experts_of_mixtral_are_folded_and_long_lines_continue(
    crosswalk: CommandLine, tmp_path: Path
) -> None:
    assert relations(crosswalk("plan", make(tmp_path / "source", MIXTRAL)).out) == MIXTRAL_PLAN[1:]


def test_weights_that_a_module_numbers_are_folded_too(crosswalk: CommandLine, tmp_path: Path) -> None:
    out = crosswalk("plan", make(tmp_path / "source", MIXTRAL), "--to", "megatron").out
    found = re.findall(r"experts\.(\S+)\.weight\s+-> \S+\.experts\.(\S+)", out)
    assert found == [
        ("{0..7}.w1", "linear_fc1.weight{0..7}"),
        ("{0..7}.w3", "linear_fc1.weight{0..7}"),
        ("{0..7}.w2", "linear_fc2.weight{0..7}"),
    ]
    assert all(len(line) <= 100 and line == line.rstrip() for line in relations(out).splitlines())


def test_export_has_the_hugging_face_side_on_the_left_too(crosswalk: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", num_hidden_layers=2)
    assert crosswalk("convert", source, tmp_path / "native").code == 0
    out = relations(crosswalk("plan", tmp_path / "native").out)
    assert out == LLAMA_PLAN[1:].replace("->", "<-")


def test_two_norms_that_are_swapped_are_seen(
    crosswalk: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "swapped.yaml").write_text(SWAPPED)
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(tmp_path / "mappings"))
    catalog.cache_clear()
    source = make(tmp_path / "source", num_hidden_layers=2)
    try:
        out = crosswalk("plan", source, "--format", "swapped").out
    finally:
        catalog.cache_clear()
    norms = re.findall(r"(\w+_layernorm)\.weight\s+-> decoder\.\{0\.\.1\}\.(norm_.)\.weight +240 B", out)
    assert norms == [("post_attention_layernorm", "norm_1"), ("input_layernorm", "norm_2")]
    assert relations(out) != LLAMA_PLAN[1:]


def test_layers_that_do_not_run_alike_are_lines_of_their_own() -> None:
    from crosswalk.cli.plans import plan_lines
    from crosswalk.runtime.plan.model import TensorSpec, make_plan

    sources = [TensorSpec(f"h.{index}.w", (3,), "F32") for index in range(4)]
    targets = [TensorSpec(f"b.{index}.w", (3,), "F32") for index in range(4)]

    def plan(order: Callable[[int], int]) -> Plan:
        copies = [(f"h.{index}.w", f"b.{order(index)}.w", (3,), 0, (1,), 0, (1,), 0) for index in range(4)]
        return make_plan(sources, targets, copies)

    names = [spec.name for spec in targets]
    assert list(plan_lines(plan(lambda index: index), False, names)) == ["h.{0..3}.w -> b.{0..3}.w  48 B"]
    assert list(plan_lines(plan(lambda index: 3 - index), False, names)) == [
        "h.3.w -> b.0.w  12 B",
        "h.2.w -> b.1.w  12 B",
        "h.1.w -> b.2.w  12 B",
        "h.0.w -> b.3.w  12 B",
    ]


@pytest.mark.parametrize("name", catalog().formats())
def test_no_format_is_printed_wider_than_a_page(name: str, crosswalk: CommandLine) -> None:
    for line in crosswalk("formats", name).out.splitlines():
        assert line == line.rstrip()
        assert len(line) <= 100 or len(line.split()) <= 3, line


def place(file: str, text: str, column: int) -> str:
    """Where a line of a mapping stands, as it is printed."""
    lines = (ROOT / "mappings" / f"{file}.yaml").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if text in line)
    return f"{file}.yaml:{number}:{column}"


@pytest.mark.parametrize("word", ["check", "plan"])
def test_verbose_shows_the_native_config_and_what_set_each_field(
    word: str, crosswalk: CommandLine, tmp_path: Path
) -> None:
    source = make(tmp_path / "source", MIXTRAL)
    out = crosswalk(word, source, "-v").out
    rows = {tuple(line.split()) for line in out.split("native config\n")[1].splitlines()}
    for row in (
        ("hidden_size:", "30", place("llama", "hidden_size: {is: hidden_size", 5)),
        ("num_blocks:", "2", place("llama", "Sequence:", 1)),
        ("head_groups:", "2", place("mistral", "num_key_value_heads:", 5)),
        ("experts:", "8", place("mixtral", "num_local_experts:", 5)),
        ("routing:", '"aux_loss"', place("mixtral", "routing: aux_loss", 10)),
        ("theta:", "23456.0", place("llama", "rope_theta: theta", 9)),
        ("embedding_scale:", "1.0", "default"),
    ):
        assert row in rows
    assert "native config" not in crosswalk(word, source).out


def test_verbose_names_the_line_of_each_relation(crosswalk: CommandLine, tmp_path: Path) -> None:
    lines = crosswalk("plan", make(tmp_path / "source", MIXTRAL), "-v").out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if ".w2." in line]
    assert lines[at + 2] == f"    mixtral: experts.{{expert}}.w2: layer_2  {place('mixtral', 'w2: layer_2', 5)}"


def test_a_format_shows_counts_kinds_and_cases(crosswalk: CommandLine) -> None:
    text = crosswalk("formats", "qwen2").out
    rows = [line.split() for line in text.splitlines()]
    assert ["count:", "num_hidden_layers"] in rows
    assert ["each:", "layer_types"] in rows
    assert ["kinds:", "full_attention,", "sliding_attention"] in rows
    assert ["by:", "rope_type,", "default", "if", "absent"] in rows
    at = rows.index(["kind", "sliding_attention"])
    assert rows[at + 2][:3] == ["sliding_window", "->", "window_size"]
