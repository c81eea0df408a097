"""Rotary position embeddings: pairs of channels of a head are turned by an angle that grows with the position."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from crosswalk.runtime.errors import fail
from crosswalk.runtime.records import Record

from .parameters import Config, unknown


class Positions(Record, frozen=True):
    """Where the elements of a sequence are: ``index`` (sequence,) counts from 0, ``grid`` (sequence, 2) are row and
    column of a patch in its image."""

    index: torch.Tensor
    grid: torch.Tensor | None = None


def none(config: Config, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """No position embedding.

        y = x

    It has no fields.
    """
    return x


def default(config: Config, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Rotary embedding of a head's channels; channel i of the first half and channel i of the second are a pair.

        y[i]              = x[i] cos(p f[i]) - x[i + head_size/2] sin(p f[i])
        y[i + head_size/2] = x[i + head_size/2] cos(p f[i]) + x[i] sin(p f[i])
        f[i] = theta^(-2 i / head_size),   p the position from 0,   i = 0 ... head_size/2 - 1

    * `theta`: as in the formula
    """
    return _turn(x, _outer(positions, _frequencies(config, x)))


def proportional(config: Config, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Rotary embedding of the fast pairs only; as `default`, with other frequencies.

        f[i] = theta^(-2 i / head_size) for i < n / 2, else 0,   n = round(head_size partial_rotary_factor)

    * `theta`: as in the formula; the exponent is that of all channels, not of the n turned ones
    * `partial_rotary_factor`: the part of the channels that is turned; n must be even and more than 0

    Raises ``CrosswalkError`` for more channels than there are.
    """
    turned = round(x.shape[-1] * config["partial_rotary_factor"])
    if turned <= 0 or turned % 2:
        raise fail("reference/rotary", f"{turned} of {x.shape[-1]} channels cannot be turned in pairs")
    frequencies = _frequencies(config, x)
    frequencies[turned // 2 :] = 0
    return _turn(x, _outer(positions, frequencies))


def llama3(config: Config, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Rotary embedding with slow pairs slowed down further; as `default`, with other frequencies g.

        r[i] = original_context_length f[i] / (2 pi),   the turns within the original context
        s[i] = clamp((r[i] - low_frequency_factor) / (high_frequency_factor - low_frequency_factor), 0, 1)
        g[i] = s[i] f[i] + (1 - s[i]) f[i] / scale_factor

    * `theta`: f[i] = theta^(-2 i / head_size)
    * `scale_factor`: how much longer the context has become
    * `low_frequency_factor`: with fewer turns than this a pair is slowed down in full
    * `high_frequency_factor`: with more turns than this it is left alone
    * `original_context_length`: as in the formula
    """
    frequencies = _frequencies(config, x)
    turns = config["original_context_length"] * frequencies / (2 * math.pi)
    low, high = config["low_frequency_factor"], config["high_frequency_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return _turn(x, _outer(positions, frequencies * (kept + (1 - kept) / config["scale_factor"])))


def yarn(config: Config, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Rotary embedding with slow pairs slowed down by a ramp over the pairs, and all of them made longer; as
    `default`, with other frequencies g, and y times attention_factor.

        d(b) = head_size ln(original_context_length / (2 pi b)) / (2 ln theta),   the pair that makes b turns
        low = max(floor(d(beta_fast)), 0),   high = min(ceil(d(beta_slow)), head_size - 1),  0.001 apart at least
        s[i] = clamp((i - low) / (high - low), 0, 1)
        g[i] = (1 - s[i]) f[i] + s[i] f[i] / scale_factor

    * `theta`: f[i] = theta^(-2 i / head_size)
    * `scale_factor`: how much longer the context has become
    * `attention_factor`: what queries and keys are both multiplied with; null is 0.1 ln(scale_factor) + 1
    * `beta_fast`: pairs with more turns than this in the original context are left alone
    * `beta_slow`: pairs with fewer are slowed down in full
    * `original_context_length`: as in the formula
    """
    size = x.shape[-1]

    def pair(turns: float) -> float:
        return size * math.log(config["original_context_length"] / (2 * math.pi * turns)) / 2 / math.log(theta)

    theta, factor = config["theta"], config["attention_factor"]
    low, high = max(math.floor(pair(config["beta_fast"])), 0), min(math.ceil(pair(config["beta_slow"])), size - 1)
    width = high - low or 0.001
    slowed = ((torch.arange(size // 2, dtype=torch.float64) - low) / width).clamp(0, 1)
    frequencies = _frequencies(config, x) * (1 - slowed + slowed / config["scale_factor"])
    length = 0.1 * math.log(config["scale_factor"]) + 1 if factor is None else factor
    return _turn(x, _outer(positions, frequencies)) * length


def default_2d(config: Config, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Rotary embedding of a patch: the first half of the pairs is turned by its row, the second by its column; as
    `default`, with other angles.

        angle[j]               = row    theta^(-(4 j)     / head_size),   j = 0 ... head_size/4 - 1
        angle[head_size/4 + j] = column theta^(-(4 j + 2) / head_size)

    * `theta`: as in the formula

    Raises ``CrosswalkError`` for what is no patch of an image.
    """
    if positions.grid is None:
        raise fail("reference/rotary", "only the patches of an image have rows and columns to turn by")
    frequencies = _frequencies(config, x)
    rows, columns = positions.grid.to(torch.float64).unbind(1)
    angles = torch.cat([torch.outer(rows, frequencies[::2]), torch.outer(columns, frequencies[1::2])], dim=1)
    return _turn(x, angles)


def _frequencies(config: Config, x: torch.Tensor) -> torch.Tensor:
    """(head_size / 2,) in double precision: angles of late positions need it."""
    size = x.shape[-1]
    return torch.pow(config["theta"], -torch.arange(0, size, 2, dtype=torch.float64) / size)


def _outer(positions: Positions, frequencies: torch.Tensor) -> torch.Tensor:
    return torch.outer(positions.index.to(torch.float64), frequencies)


def _turn(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """``x`` (sequence, heads, head_size) by ``angles`` (sequence, head_size / 2)."""
    cos, sin = (part.to(x.dtype)[:, None] for part in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


ROTARIES: dict[str, Callable[[Config, torch.Tensor, Positions], torch.Tensor]] = {
    "none": none,
    "default": default,
    "default_2d": default_2d,
    "proportional": proportional,
    "llama3": llama3,
    "yarn": yarn,
}


def rotate(config: Config, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Queries or keys (sequence, heads, head_size) with the rotary embedding that a config names. Raises
    ``CrosswalkError`` for one that it does not know."""
    if config["type"] not in ROTARIES:
        raise unknown("rotary embedding", config["type"])
    return ROTARIES[config["type"]](config, x, positions)
