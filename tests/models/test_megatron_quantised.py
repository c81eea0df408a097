"""Released forms on Megatron-core, whose experts are parameters each, and on torchtitan: DeepSeek's FP8, and the MXFP4
of gpt-oss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from comparing import tensor_differences
from quantised import fp8_checkpoint
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import crosswalk

GOLDEN = Path(__file__).parents[1] / "golden_megatron"
Tensors = dict[str, torch.Tensor]
GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "vocab_size": 89, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 10, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 4, "dtype": "bfloat16",
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
                        "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096},
}  # fmt: skip
EXPERTS = {"gate_up_proj": (5, 2 * 96, 64), "down_proj": (5, 64, 96)}


def written(path: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def loaded(path: Path, layout: str = "megatron") -> Tensors:
    """What a live model has after loading."""
    config = json.loads((path / "config.json").read_text())
    config.pop("quantization_config", None)
    plan = crosswalk.compile_plan(config, to=layout)
    state = {spec.name: torch.full(spec.shape, torch.nan) for spec in plan.targets}
    crosswalk.load(path, state, layout=layout)
    return state


def test_deepseek_in_fp8(tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "deepseek_v3" / "case.json").read_text())["hf_config"]
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    (tmp_path / "plain" / "model.safetensors").write_bytes((GOLDEN / "deepseek_v3" / "hf.safetensors").read_bytes())
    path = fp8_checkpoint(
        tmp_path / "plain", tmp_path / "fp8", chosen=lambda name, _: "proj" in name, decoded=torch.bfloat16
    )
    for layout in ("megatron", "torchtitan"):
        assert tensor_differences(loaded(path, layout), loaded(path.with_name("fp8-decoded"), layout)) == []


@pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="the names of transformers 5")
def test_experts_of_gpt_oss_in_mxfp4(tmp_path: Path) -> None:
    """As transformers decodes them: gate and up alternate, inputs first."""
    torch.manual_seed(0)
    shapes = oracles.names_and_shapes(GPT_OSS)
    tensors: Tensors = {}
    floats: Tensors = {}
    for name, shape in shapes.items():
        last = name.rpartition(".")[2]
        if last not in EXPERTS:
            tensors[name] = floats[name] = torch.randn(shape).bfloat16()
            continue
        *outer, inputs = EXPERTS[last]
        blocks = torch.randint(0, 256, (*outer, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(100, 140, (*outer, inputs // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        floats[name] = convert_moe_packed_tensors(blocks, scales)
        assert floats[name].shape == shape
    said = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    encoded = written(tmp_path / "mxfp4", tensors, GPT_OSS | {"quantization_config": said})
    found, plain = loaded(encoded), written(tmp_path / "plain", floats, GPT_OSS)
    assert tensor_differences(found, loaded(plain)) == []
    assert tensor_differences(loaded(encoded, "torchtitan"), loaded(plain, "torchtitan")) == []
    for expert in range(5):
        fused = floats["model.layers.1.mlp.experts.gate_up_proj"][expert].float().T
        expected = torch.cat([fused[0::2], fused[1::2]])
        assert torch.equal(found[f"decoder.layers.1.mlp.experts.linear_fc1.weight{expert}"], expected)
