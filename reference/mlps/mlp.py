"""The dense MLP."""

from __future__ import annotations

import torch

from crosswalk.reference.parts.activations import activate
from crosswalk.reference.parts.linear import linear, linear_transposed
from crosswalk.reference.parts.normalization import normalize
from crosswalk.reference.parts.parameters import Config, Parameters


def mlp(config: Config, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """The dense MLP, (sequence, hidden) to (sequence, output).

        [gate | up] = W_1 pre_norm(x),   y = post_norm(W_2^T (act(gate) up))       gated
        up = W_1 pre_norm(x),            y = post_norm(W_2^T act(up))              not gated

    * `intermediate_size`: channels of gate and of up
    * `gated`: which of the two
    * `activation`: act; null is silu if gated, else gelu
    * `layer_1`: W_1; the first half of its rows makes the gate
    * `layer_2`: W_2, stored as (intermediate_size, output)
    * `add_linear_biases`: whether those layers have biases that do not say so themselves
    * `pre_norm`: null is none
    * `post_norm`: null is none
    """
    biased = config["add_linear_biases"]
    x = normalize(config["pre_norm"], parameters.under("pre_norm"), x)
    inner = act(config, linear(config["layer_1"], parameters.under("layer_1"), x, biased))
    y = linear_transposed(config["layer_2"], parameters.under("layer_2"), inner, biased)
    return normalize(config["post_norm"], parameters.under("post_norm"), y)


def act(config: Config, x: torch.Tensor) -> torch.Tensor:
    """What is between the two layers of an MLP or of an expert."""
    name = config["activation"] or ("silu" if config["gated"] else "gelu")
    if not config["gated"]:
        return activate(name, x)
    gate, up = x.chunk(2, dim=-1)
    return activate(name, gate) * up
