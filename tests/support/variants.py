"""Configs that mean the same as another one, or that must be refused: what no drawn config has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from golden_cases import CASES
from real_configs import CONFIGS as REAL

Config = dict[str, Any]

GONE = object()


def changed(config: Mapping[str, Any], **changes: Any) -> Config:
    """A copy with some keys set, or taken out by ``GONE``. ``__`` stands for the dot of a path."""
    result = copy.deepcopy(dict(config))
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place = result
        for parent in parents:
            place = place[parent]
        if value is GONE:
            del place[leaf]
        else:
            place[leaf] = value
    return result


def _without(config: Mapping[str, Any], *keys: str) -> Config:
    return {key: value for key, value in config.items() if key not in keys}


def _sparse(name: str, theta: float, *extra: str, **sizes: Any) -> tuple[Config, Config]:
    """A config whose keys are at the defaults of its class, and the same without them."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    full = changed(_without(REAL[name], "rope_theta"), **rope, attention_dropout=0.0, **sizes)
    left_out = ("rope_parameters", "attention_dropout", "tie_word_embeddings", *extra, *sizes)
    return full, _without(full, *(key for key in left_out if key != "hidden_size"))


def _kv32(pair: tuple[Config, Config]) -> tuple[Config, Config]:
    """With as many query heads as make 32 key/value heads possible."""
    full, sparse = (changed(config, num_attention_heads=64) for config in pair)
    return full, sparse


def _golden(name: str) -> Config:
    return CASES[name].hf_config()


