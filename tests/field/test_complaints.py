"""What people complain of in other converters, and what happens here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from converted import converted
from golden_cases import CASES
from small_checkpoints import (
    LLAMA,
    CommandLine,
    assert_refused,
    config_of,
    contents,
    edit_config,
    edit_tensors,
    make,
    native,
    refuse,
    tensors_of,
)

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

# ---- complaints ------------------------------------------------------------------------------------------------------


def test_an_index_lists_only_what_this_run_wrote(command: CommandLine, tmp_path: Path) -> None:
    target = native(tmp_path, command)
    back = converted(command, target, "back", "--max-shard-size", "10kB")
    many = len(list(back.glob("*.safetensors")))
    ran = command("convert", target, back, "--overwrite", "--max-shard-size", "70kB")
    assert ran.code == 0
    index = json.loads((back / "model.safetensors.index.json").read_text())
    files = {path.name for path in back.glob("*.safetensors")}
    assert len(files) < many
    assert set(index["weight_map"].values()) == files
    assert index["weight_map"].keys() == tensors_of(tmp_path / "source").keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors_of(tmp_path / "source").values())


def test_a_parameter_that_a_mapping_forgets_is_an_error_of_the_mapping(command: CommandLine, tmp_path: Path) -> None:
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(
        "crosswalk: 1\nextends: llama\nmodel_type: mine\narchitecture: MineForCausalLM\n"
        "mlp:\n  tensors:\n    down_proj: ~\n"
    )
    ran = command.compile(mapping)
    assert ran.code == 1
    assert "layer_2" in ran.err
    assert "Traceback" not in ran.err


def test_prediction_heads_without_weights(command: CommandLine, tmp_path: Path) -> None:
    case = CASES["mtp_llama_3heads"]
    from safetensors.torch import save_file

    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(case.hf_config()))
    save_file({k: v for k, v in case.hf_tensors().items() if "mtp_heads" not in k}, source / "model.safetensors")
    ran = command("check", source)
    assert ran.code == 1
    assert "model.mtp_heads.{0..1}.self_attn.q_proj.weight" in ran.err
    assert all("is missing" in problem for problem in ran.problems)


def test_custom_sizes_need_no_reference_checkpoint(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    back = converted(command, converted(command, source), "back")
    assert contents(back) == contents(source)


def test_errors_name_rule_tensor_file_and_line(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_tensors(source, lambda t: t.update({"model.layers.1.mlp.gate_proj.weight": torch.zeros(3)}))
    (problem,) = command("check", source).problems
    text = (Path(__file__).parents[2] / "mappings" / "llama.yaml").read_text().splitlines()
    number = text.index('    "{gate|up}_proj": layer_1') + 1
    assert f"{source}: error: tensor `model.layers.1.mlp.gate_proj.weight` is [3]" in problem
    assert f"mappings/llama.yaml:{number}:5" in problem.splitlines()[-1]


def test_an_unmapped_tensor_is_named_and_never_said_to_be_dropped(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_tensors(source, lambda t: t.update({"model.layers.1.mlp.down_proj.gain": torch.ones(1, 1)}))
    (problem,) = command("check", source).problems
    assert "`model.layers.1.mlp.down_proj.gain` [1, 1] has no counterpart in mapping `llama`" in problem
    assert "hint: another format may have it (--format); a mapping that should have it needs a line" in problem
    edit_tensors(source, lambda t: t.update({"model.layers.1.mlp.down_proj.weight_scale_inv": t.pop(
        "model.layers.1.mlp.down_proj.gain")}))  # fmt: skip
    (problem,) = command("check", source).problems
    assert "the tensors look quantised, as by block-wise FP8, and config.json does not say how" in problem


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 4.0}, {"rope_type": "dynamic", "factor": 2.0}])
def test_scaling_that_the_trainer_lacks_is_not_dropped(
    scaling: dict[str, Any], command: CommandLine, tmp_path: Path
) -> None:
    source = make(tmp_path / "source")
    edit_config(source, lambda c: (c.pop("rope_parameters"), c.update(rope_theta=9.0, rope_scaling=scaling)))
    refuse(command, source, "`rope_parameters.rope_type` must be one of default, llama3, yarn")


def test_the_scaling_factor_of_the_file_counts() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 3.0, "factor": 32.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0}
    config = {**LLAMA, "rope_parameters": {**rope, "original_max_position_embeddings": 64}}
    rotary = crosswalk.import_config(config)["decoder"]["block"]["mixer"]["rotary"]
    assert rotary == {
        "type": "llama3", "theta": 3.0, "scale_factor": 32.0, "low_frequency_factor": 1.5,
        "high_frequency_factor": 5.0, "original_context_length": 64,
    }  # fmt: skip
    del config["rope_parameters"]["factor"]
    with pytest.raises(CrosswalkError, match=r"`rope_parameters\.factor` is required"):
        crosswalk.import_config(config)


def test_files_beside_the_weights_travel_along(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    files = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "LICENSE")
    for name in files:
        (source / name).write_text(f"{name}\n")
    target = converted(command, source)
    assert {name: (target / name).read_text() for name in files} == {name: f"{name}\n" for name in files}
    assert contents(converted(command, target, "back")) == contents(source)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_kept(dtype: str, command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype=dtype)
    target = converted(command, source)
    assert {str(tensor.dtype) for tensor in tensors_of(target).values()} == {f"torch.{dtype}"}
    back = converted(command, target, "back")
    assert config_of(back)["dtype"] == dtype
    assert {str(tensor.dtype) for tensor in tensors_of(back).values()} == {f"torch.{dtype}"}


def test_tensors_of_another_dtype_keep_it(command: CommandLine, tmp_path: Path) -> None:
    """Norms are often kept in FP32 beside BF16 weights."""
    source = make(tmp_path / "source", dtype="bfloat16")
    edit_tensors(source, lambda t: t.update({n: v.float() + 1e-4 for n, v in t.items() if "norm" in n}))
    target = converted(command, source)
    found = {name: str(tensor.dtype) for name, tensor in tensors_of(target).items()}
    assert {name for name, dtype in found.items() if dtype == "torch.float32"} == {n for n in found if "norm" in n}
    back = tensors_of(converted(command, target, "back"))
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors_of(source).items())
    assert {back[name].dtype for name in back if "norm" in name} == {torch.float32}


def test_a_tied_head_is_written_once(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", tie_word_embeddings=True)
    size = sum(tensor.nbytes for tensor in tensors_of(source).values())
    target = converted(command, source)
    back = converted(command, target, "back")
    for directory in (target, back):
        assert sum(tensor.nbytes for tensor in tensors_of(directory).values()) == size
    assert "lm_head.weight" not in tensors_of(back)


def test_an_untied_head_that_is_missing_is_not_taken_for_tied(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    edit_tensors(source, lambda t: t.pop("lm_head.weight"))
    refuse(command, source, "tensor `lm_head.weight` [71, 30] is missing")


def test_the_format_is_what_the_config_says_not_what_a_name_looks_like(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mistral-7b").mkdir()
    source = make(tmp_path / "mistral-7b" / "gemma-3-mixtral")
    assert "llama -> fast_llm" in command("check", source).out
    edit_config(source, lambda c: c.update(_name_or_path="mistralai/Mixtral-8x7B"))
    assert "llama -> fast_llm" in command("check", source).out


def test_plans_are_immutable_and_equal_when_made_again() -> None:
    plan = crosswalk.compile_plan(LLAMA)
    with pytest.raises(AttributeError):
        plan.copies = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        plan.copies[0].rule = 3  # type: ignore[misc]
    again = crosswalk.compile_plan(dict(reversed(LLAMA.items())))
    assert again.digest == plan.digest
    assert again.to_json() == plan.to_json()


def test_a_shard_is_checked_against_the_whole() -> None:
    plan = crosswalk.compile_plan(LLAMA)
    with pytest.raises(CrosswalkError, match=r"does not lie inside `head.output_weights` \(shape \[71, 30\]\)"):
        plan.restrict(targets={"head.output_weights": ((36, 72), (0, 30))})


def test_a_padded_vocabulary_is_not_cut(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    name = "model.embed_tokens.weight"
    edit_tensors(source, lambda t: t.update({name: torch.cat([t[name], torch.zeros(57, 30)])}))
    refuse(command, source, f"tensor `{name}` is [128, 30] in the file, [71, 30] by the config")


def test_checksums_on_both_sides(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    there = crosswalk.convert(source, tmp_path / "native")
    back = crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert there.checksums.keys() == {tensor.removesuffix("/weights") for tensor in tensors_of(tmp_path / "native")}
    # A tensor that is copied as it is has one checksum on both sides, and a transposed one has not.
    assert there.checksums["head.output_weights"] == back.checksums["lm_head.weight"]
    name = "model.layers.0.mlp.down_proj.weight"
    assert there.checksums["decoder.0.mlp.layer_2.weight"] != back.checksums[name]


def test_a_checkpoint_of_adapters_is_refused(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    names = [f"model.layers.{i}.self_attn.q_proj.lora_{ab}.weight" for i in range(3) for ab in "AB"]
    edit_tensors(source, lambda t: t.update({name: torch.zeros(4, 30) for name in names}))
    ran = command("check", source)
    assert_refused(ran, *(f"model.layers.{{0..2}}.self_attn.q_proj.lora_{ab}.weight" for ab in "AB"))
