"""The gated delta rule, shared by the recurrent mixers that have it."""

from __future__ import annotations

import math

import torch


def delta_rule(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, log_decay: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    """The gated delta rule of one sequence: a state S (key channels, value channels) for each head, 0 at the start.

        S = diag(exp(log_decay[t])) S
        S = S + beta[t] k[t] (v[t] - S^T k[t])^T
        o[t] = S^T q[t] / sqrt(key channels),   q and k divided by sqrt(sum of their squares + 1e-6) before

    ``query``, ``key``: (sequence, heads, key channels); ``value``: (sequence, heads, value channels); ``log_decay``:
    (sequence, heads, key channels or 1); ``beta``: (sequence, heads). Gives (sequence, heads, value channels).
    """
    query, key = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (query, key))
    state = value.new_zeros(key.shape[1], key.shape[2], value.shape[2])
    outputs = []
    for q, k, v, g, b in zip(query, key, value, log_decay, beta, strict=True):
        state = state * g.exp()[:, :, None]
        error = v - torch.einsum("hkv,hk->hv", state, k)
        state = state + torch.einsum("h,hk,hv->hkv", b, k, error)
        outputs.append(torch.einsum("hkv,hk->hv", state, q))
    return torch.stack(outputs) / math.sqrt(key.shape[2])
