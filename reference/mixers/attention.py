"""Attention."""

from __future__ import annotations

import torch

from crosswalk.reference.parts.linear import linear
from crosswalk.reference.parts.normalization import normalize
from crosswalk.reference.parts.parameters import Config, Parameters
from crosswalk.reference.parts.rotary import Positions, rotate


def attention(config: Config, parameters: Parameters, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Attention within one sequence, (sequence, hidden) to the same. Head h belongs to group floor(h / (heads /
    head_groups)), which has keys and values of its own.

        q[t, h] = rotary(query_norm(W_q x[t])[h], t)
        k[s, g] = rotary(key_norm(W_k x[s])[g], s),   v[s, g] = value_norm(W_v x[s])[g]
        a[h, t, s] = softmax over s of (q[t, h] . k[s, g] head_size^(-softmax_scale_power))
        y[t] = W_o concat_h(sum_s a[h, t, s] v[s, g])

    * `heads`: how many q there are; `query.weight` is (heads head_size, hidden)
    * `head_groups`: how many k and v there are
    * `head_size`: channels of a head
    * `rotary`: what is done to q and k, after their norms
    * `query_layer`: W_q (`query`), with a bias or without
    * `key_layer`: W_k and W_v, in one matrix (`key_value`): its first half makes keys, its second half values
    * `value_layer`: nothing of its own, `key_layer` holds for both
    * `dense_layer`: W_o (`dense`)
    * `add_linear_biases`: whether those layers have biases that do not say so themselves
    * `query_norm`: over the channels of each head; null is none
    * `key_norm`: over the channels of each head; null is none
    * `value_norm`: over the channels of each head; null is none
    * `causal`: whether s <= t only
    * `window_size`: whether t - s < window_size only; null is no limit
    * `softmax_scale_power`: as in the formula; 0.5 is the usual 1 / sqrt(head_size), 0 no scale
    * `shared_key_value`: W_v = W_k: the values are what the keys are before their norm and rotation
    """
    groups, size, biased = config["head_groups"], config["head_size"], config["add_linear_biases"]

    def by_head(part: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(part, -1, (-1, size))

    query = by_head(linear(config["query_layer"], parameters.under("query"), x, biased))
    both = by_head(linear(config["key_layer"], parameters.under("key_value"), x, biased))
    key, value = (both, both) if config["shared_key_value"] else both.chunk(2, dim=1)
    query = rotate(config["rotary"], normalize(config["query_norm"], parameters.under("query_norm"), query), positions)
    key = rotate(config["rotary"], normalize(config["key_norm"], parameters.under("key_norm"), key), positions)
    value = normalize(config["value_norm"], parameters.under("value_norm"), value)
    scores = torch.einsum("tgmc,sgc->gmts", torch.unflatten(query, 1, (groups, -1)), key)
    scores = scores * size ** -config["softmax_scale_power"]
    weights = scores.masked_fill(~visible(config, positions), -torch.inf).softmax(-1)
    context = torch.einsum("gmts,sgc->tgmc", weights, value).flatten(1)
    return linear(config["dense_layer"], parameters.under("dense"), context, biased)


def visible(config: Config, positions: Positions) -> torch.Tensor:
    """(sequence, sequence): whether the element t, the row, sees the element s, the column."""
    distance = positions.index[:, None] - positions.index[None, :]
    seen = distance >= 0 if config["causal"] else torch.ones_like(distance, dtype=torch.bool)
    return seen if config["window_size"] is None else seen & (distance < config["window_size"])
