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
hf.safetensors        what the adapter's ``to_hf`` makes of the state dict; its ``from_hf`` gives the state dict again
logits.safetensors    what the model computes in FP32 from these weights for ``tokens``

``registry.json`` has the same config and the names and shapes (those of layer 0 stand for all layers) of models of real
size, on the meta device.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import FusedQKVLinear, ScaledDotProductAttention
from torchtitan.models.llama3 import Llama3StateDictAdapter, _build_llama3_layers, llama3_configs
from torchtitan.models.llama3.model import Llama3Model
from torchtitan.models.qwen3 import _build_qwen3_layers, _build_qwen3_moe_layers, qwen3_configs
from torchtitan.models.qwen3.model import Qwen3Model
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter

HERE = Path(__file__).parent
ADAPTERS = {Llama3Model.Config: Llama3StateDictAdapter, Qwen3Model.Config: Qwen3StateDictAdapter}
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
    "qwen3_separate_tied": qwen3(False, True),
    "qwen3_moe": qwen3_moe(),
}
REGISTRY = {
    "llama3 1B": llama3_configs["1B"]("flex"),
    "llama3 8B": llama3_configs["8B"]("flex"),
    "llama3 70B": llama3_configs["70B"]("flex"),
    "qwen3 0.6B": qwen3_configs["0.6B"]("flex"),
    "qwen3 4B": qwen3_configs["4B"]("flex"),
    "qwen3 30B-A3B": qwen3_configs["30B-A3B"]("flex"),
}


def hf_config(config: Any) -> dict[str, Any]:
    """config.json of the same model, with the keys that say what it is."""
    layer = config.layers[0]
    attention, rope = layer.attention, layer.attention.rope
    is_llama = isinstance(config, Llama3Model.Config)
    kind = "Llama" if is_llama else "Qwen3" if layer.moe is None else "Qwen3Moe"
    result = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": {"Llama": "llama", "Qwen3": "qwen3", "Qwen3Moe": "qwen3_moe"}[kind],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads or attention.n_heads,
        "head_dim": attention.head_dim or config.dim // attention.n_heads,
        "hidden_act": "silu",
        "max_position_embeddings": rope.max_seq_len,
        "rms_norm_eps": layer.attention_norm.eps,
        "tie_word_embeddings": config.enable_weight_tying,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(rope.theta)},
        "attention_bias": False,
    }
    if rope.scaling == "llama":
        result["rope_parameters"] |= {
            "rope_type": "llama3",
            "factor": rope.scaling_factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        }
    if layer.moe is None:
        result["intermediate_size"] = layer.feed_forward.w1.out_features
    else:
        result |= {
            "moe_intermediate_size": layer.moe.routed_experts.inner_experts.hidden_dim,
            "num_experts": layer.moe.num_experts,
            "num_experts_per_tok": layer.moe.router.top_k,
            "norm_topk_prob": layer.moe.router.route_norm,
        }
    return result


def native_config(config: Any) -> dict[str, Any]:
    """The config dataclasses as nested objects, without the sizes that follow from others; all layers are alike."""
    layer = config.layers[0]
    attention, rope = layer.attention, layer.attention.rope
    heads = {name: getattr(attention, name) for name in ("n_heads", "n_kv_heads", "head_dim")}
    ropes = {name: getattr(rope, name) for name in rope.__dataclass_fields__ if name in ROPE_FIELDS}
    block: dict[str, Any] = {
        "attention": {
            **heads,
            "rope": ropes,
            "qk_norm": None if attention.qk_norm is None else {"eps": attention.qk_norm.eps},
            "qkv_linear": {"type": "fused" if isinstance(attention.qkv_linear, FusedQKVLinear.Config) else "separate"},
        },
        "attention_norm": {"eps": layer.attention_norm.eps},
        "ffn_norm": {"eps": layer.ffn_norm.eps},
    }
    if layer.moe is None:
        block["feed_forward"] = {"hidden_dim": layer.feed_forward.w1.out_features}
    else:
        router = layer.moe.router
        block["moe"] = {
            "num_experts": layer.moe.num_experts,
            "load_balance_coeff": layer.moe.load_balance_coeff,
            "router": {name: getattr(router, name) for name in ("top_k", "score_func", "route_norm", "route_scale")},
            "routed_experts": {"inner_experts": {"hidden_dim": layer.moe.routed_experts.inner_experts.hidden_dim}},
        }
    return {
        "dim": config.dim,
        "vocab_size": config.vocab_size,
        "enable_weight_tying": config.enable_weight_tying,
        "norm": {"eps": config.norm.eps},
        "layers": {"type": "fixed", "num_blocks": len(config.layers), "block": block},
    }


ROPE_FIELDS = {
    "max_seq_len", "theta", "scaling", "scaling_factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "rope_factor", "beta_fast", "beta_slow", "original_seq_len", "truncate",
}  # fmt: skip


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
    for layer in config.layers:  # the compiled kernels of the other backends are not needed to see the same numbers
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    model = config.build().eval()
    generator = torch.Generator().manual_seed(sorted(CASES).index(name))
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_((centre + 0.2 * torch.randn(parameter.shape, generator=generator)).bfloat16())
    state = {key: value.detach().bfloat16().contiguous() for key, value in model.state_dict().items()}
    adapter = ADAPTERS[type(config)](config, None)
    theirs = {key: value.clone().contiguous() for key, value in adapter.to_hf(dict(state)).items()}
    back = adapter.from_hf(dict(theirs))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    if config.enable_weight_tying:
        assert torch.equal(state["lm_head.weight"], state["tok_embeddings.weight"])
        del state["lm_head.weight"]
    save_file(state, folder / "titan.safetensors")
    save_file(theirs, folder / "hf.safetensors")
    fused = {key: p.detach().bfloat16().clone() for key, p in model.named_parameters() if ".wqkv." in key}
    if fused:
        save_file(fused, folder / "fused.safetensors")
    tokens = (torch.arange(TOKENS) * 7 + 3) % (config.vocab_size - 2)
    with torch.no_grad():
        logits = model(tokens[None], positions=torch.arange(TOKENS)[None])
    save_file({"tokens": tokens, "logits": logits.contiguous()}, folder / "logits.safetensors")
    write(folder / "case.json", describe(config, model))


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
