"""What models of torchtitan compute on a CPU, in float32, without compiled kernels. Needs torchtitan.

torchtitan computes experts in bfloat16 whatever the dtype of the model, and its attention and masks are compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.overrides import TorchFunctionMode
from torchtitan.models.common import attention

from crosswalk.reference import ForwardOutput
from crosswalk.runtime.errors import fail

from .classes import one_message
from .titan_configs import config_of


class InFloat32(TorchFunctionMode):
    """Casts to bfloat16 cast nothing, and grouped products of matrices are computed group by group."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if function is torch.Tensor.bfloat16:
            return args[0]
        if function is torch._grouped_mm:
            ends = options["offs"].tolist()
            spans = zip([0, *ends[:-1]], ends, strict=True)
            return torch.cat([args[0][a:b] @ w for (a, b), w in zip(spans, args[1], strict=True)])
        return function(*args, **options)


def forward(
    config: Mapping[str, Any], kind: str, parameters: Mapping[str, torch.Tensor], tokens: torch.Tensor
) -> ForwardOutput:
    """What torchtitan's model of the type ``kind`` of the layout computes for one sequence of ``tokens``; hidden states
    have the names that the reference has for them. Raises ``CrosswalkError`` if torchtitan has no such model, or
    another parameter than the checkpoint."""
    with one_message("torchtitan cannot build the model", ""):
        model = config_of(config, kind).build().eval()
        found = model.load_state_dict(dict(parameters), strict=False)
    own = model.state_dict()
    copies = {name for name in found.unexpected_keys for one in own.values() if _same(parameters[name], one)}
    apart = [*found.missing_keys, *(name for name in found.unexpected_keys if name not in copies)]
    if apart:
        text = f"torchtitan's model and the checkpoint differ in `{apart[0]}`, of {len(apart)}"
        raise fail("compare/class", text, None, "name the format that the checkpoint has: --format")
    hidden: dict[str, torch.Tensor] = {}
    hooks = [model.tok_embeddings.register_forward_hook(_noting(hidden, "embeddings"))]
    for i, layer in enumerate(model.layers.values()):
        hooks.append(layer.register_forward_hook(_noting(hidden, f"decoder.{i}")))
    hooks.append(model.norm.register_forward_hook(_noting(hidden, "head.final_norm")))
    try:
        with one_message("torchtitan's model cannot be run", ""):
            computed = logits(model, tokens[None])
    finally:
        for hook in hooks:
            hook.remove()
    return ForwardOutput(hidden, computed[0][0], tuple(one[0] for one in computed[1:]))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether a parameter that the model does not have is another one again, as files hold what is shared."""
    return one.shape == other.shape and torch.equal(one.to(other.dtype), other)


def _noting(hidden: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    def note(module: Any, args: Any, output: torch.Tensor) -> None:
        hidden.setdefault(name, output.detach().reshape(-1, output.shape[-1]).clone())

    return note


def logits(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Of a model, and of each further layer that predicts tokens; ``tokens`` (batch, sequence)."""
    attention.FlexAttention._compiled_flex_attn = staticmethod(flex_attention)
    attention._compiled_create_block_mask = create_block_mask
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape[0], -1).contiguous()
    with torch.no_grad(), InFloat32(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about speed
        masks = model.get_attention_masks(positions)
        found = model(tokens, positions=positions, attention_masks=masks)
    return found if isinstance(found, list) else [found]
