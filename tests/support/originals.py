"""Random models of transformers, for the scripts that hold the models of other trainers against them."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 36, "intermediate_size": 38, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "eos_token_id": None,
}  # fmt: skip
#: Latent attention of DeepSeek-V3, and its experts.
LATENT: dict[str, Any] = {
    "num_key_value_heads": 6, "q_lora_rank": 18, "kv_lora_rank": 10, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6,
    "v_head_dim": 11, "n_shared_experts": 2, "n_routed_experts": 8, "moe_intermediate_size": 14,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 0,
}  # fmt: skip


def original(family: str, keys: dict[str, Any]) -> Any:
    """A random model of a class, whose norms, biases and sinks are none that do nothing."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **keys})
    config._experts_implementation = "eager"  # the others want sizes in multiples of 16 bytes
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if any(part in key for part in ("norm", "bias", "sinks")):
                value += torch.randn_like(value) / 5
    return model
