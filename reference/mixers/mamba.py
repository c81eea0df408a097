"""Mamba."""

from __future__ import annotations

import torch

from crosswalk.reference.parts.linear import convolution, has_bias, linear
from crosswalk.reference.parts.parameters import Config, Parameters
from crosswalk.reference.parts.rotary import Positions


def mamba(config: Config, parameters: Parameters, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Mamba with groups of heads, (sequence, hidden) to the same. A head is state_size channels c of the d_inner; x and
    B have d_xb / state_size heads, each of which serves d_inner / d_xb heads of z and C in a row.

        [z | x | B | C] = W_in u,   x = convolution(repeat(x)) or repeat(convolution(x)),   B = repeat(B)
        dt = ln(1 + exp(W_dt W_dt_in u + 2 b_dt))
        S[t, c, n] = exp(-dt[t, c] exp(A_log[c, n])) S[t-1, c, n] + dt[t, c] B[t, head(c), n] x[t, c]
        y = W_o (silu(z) (sum_n C[t, head(c), n] S[t, c, n] + D[c] x[t, c]))

    * `state_size`: the n of a state, and the channels of a head
    * `d_inner`: channels of z and C
    * `d_xb`: channels of x and B
    * `dt_rank`: the width between W_dt_in and W_dt
    * `add_linear_biases`: whether those layers have biases that do not say so themselves
    * `convolution_layer`: of x, with a silu unless it says otherwise
    * `repeat_kv_before_conv`: whether x is repeated for its heads before the convolution (d_inner channels in it) or
      after (d_xb)
    * `z_layer`: W_in (`in_proj`), all of it
    * `x_layer`: nothing of its own, `z_layer` holds for it
    * `b_layer`: nothing of its own, `z_layer` holds for it
    * `c_layer`: nothing of its own, `z_layer` holds for it
    * `dt_input_layer`: W_dt_in (`dt_in_proj`)
    * `dt_layer`: W_dt and b_dt (`dt_proj`); its bias counts twice, once in the layer and once in the scan
    * `output_layer`: W_o (`out_proj`)
    """
    inner, xb, size, biased = (config[key] for key in ("d_inner", "d_xb", "state_size", "add_linear_biases"))

    def repeated(part: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(part, -1, (-1, size)).repeat_interleave(inner // xb, 1).flatten(1)

    def convolved(part: torch.Tensor) -> torch.Tensor:
        return convolution(config["convolution_layer"], parameters.under("convolution"), part, biased)

    projected = linear(config["z_layer"], parameters.under("in_proj"), x, biased)
    z, u, b, c = torch.split(projected, [inner, xb, xb, inner], dim=-1)
    u = convolved(repeated(u)) if config["repeat_kv_before_conv"] else repeated(convolved(u))
    step = linear(config["dt_input_layer"], parameters.under("dt_in_proj"), x, biased)
    step = linear(config["dt_layer"], parameters.under("dt_proj"), step, biased)
    if has_bias(config["dt_layer"], biased):
        step = step + parameters["dt_proj.bias"]
    out = selective_scan(u, torch.nn.functional.softplus(step), -parameters["A_log"].exp(), repeated(b), c)
    out = (out + parameters["D"] * u) * torch.nn.functional.silu(z)
    return linear(config["output_layer"], parameters.under("out_proj"), out, biased)


def selective_scan(
    u: torch.Tensor, step: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """The states of one sequence, read out: ``u``, ``step``, ``b`` and ``c`` are (sequence, channels), the last two by
    head; ``a`` is (channels, state)."""
    channels, size = a.shape
    head = torch.arange(channels, device=a.device) // size
    b, c = (torch.unflatten(part, -1, (-1, size))[:, head] for part in (b, c))  # (sequence, channels, state)
    state = torch.zeros_like(a)
    outputs = []
    for t in range(len(u)):
        state = state * (step[t, :, None] * a).exp() + step[t, :, None] * b[t] * u[t, :, None]
        outputs.append((state * c[t]).sum(-1))
    return torch.stack(outputs)
