"""Normalizations of the last axis."""

from __future__ import annotations

from collections.abc import Callable

import torch

from crosswalk.runtime.errors import fail

from .activations import activate
from .parameters import Config, Parameters, unknown


def none(config: Config, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """No normalization.

        y = x

    It has no fields.
    """
    return x


def fixed_rms_norm(config: Config, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """RMS normalization without a weight.

        y = x / sqrt(mean(x^2) + epsilon)

    * `epsilon`: as in the formula
    """
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config["epsilon"])


def rms_norm(config: Config, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """RMS normalization.

        y = w x / sqrt(mean(x^2) + epsilon)

    * `epsilon`: as in the formula
    * `zero_centered`: what is stored is w - 1
    """
    return fixed_rms_norm(config, parameters, x) * _weight(config, parameters)


def layer_norm(config: Config, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """Layer normalization.

        y = w (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) + b

    * `epsilon`: as in the formula
    * `zero_centered`: what is stored is w - 1
    """
    return rms_norm(config, parameters, x - x.mean(-1, keepdim=True)) + parameters["bias"]


def gated_rms_norm(config: Config, parameters: Parameters, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """RMS normalization with a gate of the same shape, at the end of a recurrent mixer.

        y = act(gate) w x / sqrt(mean(x^2) + epsilon)

    * `epsilon`: as in the formula
    * `zero_centered`: what is stored is w - 1
    * `activation`: act
    """
    return rms_norm(config, parameters, x) * activate(config["activation"], gate)


def _weight(config: Config, parameters: Parameters) -> torch.Tensor:
    return parameters["weight"] + 1 if config["zero_centered"] else parameters["weight"]


NORMALIZATIONS: dict[str, Callable[[Config, Parameters, torch.Tensor], torch.Tensor]] = {
    "none": none,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "fixed_rms_norm": fixed_rms_norm,
}


def normalize(config: Config | None, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """The normalization that a config names; none for null. Raises ``CrosswalkError`` for one without a gate that
    needs one, and for one that there is not."""
    if config is None:
        return x
    if config["type"] == "gated_rms_norm":
        raise fail("reference/gate", f"nothing gives the gated normalization `{parameters.prefix[:-1]}` a gate")
    if config["type"] not in NORMALIZATIONS:
        raise unknown("normalization", config["type"])
    return NORMALIZATIONS[config["type"]](config, parameters, x)
