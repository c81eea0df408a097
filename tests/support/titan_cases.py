"""What torchtitan's own classes and adapters recorded (``golden_torchtitan/make.py``): configs, tensors, and names."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from comparing import stored_as
from golden_cases import load_tensors
from safetensors.torch import save_file

import crosswalk
from crosswalk.runtime.plan.model import Plan

GOLDEN = Path(__file__).parents[1] / "golden_torchtitan"
#: Case -> the format for torchtitan, and the one for fast_llm if it has one.
FORMATS = {
    "llama3": ("torchtitan_llama3", "llama"),
    "llama3_separate_tied": ("torchtitan_llama3", "llama"),
    "qwen3": ("torchtitan_qwen3", "qwen3"),
    "qwen3_separate_tied": ("torchtitan_qwen3", "qwen3"),
    "qwen3_moe": ("torchtitan_qwen3_moe", None),
    "deepseek_v3": ("torchtitan_deepseek_v3", None),
    "deepseek_v3_plain": ("torchtitan_deepseek_v3", None),
    "deepseek_v3_mtp": ("torchtitan_deepseek_v3", None),
    "gpt_oss": ("torchtitan_gpt_oss", None),
}
BOTH = [name for name, (_, other) in FORMATS.items() if other]
FUSED = [name for name in FORMATS if (GOLDEN / name / "fused.safetensors").exists()]
REGISTRY: dict[str, dict[str, Any]] = json.loads((GOLDEN / "registry.json").read_text())
ROOTS = {
    "torchtitan_llama3": "llama3",
    "torchtitan_qwen3": "qwen3",
    "torchtitan_qwen3_moe": "qwen3",
    "torchtitan_deepseek_v3": "deepseek_v3",
    "torchtitan_gpt_oss": "gpt_oss",
}
#: model_type -> format.
OF_TYPE = {"llama": "torchtitan_llama3"} | {name: f"torchtitan_{name}" for name in
           ("qwen3", "qwen3_moe", "deepseek_v3", "gpt_oss")}  # fmt: skip

Tensors = dict[str, torch.Tensor]


def read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((GOLDEN / name / "case.json").read_text())
    return result


def tensors(name: str, file: str) -> Tensors:
    return dict(load_tensors(GOLDEN / name / f"{file}.safetensors"))


def native_of(case: dict[str, Any], format: str) -> dict[str, Any]:
    """The config of the class, with the defaults of the layout filled in."""
    return crosswalk.normalize_native(case["native_config"], ROOTS[format], "torchtitan")


def fused(native: dict[str, Any]) -> dict[str, Any]:
    """The same model with queries, keys and values in one parameter, as live models have."""
    result = copy.deepcopy(native)
    for block in blocks(result):
        block["attention"]["qkv_linear"] = {"type": "fused"}
    return result


def blocks(native: dict[str, Any]) -> list[dict[str, Any]]:
    """The configs of all layers."""
    layers = native["layers"]
    if layers["type"] == "fixed":
        return [layers["block"]] * layers["num_blocks"]
    return [layers["blocks"][name] for name in layers["pattern"]]


def stored_once(case: dict[str, Any], key: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes, a tied tensor under its first name only."""
    found = {name: tuple(shape) for name, shape in case[key].items()}
    if case["hf_config"]["tie_word_embeddings"]:
        found.pop("lm_head.weight", None)
    return found


def for_bf16(plan: Plan) -> Plan:
    return stored_as(plan, "BF16")


def hugging_face(name: str, path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(read(name)["hf_config"]))
    save_file(tensors(name, "hf"), path / "model.safetensors", {"format": "pt"})
    return path


def live(name: str) -> Tensors:
    """The parameters of the model with fused queries, keys and values, as its own class has them."""
    separate = {key: value for key, value in tensors(name, "titan").items() if ".qkv_linear." not in key}
    return separate | tensors(name, "fused")


def state_dict(name: str) -> Tensors:
    """That of the model in torchtitan: a tied tensor is in it under both of its names."""
    found = {key: value for key, value in tensors(name, "titan").items() if ".wqkv" not in key}
    if read(name)["hf_config"]["tie_word_embeddings"]:
        found["lm_head.weight"] = found["tok_embeddings.weight"]
    return found
