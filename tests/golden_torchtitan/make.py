"""Make the golden data of this folder with torchtitan's own classes and state-dict adapters.

In an environment of its own, on a CPU:

    pip install torch==2.13.0
    pip install --no-deps torchtitan==0.3.0 triton==3.7.0
    pip install spmd_types==0.2.3 tyro einops torchdata datasets tokenizers torch_checkpointing torch==2.13.0
    pip install safetensors
    python tests/golden_torchtitan/make.py

Nothing of crosswalk is used. A folder a case, tensors in BF16:

case.json             config.json as Hugging Face writes it for the model; the config dataclasses of the model as nested
                      objects; names and shapes of its state dict and of its parameters
titan.safetensors     the state dict, without the second name of a tied tensor
fused.safetensors     the fused parameters of a model with ``fuse_qkv``, which its state dict shows as three
hf.safetensors        what the adapter's ``to_hf`` makes of the state dict; its ``from_hf`` gives the state dict again.
                      That of gpt_oss leaves the experts out: they are added here, with the axes that transformers has
logits.safetensors    what the model computes in FP32 from these weights for ``tokens``

``registry.json`` has the same config and the names and shapes (those of layer 0 stand for all layers) of models of real
size, on the meta device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.deepseek_v3 import (
    DeepSeekV3Model,
    DeepSeekV3StateDictAdapter,
    _build_dsv3_layers,
    _build_mtp_layers,
)
from torchtitan.models.gpt_oss import (
    GptOssModel,
    GptOssStateDictAdapter,
    _build_gptoss_layers,
    _make_gptoss_attn_config,
    gptoss_configs,
)
from torchtitan.models.llama3 import Llama3StateDictAdapter, _build_llama3_layers, llama3_configs
from torchtitan.models.llama3.model import Llama3Model
from torchtitan.models.qwen3 import _build_qwen3_layers, _build_qwen3_moe_layers, qwen3_configs
from torchtitan.models.qwen3.model import Qwen3Model
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "with_torchtitan"))
from describing import hf_config, native_config  # noqa: E402
from running import logits  # noqa: E402

ADAPTERS = {
    Llama3Model.Config: Llama3StateDictAdapter,
    Qwen3Model.Config: Qwen3StateDictAdapter,
    DeepSeekV3Model.Config: DeepSeekV3StateDictAdapter,
    GptOssModel.Config: GptOssStateDictAdapter,
}
TOKENS = 23


def decoder(kind: type, vocab: int, dim: int, layers: list[Any], eps: float, tied: bool) -> Any:
    return kind(
        dim=dim,
        vocab_size=vocab,
        enable_weight_tying=tied,
        tok_embeddings=Embedding.Config(num_embeddings=vocab, embedding_dim=dim),
        norm=RMSNorm.Config(normalized_shape=dim, eps=eps),
        lm_head=Linear.Config(in_features=dim, out_features=vocab),
        layers=layers,
    )


def llama3(fuse: bool, tied: bool, **rope: Any) -> Any:
    dim, heads = 36, 6
    layers = _build_llama3_layers(
        n_layers=2,
        dim=dim,
        n_heads=heads,
        n_kv_heads=3,
        hidden_dim=25,
        rope=ComplexRoPE.Config(dim=dim // heads, max_seq_len=64, theta=23456.0, **rope),
        fuse_qkv=fuse,
        attn_backend="flex",
    )
    return decoder(Llama3Model.Config, 29, dim, layers, 1e-5, tied)


def qwen3(fuse: bool, tied: bool) -> Any:
    layers = _build_qwen3_layers(
        n_layers=2,
        dim=20,
        n_heads=6,
        n_kv_heads=2,
        head_dim=10,
        hidden_dim=33,
        fuse_qkv=fuse,
        attn_backend="flex",
        rope=CosSinRoPE.Config(dim=10, max_seq_len=64, theta=23456.0),
    )
    return decoder(Qwen3Model.Config, 31, 20, layers, 1e-6, tied)


def qwen3_moe() -> Any:
    """Sizes of experts are multiples of 8, which the grouped matrix product wants."""
    layers = _build_qwen3_moe_layers(
        n_layers=2,
        dim=24,
        n_heads=6,
        n_kv_heads=2,
        head_dim=10,
        moe_hidden_dim=16,
        num_experts=5,
        top_k=2,
        fuse_qkv=True,
        attn_backend="flex",
        moe_comm_backend="standard",
        rope=CosSinRoPE.Config(dim=10, max_seq_len=64, theta=23456.0),
    )
    for layer in layers:
        layer.moe.load_balance_coeff = None
    return decoder(Qwen3Model.Config, 31, 24, layers, 1e-6, False)


def deepseek_v3(yarn: bool, n_layers: int = 2, **sizes: Any) -> Any:
    scaling: dict[str, Any] = {"scaling": "yarn", "rope_factor": 40.0, "original_seq_len": 16} if yarn else {}
    layers = _build_dsv3_layers(
        n_layers=n_layers,
        n_dense_layers=1,
        dim=24,
        n_heads=6,
        kv_lora_rank=10,
        qk_nope_head_dim=8,
        qk_rope_head_dim=6,
        v_head_dim=11,
        mscale=0.7 if yarn else 1.0,
        dense_hidden_dim=35,
        moe_hidden_dim=16,
        num_experts=8,
        router_top_k=3,
        router_score_func="sigmoid",
        router_route_scale=2.5,
        router_route_norm=True,
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        rope=ComplexRoPE.Config(dim=6, max_seq_len=64, theta=23456.0, **scaling),
        **sizes,
    )
    for layer in layers:  # as the class of transformers has them
        layer.attention.q_norm.eps = layer.attention.kv_norm.eps = 1e-6
    return decoder(DeepSeekV3Model.Config, 31, 24, layers, 1e-5, False)


def deepseek_v3_mtp() -> Any:
    config = deepseek_v3(False, q_lora_rank=9, num_shared_experts=1)
    config.mtp_layers = _build_mtp_layers(config.layers[-1], dim=24, num_mtp_layers=2)
    return config


def gpt_oss(fuse: bool) -> Any:
    scaling: dict[str, Any] = {"scaling": "yarn", "rope_factor": 4.0, "original_seq_len": 18, "truncate": False}
    rope = CosSinRoPE.Config(dim=10, max_seq_len=64, theta=150000.0, **scaling)
    layers = _build_gptoss_layers(
        n_layers=3,
        dim=24,
        hidden_dim=16,
        num_experts=5,
        top_k=2,
        load_balance_coeff=1e-3,
        attn_backend="flex",
        moe_comm_backend="standard",
        rope=rope,
    )
    for index, layer in enumerate(layers):
        layer.attention = _make_gptoss_attn_config(
            dim=24,
            layer_id=index,
            attn_backend="flex",
            n_heads=6,
            n_kv_heads=2,
            head_dim=10,
            sliding_window_size=None if index % 2 else 6,
            fuse_qkv=fuse,
            rope=rope,
        )
        layer.moe.load_balance_coeff = None
    return decoder(GptOssModel.Config, 31, 24, layers, 1e-5, False)


SCALING = {
    "scaling": "llama",
    "scaling_factor": 4.0,
    "low_freq_factor": 1.25,
    "high_freq_factor": 3.5,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama3": llama3(True, False, **SCALING),
    "llama3_separate_tied": llama3(False, True),
    "qwen3": qwen3(True, False),
    "qwen3_moe": qwen3_moe(),
    "qwen3_separate_tied": qwen3(False, True),
    "deepseek_v3": deepseek_v3(
        True, 3, q_lora_rank=9, num_shared_experts=2, router_num_expert_groups=4, router_num_limited_groups=2
    ),
    "deepseek_v3_plain": deepseek_v3(False, q_lora_rank=0, num_shared_experts=1),
    "deepseek_v3_mtp": deepseek_v3_mtp(),
    "gpt_oss": gpt_oss(True),
}
REGISTRY = {
    "llama3 1B": llama3_configs["1B"]("flex"),
    "llama3 8B": llama3_configs["8B"]("flex"),
    "llama3 70B": llama3_configs["70B"]("flex"),
    "qwen3 0.6B": qwen3_configs["0.6B"]("flex"),
    "qwen3 4B": qwen3_configs["4B"]("flex"),
    "qwen3 30B-A3B": qwen3_configs["30B-A3B"]("flex"),
    "gpt_oss 20b": gptoss_configs["20b"]("standard", "flex"),
}


def shapes(tensors: Any) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors}


def describe(config: Any, model: Any) -> dict[str, Any]:
    return {
        "hf_config": hf_config(config),
        "native_config": native_config(config),
        "state_dict": shapes(model.state_dict().items()),
        "parameters": shapes(model.named_parameters()),
    }


def make_case(name: str, config: Any) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    model = config.build().eval()
    generator = torch.Generator().manual_seed(list(CASES).index(name))
    filled = [*model.parameters(), *(buffer for key, buffer in model.named_buffers() if key.endswith("expert_bias_E"))]
    with torch.no_grad():
        for parameter in filled:
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_((centre + 0.2 * torch.randn(parameter.shape, generator=generator)).bfloat16())
    state = {key: value.detach().bfloat16().contiguous() for key, value in model.state_dict().items()}
    theirs = hf_tensors(config, state)
    if config.enable_weight_tying:
        assert torch.equal(state["lm_head.weight"], state["tok_embeddings.weight"])
        del state["lm_head.weight"]
    save_file(state, folder / "titan.safetensors")
    save_file(theirs, folder / "hf.safetensors")
    fused = {key: p.detach().bfloat16().clone() for key, p in model.named_parameters() if ".wqkv." in key}
    if fused:
        save_file(fused, folder / "fused.safetensors")
    tokens = (torch.arange(TOKENS) * 7 + 3) % (config.vocab_size - 2)
    save_file({"tokens": tokens, "logits": logits(model, tokens[None])[0].contiguous()}, folder / "logits.safetensors")
    write(folder / "case.json", describe(config, model))


def hf_tensors(config: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the adapter makes of a state dict, which it makes again of that."""
    adapter = ADAPTERS[type(config)](config, None)
    experts = {key: value for key, value in state.items() if ".mlp1_" in key or ".mlp2_" in key}
    theirs = {key: value.clone().contiguous() for key, value in adapter.to_hf(dict(state)).items()}
    back = adapter.from_hf(dict(theirs))
    assert back.keys() == state.keys() - experts.keys()
    assert all(torch.equal(back[key], state[key]) for key in back)
    for key, value in experts.items():
        layer, name = key.split(".")[1], key.rpartition(".")[2]
        found = value.transpose(-2, -1) if "weight" in name else value
        theirs[f"model.layers.{layer}.mlp.experts.{EXPERTS[name]}"] = found.clone().contiguous()
    return theirs


EXPERTS = {
    "mlp1_weight_EGD": "gate_up_proj",
    "mlp1_bias_EG": "gate_up_proj_bias",
    "mlp2_weight_EDF": "down_proj",
    "mlp2_bias_ED": "down_proj_bias",
}


def of_one_layer(names: dict[str, list[int]], layers: int) -> dict[str, list[int]]:
    first = {name: shape for name, shape in names.items() if name.startswith("layers.0.")}
    rest = {name: shape for name, shape in names.items() if not name.startswith("layers.")}
    expected = {
        name.replace("layers.0.", f"layers.{i}."): shape for i in range(layers) for name, shape in first.items()
    }
    assert {**rest, **expected} == names
    return {**first, **rest}


def make_registry() -> None:
    result = {}
    for name, config in REGISTRY.items():
        with torch.device("meta"):
            model = config.build()
        result[name] = describe(config, model)
        for key in ("state_dict", "parameters"):
            result[name][key] = of_one_layer(result[name][key], len(config.layers))
    write(HERE / "registry.json", result)


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    for case, case_config in CASES.items():
        make_case(case, case_config)
    make_registry()
