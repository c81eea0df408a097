"""Models of one layer with the patterns of their parameters, and what a shard of them is, element by element.

Patterns and sizes are written here by hand, with each axis by one name: nothing is looked up in a layout.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from crosswalk.compiler.notation.axes import Axis, Product, Sum, Term, parse_parameter

Axes = dict[str, tuple[int, int]]
Sizes = Mapping[str, "int | tuple[str, ...]"]


@dataclass(frozen=True)
class Model:
    """``sizes``: axis -> its size, or the axes that it is made of. ``patterns``: of some parameters, by name."""

    config: dict[str, Any]
    sizes: Sizes
    patterns: Mapping[str, str]
    root: str = "base_model"
    layout: str = "fast_llm"


def piece(tensor: torch.Tensor, dim: int, shard: tuple[int, int]) -> torch.Tensor:
    """What torch.chunk makes of a dimension; nothing, if it makes fewer pieces."""
    index, count = shard
    pieces = tensor.chunk(count, dim)
    return pieces[index] if index < len(pieces) else tensor.narrow(dim, 0, 0)


def arange(pattern: str, sizes: Sizes) -> torch.Tensor:
    """A parameter all of whose elements differ."""
    shape = [len(elements(dim, sizes, {})) for dim in parse_parameter(pattern).dims]
    return torch.arange(torch.Size(shape).numel()).view(shape)


def acting(patterns: Iterable[str], sizes: Sizes, axes: Axes) -> set[str]:
    """The axes that cut anything: not those that are only in others that are cut themselves."""
    dims = [dim for pattern in patterns for dim in parse_parameter(pattern).dims]
    return {axis for dim in dims for at in elements(dim, sizes, axes) for axis in at}


def local_of(whole: torch.Tensor, pattern: str, sizes: Sizes, axes: Axes) -> torch.Tensor:
    """The shard of a parameter: an element is in it if it is in the shard of each of its axes."""
    kept = {axis: set(piece(torch.arange(size_of(axis, sizes)), 0, shard).tolist()) for axis, shard in axes.items()}
    for dim, term in enumerate(parse_parameter(pattern).dims):
        held = [i for i, at in enumerate(elements(term, sizes, axes)) if all(at[axis] in kept[axis] for axis in at)]
        whole = whole.index_select(dim, torch.tensor(held, dtype=torch.long))
    return whole


def elements(term: Term, sizes: Sizes, axes: Axes) -> list[dict[str, int]]:
    """Of each element of a term, its index along the sharded axes."""
    match term:
        case Axis(name) if name in axes:
            return [{name: index} for index in range(size_of(name, sizes))]
        case Axis(name):
            size = sizes[name]
            return [{}] * size if isinstance(size, int) else _product(map(Axis, size), sizes, axes)
        case Product(terms):
            return _product(terms, sizes, axes)
        case Sum(branches):
            return [at for branch in branches for at in _product(branch.terms or (), sizes, axes)]
    return [{}]


def _product(terms: Iterable[Term], sizes: Sizes, axes: Axes) -> list[dict[str, int]]:
    places = itertools.product(*(elements(term, sizes, axes) for term in terms))
    return [{axis: index for at in place for axis, index in at.items()} for place in places]


def size_of(axis: str, sizes: Sizes) -> int:
    size = sizes[axis]
    return size if isinstance(size, int) else torch.Size(size_of(factor, sizes) for factor in size).numel()


def _fast_llm(mixer: dict[str, Any], mlp: dict[str, Any], sizes: Sizes, patterns: dict[str, str]) -> Model:
    norm = {"type": "rms_norm"}
    block = {"mixer": mixer, "mlp": mlp, "normalization": norm}
    decoder = {"type": "fixed", "num_blocks": 1, "block": block}
    config = {"hidden_size": 13, "embeddings": {"vocab_size": 17}, "head": {"normalization": norm}, "decoder": decoder}
    around = {
        "embeddings.word_embeddings_weight": "vocab hidden",
        "head.output_weights": "vocab <- hidden",
        "head.final_norm.weight": "hidden",
        "decoder.0.norm_1.weight": "hidden",
    }
    return Model(config, {"hidden": 13, "vocab": 17, **sizes}, around | patterns)


def _in_layer(patterns: dict[str, str]) -> dict[str, str]:
    return {f"decoder.0.{name}": pattern for name, pattern in patterns.items()}


_ATTENTION = {"type": "attention", "heads": 15, "head_groups": 5, "head_size": 6}
_ATTENTION_SIZES: dict[str, Any] = {
    "head": ("group", "per_group"),
    "group": 5,
    "per_group": 3,
    "head_dim": ("half", "pair"),
    "half": 2,
    "pair": 3,
}
_MLP = {"type": "mlp", "intermediate_size": 11, "add_linear_biases": False}

MODELS = {
    "attention": _fast_llm(
        {**_ATTENTION, "query_norm": {"type": "rms_norm"}},
        {**_MLP, "gated": True},
        {**_ATTENTION_SIZES, "intermediate": 11},
        _in_layer(
            {
                "mixer.query.weight": "[q: head head_dim] <- hidden",
                "mixer.query.bias": "[q: head head_dim]",
                "mixer.query_norm.weight": "head_dim",
                "mixer.key_value.weight": "[k: group head_dim | v: group head_dim] <- hidden",
                "mixer.key_value.bias": "[k: group head_dim | v: group head_dim]",
                "mixer.dense.weight": "hidden <- (head head_dim)",
                "mlp.layer_1.weight": "([gate|up] intermediate) <- hidden",
                "mlp.layer_2.weight": "intermediate -> hidden",
            }
        ),
    ),
    "branches that are absent": _fast_llm(
        {**_ATTENTION, "add_linear_biases": False, "shared_key_value": True},
        {**_MLP, "gated": False, "add_linear_biases": True},
        {**_ATTENTION_SIZES, "intermediate": 11},
        _in_layer(
            {
                "mixer.query.weight": "[q: head head_dim] <- hidden",
                "mixer.key_value.weight": "[k: group head_dim] <- hidden",
                "mlp.layer_1.weight": "([up] intermediate) <- hidden",
                "mlp.layer_1.bias": "([up] intermediate)",
                "mlp.layer_2.bias": "hidden",
            }
        ),
    ),
    "experts": _fast_llm(
        _ATTENTION,
        {**_MLP, "type": "moe", "gated": True, "experts": 7, "experts_per_token": 2, "shared_experts": 1},
        {"intermediate": 11, "expert": 7, "routed": 6},
        _in_layer(
            {
                "mlp.router.weight": "routed <- hidden",
                "mlp.layer_1.weight": "(expert [gate|up] intermediate) <- hidden",
                "mlp.layer_2.weight": "(expert intermediate) -> hidden",
            }
        ),
    ),
    "mamba": _fast_llm(
        {"type": "mamba", "d_inner": 20, "d_xb": 10, "state_size": 5, "dt_rank": 3, "add_linear_biases": False},
        _MLP,
        {"inner": 20, "xb": 10, "state": 5, "rank": 3, "kernel": 4, "conv": 20},
        _in_layer(
            {
                "mixer.in_proj.weight": "[z: inner | x: xb | B: xb | C: inner] <- hidden",
                "mixer.dt_proj.weight": "inner <- rank",
                "mixer.A_log": "inner state",
                "mixer.convolution.weight": "conv 1 kernel",
            }
        ),
    ),
    "gdn": _fast_llm(
        {"type": "gdn", "value_heads": 6, "key_heads": 3, "key_head_dim": 5, "value_head_dim": 7},
        _MLP,
        {"value_head": ("key_head", "per_key"), "key_head": 3, "per_key": 2, "key_dim": 5, "value_dim": 7, "kernel": 4},
        _in_layer(
            {
                "mixer.in_proj_qkvz.weight": "[q: key_head key_dim | k: key_head key_dim | v: value_head value_dim"
                " | z: value_head value_dim] <- hidden",
                "mixer.in_proj_ba.weight": "[b: value_head | a: value_head] <- hidden",
                "mixer.convolution.weight": "[q: key_head key_dim | k: key_head key_dim | v: value_head value_dim]"
                " 1 kernel",
                "mixer.norm.weight": "value_dim",
                "mixer.out_proj.weight": "hidden <- (value_head value_dim)",
                "mixer.A_log": "value_head",
            }
        ),
    ),
    "kda": _fast_llm(
        {"type": "kda", "heads": 3, "head_dim": 5},
        _MLP,
        {"head": 3, "channel": 5, "channel'": 5},
        _in_layer(
            {
                "mixer.f_b_proj.weight": "(head channel) <- channel'",
                "mixer.f_a_proj.weight": "channel <- hidden",
                "mixer.o_proj.weight": "hidden <- (head channel)",
                "mixer.dt_bias": "(head channel)",
            }
        ),
    ),
    "fused in groups": Model(
        {
            "dim": 13,
            "vocab_size": 17,
            "layers": {
                "num_blocks": 1,
                "block": {
                    "attention": {"n_heads": 15, "n_kv_heads": 5, "head_dim": 6, "qkv_linear": {"type": "fused"}},
                    "feed_forward": {"hidden_dim": 11},
                },
            },
        },
        {**_ATTENTION_SIZES, "head_dim": 6, "rotary": ("pair", "half"), "dim": 13, "vocab": 17, "hidden_dim": 11},
        {
            "tok_embeddings.weight": "vocab dim",
            "norm.weight": "dim",
            "layers.0.attention.qkv_linear.wqkv.weight": "(group [q: per_group rotary | k: rotary | v: head_dim])"
            " <- dim",
            "layers.0.attention.wo.weight": "dim <- (head head_dim)",
            "layers.0.feed_forward.w2.weight": "dim <- hidden_dim",
        },
        "llama3",
        "torchtitan",
    ),
}
