"""Which function says what a type of the layout computes, and what of the layout computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .blocks import SEQUENCES, block
from .embeddings import embed
from .heads import head
from .mixers.choice import MIXERS
from .mlps.choice import MLPS
from .model import forward
from .parts.linear import bare_linear, convolution, linear
from .parts.normalization import NORMALIZATIONS, gated_rms_norm
from .parts.rotary import ROTARIES
from .vision import encode, patch_embeddings

Function = Callable[..., Any]

#: Types of the layout, and families with the function of each of their types, in reading order.
FORMULAS: Mapping[str, Function | Mapping[str, Function]] = MappingProxyType(
    {
        "base_model": forward,
        "multimodal_model": forward,
        "embeddings": embed,
        "head": head,
        "Sequence": SEQUENCES,
        "block": block,
        "Mixer": MIXERS,
        "Rotary": ROTARIES,
        "Mlp": MLPS,
        "Norm": {**NORMALIZATIONS, "gated_rms_norm": gated_rms_norm},
        "bare_linear": bare_linear,
        "linear": linear,
        "convolution": convolution,
        "vision_encoder": encode,
        "patch_embeddings": patch_embeddings,
    }
)

#: Types and families of the layout that compute nothing, and why.
SILENT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "parameter": "how a parameter is trained",
        "optional_parameter": "whether there is a parameter; what it does is said where it is",
        "bias_parameter": "whether there is a bias; what it does is said where it is",
        "image_normalization": "what is done to pixels before they reach the model",
        "Peft": "adapters of a training run, which are no part of a converted model",
    }
)

#: Fields, other than those of `training`, that the forward pass does not need: type, field, and why.
SILENT_FIELDS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("base_model", "peft"): "adapters of a training run, which are no part of a converted model",
        ("multimodal_model", "peft"): "adapters of a training run, which are no part of a converted model",
        ("stochastic", "sampling_strategy"): "which mixer a step of training draws",
        ("stochastic", "sampling_weights"): "which mixer a step of training draws",
        ("stochastic", "predefined_layouts"): "which mixer a step of training draws",
        ("stochastic", "predefined_layout_probabilities"): "which mixer a step of training draws",
    }
)
