"""Config classes that ship with their checkpoints, written from their documentation: what an absent key means to them.

They were made for transformers 4, and hold ``rope_theta`` and ``rope_scaling`` of their own under any version.
"""

from __future__ import annotations

from typing import Any

from transformers import MistralConfig, PretrainedConfig

_LLAMA: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "hidden_act": "silu", "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, "rope_scaling": None,
    "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "head_dim": None, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

#: What an absent key means, by ``model_type``.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mtp_llama": _LLAMA | {"prediction_heads": 1},
    "diffusion_llama": _LLAMA | {"mask_token_id": 131072},
    "dream": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, "rope_scaling": None,
        "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "attention_dropout": 0.0,
        "mask_token_id": 151666, "pad_token_id": None,
    },
}  # fmt: skip


def _class_of(kind: str) -> type[PretrainedConfig]:
    defaults = DEFAULTS[kind]

    def init(self: Any, **kwargs: Any) -> None:
        given = defaults | kwargs
        if given["num_key_value_heads"] is None:
            given["num_key_value_heads"] = given["num_attention_heads"]
        if "head_dim" in defaults and given["head_dim"] is None:
            given["head_dim"] = given["hidden_size"] // given["num_attention_heads"]
        if not given.get("use_sliding_window", True):
            given["sliding_window"] = None
        PretrainedConfig.__init__(self, **kwargs)
        for key in defaults:
            setattr(self, key, given[key])

    return type(kind, (PretrainedConfig,), {"model_type": kind, "__init__": init, "__module__": __name__})


class _AprielHybrid(MistralConfig):
    model_type = "apriel_hybrid_ssm"

    def __init__(self, hybrid_block_layout: Any = ("t",), ssm_cfg: Any = None, **kwargs: Any) -> None:
        for key in ("linear_attn_config", "layer_types"):  # made anew by the class, whatever the file says
            kwargs.pop(key, None)
        super().__init__(**kwargs)
        self.hybrid_block_layout = list(hybrid_block_layout)
        self.ssm_cfg = {"expand": 1, **(ssm_cfg or {})}  # the class fills in all that is absent; the rest is written
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads


CLASSES: dict[str, type[PretrainedConfig]] = {
    **{kind: _class_of(kind) for kind in DEFAULTS},
    "apriel_hybrid_ssm": _AprielHybrid,
}
