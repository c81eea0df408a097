"""Small configs for real classes of transformers to build models from; no two sizes are the same."""

from __future__ import annotations

from typing import Any

import oracles
from golden_cases import CASES

_SIZES: dict[str, Any] = {
    "vocab_size": 89,
    "hidden_size": 36,
    "intermediate_size": 55,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 3e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


def _config(architecture: str, model_type: str, **keys: Any) -> dict[str, Any]:
    theta = {"rope_theta": 23456.0}
    rope = {"rope_parameters": {"rope_type": "default", **theta}} if oracles.TRANSFORMERS_MAJOR >= 5 else theta
    return {"architectures": [architecture], "model_type": model_type, **_SIZES, **rope, **keys}


def _scaled(scaling: dict[str, Any]) -> dict[str, Any]:
    """A scaled rotary embedding, as the installed transformers writes it."""
    if oracles.TRANSFORMERS_MAJOR >= 5:
        return {"rope_parameters": {"rope_theta": 23456.0, **scaling}}
    return {"rope_scaling": scaling}


def _gemma4(**keys: Any) -> dict[str, Any]:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 12345.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 543210.0, "partial_rotary_factor": 0.25},
    }
    base = _config("Gemma4ForCausalLM", "gemma4_text", rope_parameters=rope, head_dim=8, global_head_dim=16)
    del base["hidden_act"]
    return base | {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 5,
        "hidden_size_per_layer_input": 0,
        **keys,
    }


def _llava() -> dict[str, Any]:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 40,
        "intermediate_size": 53,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "patch_size": 3,
        "image_size": 18,
        "hidden_act": "silu",
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": _config("MistralForCausalLM", "mistral", head_dim=10, sliding_window=5),
        "vision_config": vision,
        "image_token_index": 88,
        "projector_hidden_act": "gelu_pytorch_tanh",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": False,
    }


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.25,
    "high_freq_factor": 3.5,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 3.5, "original_max_position_embeddings": 64, "beta_fast": 24.0}
_MOE = {"enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 21}
_K_IS_V = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}

#: Configs by a name that says what is special; every class of transformers that there is a format for.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _config("LlamaForCausalLM", "llama", head_dim=10, attention_bias=True, mlp_bias=True),
    "llama-tied-llama3": _config("LlamaForCausalLM", "llama", **_scaled(_LLAMA3)) | {"tie_word_embeddings": True},
    "llama-yarn": _config("LlamaForCausalLM", "llama", **_scaled(_YARN)),
    "mistral-window": _config("MistralForCausalLM", "mistral", head_dim=10, sliding_window=5),
    "qwen2": _config("Qwen2ForCausalLM", "qwen2", use_sliding_window=False),
    "qwen2-window": _config(
        "Qwen2ForCausalLM", "qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": _config("Qwen3ForCausalLM", "qwen3", head_dim=10, attention_bias=True),
    "qwen3-window-tied": _config(
        "Qwen3ForCausalLM", "qwen3", head_dim=10, use_sliding_window=True, sliding_window=5, max_window_layers=1
    )
    | {"tie_word_embeddings": True},
    "mixtral": _config(
        "MixtralForCausalLM", "mixtral", head_dim=10, num_local_experts=5, num_experts_per_tok=2, sliding_window=None
    ),
    "gemma4-dense-tied": _gemma4(tie_word_embeddings=True),
    "gemma4-moe": _gemma4(**_MOE),
    "gemma4-dense-k-is-v": _gemma4(**_K_IS_V, final_logit_softcapping=30.0),
    "gemma4-moe-k-is-v": _gemma4(**_MOE, **_K_IS_V),
    "llava": _llava(),
}

_GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "bos_token_id": 5, "eos_token_id": 5}
#: The same for the worked example of docs/add-an-architecture.md.
GPT2: dict[str, dict[str, Any]] = {
    "tied": _GPT2 | {"n_embd": 24, "n_head": 4, "n_layer": 3, "n_positions": 37, "vocab_size": 211},
    "own-head": _GPT2
    | {"n_embd": 42, "n_head": 7, "n_layer": 1, "n_positions": 13, "vocab_size": 97, "tie_word_embeddings": False},
    "wide-mlp": _GPT2
    | {"n_embd": 18, "n_head": 3, "n_layer": 2, "n_positions": 11, "vocab_size": 61, "n_inner": 55}
    | {"activation_function": "relu", "layer_norm_epsilon": 1e-6},
}


def llava_hybrid() -> dict[str, Any]:
    """A llava around a hybrid Apriel, which no class of transformers is."""
    text = CASES["apriel_t_m2"].hf_config()
    return CASES["llava_pixtral"].hf_config() | {
        "architectures": ["LlavaHybridForConditionalGeneration"],
        "model_type": "llava_hybrid",
        "text_config": text,
    }
