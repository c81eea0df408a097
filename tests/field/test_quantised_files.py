"""Files that are quantised and do not say so, and files that say so and are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_checkpoints import CommandLine, config_of, edit_config, edit_tensors, make, refuse
from test_unknown_keys import there_and_back

Q = [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
F8 = torch.float8_e4m3fn
ONE = torch.ones(1)


#: What a tool stores for a linear layer: ending -> tensor; and what the message calls the tool. ``None``: not stored.
TOOLS: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "ModelOpt FP8": (
        {".weight": torch.zeros(84, 30).to(F8), ".weight_scale": ONE, ".input_scale": ONE},
        "as by ModelOpt or compressed-tensors,",
    ),
    "ModelOpt NVFP4": (
        {".weight": torch.zeros(84, 15, dtype=torch.uint8), ".weight_scale": ONE, ".weight_scale_2": ONE},
        "as by ModelOpt,",
    ),
    "GPTQ": (
        {".weight": None, ".qweight": torch.zeros(4, 84, dtype=torch.int32), ".qzeros": ONE, ".scales": ONE,
         ".g_idx": torch.zeros(30, dtype=torch.int32)},
        "as by GPTQ,",
    ),
    "AWQ": (
        {".weight": None, ".qweight": torch.zeros(30, 11, dtype=torch.int32), ".qzeros": ONE, ".scales": ONE},
        "as by AWQ or GPTQ,",
    ),
    "bitsandbytes, 4 bits": (
        {".weight": torch.zeros(1260, 1, dtype=torch.uint8), ".weight.absmax": ONE, ".weight.quant_map": ONE,
         ".weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)},
        "as by bitsandbytes,",
    ),
    "bitsandbytes, 8 bits": (
        {".weight": torch.zeros(84, 30, dtype=torch.int8), ".SCB": torch.ones(84)},
        "as by bitsandbytes,",
    ),
    "compressed-tensors": (
        {".weight": None, ".weight_packed": torch.zeros(84, 4, dtype=torch.int32), ".weight_scale": ONE,
         ".weight_shape": torch.tensor([84, 30])},
        "as by compressed-tensors,",
    ),
    "MLX": (
        {".weight": torch.zeros(84, 4, dtype=torch.int32), ".scales": ONE, ".biases": ONE},
        "as by MLX,",
    ),
}  # fmt: skip


def quantise(path: Path, stored: dict[str, torch.Tensor | None]) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in Q:
            for ending, tensor in stored.items():
                if tensor is None:
                    del tensors[name + ending]
                else:
                    tensors[name + ending] = tensor

    edit_tensors(path, edit)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_file_that_looks_quantised_is_called_so(tool: str, command: CommandLine, tmp_path: Path) -> None:
    stored, said = TOOLS[tool]
    source = make(tmp_path / "source")
    quantise(source, stored)
    refuse(command, source, f"the tensors look quantised, {said}", "[tensors/quantised]")
    text = command("check", source).err
    assert "~" not in text
    for ending in stored:
        if ending != ".weight":
            assert f"`model.layers.{{0..2}}.self_attn.q_proj{ending}` (3 in all)" in text
    assert "missing" not in text
    assert "dequantise" in text


def test_other_problems_of_a_quantised_file_are_named_too(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    quantise(source, TOOLS["GPTQ"][0])
    edit_tensors(source, lambda tensors: tensors.pop("lm_head.weight"))
    refuse(command, source, "the tensors look quantised", "`lm_head.weight` [71, 30] is missing")


LEFT = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
    "nothing": {"bits": 4},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "quantization"])
def test_quantisation_keys_that_were_left_on_floats(key: str, name: str, command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source", dtype="bfloat16")
    edit_config(source, lambda config: config.update({key: LEFT[name]}))
    ran = command("check", source)
    assert ran.code == 0, ran.err
    assert f"`{key}` says that tensors are quantised" in ran.out
    assert "all are floats: it is left out" in ran.out
    back = there_and_back(source, command=command)
    assert key not in config_of(back)


def test_quantisation_keys_that_are_true_are_refused(command: CommandLine, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    quantise(source, TOOLS["bitsandbytes, 8 bits"][0])
    edit_config(source, lambda config: config.update(quantization_config=LEFT["bitsandbytes"]))
    refuse(command, source, '`quantization_config.quant_method` must be fp8 or mxfp4, it is "bitsandbytes"')
    edit_config(source, lambda config: config.update(quantization={"bits": 4}, quantization_config=None))
    refuse(command, source, "`quantization` says that tensors are quantised (bits 4): that is not decoded")
