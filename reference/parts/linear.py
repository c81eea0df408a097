"""Linear layers and causal convolutions."""

from __future__ import annotations

import torch

from .activations import activate
from .parameters import Config, Parameters


def has_bias(config: Config, biased: bool) -> bool:
    """Whether a layer has a bias: its own word, or that of the module that it is in."""
    enabled = config["bias"]["enabled"]
    return biased if enabled is None else bool(enabled)


def bare_linear(parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """A linear map of the last axis, (..., in) to (..., out); the weight is (out, in).

        y = W x

    It has no fields.
    """
    return x @ parameters["weight"].T


def linear(config: Config, parameters: Parameters, x: torch.Tensor, biased: bool = False) -> torch.Tensor:
    """An affine map of the last axis, (..., in) to (..., out); the weight is (out, in).

        y = W x + b

    * `bias`: whether there is a `b`; null leaves it to the module, `add_linear_biases` where it has that
    """
    y = bare_linear(parameters, x)
    return y + parameters["bias"] if has_bias(config, biased) else y


def linear_transposed(config: Config, parameters: Parameters, x: torch.Tensor, biased: bool) -> torch.Tensor:
    """The same for a weight that is stored as (in, out)."""
    y = x @ parameters["weight"]
    return y + parameters["bias"] if has_bias(config, biased) else y


def convolution(config: Config, parameters: Parameters, x: torch.Tensor, biased: bool = False) -> torch.Tensor:
    """A convolution of every channel with its own past, (sequence, channels) to the same; the weight is
    (channels, 1, kernel).

        y[t, c] = act(sum_k w[c, 0, k] x[t - kernel_size + 1 + k, c] + b[c]),   x before the sequence is 0

    * `kernel_size`: how many positions are seen, the last one is t itself
    * `activation`: act; null is silu
    * `bias`: whether there is a `b`; null leaves it to the mixer
    """
    weight = parameters["weight"][:, 0]
    size = config["kernel_size"]
    past = torch.cat([x.new_zeros(size - 1, x.shape[1]), x])
    y = sum((past[k : k + len(x)] * weight[:, k] for k in range(size)), torch.zeros_like(x))
    if has_bias(config, biased):
        y = y + parameters["bias"]
    return activate(config["activation"] or "silu", y)
