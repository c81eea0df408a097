"""The forms that Megatron has of a config: fields of TransformerConfig, ``run_config.yaml``, arguments. Against those
that a converter made (``golden_megatron``); ``with_megatron/configs.py`` holds them against Megatron's own code.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from comparing import tensor_differences
from golden_cases import load_tensors
from small_checkpoints import tensors_of

import crosswalk
from crosswalk.checkpoints.kinds.beside import read
from crosswalk.runtime.errors import CrosswalkError

GOLDEN = Path(__file__).parents[1] / "golden_megatron"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config of Hugging Face, and the fields of Megatron that a converter made of it."""
    case = json.loads((GOLDEN / name / "case.json").read_text())
    fields: dict[str, Any] = case["transformer_config"]
    fields["activation_func"] = fields["activation_func"].removeprefix("callable:")
    return case["hf_config"], fields


def fields_of(native: dict[str, Any]) -> dict[str, Any]:
    """As ``run_config.yaml`` has them, with a function by the last part of its name."""
    found = dict(crosswalk.native_forms(native, layout="megatron")["run_config.yaml"]["model"])
    assert found["activation_func"]["_call_"] is False
    return found | {"activation_func": found["activation_func"]["_target_"].rpartition(".")[2]}


def arguments_of(native: dict[str, Any]) -> dict[str, Any]:
    return crosswalk.native_forms(native, layout="megatron")["args"]


