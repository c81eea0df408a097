"""The mixer that a config names, and the one that is a choice itself."""

from __future__ import annotations

from collections.abc import Callable

import torch

from crosswalk.reference.parts.parameters import Config, Parameters, unknown
from crosswalk.reference.parts.rotary import Positions

from .attention import attention
from .gdn import gdn
from .kda import kda
from .mamba import mamba


def stochastic(config: Config, parameters: Parameters, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """One of several mixers, (sequence, hidden) to the same. Training draws one of them each time; this is the model
    that is used, which has the main one.

        y = mixers[main_mixer_name](x)

    * `mixers`: by name
    * `main_mixer_name`: null is the first of them
    """
    name = config["main_mixer_name"] or next(iter(config["mixers"]))
    return mix(config["mixers"][name], parameters.under(f"mixers.{name}"), x, positions)


MIXERS: dict[str, Callable[[Config, Parameters, torch.Tensor, Positions], torch.Tensor]] = {
    "attention": attention,
    "mamba": mamba,
    "gdn": gdn,
    "kda": kda,
    "stochastic": stochastic,
}


def mix(config: Config, parameters: Parameters, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """The mixer that a config names. Raises ``CrosswalkError`` for one that there is not."""
    if config["type"] not in MIXERS:
        raise unknown("mixer", config["type"])
    return MIXERS[config["type"]](config, parameters, x, positions)
