"""The encoder of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crosswalk.runtime.errors import fail

from .blocks import run
from .mlps.mlp import mlp
from .parts.linear import linear
from .parts.normalization import normalize
from .parts.parameters import Config, Parameters
from .parts.rotary import Positions


def patch_embeddings(config: Config, parameters: Parameters, image: torch.Tensor) -> tuple[torch.Tensor, Positions]:
    """The patches of one image (3, height, width), row by row, as (patches, hidden), and where they are.

        x[n] = normalization(W flatten(patch[n]) + b),   flatten in the order channel, row, column

    * `patch_height`: rows of pixels of a patch
    * `patch_width`: columns of pixels of a patch
    * `patch_embeddings`: W and b
    * `normalization`: as in the formula

    Raises ``CrosswalkError`` for an image of another shape.
    """
    height, width = config["patch_height"], config["patch_width"]
    if image.dim() != 3 or image.shape[1] % height or image.shape[2] % width:
        raise fail(
            "reference/images", f"an image has the shape {list(image.shape)}", None,
            f"it must be (channels, height, width), in whole patches of {height} x {width} pixels",
        )  # fmt: skip
    patches = image.unfold(1, height, height).unfold(2, width, width)  # (channels, rows, columns, height, width)
    rows, columns = patches.shape[1:3]
    flat = patches.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    x = linear(config["patch_embeddings"], parameters.under("patch_embeddings"), flat)
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2)
    positions = Positions(torch.arange(len(x)), grid)
    return normalize(config["normalization"], parameters.under("normalization"), x), positions


def encode(config: Config, parameters: Parameters, images: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Images (3, height, width), of which the pixels are normalized already, each for itself; what comes out of every
    part of the encoder, (patches of all images, hidden), by the name of the part.

        image = adapter(encoder(embeddings(pixels)))

    * `embeddings`: of patches
    * `encoder`: blocks
    * `adapter`: an `mlp` to the width of the text model
    * `hidden_size`: the width up to the adapter
    """
    outputs: dict[str, list[torch.Tensor]] = {}
    for image in images:
        pixels = image.to(parameters.dtype)
        x, positions = patch_embeddings(config["embeddings"], parameters.under("embeddings"), pixels)
        outputs.setdefault("embeddings", []).append(x)
        for i, y in enumerate(run(config["encoder"], parameters.under("encoder"), x, positions)):
            outputs.setdefault(f"encoder.{i}", []).append(y)
            x = y
        outputs.setdefault("adapter", []).append(mlp(config["adapter"], parameters.under("adapter"), x))
    return {name: torch.cat(parts) for name, parts in outputs.items()}
