"""Blocks and sequences of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .mixers.choice import mix
from .mlps.choice import feed
from .parts.normalization import normalize
from .parts.parameters import Config, Parameters, unknown
from .parts.rotary import Positions


def block(config: Config, parameters: Parameters, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """A block of the decoder, or of the encoder of images, (sequence, hidden) to the same.

        u = x + post_mixer_norm(mixer(norm_1(x)))
        y = output_scale (u + post_mlp_norm(mlp(norm_2(u))))

    * `mixer`: as in the formula
    * `mlp`: as in the formula
    * `normalization`: what norm_1 and norm_2 are unless the next two say otherwise
    * `pre_mixer_normalization`: norm_1; null is `normalization`
    * `pre_mlp_normalization`: norm_2; null is `normalization`
    * `post_mixer_normalization`: post_mixer_norm; null is none
    * `post_mlp_normalization`: post_mlp_norm; null is none
    * `output_scale`: one number for the block, if enabled
    """

    def norm(field: str, name: str, of: torch.Tensor) -> torch.Tensor:
        return normalize(config[field], parameters.under(name), of)

    first, second = (
        field if config[field] is not None else "normalization"
        for field in ("pre_mixer_normalization", "pre_mlp_normalization")
    )
    mixed = mix(config["mixer"], parameters.under("mixer"), norm(first, "norm_1", x), positions)
    x = x + norm("post_mixer_normalization", "post_mixer_norm", mixed)
    fed = feed(config["mlp"], parameters.under("mlp"), norm(second, "norm_2", x))
    x = x + norm("post_mlp_normalization", "post_mlp_norm", fed)
    return x * parameters["output_scale"] if config["output_scale"]["enabled"] else x


def fixed(config: Config) -> list[Config]:
    """The same config for every block.

        blocks = block, block, ...,   num_blocks of them one after the other

    * `block`: its config
    * `num_blocks`: how many
    """
    return [config["block"]] * config["num_blocks"]


def pattern(config: Config) -> list[Config]:
    """Configs that take turns.

        blocks = blocks[pattern[0]], blocks[pattern[1]], ..., from the start again after the last of the pattern

    * `blocks`: configs by name
    * `pattern`: names
    * `num_blocks`: how many
    """
    names = config["pattern"]
    return [config["blocks"][names[i % len(names)]] for i in range(config["num_blocks"])]


SEQUENCES: dict[str, Callable[[Config], list[Config]]] = {"fixed": fixed, "pattern": pattern}


def blocks_of(config: Config) -> list[Config]:
    """The config of every block of a sequence. Raises ``CrosswalkError`` for a sequence that there is not."""
    if config["type"] not in SEQUENCES:
        raise unknown("sequence of blocks", config["type"])
    return SEQUENCES[config["type"]](config)


def run(config: Config, parameters: Parameters, x: torch.Tensor, positions: Positions) -> Iterator[torch.Tensor]:
    """What comes out of every block of a sequence, from the first on."""
    for i, each in enumerate(blocks_of(config)):
        x = block(each, parameters.under(str(i)), x, positions)
        yield x
