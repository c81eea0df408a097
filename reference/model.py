"""The whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from crosswalk.runtime.errors import fail
from crosswalk.runtime.records import Record

from .blocks import block, blocks_of, run
from .embeddings import embed
from .heads import head
from .parts.parameters import Config, Parameters
from .parts.rotary import Positions
from .vision import encode


class ForwardOutput(Record, frozen=True):
    """What a forward pass gives. ``hidden``: the hidden states (sequence, hidden) after every part, by its native name
    and in the order in which they are computed: ``vision_encoder.embeddings``, ``vision_encoder.encoder.0`` ...,
    ``vision_encoder.adapter``, ``embeddings``, ``decoder.0`` ..., ``head.final_norm``. ``logits``: (sequence,
    vocabulary); ``further``: those of the heads that predict further tokens."""

    hidden: Mapping[str, torch.Tensor]
    logits: torch.Tensor
    further: tuple[torch.Tensor, ...] = ()


@torch.no_grad()
def forward(
    config: Config,
    parameters: Mapping[str, torch.Tensor],
    tokens: torch.Tensor,
    images: Sequence[torch.Tensor] = (),
    dtype: torch.dtype = torch.float32,
) -> ForwardOutput:
    """The forward pass of one sequence of ``tokens`` (sequence,), not in training.

        x = decoder(embeddings(tokens)),   logits = head(x)

    * `embeddings`: as in the formula
    * `decoder`: blocks
    * `head`: as in the formula
    * `hidden_size`: the width of x
    * `tied_embedding_weight`: whether the W of the head is the E of the embeddings
    * `vision_encoder`: what makes embeddings of images; null is none
    * `image_token_index`: the token that stands for a patch of an image, one for each; null is any that is negative

    ``config`` is a native config with every default filled in, ``parameters`` are its tensors by native name, of any
    dtype; everything is computed in ``dtype``. ``images``: (3, height, width) each, of which the pixels are normalized
    already, in the order of their tokens. Raises ``CrosswalkError`` for a parameter that is missing, and for tokens or
    images that the model cannot take.
    """
    if tokens.dim() != 1 or not len(tokens):
        raise fail("reference/tokens", f"tokens have the shape {list(tokens.shape)}: one sequence is needed")
    view = Parameters(parameters, dtype)
    hidden: dict[str, torch.Tensor] = {}
    vision = config.get("vision_encoder")
    if images:
        if vision is None:
            raise fail("reference/images", "the model takes no images")
        encoded = encode(vision, view.under("vision_encoder"), images)
        hidden |= {f"vision_encoder.{name}": x for name, x in encoded.items()}
    image_token = config.get("image_token_index") if vision is not None else None
    is_image = tokens < 0 if image_token is None else tokens == image_token
    image = hidden.get("vision_encoder.adapter")
    x = embed(config["embeddings"], view.under("embeddings"), tokens, is_image if images else tokens < 0, image)
    hidden["embeddings"] = x
    positions = Positions(torch.arange(len(tokens)))
    for i, y in enumerate(run(config["decoder"], view.under("decoder"), x, positions)):
        trunk, x = x, y
        hidden[f"decoder.{i}"] = x
    weight = view["embeddings.word_embeddings_weight" if config["tied_embedding_weight"] else "head.output_weights"]
    hidden["head.final_norm"], logits = head(config["head"], x, view.under("head.final_norm"), weight)
    further = []
    for j in range(config["head"]["prediction_heads"] - 1):
        ahead = view.under("multi_token_prediction")
        y = block(blocks_of(config["decoder"])[-1], ahead.under(f"blocks.{j}"), trunk, positions)
        further.append(head(config["head"], y, ahead.under(f"heads.{j}.final_norm"), weight)[1])
    return ForwardOutput(hidden, logits, tuple(further))
