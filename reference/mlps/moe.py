"""Mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from crosswalk.reference.parts.linear import bare_linear
from crosswalk.reference.parts.normalization import normalize
from crosswalk.reference.parts.parameters import Config, Parameters, unknown

from .mlp import act, mlp


def moe(config: Config, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """A mixture of experts, (sequence, hidden) to the same. Expert e is an `mlp` without norms and biases, whose rows
    of `layer_1` and of `layer_2` are those from e times as many on; the last shared_experts ones see every element.

        r = W_r (router_input_scale router_scale router_normalization(x))
        E, s = the chosen experts and their scores, by `routing`
        y = post_norm(sum over e in E of s[e] router_per_expert_scale[e] expert_e(pre_norm(x)))

    * `experts`: how many there are in all
    * `experts_per_token`: how many of the experts that are not shared an element sees
    * `shared_experts`: how many are seen by every element, with a score of 1 each; they have no row in W_r
    * `routing`: how r becomes E and s
    * `router_normalization`: null is none
    * `router_input_scale`: a factor
    * `router_scale`: a factor for each channel, if enabled
    * `router_per_expert_scale`: a factor for each expert, shared ones too, if enabled
    * `intermediate_size`: channels of gate and of up, of one expert
    * `gated`: as in an `mlp`
    * `activation`: as in an `mlp`
    * `layer_1`: as in an `mlp`
    * `layer_2`: as in an `mlp`
    * `add_linear_biases`: must be false
    * `pre_norm`: of what the experts see; the router sees x itself. Null is none
    * `post_norm`: null is none

    Raises ``CrosswalkError`` for a routing that it does not know.
    """
    router_input = normalize(config["router_normalization"], parameters.under("router_normalization"), x)
    if config["router_scale"]["enabled"]:
        router_input = router_input * parameters["router_scale"]
    logits = bare_linear(parameters.under("router"), router_input * config["router_input_scale"])
    if config["routing"] not in ROUTINGS:
        raise unknown("routing", config["routing"])
    scores = ROUTINGS[config["routing"]](config, logits)
    if config["router_per_expert_scale"]["enabled"]:
        scores = scores * parameters["router_per_expert_scale"]
    y = experts(config, parameters, normalize(config["pre_norm"], parameters.under("pre_norm"), x), scores)
    return normalize(config["post_norm"], parameters.under("post_norm"), y)


def experts(config: Config, parameters: Parameters, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The sum of all experts by ``scores`` (sequence, experts), 0 for one that is not chosen."""
    first = torch.unflatten(parameters["layer_1.weight"], 0, (config["experts"], -1))
    second = torch.unflatten(parameters["layer_2.weight"], 0, (config["experts"], -1))
    y = x.new_zeros(len(x), second.shape[-1])
    for e in range(config["experts"]):
        y = y + scores[:, e, None] * (act(config, x @ first[e].T) @ second[e])
    return y


def aux_loss(config: Config, logits: torch.Tensor) -> torch.Tensor:
    """E are the experts_per_token largest r, s the softmax over those; then the shared experts, with s = 1."""
    top, chosen = logits.topk(config["experts_per_token"], dim=-1)
    scores = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(-1))
    return torch.cat([scores, scores.new_ones(len(scores), config["shared_experts"])], dim=-1)


def sinkhorn(config: Config, logits: torch.Tensor) -> torch.Tensor:
    """s is the softmax over all r, or 1 / (1 + exp(-r)) if experts_per_token is 1; E are the largest of them. No
    shared experts are added."""
    scores = logits.sigmoid() if config["experts_per_token"] == 1 else logits.softmax(-1)
    top, chosen = scores.topk(config["experts_per_token"], dim=-1)
    scores = torch.zeros_like(scores).scatter(-1, chosen, top)
    return torch.cat([scores, scores.new_zeros(len(scores), config["shared_experts"])], dim=-1)


ROUTINGS: dict[str, Callable[[Config, torch.Tensor], torch.Tensor]] = {"aux_loss": aux_loss, "sinkhorn": sinkhorn}


def hybrid_moe(config: Config, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    """A dense MLP and a mixture of experts side by side, (sequence, hidden) to the same.

        y = post_norm(dense(pre_norm(x)) + routed(pre_norm(x)))

    * `dense`: an `mlp`
    * `routed`: a `moe`
    * `pre_norm`: null is none
    * `post_norm`: null is none
    """
    x = normalize(config["pre_norm"], parameters.under("pre_norm"), x)
    y = mlp(config["dense"], parameters.under("dense"), x) + moe(config["routed"], parameters.under("routed"), x)
    return normalize(config["post_norm"], parameters.under("post_norm"), y)
