"""Reference conversions of Megatron-core that tests share: configs, state dicts, and a checkpoint of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from comparing import stored_as
from golden_cases import load_tensors
from safetensors.torch import save_file

import crosswalk
from crosswalk.runtime.plan.model import Plan

GOLDEN = Path(__file__).parents[1] / "golden_megatron"
CASES = {
    "llama_untied": "llama",
    "llama_tied_rope3": "llama",
    "qwen2": "qwen2",
    "mixtral": "mixtral",
    "qwen3_moe": "qwen3_moe",
    "deepseek_v3": "deepseek_v3",
    "gpt_oss": "gpt_oss",
}
SPECS = ("transformer_engine", "local")
LAYERS = "decoder.layers.0."
Tensors = dict[str, torch.Tensor]

needs_transformers_5 = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="config.json of transformers 5")


def read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((GOLDEN / name / "case.json").read_text())
    latent = result["transformer_config"]["multi_latent_attention"]
    if name == "qwen3_moe" and oracles.TRANSFORMERS_MAJOR < 5:
        result["hf_config"]["num_experts"] = result["hf_config"]["num_local_experts"]  # the name of that version
    for config in (result["hf_config"]["rope_parameters"], result["transformer_config"]):
        for key in {"beta_fast", "beta_slow"} & config.keys():
            config[key] = float(config[key])  # recorded as whole numbers
    if not latent:
        del result["transformer_config"]["rotary_scaling_factor"]  # a field of latent attention alone
    if result["transformer_config"]["position_embedding_type"] != "yarn":
        result["transformer_config"] = {k: v for k, v in result["transformer_config"].items() if k[:5] != "yarn_"}
    if result["transformer_config"]["window_attn_skip_freq"] == 2:  # every second layer has none
        result["transformer_config"]["window_attn_skip_freq"] = [1, 0]
    return result


def theirs(name: str) -> Tensors:
    return dict(load_tensors(GOLDEN / name / "hf.safetensors"))


def ours(name: str) -> Tensors:
    """The state dict without ``_extra_state``, which holds no weights."""
    found = load_tensors(GOLDEN / name / "megatron.safetensors")
    return {key: value for key, value in found.items() if not key.endswith("_extra_state")}


def format_of(name: str) -> str:
    return f"megatron_{CASES[name]}"


def native_of(name: str, spec: str = "transformer_engine") -> dict[str, Any]:
    return crosswalk.import_config(read(name)["hf_config"], to="megatron") | {"transformer_impl": spec}


def for_fp32(plan: Plan) -> Plan:
    return stored_as(plan, "F32")


def flat(native: dict[str, Any]) -> dict[str, Any]:
    """A native config as Megatron has it: one level, with the number of layers and which of them have experts."""
    layers = native["layers"]
    kinds = layers.get("blocks", {"all": layers.get("block")})
    pattern = [kinds[kind] for kind in layers.get("pattern", ["all"])]
    experts, windows = ([int(kind[name]) for kind in pattern] for name in ("moe", "windowed"))
    found = native | native["rope"] | {"num_layers": layers["num_blocks"]}
    found["moe_layer_freq"] = experts if len(set(experts)) > 1 else 1
    if native["window_size"] is not None:
        found["window_size"] = [native["window_size"], 0]
        found["window_attn_skip_freq"] = windows
    return found | {"mtp_num_layers": native["mtp_num_layers"] or None}


def hugging_face(name: str, path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(read(name)["hf_config"]))
    save_file(theirs(name), path / "model.safetensors")
    return path


# Configs.
