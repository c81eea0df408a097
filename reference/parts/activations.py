"""Activations."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .parameters import unknown

#: Name -> formula and function.
ACTIVATIONS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "gelu": (
        "0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))",
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    ),
    "silu": ("x / (1 + exp(-x))", torch.nn.functional.silu),
    "relu": ("max(x, 0)", torch.relu),
    "squared_relu": ("max(x, 0)^2", lambda x: torch.relu(x).square()),
    "sigmoid": ("1 / (1 + exp(-x))", torch.sigmoid),
    "identity": ("x", lambda x: x),
}


def activate(name: str, x: torch.Tensor) -> torch.Tensor:
    """The activation called ``name`` of every element. Raises ``CrosswalkError`` if it is none of the layout's."""
    if name not in ACTIVATIONS:
        raise unknown("activation", name)
    return ACTIVATIONS[name][1](x)
