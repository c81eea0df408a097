"""Native configs that reach what the formats of the layout fast_llm can hold, and how one field of them changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from family_cases import CONFIGS as FAMILIES
from family_cases import format_of
from golden_cases import CASES

import crosswalk
from crosswalk.compiler.layout.model import Field
from crosswalk.compiler.layout.scope import Scope
from crosswalk.jobs.formats import catalog

Config = dict[str, Any]
LAYOUT = catalog().layout("fast_llm")


def _hybrid(*codes: str) -> Config:
    """A native Apriel hybrid with these mixers, in odd sizes."""
    native = CASES["apriel_from_fastllm_t_m2"].native_config()
    mixers: dict[str, Config] = {
        "gdn": {"type": "gdn", "value_heads": 6, "key_heads": 3, "key_head_dim": 7, "value_head_dim": 5},
        "kda": {"type": "kda", "heads": 5, "head_dim": 6, "convolution_layer": {"kernel_size": 3}},
    }
    blocks = native["decoder"]["blocks"]
    any_block = next(iter(blocks.values()))
    for code in mixers:
        blocks[code] = {**copy.deepcopy(any_block), "mixer": mixers[code]}
    native["decoder"] |= {"num_blocks": len(codes), "pattern": list(codes)}
    native["decoder"]["blocks"] = {code: blocks[code] for code in codes}
    return native


def _llava_hybrid() -> Config:
    llava = CASES["llava_pixtral"].native_config()
    vision = {key: llava[key] for key in ("vision_encoder", "image_token_index")}
    text = _hybrid("t", "m2", "kda")
    vision["vision_encoder"]["adapter"]["intermediate_size"] = text["hidden_size"]
    return {**text, **vision}


def _biased_mamba() -> Config:
    native = CASES["apriel2_mamba"].native_config()
    native["decoder"]["block"]["mixer"]["add_linear_biases"] = True
    return native


_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 89,
    "hidden_size": 36,
    "intermediate_size": 55,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "rms_norm_eps": 3e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 23456.0},
}

#: Native configs that reach what a format can hold, by a name that starts with the format.
BASES: dict[str, tuple[str, Config]] = {
    **{
        name: (CASES[name].format, CASES[name].native_config())
        for name in (
            "llama_all_bias_tied", "mistral_sliding", "mixtral_base", "qwen2_base", "mtp_llama_3heads", "dream_base",
            "diffusion_llama_base", "gemma4_dense", "gemma4_moe_k_eq_v", "apriel2_stochastic", "apriel2_pattern_short",
            "apriel2_attention_layer_bias", "apriel2_mm_fixed", "llava_pixtral",
        )
    },
    "qwen3": ("qwen3", crosswalk.import_config(_QWEN3)),
    "apriel2_biased_mamba": ("apriel2_text", _biased_mamba()),
    "apriel_hybrid_ssm": ("apriel_hybrid_ssm", _hybrid("t", "m2", "gdn", "kda")),
    "llava_hybrid_ssm": ("llava_hybrid_ssm", _llava_hybrid()),
    **{name: (format_of(name), crosswalk.import_config(FAMILIES[name])) for name in FAMILIES if "-" not in name},
}  # fmt: skip


def root_of(format: str) -> str:
    return catalog().compiled(format).root.type.name


def scope_of(format: str, native: Mapping[str, Any]) -> Scope:
    kind = LAYOUT.types[root_of(format)]
    return Scope(LAYOUT, kind, crosswalk.normalize_native(native, root=kind.name))


def changes(declared: Field, value: Any) -> list[Any]:
    """Other values of a field: every other type of a family, null, the other truth value, another number."""
    family = LAYOUT.families.get(declared.of)
    null = [None] if declared.nullable and value is not None else []
    if family is not None:
        given = value.get("type") if isinstance(value, Mapping) else None
        return [] if family.sequence else [*({"type": name} for name in family.types if name != given), *null]
    if declared.kind == "enum":
        return [*(choice for choice in LAYOUT.enums[declared.of] if choice != value), *null]
    if declared.of == "bool":
        return [choice for choice in (True, False) if choice is not value] + null
    if declared.of == "int":
        return [value * 2 if value else 3, *null]
    if declared.of == "float":
        return [value * 0.5 if value else 0.25, *null]
    return null


def put(config: Config, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        config = config[key]
    config[path[-1]] = value
