"""Quantised checkpoints made from real ones, and the same decoded by hand: plain float checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import config_of

from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.compiler.tensors.encoded import read_encodings
from crosswalk.runtime.plan.model import Encoding, TensorSpec

Tensors = dict[str, torch.Tensor]
E4M3 = 448.0


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    """What is quantised in published checkpoints: the matrices of the layers, neither embeddings nor the head."""
    return tensor.dim() == 2 and ".layers." in name


def fp8_checkpoint(
    source: Path,
    target: Path,
    block: tuple[int, int] | None = (8, 16),
    scales: torch.dtype = torch.float32,
    chosen: Callable[[str, torch.Tensor], bool] = is_linear,
    decoded: torch.dtype = torch.bfloat16,
    **said: Any,
) -> Path:
    """Write ``source`` with its linear weights in FP8 to ``target``, and beside it as ``target-decoded`` the float
    checkpoint that it means. ``said``: further keys of ``quantization_config``."""
    config = config_of(source)
    plain = target.with_name(f"{target.name}-decoded")
    for directory in (target, plain):
        shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors: Tensors = {}
    floats: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not chosen(name, tensor):
            tensors[name] = floats[name] = tensor
            continue
        payload, grid = quantise(tensor, block)
        grid = grid.to(scales)
        tensors |= {name: payload, f"{name}_scale_inv": grid}
        floats[name] = dequantise(payload, grid, block).to(decoded)
        if block is None:
            tensors[name.removesuffix(".weight") + ".activation_scale"] = torch.tensor(0.25)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    save_file(floats, plain / "model.safetensors", {"format": "pt"})
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic" if block else "static",
        "weight_block_size": list(block) if block else None,
        "modules_to_not_convert": ["lm_head"],
        **said,
    }
    (target / "config.json").write_text(json.dumps(config, indent=2))
    return target


def quantise(tensor: torch.Tensor, block: tuple[int, int] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 codes and the scale of every block, so that the largest element of a block has the largest code."""
    values = tensor.float()
    if block is None:
        scale = (values.abs().max() / E4M3).clamp(min=1e-12)
        return (values / scale).to(torch.float8_e4m3fn), scale
    rows, columns = (range(0, size, width) for size, width in zip(values.shape, block, strict=True))
    tiles = [[values[r : r + block[0], c : c + block[1]] for c in columns] for r in rows]
    grid = torch.stack([torch.stack([(tile.abs().max() / E4M3).clamp(min=1e-12) for tile in row]) for row in tiles])
    codes = torch.cat(
        [torch.cat([t / s for t, s in zip(ts, ss, strict=True)], 1) for ts, ss in zip(tiles, grid, strict=True)]
    )
    return codes.to(torch.float8_e4m3fn), grid


def dequantise(payload: torch.Tensor, grid: torch.Tensor, block: tuple[int, int] | None) -> torch.Tensor:
    """In float32, element by element."""
    if block is None:
        return payload.float() * grid.float()
    rows, columns = (torch.arange(size) // width for size, width in zip(payload.shape, block, strict=True))
    return payload.float() * grid.float()[rows][:, columns]


#: ``quantization_config`` as published checkpoints have it: what it is, the sizes of its blocks.
PUBLISHED: dict[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {
    "DeepSeek-V3": (
        {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
        "fp8_blocks",
        (128, 128),
    ),
    "DeepSeek-V3.1": (
        {
            **{"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0"},
            "weight_block_size": [128, 128],
        },
        "fp8_blocks",
        (128, 128),
    ),
    "Qwen3 FP8": (
        {
            **{"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
            "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm"],
        },
        "fp8_blocks",
        (128, 128),
    ),
    "Devstral Small 2": (
        {
            **{"activation_scheme": "static", "dequantize": False, "quant_method": "fp8", "weight_block_size": None},
            "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        },
        "fp8_blocks",
        (),
    ),
    "MiniMax": (
        {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "ignored_layers": ["gate", "lm_head"]},
        "fp8_blocks",
        (128, 128),
    ),
    "other sizes": (
        {
            **{"quant_method": "fp8", "weight_block_size": [32, 64], "scale_fmt": "float"},
            **{"modules_to_convert": None, "expert_dtype": "fp8"},
        },
        "fp8_blocks",
        (32, 64),
    ),
    "gpt-oss": ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, "mxfp4", ()),
    "gpt-oss, loaded": ({"quant_method": "mxfp4", "dequantize": False}, "mxfp4", ()),
}
#: Values that mean another encoding.
UNKNOWN = {"fmt": "e5m2", "scale_fmt": "e8m0", "expert_dtype": "fp4", "activation_scheme": "none"}


def misread(mapping: MappingFile) -> list[str]:
    """The published checkpoints that a mapping does not read as what they are."""
    matrix, grid = (300, 200), {(128, 128): (3, 2), (): (), (32, 64): (10, 4)}
    wrong = []
    for name, (said, kind, block) in PUBLISHED.items():
        specs = [TensorSpec("a.weight_blocks", (7, 2, 16), "U8"), TensorSpec("a.weight_scales", (7, 2), "U8")]
        found = [*specs]
        if kind == "fp8_blocks":
            specs = [TensorSpec("a.weight", matrix, "F8_E4M3"), TensorSpec("a.weight_scale_inv", grid[block], "F32")]
            found = [*specs, TensorSpec("a.activation_scale", (), "F32")]
        read = read_encodings(mapping, {"quantization_config": said}, found)
        decoded = TensorSpec("a.weight", matrix if kind == "fp8_blocks" else (7, 64), "BF16")
        expected = ({}, [], [Encoding("a.weight", kind, tuple(specs), block)], decoded)
        if (read.config, read.problems, read.encodings, read.specs.get("a.weight")) != expected:
            wrong.append(name)
        if read.specs.keys() - read.unused.keys() != {"a.weight"}:
            wrong.append(f"what stands beside: {name}")
    for key, value in UNKNOWN.items():
        read = read_encodings(mapping, {"quantization_config": PUBLISHED["DeepSeek-V3"][0] | {key: value}}, ())
        if [problem.path for problem in read.problems] != [("quantization_config", key)]:
            wrong.append(f"{key}: {value}")
    return wrong
