"""The MLP that a config names."""

from __future__ import annotations

from collections.abc import Callable

import torch

from crosswalk.reference.parts.parameters import Config, Parameters, unknown

from .mlp import mlp
from .moe import hybrid_moe, moe

MLPS: dict[str, Callable[[Config, Parameters, torch.Tensor], torch.Tensor]] = {
    "mlp": mlp,
    "moe": moe,
    "hybrid_moe": hybrid_moe,
}


def feed(config: Config, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """The MLP that a config names. Raises ``CrosswalkError`` for one that there is not."""
    if config["type"] not in MLPS:
        raise unknown("MLP", config["type"])
    return MLPS[config["type"]](config, parameters, x)
