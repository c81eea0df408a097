"""What goes wrong in other converters, and does not here: a test for each reproduced failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from converted import converted
from small_checkpoints import (
    LLAMA,
    LLAVA,
    MIXTRAL,
    CommandLine,
    assert_refused,
    edit_tensors,
    make,
    native,
    refuse,
    shard,
    tensors_of,
)

import crosswalk
from crosswalk.runtime import execute
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Copy, Plan, TensorSpec, make_plan


def copies(
    sources: list[TensorSpec], targets: list[TensorSpec], *raw: tuple[str, str, Any, int, Any, int, Any]
) -> Plan:
    return make_plan(sources, targets, [(*copy, 0) for copy in raw])


# ---- reproduced failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 3])
def test_rows_of_a_missing_shard_are_not_zero_and_not_left_out(
    number: int, command: CommandLine, tmp_path: Path
) -> None:
    """torch.distributed.checkpoint fills the rows of a missing file with zeros, or shortens the tensor."""
    source = make(tmp_path / "source")
    shard(source)
    (source / f"model-0000{number}-of-00003.safetensors").unlink()
    refuse(command, source, f"the file model-0000{number}-of-00003.safetensors with 10 tensors is missing")


def test_integers_are_never_cast() -> None:
    """A blanket cast to BF16 makes 383 of a routing table 384."""
    table = torch.arange(380, 385)
    specs = [TensorSpec("table", (5,), "I64")], [TensorSpec("copy", (5,), "I64")]
    plan = copies(*specs, ("table", "copy", (5,), 0, (1,), 0, (1,)))
    assert torch.equal(dict(execute(plan, {"table": table}))["copy"], table)
    cast = copies(specs[0], [TensorSpec("copy", (5,), "BF16")], ("table", "copy", (5,), 0, (1,), 0, (1,)))
    assert [problem.code for problem in cast.verify().problems] == ["plan/cast"]
    with pytest.raises(CrosswalkError):
        dict(execute(cast, {"table": table}))


def test_integer_parameters_and_an_asked_for_dtype(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_tensors(source, lambda t: t.update({"model.norm.weight": torch.arange(370, 400)}))
    refuse(command, source, "`model.norm.weight` has the dtype I64", arguments=("--dtype", "bfloat16"))


def test_a_native_layer_key_that_no_rule_knows(command: CommandLine, tmp_path: Path) -> None:
    source = native(tmp_path, command)
    name = "decoder.1.mixer.sinks/weights"
    edit_tensors(source, lambda t: t.update({name: torch.zeros(6)}))
    text = (source / "metadata.yaml").read_text()
    (source / "metadata.yaml").write_text(
        text.replace("  state_index:\n", f"  state_index:\n    {name}: model_0.safetensors\n")
    )
    refuse(command, source, "tensor `decoder.1.mixer.sinks` [6] has no counterpart in layout `fast_llm`")


def test_an_absent_source_key(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_tensors(source, lambda t: t.pop("model.layers.2.self_attn.v_proj.weight"))
    refuse(command, source, "tensor `model.layers.2.self_attn.v_proj.weight` [28, 30] is missing")


def test_nine_rows_over_eight_experts(command: CommandLine, tmp_path: Path) -> None:
    """Chunks of 2, 2, 2, 2 and 1 rows: three experts are gone without an error."""
    source = make(tmp_path / "source", MIXTRAL)
    router = "model.layers.0.block_sparse_moe.gate.weight"
    edit_tensors(source, lambda t: t.update({router: torch.zeros(9, 30)}))
    refuse(command, source, f"tensor `{router}` is [9, 30] in the file, [8, 30] by the config")


def test_a_fused_native_tensor_of_nine_experts(command: CommandLine, tmp_path: Path) -> None:
    source = converted(command, make(tmp_path / "source", MIXTRAL))
    name = "decoder.0.mlp.layer_2.weight"
    edit_tensors(source, lambda t: t.update({f"{name}/weights": torch.zeros(9 * 37, 30)}))
    refuse(command, source, f"tensor `{name}` is [333, 30] in the file, [296, 30] by the config")


def test_two_rules_to_one_target(command: CommandLine, tmp_path: Path) -> None:
    """The last one wins without a word elsewhere. A line may replace an *inherited* one, and `formats` shows that."""
    mapping = tmp_path / "mine.yaml"
    head = "crosswalk: 1\nextends: llama\nmodel_type: mine\narchitecture: MineForCausalLM\n"
    mapping.write_text(head + "attention:\n  tensors:\n    q_proj: query\n    q2_proj: query\n")
    assert_refused(command.compile(mapping), "mine.yaml:8:5: error: `q2_proj` and `q_proj` (")
    mapping.write_text(head + "attention:\n  config:\n    num_attention_heads: heads\n    n_head: heads\n")
    ran = command.compile(mapping)
    assert ran.code == 1
    assert "heads" in ran.err
    mapping.write_text(head + "attention:\n  tensors:\n    q2_proj: query\n")
    assert command.compile(mapping).code == 0


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_names_that_have_the_prefix_already_get_no_second_one(
    prefix: str, command: CommandLine, tmp_path: Path
) -> None:
    """transformers undoes a rename by a regex, on names to which it was never done: ``encoder.encoder.layers``."""
    moves = {"language_model.model.": "model.language_model.", "language_model.lm_head": "lm_head"}
    moves |= {"vision_tower.": "model.vision_tower.", "multi_modal_projector.": "model.multi_modal_projector."}
    if prefix == "language_model.":
        moves = {new: old for old, new in moves.items()}
    source = make(tmp_path / "source", LLAVA)

    def renamed(name: str) -> str:
        return next((new + name[len(old) :] for old, new in moves.items() if name.startswith(old)), name)

    names = {name: renamed(name) for name in tensors_of(source)}
    edit_tensors(source, lambda t: [t.update({new: t.pop(old)}) for old, new in names.items() if old != new])
    assert any(name.startswith(prefix) for name in tensors_of(source))
    target = converted(command, source)
    back = converted(command, target, "back")
    assert tensors_of(back).keys() == tensors_of(source).keys()
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert command("verify", target, back).code == 0


def test_names_of_two_dialects_in_one_checkpoint(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", LLAVA)
    new, old = "model.language_model.norm.weight", "language_model.model.norm.weight"
    assert (new in tensors_of(source)) != (old in tensors_of(source))
    there, other = (new, old) if new in tensors_of(source) else (old, new)
    edit_tensors(source, lambda t: t.update({other: t.pop(there)}))
    refuse(command, source, "tensor names of two dialects in one checkpoint")


def test_no_arithmetic_on_weights() -> None:
    """+1 and then -1 on a BF16 norm changes up to 98 % of its elements. There is no such operation: a copy moves
    elements and may change their dtype, and a norm that is stored around zero is not one that is stored around one."""
    assert set(Copy._fields) == {
        "source", "target", "extents", "source_offset", "source_strides", "target_offset", "target_strides", "rule",
    }  # fmt: skip
    native_config = crosswalk.import_config(LLAMA)
    native_config["head"]["normalization"]["zero_centered"] = True
    with pytest.raises(CrosswalkError, match="zero_centered"):
        crosswalk.compile_plan(native_config, format="llama", to="hf")


def test_composition_with_a_source_that_nobody_makes() -> None:
    one = copies([TensorSpec("a", (5,), "F32")], [TensorSpec("b", (5,), "F32")], ("a", "b", (5,), 0, (1,), 0, (1,)))
    two = copies(
        [TensorSpec("b", (5,), "F32"), TensorSpec("k", (3,), "F32")],
        [TensorSpec("c", (8,), "F32")],
        ("b", "c", (5,), 0, (1,), 0, (1,)),
        ("k", "c", (3,), 0, (1,), 5, (1,)),
    )
    with pytest.raises(CrosswalkError, match="`k`"):
        one.compose(two)


def test_a_slice_of_a_concatenation_reads_only_its_part() -> None:
    there = crosswalk.compile_plan(LLAMA)
    back = crosswalk.compile_plan(crosswalk.import_config(LLAMA), format="llama", to="hf")
    name = "model.layers.1.self_attn.k_proj.weight"
    part = there.compose(back).restrict(targets={name: ((0, 28), (0, 30))})
    assert [tensor.name for tensor in part.sources] == [name]
    assert part.summary()["bytes_read"] == 28 * 30 * 4
    assert len(part.copies) == 1


def test_the_inverse_of_a_cyclic_permutation_is_not_itself() -> None:
    """Rank 3, (a, b, c) -> (c, a, b): doing it twice is not doing it and undoing it."""
    a, b, c = 2, 3, 5
    plan = copies(
        [TensorSpec("x", (a, b, c), "F32")],
        [TensorSpec("y", (c, a, b), "F32")],
        ("x", "y", (c, a, b), 0, (1, b * c, c), 0, (a * b, b, 1)),
    )
    x = torch.arange(a * b * c, dtype=torch.float32).view(a, b, c)
    y = dict(execute(plan, {"x": x}))["y"]
    assert torch.equal(y, x.permute(2, 0, 1))
    assert torch.equal(dict(execute(plan.inverse(), {"y": y}))["x"], x)
    assert plan.inverse().digest != plan.digest


def test_a_square_matrix_is_transposed_where_its_axes_say_so(command: CommandLine, tmp_path: Path) -> None:
    """The shapes agree and a round trip is clean either way; only the values tell."""
    source = make(tmp_path / "source", intermediate_size=30, num_attention_heads=5, num_key_value_heads=5, head_dim=6)
    hf, ours = tensors_of(source), tensors_of(converted(command, source))
    for layer in range(3):
        down = hf[f"model.layers.{layer}.mlp.down_proj.weight"]
        assert torch.equal(ours[f"decoder.{layer}.mlp.layer_2.weight/weights"], down.T)
        assert not torch.equal(ours[f"decoder.{layer}.mlp.layer_2.weight/weights"], down)
        query = hf[f"model.layers.{layer}.self_attn.q_proj.weight"]
        assert query.shape == (30, 30)
        assert torch.equal(ours[f"decoder.{layer}.mixer.query.weight/weights"], query)