_DENSE = _without(REAL["gemma4-dense-tied"], "rope_theta")
#: A Gemma 4 in which everything that can be is as its class has it by default.
_GEMMA4 = changed(
    _DENSE,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    global_head_dim=512,
    num_hidden_layers=7,
    layer_types=[*(["sliding_attention"] * 5), "full_attention", "full_attention"],
    sliding_window=512,
    attention_k_eq_v=False,
    attention_dropout=0.0,
    attention_bias=False,
    final_logit_softcapping=None,
    num_kv_shared_layers=0,
    use_double_wide_mlp=False,
    enable_moe_block=False,
    rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
    },
)
_GEMMA4_DEFAULTS = (
    *("num_key_value_heads", "head_dim", "global_head_dim", "layer_types", "sliding_window", "attention_k_eq_v"),
    *("attention_dropout", "final_logit_softcapping", "num_kv_shared_layers", "use_double_wide_mlp"),
    *("enable_moe_block", "rope_parameters", "tie_word_embeddings"),
)
_QWEN3 = changed(REAL["qwen3"], head_dim=128, attention_dropout=0.0)
_LLAMA3 = _golden("llama_rope_llama3")
_HYBRID = changed(
    _golden("apriel_t_m2"),
    hybrid_block_layout=["t", "kda", "kda"],
    linear_attn_config={"num_heads": 5, "head_dim": 7, "short_conv_kernel_size": 3},
)
_HYBRID_GDN = changed(
    _golden("apriel_t_m2"),
    hybrid_block_layout=["gdn"] * 3,
    linear_attn_config={
        **{"gdn_num_value_heads": 6, "gdn_num_key_heads": 3, "gdn_key_head_dim": 7, "gdn_value_head_dim": 5},
        "gdn_linear_conv_kernel_size": 3,
    },
)
_LLAVA = _golden("llava_pixtral")
#: A Pixtral in which everything that can be is as its class has it by default.
_PIXTRAL = changed(
    _LLAVA,
    vision_config__hidden_size=1024,
    vision_config__head_dim=64,
    vision_config__intermediate_size=4096,
    vision_config__num_hidden_layers=24,
    vision_config__num_attention_heads=16,
    vision_config__patch_size=16,
    vision_config__attention_dropout=0.0,
)
_PIXTRAL_DEFAULTS = (
    *("hidden_size", "head_dim", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
    *("patch_size", "attention_dropout", "rope_parameters"),
)
_VISION = _golden("apriel2_mm_fixed")
_ENCODER = "vision_encoder__encoder"

#: Per format, pairs of a config in full and another one of the same meaning.
VARIANTS: dict[str, list[tuple[Config, Config]]] = {
    "diffusion_llama": [
        (changed(_golden("diffusion_llama_base"), hidden_act=act),) * 2 for act in ("identity", "relu2", "sigmoid")
    ],
    "mistral": [
        _sparse("mistral-window", 10000.0, "hidden_act", "num_attention_heads", hidden_size=64, head_dim=2,
                num_attention_heads=32, num_key_value_heads=8, sliding_window=4096),
    ],
    "mixtral": [
        _sparse("mixtral", 1000000.0, "hidden_act", hidden_size=64, head_dim=2, num_attention_heads=32,
                num_key_value_heads=8, sliding_window=None, router_aux_loss_coef=0.001),
    ],
    "qwen2": [
        _kv32(_sparse("qwen2", 10000.0, hidden_size=128, num_key_value_heads=32, use_sliding_window=False)),
    ],
    "llama": [  # transformers 5 copies the older name of the key through
        (_LLAMA3, changed(_LLAMA3, rope_parameters__type="llama3")),
        (_LLAMA3, changed(_LLAMA3, rope_parameters__type="llama3", rope_parameters__rope_type=GONE)),
    ],
    "qwen3": [(_QWEN3, changed(_QWEN3, head_dim=GONE))],
    "gemma4": [
        (_GEMMA4, _GEMMA4),
        (_GEMMA4, changed(_GEMMA4, **dict.fromkeys(_GEMMA4_DEFAULTS, GONE))),
    ],
    "llava": [
        (_LLAVA, changed(_LLAVA, type="mlp")),  # left behind by the exporter of the reference
        (_LLAVA, changed(_LLAVA, image_token_index=GONE, image_token_id=_LLAVA["image_token_index"])),
        (_LLAVA, changed(_LLAVA, vision_config__rope_parameters__rope_type="default")),
        (_PIXTRAL, changed(_PIXTRAL, **{f"vision_config__{key}": GONE for key in _PIXTRAL_DEFAULTS})),
    ],
    "apriel_hybrid_ssm": [
        (_HYBRID, changed(_HYBRID, hybrid_block_layout=["t", "kl", "kda"])),
        (_HYBRID_GDN, changed(_HYBRID_GDN, hybrid_block_layout=["gdn"])),
        (
            changed(_golden("apriel_t_m2"), ssm_cfg__d_inner=72, ssm_cfg__expand=2, ssm_cfg__d_xb=36),
            changed(_golden("apriel_t_m2"), ssm_cfg__d_inner=None, ssm_cfg__expand=2, ssm_cfg__d_xb=None),
        ),
    ],
    "apriel2": [
        (
            _VISION,
            changed(
                _VISION,
                **{
                    f"{_ENCODER}__type": GONE,
                    f"{_ENCODER}__block__mixer__type": GONE,
                    "vision_encoder__embeddings__patch_width": GONE,
                },
            ),
        ),
    ],
    "apriel2_text": [
        (_golden("apriel2_gdn"), changed(_golden("apriel2_gdn"), decoder__block__mixer__norm_eps=1e-5)),
    ],
}  # fmt: skip

#: Per format, configs that have no counterpart, with a word that the error must say.
REFUSED: dict[str, list[tuple[Config, str]]] = {
    "gemma4": [
        (changed(_DENSE, hidden_size_per_layer_input=GONE), "hidden_size_per_layer_input"),
        (changed(_DENSE, layer_types=["full_attention"] * 2 + ["sliding_attention"]), "last layer"),
        (changed(_DENSE, num_kv_shared_layers=1), "num_kv_shared_layers"),
        (changed(_DENSE, use_double_wide_mlp=True), "use_double_wide_mlp"),
        (changed(_DENSE, use_bidirectional_attention="all"), "use_bidirectional_attention"),
        (changed(_DENSE, attention_bias=True), "attention_bias"),
    ],
    "apriel2_text": [
        (changed(_golden("apriel2_attention"), rope_theta=10000.0), "rope_theta"),
        (changed(_golden("apriel2_attention"), decoder__block__normalization__type="layer_norm"), "RMS norms"),
        (changed(_golden("apriel2_attention"), decoder__block__normalization={"type": "none"}), "RMS norms"),
    ],
    "apriel2": [(changed(_VISION, vision_encoder__embeddings__patch_width=5), "patch")],
    "llava": [
        (changed(_LLAVA, vision_feature_layer=-2), "vision_feature_layer"),
        (changed(_LLAVA, vision_feature_layer=GONE), "vision_feature_layer"),
        (changed(_LLAVA, vision_feature_select_strategy="default"), "vision_feature_select_strategy"),
        (changed(_LLAVA, type="moe"), "type"),
        (changed(_LLAVA, text_config__sliding_window=24, text_config__model_type=GONE), "sliding_window"),
        (changed(_LLAVA, tie_word_embeddings=True), "tie_word_embeddings"),
        (changed(_LLAVA, vision_config__hidden_act=GONE), "gelu"),
        (changed(_LLAVA, projector_hidden_act=GONE), "gelu"),
        (changed(_LLAVA, vision_config__num_channels=4), "num_channels"),
    ],
    "llama": [
        (changed(_golden("llama_gqa"), rope_parameters__partial_rotary_factor=0.5), "partial_rotary_factor"),
        (changed(_golden("llama_gqa"), sliding_window=24), "sliding_window"),
        (changed(_golden("llama_gqa"), architectures=["MistralForCausalLM"]), "architectures"),
    ],
    "qwen2": [(changed(_golden("qwen2_base"), use_mrope=True), "use_mrope")],
}
