"""Small models of the families that have a format of their own beside those of the original trainer: one config for
every way in which a family can differ, with odd sizes that are all different."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_SIZES: Config = {
    "vocab_size": 89,
    "hidden_size": 36,
    "intermediate_size": 55,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _rope(theta: float = 23456.0, **keys: Any) -> Config:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **keys}}


def _config(architecture: str, model_type: str, **keys: Any) -> Config:
    return {"architectures": [architecture], "model_type": model_type, **_SIZES, **_rope(), **keys}


def starcoder2(**keys: Any) -> Config:
    base = {"norm_epsilon": 3e-6, "hidden_act": "gelu_pytorch_tanh", "residual_dropout": 0.125}
    return _config("Starcoder2ForCausalLM", "starcoder2", **(base | keys))


def qwen3_moe(**keys: Any) -> Config:
    base = {"head_dim": 10, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 21}
    return _config("Qwen3MoeForCausalLM", "qwen3_moe", norm_topk_prob=True, rms_norm_eps=3e-6, **(base | keys))


def granite(**keys: Any) -> Config:
    base = {"embedding_multiplier": 12.5, "logits_scaling": 13.0, "attention_multiplier": 0.21}
    return _config("GraniteForCausalLM", "granite", rms_norm_eps=3e-6, **(base | keys))


def helium(**keys: Any) -> Config:
    return _config("HeliumForCausalLM", "helium", head_dim=6, rms_norm_eps=3e-6, **keys)


def gemma3_text(**keys: Any) -> Config:
    kinds = {"sliding_attention": 12345.0, "full_attention": 543210.0}
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in kinds.items()}
    base = {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 5, "rms_norm_eps": 3e-6}
    base |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_parameters": rope}
    return _config("Gemma3ForCausalLM", "gemma3_text", **(base | keys))


def smollm3(**keys: Any) -> Config:
    return _config("SmolLM3ForCausalLM", "smollm3", rms_norm_eps=3e-6, **({"no_rope_layers": [1, 0, 1]} | keys))


def nemotron(factor: float, **keys: Any) -> Config:
    rope = _rope(partial_rotary_factor=factor)
    return _config("NemotronForCausalLM", "nemotron", norm_eps=3e-6, **({"head_dim": 20, **rope} | keys))


def phi3(factor: float = 1.0, **keys: Any) -> Config:
    rope = _rope(partial_rotary_factor=factor)
    base = {"hidden_size": 60, "rms_norm_eps": 3e-6, "original_max_position_embeddings": 64}
    return _config("Phi3ForCausalLM", "phi3", **(base | rope | keys))


def stablelm(factor: float = 0.25, **keys: Any) -> Config:
    rope = _rope(partial_rotary_factor=factor)
    return _config("StableLmForCausalLM", "stablelm", hidden_size=48, layer_norm_eps=3e-6, **(rope | keys))


def seed_oss(**keys: Any) -> Config:
    return _config("SeedOssForCausalLM", "seed_oss", head_dim=10, rms_norm_eps=3e-6, **keys)


def ministral3(**keys: Any) -> Config:
    yarn = {"factor": 3.5, "original_max_position_embeddings": 64, "beta_fast": 24.0, "llama_4_scaling_beta": 0.0}
    rope = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 23456.0, **yarn, **keys.pop("yarn", {})}}
    return _config("Ministral3ForCausalLM", "ministral3", head_dim=10, rms_norm_eps=3e-6, **(rope | keys))


def glm4(**keys: Any) -> Config:
    rope = _rope(partial_rotary_factor=0.4)
    return _config("Glm4ForCausalLM", "glm4", head_dim=20, rms_norm_eps=3e-6, **(rope | keys))


def exaone4(**keys: Any) -> Config:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return _config("Exaone4ForCausalLM", "exaone4", rms_norm_eps=3e-6, sliding_window=5, layer_types=kinds, **keys)


def ernie4_5(**keys: Any) -> Config:
    return _config("Ernie4_5ForCausalLM", "ernie4_5", head_dim=10, rms_norm_eps=3e-6, **keys)


def arcee(**keys: Any) -> Config:
    return _config("ArceeForCausalLM", "arcee", rms_norm_eps=3e-6, head_dim=6, **keys)


def gemma(**keys: Any) -> Config:
    base = {"head_dim": 10, "num_key_value_heads": 3, "tie_word_embeddings": True}
    return _config("GemmaForCausalLM", "gemma", rms_norm_eps=3e-6, **(base | keys))


def glm(**keys: Any) -> Config:
    rope = _rope(partial_rotary_factor=0.4)
    return _config("GlmForCausalLM", "glm", head_dim=20, rms_norm_eps=3e-6, **(rope | keys))


def windowed(architecture: str, model_type: str, **keys: Any) -> Config:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    base = {"head_dim": 10, "sliding_window": 5, "layer_types": kinds}
    return _config(architecture, model_type, rms_norm_eps=3e-6, **(base | keys))


def jais2(**keys: Any) -> Config:
    return _config("Jais2ForCausalLM", "jais2", head_dim=6, layer_norm_eps=3e-6, **keys)


def granitemoe(**keys: Any) -> Config:
    named = {"architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe"}
    return {**granite(residual_multiplier=0.22, num_local_experts=5, num_experts_per_tok=2), **named, **keys}


def granitemoeshared(**keys: Any) -> Config:
    named = {"architectures": ["GraniteMoeSharedForCausalLM"], "model_type": "granitemoeshared"}
    return {**granitemoe(shared_intermediate_size=21), **named, **keys}


def hyperclovax(**keys: Any) -> Config:
    return {**granite(), "architectures": ["HyperCLOVAXForCausalLM"], "model_type": "hyperclovax", **keys}


def gpt_bigcode(**keys: Any) -> Config:
    named = {"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "n_inner": 55}
    return {**gpt2(), **named, **keys}


def gpt2(**keys: Any) -> Config:
    base = {"n_embd": 36, "n_head": 6, "n_layer": 3, "n_positions": 37, "vocab_size": 89, "layer_norm_epsilon": 3e-6}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **base, **tokens, **keys}


#: Name -> config; what stands before the first ``-`` is the format.
CONFIGS: dict[str, Config] = {
    "starcoder2": starcoder2(),
    "starcoder2-window-tied": starcoder2(use_bias=False, sliding_window=5, tie_word_embeddings=True),
    "qwen3_moe": qwen3_moe(attention_bias=True),
    "qwen3_moe-window-tied": qwen3_moe(use_sliding_window=True, sliding_window=5, tie_word_embeddings=True),
    "qwen3_moe-some": qwen3_moe(mlp_only_layers=[1], num_hidden_layers=4, decoder_sparse_step=2),
    "qwen3_moe-dense": qwen3_moe(mlp_only_layers=[1, 0, 2]),
    "smollm3": smollm3(),
    "smollm3-all-bias": smollm3(no_rope_layers=[1, 1, 1], attention_bias=True, mlp_bias=True),
    "smollm3-interval": smollm3(no_rope_layers=None, no_rope_layer_interval=2, tie_word_embeddings=True),
    "granite": granite(residual_multiplier=0.22, attention_bias=True),
    "granite-tied-plain": granite(residual_multiplier=1.0, tie_word_embeddings=True, mlp_bias=True),
    "nemotron": nemotron(0.5),
    "nemotron-other": nemotron(0.4, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "nemotron-whole": nemotron(1.0),
    "phi3": phi3(sliding_window=5),
    "phi3-partial": phi3(0.6, tie_word_embeddings=True),
    "stablelm": stablelm(),
    "stablelm-bias": stablelm(0.75, use_qkv_bias=True, tie_word_embeddings=True),
    "seed_oss": seed_oss(),
    "seed_oss-other": seed_oss(attention_bias=False, attention_out_bias=True, mlp_bias=True),
    "ministral3": ministral3(yarn={"mscale": 1.0, "mscale_all_dim": 0.7}),
    "ministral3-window": ministral3(sliding_window=5, tie_word_embeddings=True),
    "gpt2": gpt2(),
    "gpt2-own-head": gpt2(tie_word_embeddings=False, n_inner=55, activation_function="relu"),
    "helium": helium(),
    "helium-bias-tied": helium(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "glm4": glm4(attention_bias=True),
    "exaone4": exaone4(),
    "ernie4_5": ernie4_5(use_bias=True, tie_word_embeddings=True),
    "arcee": arcee(mlp_bias=True),
    "gemma": gemma(),
    "glm": glm(),
    "cwm": windowed("CwmForCausalLM", "cwm", mlp_bias=True),
    "ministral": windowed("MinistralForCausalLM", "ministral", tie_word_embeddings=True),
    "jais2": jais2(),
    "granitemoe": granitemoe(),
    "granitemoeshared": granitemoeshared(tie_word_embeddings=True),
    "hyperclovax": hyperclovax(use_post_norm=True),
    "hyperclovax-plain": hyperclovax(use_post_norm=False, residual_multiplier=0.22),
    "gpt_bigcode": gpt_bigcode(),
    "gpt_bigcode-heads": gpt_bigcode(multi_query=False),
    "gemma3_text": gemma3_text(tie_word_embeddings=True),
    "gemma3_text-capped": gemma3_text(final_logit_softcapping=30.0, query_pre_attn_scalar=10, attention_bias=True),
}


def format_of(name: str) -> str:
    """The format of a case."""
    return name.partition("-")[0]
