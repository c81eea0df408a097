"""Recurrent mixers and norms against classes of transformers that compute the same, and against a closed form."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from native_cases import native, relative

from crosswalk.reference.mixers.gdn import gdn
from crosswalk.reference.mixers.kda import kda
from crosswalk.reference.mixers.mamba import selective_scan
from crosswalk.reference.parts.normalization import normalize
from crosswalk.reference.parts.parameters import Parameters
from crosswalk.reference.parts.rotary import Positions

HIDDEN, TOKENS = 11, 19


def _module(family: str) -> Any:
    try:
        return importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    except ImportError:
        pytest.skip(f"this transformers has no {family}")


def _random(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def _mixer(index: int, **fields: Any) -> dict[str, Any]:
    """A complete config of a mixer, from one of the trainer's cases."""
    return copy.deepcopy(native("recurrent")[0]["decoder"]["blocks"][f"b{index}"]["mixer"]) | fields


def _run(mixer: Any, config: dict[str, Any], tensors: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
    return mixer(config, Parameters(tensors, torch.float32), x, Positions(torch.arange(len(x))))


def test_gated_delta_net_is_that_of_qwen3_next() -> None:
    """Its class orders heads by key head, each with its q, k, v and z; the layout has all q first."""
    module = _module("qwen3_next")
    keys, values, key_dim, value_dim = 3, 6, 7, 5
    config = module.Qwen3NextConfig(
        hidden_size=HIDDEN, linear_num_key_heads=keys, linear_num_value_heads=values, linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim, linear_conv_kernel_dim=3, num_hidden_layers=1,
        layer_types=["linear_attention"], rms_norm_eps=3e-5, hidden_act="silu",
    )  # fmt: skip
    theirs = _random(module.Qwen3NextGatedDeltaNet(config, 0))
    tensors = dict(theirs.state_dict())
    per_key = tensors["in_proj_qkvz.weight"].unflatten(0, (keys, -1))
    wide = values // keys * value_dim
    parts = per_key.split([key_dim, key_dim, wide, wide], dim=1)
    tensors["in_proj_qkvz.weight"] = torch.cat([part.flatten(0, 1) for part in parts])
    halves = tensors["in_proj_ba.weight"].unflatten(0, (keys, 2, -1)).unbind(1)
    tensors["in_proj_ba.weight"] = torch.cat([half.flatten(0, 1) for half in halves])
    tensors["convolution.weight"] = tensors.pop("conv1d.weight")
    ours = _mixer(1, value_heads=values, key_heads=keys, key_head_dim=key_dim, value_head_dim=value_dim)
    ours["convolution_layer"] |= {"kernel_size": 3}
    ours["normalization"] |= {"epsilon": 3e-5, "activation": "silu"}
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(x[None])[0]
    assert relative(_run(gdn, ours, tensors, x), expected) < 1e-5


def test_kimi_delta_attention_is_that_of_kimi_linear() -> None:
    module = _module("kimi_linear")
    heads, size = 5, 6
    config = module.KimiLinearConfig(
        hidden_size=HIDDEN, linear_num_heads=heads, linear_head_dim=size, linear_conv_kernel_dim=3,
        num_hidden_layers=1, layer_types=["linear_attention"], rms_norm_eps=3e-5, hidden_act="silu",
    )  # fmt: skip
    theirs = _random(module.KimiLinearDeltaAttention(config, 0))
    tensors = dict(theirs.state_dict())
    convolutions = tensors.pop("conv1d.weight").chunk(3)
    tensors |= {f"{name}_conv.weight": part for name, part in zip("qkv", convolutions, strict=True)}
    tensors |= {name.removeprefix("forget_gate."): tensor for name, tensor in tensors.items()}
    tensors |= {"beta_proj.weight": tensors["b_proj.weight"], "norm.weight": tensors["o_norm.weight"]}
    tensors["A_log"] = tensors["A_log"].flatten()
    ours = _mixer(2, heads=heads, head_dim=size)
    ours["convolution_layer"] |= {"kernel_size": 3, "activation": None}
    ours["convolution_layer"]["bias"] |= {"enabled": False}
    ours["normalization"] |= {"epsilon": 3e-5, "activation": "sigmoid"}
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(x[None])[0]
    assert relative(_run(kda, ours, tensors, x), expected) < 1e-5


def test_the_scan_is_its_sum_over_the_past() -> None:
    """y[t] = sum over s <= t of C[t] exp(A (dt[s+1] + ... + dt[t])) dt[s] B[s] u[s], without a recurrence."""
    channels, size = 12, 4
    generator = torch.Generator().manual_seed(2)
    u, b, c = (torch.randn(TOKENS, channels, generator=generator, dtype=torch.float64) for _ in range(3))
    step = torch.rand(TOKENS, channels, generator=generator, dtype=torch.float64)
    a = -torch.rand(channels, size, generator=generator, dtype=torch.float64)
    until = step.cumsum(0)
    expected = torch.zeros(TOKENS, channels, dtype=torch.float64)
    for t in range(TOKENS):
        for s in range(t + 1):
            for channel in range(channels):
                head = slice(channel // size * size, channel // size * size + size)
                decay = (a[channel] * (until[t, channel] - until[s, channel])).exp()
                seen = (c[t, head] * decay * b[s, head]).sum()
                expected[t, channel] += seen * step[s, channel] * u[s, channel]
    assert relative(selective_scan(u, step, a, b, c), expected) < 1e-12


@pytest.mark.parametrize(
    ("type_", "family", "theirs"),
    [("rms_norm", "gemma", "GemmaRMSNorm"), ("layer_norm", "nemotron", "NemotronLayerNorm1P")],
)
def test_zero_centered_norms_are_those_of_classes_that_have_them(type_: str, family: str, theirs: str) -> None:
    norm = _random(getattr(_module(family), theirs)(HIDDEN, eps=3e-4))
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    config = {"type": type_, "epsilon": 3e-4, "zero_centered": True}
    with torch.no_grad():
        expected = norm(x)
    assert relative(normalize(config, Parameters(norm.state_dict(), torch.float32), x), expected) < 1e-6
