"""A small model of any class of transformers, whatever its config is made of.

Nothing runs forward, so sizes need not fit each other, as long as the class can be built and its config.json says the
same as the object that it was written from. Each kind of layer is kept once, in the order that the config has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

Config = dict[str, Any]

#: Most elements of a small model.
LARGEST = 130_000_000
VOCABULARY, HEADS, HEAD_DIM = 101, 4, 10
#: Sizes by the names that configs have for them: what is larger becomes this.
WIDTHS: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "hidden_dim", "decoder_hidden_size"), 40),
    **dict.fromkeys(("emb_dim", "out_hidden_size", "text_hidden_size", "audio_hidden_size", "codebook_dim"), 40),
    **dict.fromkeys(("encoder_hidden_dim", "projection_dim", "output_dim", "proj_dim", "embedding_size"), 40),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 44),
    **dict.fromkeys(("ffn_hidden_size", "mlp_hidden_size", "inner_dim", "mlp_dim", "dim_feedforward"), 44),
    **dict.fromkeys(("moe_intermediate_size", "expert_hidden_size", "expert_ffn_hidden_size", "expert_dim"), 20),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 28),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "n_heads"), HEADS),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "attention_heads", "linear_num_value_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "attention_head_dim", "d_kv", "global_head_dim"), HEAD_DIM),
    "linear_key_head_dim": 8, "linear_value_head_dim": 6, "q_lora_rank": 16, "kv_lora_rank": 24, "o_lora_rank": 12,
    "qk_rope_head_dim": 6, "qk_nope_head_dim": 8, "v_head_dim": 6, "index_n_heads": 2, "index_head_dim": 12,
    "num_conv_pos_embedding_groups": 4, "upsample_groups": 40,
    **dict.fromkeys(("t2u_encoder_attention_heads", "t2u_decoder_attention_heads"), HEADS),
    **dict.fromkeys(("t2u_encoder_ffn_dim", "t2u_decoder_ffn_dim"), 44),
    "max_position_embeddings": 96, "n_positions": 96, "max_source_positions": 48, "max_target_positions": 48,
}  # fmt: skip
#: What is needed whatever the widths are: few experts, few words.
COUNTS: dict[str, int] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_num_active_experts", "n_group", "topk_group", "num_selected_experts", "moe_top_k"), 2),
    **dict.fromkeys(("vocab_size", "text_vocab_size", "audio_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("entity_vocab_size", "t2u_vocab_size", "unit_hifi_gan_vocab_size"), 103),
    "encoder_hash_byte_group_vocab": 97, "codebook_size": 64,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "zero_expert_num": 2, "type_vocab_size": 2,
}  # fmt: skip
#: Keys that count layers of one stack.
LAYERS = (
    "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers", "depth",
    "num_decoder_layers", "num_encoder_layers", "encoder_num_hidden_layers", "decoder_num_hidden_layers",
    "num_local_layers", "speech_encoder_layers", "text_encoder_layers", "t2u_encoder_layers", "t2u_decoder_layers",
)  # fmt: skip
#: Keys of lists of numbers of layers; keys that count layers from one kind to the next.
PICKED = ("_layers", "_indices", "_ids", "_indexes")
STEPS = ("_interval", "_pattern", "_step", "_freq", "_period", "_every_n_layers")

#: What layers have of their own, by their number; what is no config.
PER_LAYER, LABELS = "per_layer_config", ("id2label", "label2id", "per_layer_config")
#: What fits a type of config, or a class, where the names of its fields do not tell it.
OVERRIDES: dict[str, Config] = {
    **{key: {"head_dim": HEAD_DIM} for key in ("hunyuan_v1_moe", "hunyuan_v1_dense", "ministral")},
    **{key: {"mamba_n_heads": 8, "mamba_d_head": HEAD_DIM} for key in ("bamba", "granitemoehybrid")},
    **{key: {"unpadded_vocab_size": 97} for key in ("inkling2_text", "inkling2_loop_text")},
    **{key: {"num_kv_shared_layers": 0} for key in ("gemma3n_text", "gemma4_text", "gemma4_unified_text")},
    "nemotron": {"num_key_value_heads": 2},
    "mamba2": {"num_heads": 8, "head_dim": HEAD_DIM},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1, "num_hidden_layers": 3,
             "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "reformer": {"is_decoder": True},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "cohere_compass_text": {"rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")}},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": HEAD_DIM, "indexer_budget": 8,
                       "indexer_compress_ratio": 2, "ple_layer_ids": [1], "ngram_vocab_size_base": 31,
                       "split_ngram_parts": 3, "ple_embed_dim": 16, "hc_lowrank": 14,
                       "make_ngram_vocab_size_divisible_by": 3, "heads_per_ngram": 2, "eos_token_id": 2},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2}},
    "deepseek_ocr2_text": {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "dots3_note_text": {PER_LAYER: None, "num_key_value_heads": HEADS, "swa_num_attention_heads": 2,
                        "swa_num_key_value_heads": 2, "swa_kv_lora_rank": 32, "swa_head_dim": 18,
                        "swa_qk_nope_head_dim": 12, "swa_v_head_dim": 8, "swa_qk_rope_head_dim": 6},
    "dots3_note_vision_encoder": {"adapter_in_dim": 40, "adapter_out_dim": 40},
    "dots3_note_audio_encoder": {"adapter_input_size": 40, "adapter_out_dim": 40},
    "hy_v4_vl_text": {"rope_parameters": {"mrope_section": [1, 1, 1]}},
    "cosmos3_edge_text": {"rope_parameters": {"mrope_section": [2, 2, 1]}},
    "hunyuan_vl_text": {"head_dim": HEAD_DIM},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 20},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [20, 12], "rope_parameters": {"mrope_section": [2, 2, 1]}},
    "emu3_vqgan": {"base_channels": 32},
    **{key: {"vocabulary_map": {"<image>": 3}} for key in ("chameleon", "emu3")},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "hybrid", "linear_attention"] * 2},
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0,
                                         "vocab_size_per_layer_input": 0}},
    **{f"vibevoice_acoustic_tokenizer{part}": {"num_filters": 2} for part in ("", "_encoder", "_decoder")},
    "apertus1p5": {"image_token_offset": 20, "audio_token_offset": 84},
    "wavtokenizer_encoder": {"decoder_hidden_size": 64},
    "apertus1p5_text": {"vocab_size": 301},
    "apertus1p5_vision_tokenizer": {"base_channels": 32, "num_res_blocks": 1},
    "granite4_vision": {"deepstack_layer_map": [[1, 0]], "downsample_rate": "1/2",
                        "vision_config": {"hidden_size": 128}},
    "qwen3_omni_moe": {"talker_config": {"spatial_merge_size": 2}},
    "hiera": {"decoder_hidden_size": 40, "decoder_depth": 2, "decoder_num_heads": HEADS},
    **{key: {"hidden_size": 64} for key in ("neucodec", "xcodec2")},
    "pe_video_encoder": {"vision_config": {"architecture": "vit_pe_core_tiny_patch16_384"}},
    "perception_lm": {"vision_config": {"architecture": "vit_pe_core_tiny_patch16_384",
                                        "model_args": {"embed_dim": 192}}},
    "Data2VecVisionForSemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "BeitForSemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4],
                                    "out_features": ["stage1", "stage2", "stage3", "stage4"]},
    "sapiens2": {"head_config": {"upsample_out_channels": [12], "upsample_kernel_sizes": [4],
                                 "conv_out_channels": [14], "conv_kernel_sizes": [1]}},
    "moonshine_streaming": {"num_key_value_heads": 2},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 28},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "perceiver": {"d_latents": 40, "num_latents": 12, "num_cross_attention_heads": 1, "num_self_attention_heads": 4},
    **{key: {"prediction_length": 6} for key in ("autoformer", "informer", "time_series_transformer")},
    **{key: {"vocab_size": 32} for key in ("wav2vec2-bert", "wav2vec2-conformer")},
    "gemma3n_vision": {"architecture": "mobilenetv3_small_050"},
    **{key: {"kernel_list": [3, 2, 2], "scale_factor_list": [1, 2, 4, 8], "intraclass_block_config": {
        part: [3, 1, 1] for part in (
            "reduce_channel", "return_channel", "vertical_long_to_small_conv_longratio",
            "vertical_long_to_small_conv_midratio", "vertical_long_to_small_conv_shortratio",
            "horizontal_small_to_long_conv_longratio", "horizontal_small_to_long_conv_midratio",
            "horizontal_small_to_long_conv_shortratio", "symmetric_conv_long_longratio",
            "symmetric_conv_long_midratio", "symmetric_conv_long_shortratio")}}
       for key in ("pp_ocrv5_server_det", "pp_ocrv6_medium_det")},
    "TimmBackbone": {"backbone": "resnet10t"},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "ReformerForMaskedLM": {"is_decoder": False},
}  # fmt: skip


def small(config: Any, build: Callable[[Any], Any]) -> Any:
    """A model like ``build(config)``, as small as it can be made. Raises ``ValueError`` with why no attempt worked."""
    if (wanted := getattr(build, "config_class", None)) is not None and not isinstance(config, wanted):
        config = next((part for part in _parts(config) if isinstance(part, wanted)), config)
    few = WIDTHS | COUNTS
    attempts: tuple[tuple[dict[str, int], bool], ...] = (
        (few, True),
        ({key: value for key, value in few.items() if "key_value" not in key} | {"head_dim": 8}, True),
        (COUNTS, True),
        ({}, True),
        ({}, False),
    )
    errors: list[str] = []
    for sizes, layers in attempts:
        try:
            fitting = OVERRIDES.get(getattr(build, "__name__", ""), {})
            shrunk = type(config).from_dict(_merged(_shrunk(config.to_dict(), sizes, layers), fitting))
            with torch.device("meta"):
                elements = sum(tensor.numel() for tensor in build(shrunk).state_dict().values())
            if elements > LARGEST:
                raise ValueError(f"it still has {elements:,} elements")
            return build(shrunk)
        except Exception as problem:  # what a class says of sizes that do not fit is of every kind
            errors.append(f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}")
    raise ValueError(" | ".join(dict.fromkeys(errors)))


def default(kind: Any) -> Any:
    """A config of a class, with what the class itself does not say."""
    try:
        return kind()
    except Exception:  # what a class says of its own defaults is of every kind
        return kind.from_dict(OVERRIDES[kind.model_type])


def _parts(config: Any) -> Iterator[Any]:
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield value
            yield from _parts(value)


def _shrunk(config: Config, sizes: dict[str, int], layers: bool) -> Config:
    result = {key: _shrunk_value(key, value, sizes, layers) for key, value in config.items()}
    if layers:
        for key in LAYERS:
            if _is_count(config.get(key)):
                _fewer_layers(config, result, key)
    for key, size in sizes.items():
        if _is_count(config.get(key)) and config[key] > size:
            result[key] = size
            for layer, own in (config.get(PER_LAYER) or {}).items():
                if layer in (result[PER_LAYER] or {}) and key in own:
                    result[PER_LAYER][layer][key] = max(1, size * own[key] // config[key])
    heads = ("num_key_value_heads", "num_attention_heads")
    if heads[0] in sizes and _is_count(config.get(heads[0])) and config[heads[0]] == config.get(heads[1]):
        result[heads[0]] = result[heads[1]]
    return _merged(result, OVERRIDES.get(str(config.get("model_type")), {}))


def _shrunk_value(key: str, value: Any, sizes: dict[str, int], layers: bool) -> Any:
    if isinstance(value, dict):
        return _shrunk(value, sizes, layers) if key not in LABELS else value
    if _is_list(value) and any(isinstance(one, dict) for one in value):
        return [_shrunk(one, sizes, layers) if isinstance(one, dict) else one for one in value]
    return _token(value) if sizes and str(key).endswith(("_token_id", "_token_index", "_id")) else value


def _merged(config: Config, changes: Config) -> Config:
    result = dict(config)
    for key, value in changes.items():
        result[key] = _merged(config.get(key) or {}, value) if isinstance(value, dict) else value
    return {key: value for key, value in result.items() if key != PER_LAYER or value is not None}


def _fewer_layers(config: Config, result: Config, key: str) -> None:
    """One layer of each kind, two at least."""
    count = config[key]
    lists = {name: value for name, value in config.items() if _is_list(value) and len(value) == count}
    picked = {
        name: value
        for name, value in config.items()
        if name not in lists and _is_list(value) and value and name.endswith(PICKED)
        and all(_is_index(index) and index < count for index in value)
    }  # fmt: skip
    own = {int(layer): value for layer, value in (config.get(PER_LAYER) or {}).items()}
    first: dict[str, int] = {}
    for layer in range(count):
        kind = [value[layer] for value in lists.values()] + [layer in value for value in picked.values()]
        first.setdefault(repr([*kind, own.get(layer)]), layer)
    steps = [value for name, value in config.items() if name.endswith(STEPS) and _is_index(value)]
    features = config.get("out_features") or ()
    least = max([2, len(features), *(step + 1 for step in steps if step < 9)])
    kept = sorted({*first.values(), *range(min(count, least))})
    result[key] = len(kept)
    if features and all(re.fullmatch(r"stage\d+", one) for one in features):
        result["out_features"] = [f"stage{len(kept) - back}" for back in reversed(range(len(features)))]
        result.pop("out_indices", None)
        result.pop("stage_names", None)
    for name, value in lists.items():
        result[name] = [value[layer] for layer in kept]
    for name, value in picked.items():
        result[name] = [kept.index(index) for index in value if index in kept]
    if own:
        result[PER_LAYER] = {str(kept.index(layer)): dict(value) for layer, value in own.items() if layer in kept}


def _token(value: Any) -> Any:
    if _is_list(value):
        return [_token(one) for one in value]
    return 5 + value % 80 if _is_index(value) and value >= 90 else value


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_index(value) and value > 1
