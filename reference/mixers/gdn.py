"""Gated delta net."""

from __future__ import annotations

import torch

from crosswalk.reference.parts.linear import convolution, linear
from crosswalk.reference.parts.normalization import gated_rms_norm
from crosswalk.reference.parts.parameters import Config, Parameters
from crosswalk.reference.parts.rotary import Positions

from .delta import delta_rule


def gdn(config: Config, parameters: Parameters, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Gated delta net, (sequence, hidden) to the same. Every key head serves value_heads / key_heads value heads in a
    row.

        [q | k | v | z] = W_qkvz x,   [b | a] = W_ba x,   [q | k | v] = convolution([q | k | v])
        log_decay[h] = -exp(A_log[h]) ln(1 + exp(a[h] + dt_bias[h])),   beta[h] = 1 / (1 + exp(-b[h]))
        y = W_o concat_h(norm(delta_rule(q, k, v, log_decay, beta)[h], gate = z[h]))

    * `value_heads`: heads of v, z, a and b
    * `key_heads`: heads of q and k
    * `key_head_dim`: channels of a head of q or k
    * `value_head_dim`: channels of a head of v or z
    * `convolution_layer`: over the channels of q, k and v side by side
    * `normalization`: the gated norm over the channels of each head
    * `qkv_projection_layer`: W_qkvz (`in_proj_qkvz`)
    * `ba_projection_layer`: W_ba (`in_proj_ba`)
    * `output_layer`: W_o (`out_proj`)
    """
    keys, values = config["key_heads"] * config["key_head_dim"], config["value_heads"] * config["value_head_dim"]
    projected = linear(config["qkv_projection_layer"], parameters.under("in_proj_qkvz"), x)
    mixed, gate = torch.split(projected, [2 * keys + values, values], dim=-1)
    mixed = convolution(config["convolution_layer"], parameters.under("convolution"), mixed)
    query, key, value = torch.split(mixed, [keys, keys, values], dim=-1)
    query, key = (
        torch.unflatten(part, -1, (config["key_heads"], -1)).repeat_interleave(
            config["value_heads"] // config["key_heads"], 1
        )
        for part in (query, key)
    )
    value, gate = (torch.unflatten(part, -1, (config["value_heads"], -1)) for part in (value, gate))
    beta, alpha = linear(config["ba_projection_layer"], parameters.under("in_proj_ba"), x).chunk(2, dim=-1)
    softplus = torch.nn.functional.softplus(alpha + parameters["dt_bias"])
    log_decay = -parameters["A_log"].exp() * softplus
    out = delta_rule(query, key, value, log_decay[:, :, None], beta.sigmoid())
    out = gated_rms_norm(config["normalization"], parameters.under("norm"), out, gate)
    return linear(config["output_layer"], parameters.under("out_proj"), out.flatten(1))
