"""The heads: from hidden states to logits."""

from __future__ import annotations

import torch

from .parts.normalization import normalize
from .parts.parameters import Config, Parameters


def head(config: Config, x: torch.Tensor, norm: Parameters, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The normalized hidden states and the logits (sequence, vocabulary) of one head.

        z = W final_norm(x)
        logits = logits_scale_factor final_logit_softcap tanh(z / final_logit_softcap)

    * `normalization`: final_norm
    * `final_logit_softcap`: as in the formula; null is logits = logits_scale_factor z
    * `logits_scale_factor`: as in the formula
    * `prediction_heads`: how many heads there are. Head j > 0 predicts j tokens further on: it has a final_norm of its
      own (`multi_token_prediction.heads.{j - 1}`), the W of the first, and instead of the last block of the decoder one
      with the same config (`multi_token_prediction.blocks.{j - 1}`)
    """
    hidden = normalize(config["normalization"], norm, x)
    logits, cap = hidden @ weight.T, config["final_logit_softcap"]
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return hidden, logits * config["logits_scale_factor"]
