"""Kimi delta attention."""

from __future__ import annotations

import torch

from crosswalk.reference.parts.linear import convolution, linear
from crosswalk.reference.parts.normalization import gated_rms_norm
from crosswalk.reference.parts.parameters import Config, Parameters
from crosswalk.reference.parts.rotary import Positions

from .delta import delta_rule


def kda(config: Config, parameters: Parameters, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Kimi delta attention, (sequence, hidden) to the same: the gated delta rule with a decay for each channel.

        q, k, v = convolution(W_q x), convolution(W_k x), convolution(W_v x)
        log_decay[h, c] = -exp(A_log[h]) ln(1 + exp((F_b F_a x + dt_bias)[h, c])),   beta = 1 / (1 + exp(-W_beta x))
        y = W_o concat_h(norm(delta_rule(q, k, v, log_decay, beta)[h], gate = (G_b G_a x)[h]))

    * `heads`: heads of q, k, v and beta
    * `head_dim`: channels of a head, and the width between F_a and F_b, and G_a and G_b
    * `convolution_layer`: of q, k and v, each with weights of its own (`q_conv`, `k_conv`, `v_conv`)
    * `normalization`: the gated norm over the channels of each head
    * `q_projection_layer`: W_q (`q_proj`)
    * `k_projection_layer`: W_k (`k_proj`)
    * `v_projection_layer`: W_v (`v_proj`)
    * `f_a_projection_layer`: F_a (`f_a_proj`)
    * `f_b_projection_layer`: F_b (`f_b_proj`)
    * `g_a_projection_layer`: G_a (`g_a_proj`)
    * `g_b_projection_layer`: G_b (`g_b_proj`)
    * `beta_projection_layer`: W_beta (`beta_proj`)
    * `output_projection_layer`: W_o (`o_proj`)
    """

    def project(name: str, of: torch.Tensor = x) -> torch.Tensor:
        return linear(config[f"{name}_projection_layer"], parameters.under(f"{name}_proj"), of)

    def by_head(of: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(of, -1, (config["heads"], -1))

    query, key, value = (
        by_head(convolution(config["convolution_layer"], parameters.under(f"{name}_conv"), project(name)))
        for name in ("q", "k", "v")
    )
    forget = project("f_b", project("f_a")) + parameters["dt_bias"]
    log_decay = -parameters["A_log"].exp()[:, None] * torch.nn.functional.softplus(by_head(forget))
    out = delta_rule(query, key, value, log_decay, project("beta").sigmoid())
    gate = by_head(project("g_b", project("g_a")))
    out = gated_rms_norm(config["normalization"], parameters.under("norm"), out, gate)
    return linear(config["output_projection_layer"], parameters.under("o_proj"), out.flatten(1))
