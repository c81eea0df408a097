"""Traps of converting that show in files and not in configs: leftovers, ties, dtypes, what is carried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from changing import changed, files_of
from comparing import tensor_differences
from golden_cases import CASES
from small_checkpoints import (
    LLAMA,
    CommandLine,
    config_of,
    contents,
    edit_config,
    make,
    metadata,
    refuse,
    tensors_of,
)

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

QWEN2 = {key: value for key, value in LLAMA.items() if key not in ("attention_bias", "mlp_bias", "head_dim")} | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
}


MIXER = ("decoder", "block", "mixer")


def test_04_the_biases_of_qwen2(command: CommandLine, tmp_path: Path) -> None:
    """On q, k and v only, whatever the switch above them says; anything else is refused."""
    config = crosswalk.import_config(QWEN2)
    source = make(tmp_path / "source", QWEN2)
    assert command("convert", source, tmp_path / "native").code == 0
    biases = {name for name in tensors_of(tmp_path / "native") if ".bias/" in name}
    assert biases == {f"decoder.{i}.mixer.{part}.bias/weights" for i in range(3) for part in ("query", "key_value")}
    for keys in ((*MIXER, "add_linear_biases"), ("decoder", "block", "mlp", "add_linear_biases")):
        with pytest.raises(CrosswalkError, match=rf"`{'.'.join(keys)}` must be false in this format, it is true"):
            crosswalk.export_config(changed(config, *keys, value=True), "qwen2")
    for part, enabled in (("query", False), ("dense", True)):
        with pytest.raises(CrosswalkError, match=rf"{part}_layer\.bias"):
            crosswalk.export_config(
                changed(config, *MIXER, f"{part}_layer", value={"bias": {"enabled": enabled}}), "qwen2"
            )


def test_06_the_file_is_read_and_not_what_a_class_makes_of_it(command: CommandLine, tmp_path: Path) -> None:
    """``from_pretrained`` would fill in defaults and drop what it does not know, an error of spelling included."""
    source = make(tmp_path / "source")
    edit_config(source, lambda config: (config.pop("rms_norm_eps"), config.update(rms_norm_epz=1e-5)))
    refuse(command, source, "`rms_norm_epz` = 1e-05 has no counterpart")


def test_09_a_duplicate_is_never_overwritten_in_silence(command: CommandLine, tmp_path: Path) -> None:
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(
        "crosswalk: 1\nextends: llama\nmodel_type: mine\narchitecture: MineForCausalLM\n"
        "mlp:\n  tensors:\n    up: layer_2\n    down: layer_2\n"
    )
    ran = command.compile(mapping)
    assert ran.code == 1
    assert "`down` and `up`" in ran.err
    assert "[mapping/parameter-twice]" in ran.err


def test_10_experts_that_are_stored_fused_convert_from_files(command: CommandLine, tmp_path: Path) -> None:
    """Slices that are read lazily reach every operation: what is read are bytes, whatever is done with them."""
    case = CASES["gemma4_moe_k_eq_v"]
    source = files_of(case, tmp_path / "source")
    assert command("convert", source, tmp_path / "native").code == 0
    found = {name.removesuffix("/weights"): tensor for name, tensor in tensors_of(tmp_path / "native").items()}
    assert tensor_differences(found, case.native_tensors()) == []


def test_14_two_names_for_one_activation(command: CommandLine, tmp_path: Path) -> None:
    """The trainer's ``gelu`` is the tanh approximation. The exact one is refused, or accepted as lossy, and then comes
    back under its own name."""
    tanh = make(tmp_path / "tanh", hidden_act="gelu_pytorch_tanh")
    assert command("convert", tanh, tmp_path / "native").code == 0
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert contents(tmp_path / "back") == contents(tanh)
    exact = make(tmp_path / "exact", hidden_act="gelu")
    refuse(command, exact, '`hidden_act` is "gelu": the trainer computes the tanh approximation of gelu')
    assert command("convert", exact, tmp_path / "lossy", "--allow-lossy").code == 0
    assert command("convert", tmp_path / "lossy", tmp_path / "again").code == 0
    assert contents(tmp_path / "again") == contents(exact)
    assert (
        crosswalk.export_config(crosswalk.import_config(config_of(tanh)), "llama")["hidden_act"] == "gelu_pytorch_tanh"
    )


def test_17_dtypes_are_kept_and_the_index_has_its_total_size(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype="float16")
    assert command("convert", source, tmp_path / "native").code == 0
    assert command("convert", tmp_path / "native", tmp_path / "back", "--max-shard-size", "30kB").code == 0
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(source).values())
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "native").values()} == {torch.float16}
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "back").values()} == {torch.float16}


def test_23_every_key_of_a_bare_config_is_carried_and_restored(command: CommandLine, tmp_path: Path) -> None:
    """Versions of transformers differ in what they put into every config.json."""
    from transformers import PretrainedConfig

    source = make(tmp_path / "source")
    bare = {key: value for key, value in PretrainedConfig().to_dict().items() if key not in config_of(source)}
    assert len(bare) > 5
    edit_config(source, lambda config: config.update(bare, return_dict=False, id2label={"0": "a"}))
    assert command("convert", source, tmp_path / "native").code == 0
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    metadata("config", "base_model", "head", "normalization", epsilon=2e-4)(tmp_path / "native")
    metadata("config", "base_model", "decoder", "block", "normalization", epsilon=2e-4)(tmp_path / "native")
    assert command("convert", tmp_path / "native", tmp_path / "anew").code == 0
    assert config_of(tmp_path / "anew") == {**config_of(source), "rms_norm_eps": 2e-4}


def test_26_a_stale_theta_does_not_come_back(command: CommandLine, tmp_path: Path) -> None:
    """A changed native config is written anew: the theta that yielded is not restored beside the right one."""
    source = make(tmp_path / "source")
    edit_config(source, lambda config: config.update(rope_theta=10000.0))
    assert command("convert", source, tmp_path / "native").code == 0
    metadata("config", "base_model", "decoder", "block", "mixer", "rotary", theta=5.0)(tmp_path / "native")
    assert command("convert", tmp_path / "native", tmp_path / "back").code == 0
    found = config_of(tmp_path / "back")
    assert found["rope_parameters"]["rope_theta"] == 5.0
    assert found.get("rope_theta", 5.0) == 5.0
