"""Embeddings of tokens, and of images among them."""

from __future__ import annotations

import torch

from crosswalk.runtime.errors import fail

from .parts.parameters import Config, Parameters


def embed(
    config: Config, parameters: Parameters, tokens: torch.Tensor, is_image: torch.Tensor, image: torch.Tensor | None
) -> torch.Tensor:
    """Tokens (sequence,) to (sequence, hidden). Where ``is_image``, rows of ``image`` (patches, hidden) take the place
    of embeddings, one after the other.

        x[t] = embedding_scale (E[token[t]] + P[t]),   x[t] = embedding_scale image[n] for the n-th image token

    * `vocab_size`: rows of E (`word_embeddings_weight`)
    * `position_embeddings`: whether there is a P (`position_embeddings_weight`)
    * `num_position_embeddings`: rows of P
    * `embedding_scale`: as in the formula, of images too

    Raises ``CrosswalkError`` for a token that there is not.
    """
    size = config["vocab_size"]
    if bool(((tokens < 0) | (tokens >= size))[~is_image].any()):
        raise fail("reference/tokens", f"a token is not among the {size} of the vocabulary")
    x = parameters["word_embeddings_weight"][tokens.masked_fill(is_image, 0)]
    if config["position_embeddings"]["enabled"]:
        if len(tokens) > config["num_position_embeddings"]:
            raise fail("reference/tokens", f"{len(tokens)} tokens, {config['num_position_embeddings']} positions")
        x = x + parameters["position_embeddings_weight"][: len(tokens)]
    count, rows = int(is_image.sum()), 0 if image is None else len(image)
    if count != rows:
        raise fail("reference/images", f"{count} tokens stand for patches of images; the images have {rows}")
    if image is not None:
        x[is_image] = image
    x *= config["embedding_scale"]
    return x