def exported(native: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    whole = crosswalk.normalize_native(native, layout="megatron")
    return crosswalk.export_config(whole, f"megatron_{config['model_type']}")


def plain(value: Any) -> Any:
    """Without the difference between 32 and 32.0, and between a tuple and a list."""
    if isinstance(value, (list, tuple)):
        return list(map(plain, value))
    return float(value) if isinstance(value, int) else value


@pytest.mark.parametrize("name", CASES)
def test_fields_are_those_of_the_converter(name: str) -> None:
    config, fields = recorded(name)
    found = fields_of(crosswalk.import_config(config, to="megatron"))
    compared = {key for key, value in fields.items() if key in found and value is not None} - {"window_attn_skip_freq"}
    assert {"num_layers", "hidden_size", "ffn_hidden_size", "kv_channels", "moe_layer_freq", "rotary_base"} <= compared
    assert {key: plain(found[key]) for key in compared} == {key: plain(fields[key]) for key in compared}


@pytest.mark.parametrize("name", CASES)
def test_fields_of_the_converter_are_the_same_model(name: str) -> None:
    config, fields = recorded(name)
    expected = exported(crosswalk.import_config(config, to="megatron"), config)
    assert exported(fields, config) == expected
    assert exported({"model": fields | {"bf16": True}, "train": {"num_layers": 99}}, config) == expected
    inside = {key: fields.pop(key) for key in ("num_layers", "activation_func", "moe_layer_freq")}
    assert exported({"model": {"transformer": inside, **fields}}, config) == expected  # newer, of a builder


@pytest.mark.parametrize("name", CASES)
def test_arguments_there_and_back(name: str) -> None:
    config = recorded(name)[0]
    native = crosswalk.import_config(config, to="megatron")
    found = arguments_of(native)
    assert found["num_experts"] == native["num_moe_experts"]
    assert found["swiglu"] == (native["activation_func"] == "silu")
    assert found["quick_geglu"] == (name == "gpt_oss")
    assert found["untie_embeddings_and_output_weights"] != native["share_embeddings_and_output_weights"]
    assert found["padded_vocab_size"] == native["vocab_size"]
    assert found["group_query_attention"] != native["multi_latent_attention"]
    # What a parser of Megatron says of what the model does not have.
    found |= {"rope_scaling_factor": 8.0} if not found.get("use_rope_scaling") else {}
    found |= {"mscale": 1.0, "mscale_all_dim": 0.0, "beta_fast": 7.0} if not found["multi_latent_attention"] else {}
    found |= {"num_query_groups": 1} if not found["group_query_attention"] else {}
    assert exported(found, config) == exported(native, config)


def test_a_step_is_read_as_a_list_of_layers() -> None:
    fields = recorded("deepseek_v3")[1] | {"num_layers": 5}
    windows = recorded("gpt_oss")[1] | {"num_layers": 5}
    for said, wanted in ((2, [1, 0, 1, 0, 1]), (1, [1] * 5), ([0, 0, 1, 1, 1], [0, 0, 1, 1, 1])):
        assert expanded(fields | {"moe_layer_freq": said}, "moe") == wanted
    for said, wanted in (
        (2, [1, 0, 1, 0, 1]),
        (3, [1, 1, 0, 1, 1]),
        (None, [1] * 5),
        ([0, 1, 1, 0, 1], [0, 1, 1, 0, 1]),
    ):
        assert expanded(windows | {"window_attn_skip_freq": said}, "windowed") == wanted
    assert expanded(windows | {"window_size": None, "window_attn_skip_freq": 2}, "windowed") == [0] * 5


def expanded(fields: dict[str, Any], what: str) -> list[int]:
    layers = crosswalk.normalize_native(fields, layout="megatron")["layers"]
    blocks = layers.get("blocks") or {"": layers["block"]}
    return [int(blocks[name][what]) for name in layers.get("pattern") or [""] * layers["num_blocks"]]


def test_no_layer_of_some_kind_is_said() -> None:
    """A model of Megatron has experts, and a window, on every layer unless told otherwise."""
    config = recorded("deepseek_v3")[0]
    dense = crosswalk.import_config(config | {"first_k_dense_replace": 99}, to="megatron")
    assert fields_of(dense)["moe_layer_freq"] == [0] * config["num_hidden_layers"]
    config = recorded("gpt_oss")[0]
    full = ["full_attention"] * config["num_hidden_layers"]
    seen = crosswalk.import_config(config | {"layer_types": full}, to="megatron")
    assert fields_of(seen)["window_attn_skip_freq"] == [0] * len(full)
    for native in (dense, seen):
        assert fields_of(crosswalk.normalize_native(fields_of(native), layout="megatron")) == fields_of(native)
        assert arguments_of(crosswalk.normalize_native(arguments_of(native), layout="megatron")) == arguments_of(native)


def test_what_means_nothing_in_a_dense_model_is_not_written() -> None:
    """TransformerConfig refuses a size of experts where there are none."""
    native = crosswalk.import_config(recorded("llama_untied")[0], to="megatron")
    assert "moe_ffn_hidden_size" not in fields_of(native)
    assert "q_lora_rank" not in fields_of(native)
    assert "yarn_beta_fast" not in fields_of(native)
    assert fields_of(native)["mtp_num_layers"] is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"window_size": [3, 1]}, r"windows of earlier positions alone"),
        ({"is_hybrid_model": True}, r"`is_hybrid_model` = true asks for layers of Mamba"),
        ({"heterogeneous_block_specs": True}, r"asks for layers that differ in their modules"),
        ({"attn_logit_softcapping": 50.0}, r"asks for soft caps of attention"),
        ({"final_logit_softcapping": 30.0}, r"asks for soft caps of logits"),
        ({"interleaved_attn_pattern": [5, 1]}, r"asks for rotary embeddings of two bases"),
        ({"experimental_attention_variant": "gated_delta_net"}, r"the layout has softmax attention alone"),
        ({"activation_func": "torch.nn.functional.mish"}, r"`activation_func` must be one of"),
        ({"num_layers": "two"}, r"`num_layers` must be a number of layers"),
    ],
)
def test_what_the_layout_does_not_have_is_refused_by_its_name(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(CrosswalkError, match=expected):
        crosswalk.normalize_native(recorded("gpt_oss")[1] | change, layout="megatron")


# In folders.

FOLDER = GOLDEN / "folders" / "llama_tp2_padded"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two tensor parallel ranks that says nothing of its config."""
    shutil.copytree(FOLDER, tmp_path / "run", ignore=shutil.ignore_patterns("hf*", "crosswalk.yaml"))
    return tmp_path / "run"


def native_of(run: Path) -> dict[str, Any]:
    config = json.loads((FOLDER / "hf_config.json").read_text())
    return crosswalk.import_config(config, to="megatron")


def put_run_config(run: Path) -> str:
    document = crosswalk.native_forms(native_of(run), layout="megatron")["run_config.yaml"]
    kind = {"_target_": "torch.bfloat16", "_call_": False}  # twice the same object: PyYAML writes an alias
    document["model"] |= {"params_dtype": kind, "pipeline_dtype": kind, "attention_backend": {"_args_": [5]}}
    text = yaml.safe_dump(document)
    assert "&id001" in text
    (run / "iter_0000007" / "run_config.yaml").write_text(text)
    return "the config is that of `run_config.yaml`"


def put_arguments(run: Path) -> str:
    values = arguments_of(native_of(run)) | {"vocab_size": 58, "padded_vocab_size": 64}
    values |= {"consumed_train_samples": 9, "params_dtype": torch.bfloat16}
    torch.save({"args": argparse.Namespace(**values)}, run / "iter_0000007" / "common.pt")
    return "the config is that of the arguments of the run"


@pytest.mark.parametrize("put", [put_run_config, put_arguments])
def test_a_folder_that_says_its_config_needs_no_option(run: Path, put: Any) -> None:
    note = put(run)
    report = crosswalk.convert(run, run.parent / "out")
    assert tensor_differences(tensors_of(run.parent / "out"), load_tensors(FOLDER / "hf.safetensors")) == []
    assert {note, "the config fits format llama, as mistral could (--format)"} <= set(report.notes)
    assert "`iter_0000007` is taken, the last iteration of this run" in report.notes
    assert "axis `vocab` is cut from 64 to 58: the last 6 are left out, unread" in report.notes
    crosswalk.verify(run, run.parent / "out")
    assert crosswalk.check(run, to="torchtitan").format == "llama3"


@pytest.mark.parametrize("put", [put_run_config, put_arguments])
def test_the_same_file_is_given(run: Path, put: Any) -> None:
    put(run)
    name = "run_config.yaml" if put is put_run_config else "common.pt"
    given = (run / "iter_0000007" / name).rename(run.parent / name)
    assert crosswalk.check(run, native_config=given).format == "llama"
    other = {**native_of(run), "hidden_size": 3}
    (run.parent / "other.json").write_text(json.dumps(other))  # in the layout's own form, of another model
    with pytest.raises(CrosswalkError, match=r"is \[24\] in the file, \[3\] by the config \[tensors/shape\]"):
        crosswalk.check(run, native_config=run.parent / "other.json", format="llama")


def test_an_iteration_of_several(run: Path) -> None:
    put_run_config(run)
    shutil.copytree(run / "iter_0000007", run / "iter_0000014")
    assert any(note.endswith("; iter_0000014 are not looked at") for note in crosswalk.check(run).notes)
    (run / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(CrosswalkError, match=r"which of iter_0000007, iter_0000014 is meant \[directory/latest\]"):
        crosswalk.check(run)
    shutil.rmtree(run / "iter_0000007")
    assert "`iter_0000014` is taken, the last iteration of this run" in crosswalk.check(run).notes


def test_a_problem_is_at_its_key_of_the_file(run: Path) -> None:
    put_run_config(run)
    file = run / "iter_0000007" / "run_config.yaml"
    text = file.read_text().replace("activation_func:", "is_hybrid_model: true\n  activation_func:")
    file.write_text(text)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "is_hybrid_model" in line)
    with pytest.raises(CrosswalkError, match=rf"{re.escape(str(file))}:{line}:3: error: `is_hybrid_model` = true"):
        crosswalk.check(run)


def test_what_stands_again_is_counted(tmp_path: Path) -> None:
    """A document of a few lines may stand for one of any size."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(CrosswalkError, match=r"bomb.yaml:6:\d+: error: more than 1000000 values.*\[native/metadata\]"):
        read(tmp_path / "bomb.yaml")
    (tmp_path / "loop.yaml").write_text("a: &a [*a]")
    with pytest.raises(CrosswalkError, match="nothing has the anchor `a`"):
        read(tmp_path / "loop.yaml")
