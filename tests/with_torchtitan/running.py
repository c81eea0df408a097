"""What models of torchtitan compute on a CPU, in float32, without compiled kernels.

torchtitan computes experts in bfloat16 whatever the dtype of the model, and its attention and masks are compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.overrides import TorchFunctionMode
from torchtitan.models.common import attention


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


def logits(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Of the model, and of each further layer that predicts tokens; ``tokens`` (batch, sequence)."""
    attention.FlexAttention._compiled_flex_attn = staticmethod(flex_attention)
    attention._compiled_create_block_mask = create_block_mask
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape[0], -1).contiguous()
    with torch.no_grad(), InFloat32():
        masks = model.get_attention_masks(positions)
        found = model(tokens, positions=positions, attention_masks=masks)
    return found if isinstance(found, list) else [found]
