"""What models on Megatron-core differ in: windows, scales of yarn, layers without experts; released configs."""

from __future__ import annotations

import json
from typing import Any

import oracles
import pytest
import torch
from comparing import shapes
from megatron_cases import GOLDEN, flat, format_of, read

import crosswalk
from crosswalk.runtime import execute
from crosswalk.runtime.errors import CrosswalkError


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"q_lora_rank": None}, "a norm of its own before queries that are not compressed"),
        ({"topk_group": 1}, "scores a group by as many experts as a token chooses in it"),
        ({"n_group": 1, "topk_group": 1, "num_experts_per_tok": 1}, "the score of a single expert"),
        ({"num_key_value_heads": 1}, "latent attention has no groups of heads"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"scoring_func": "softmax"}, "another score of the experts"),
        ({"n_shared_experts": 0}, "moe_shared_expert_intermediate_size|n_shared_experts"),
    ],
)
def test_what_latent_attention_and_its_router_cannot_be(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(CrosswalkError, match=said):
        crosswalk.import_config(read("deepseek_v3")["hf_config"] | keys, to="megatron")


@pytest.mark.parametrize(
    ("name", "keys", "size", "windowed"),
    [
        ("mixtral", {"sliding_window": 9}, 8, [1, 1]),
        ("mixtral", {"sliding_window": 1}, 0, [1, 1]),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, 4, [0, 1, 1]),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 5}, 4, [1, 1]),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 5, "mlp_only_layers": [1]}, 4, [1, 1]),
    ],
)
def test_a_window_does_not_count_the_own_position(
    name: str, keys: dict[str, Any], size: int, windowed: list[int]
) -> None:
    config = {key: value for key, value in read(name)["hf_config"].items() if key != "layer_types"} | keys
    native = crosswalk.import_config(config, to="megatron")
    found = flat(native)
    layers = found["num_layers"]
    assert (found["window_size"], (found["window_attn_skip_freq"] * layers)[:layers]) == ([size, 0], windowed)
    written = crosswalk.export_config(native, format_of(name))
    assert {key: written[key] for key in keys} == keys
    plan = crosswalk.compile_plan(config, to="megatron")
    assert shapes(plan.sources) == oracles.names_and_shapes(config)


def test_some_layers_without_experts() -> None:
    """As the class has them, by index and by step."""
    config = read("qwen3_moe")["hf_config"] | {"num_hidden_layers": 5, "mlp_only_layers": [3], "decoder_sparse_step": 2}
    plan = crosswalk.compile_plan(config, to="megatron")
    assert shapes(plan.sources) == oracles.names_and_shapes(config)
    native = crosswalk.import_config(config, to="megatron")
    assert flat(native)["moe_layer_freq"] == [0, 1, 0, 0, 0]
    written = crosswalk.export_config(native, "megatron_qwen3_moe")
    assert crosswalk.import_config(written, to="megatron") == native


@pytest.mark.parametrize(
    ("mscale", "fits"),
    [({"mscale": 0.7, "mscale_all_dim": 0.7}, True), ({"mscale_all_dim": 0.7}, True), ({}, True),
     ({"mscale": 0.7}, False), ({"mscale": 0.0, "mscale_all_dim": 0.7}, False)],
)  # fmt: skip
def test_one_of_the_two_scales_of_yarn_means_nothing_to_transformers(mscale: dict[str, float], fits: bool) -> None:
    config = read("deepseek_v3")["hf_config"]
    rope = {key: value for key, value in config["rope_parameters"].items() if "mscale" not in key}
    config["rope_parameters"] = rope | mscale
    if fits:
        crosswalk.import_config(config, to="megatron")
        return
    with pytest.raises(CrosswalkError, match="only where there are mscale and mscale_all_dim"):
        crosswalk.import_config(config, to="megatron")


@pytest.mark.parametrize(("name", "key"), [("mixtral", {}), ("gpt_oss", {}), ("qwen3_moe", {"norm_topk_prob": True})])
def test_a_single_expert_is_chosen_among_all(name: str, key: dict[str, Any]) -> None:
    """megatron-core refuses to build such a model."""
    config = read(name)["hf_config"] | {"num_experts_per_tok": 1}
    config.pop("experts_per_token", None)
    with pytest.raises(CrosswalkError, match="a single expert only among scores of all"):
        crosswalk.import_config(config | key, to="megatron")
    if key:
        crosswalk.import_config(config | {"norm_topk_prob": False}, to="megatron")


@pytest.mark.parametrize("dense", [0, 1, 3, 5])
def test_the_first_layers_are_dense(dense: int) -> None:
    """As many as the class makes dense, none too many."""
    config = read("deepseek_v3")["hf_config"] | {"first_k_dense_replace": dense}
    plan = crosswalk.compile_plan(config, to="megatron")
    assert shapes(plan.sources) == oracles.names_and_shapes(config)
    native = crosswalk.import_config(config, to="megatron")
    assert crosswalk.export_config(native, "megatron_deepseek_v3")["first_k_dense_replace"] == min(dense, 3)


def test_experts_behind_groups_of_heads() -> None:
    """GLM-4: names and shapes of the class; what it computes is compared in ``with_megatron/check.py``."""
    config = {
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "vocab_size": 61, "hidden_size": 36,
        "intermediate_size": 38, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 12, "moe_intermediate_size": 14, "n_routed_experts": 7, "num_experts_per_tok": 4,
        "n_shared_experts": 2, "use_qk_norm": True, "attention_bias": True, "num_nextn_predict_layers": 0,
    }  # fmt: skip
    plan = crosswalk.compile_plan(config, to="megatron")
    assert plan.metadata["mapping"] == "megatron_glm4_moe"
    assert shapes(plan.sources) == oracles.names_and_shapes(config)
    assert str(plan.verify()) == "bijective"
    native = crosswalk.import_config(config, to="megatron")
    assert native["rope"]["rotary_percent"] == 0.5
    assert native["moe_shared_expert_intermediate_size"] == 28
    written = crosswalk.export_config(native, "megatron_glm4_moe")
    assert {key: written[key] for key in config} == config
    assert crosswalk.import_config(written, to="megatron") == native
    with pytest.raises(CrosswalkError, match="29 is not a multiple of 14"):
        crosswalk.export_config(native | {"moe_shared_expert_intermediate_size": 29}, "megatron_glm4_moe")


def test_norms_with_weights_that_are_added_to_one() -> None:
    """Gemma: both have the weights without the one, so they are copies. What it computes is compared by
    ``with_megatron/check.py``."""
    config = {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "vocab_size": 61, "hidden_size": 36,
        "intermediate_size": 38, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 10, "hidden_act": "gelu", "hidden_activation": None,
    }  # fmt: skip
    native = crosswalk.import_config(config, to="megatron")
    found = flat(native)
    assert (found["activation_func"], found["layernorm_zero_centered_gamma"]) == ("fast_gelu", True)
    assert (found["share_embeddings_and_output_weights"], found["rotary_base"]) == (True, 10000.0)
    written = crosswalk.export_config(native, "megatron_gemma")
    assert written["hidden_act"] == "gelu_pytorch_tanh"  # as the class says it, which reads `gelu` as this
    assert crosswalk.import_config(written, to="megatron") == native
    plan = crosswalk.compile_plan(config, to="megatron")
    assert plan.metadata["mapping"] == "megatron_gemma"
    assert shapes(plan.sources) == oracles.names_and_shapes(written)
    norms = {name: torch.randn(shape) for name, shape in shapes(plan.sources).items() if "norm" in name}
    rest = {name: torch.zeros(shape) for name, shape in shapes(plan.sources).items() if "norm" not in name}
    made = dict(execute(plan, norms | rest))
    for name, place in (
        ("input_layernorm", "self_attention.linear_qkv"),
        ("post_attention_layernorm", "mlp.linear_fc1"),
    ):
        ours = made[f"decoder.layers.1.{place}.layer_norm_weight"]
        assert torch.equal(ours, norms[f"model.layers.1.{name}.weight"].to(ours.dtype))
    for field in ("layernorm_zero_centered_gamma", "scale_embeddings"):
        with pytest.raises(CrosswalkError, match=field):
            crosswalk.export_config(native | {field: False}, "megatron_gemma")
    for key, value in (("hidden_act", "silu"), ("hidden_activation", "gelu"), ("use_bidirectional_attention", True)):
        with pytest.raises(CrosswalkError, match=key):
            crosswalk.import_config(config | {key: value}, to="megatron")


RELEASED = {"deepseek-ai--DeepSeek-V3": "deepseek_v3", "rtp_GLM-4.5": "glm4_moe", "Qwen--Qwen3-235B-A22B": "qwen3_moe"}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_of_models_with_experts(name: str) -> None:
    found = json.loads((GOLDEN.parent / "field" / "hub_configs" / f"{name}.json").read_text())
    config = found.get("config", found)
    native = crosswalk.import_config(config, to="megatron")
    written = crosswalk.export_config(native, f"megatron_{RELEASED[name]}")
    assert crosswalk.import_config(written, to="megatron") == native
    assert native["num_moe_experts"] == config.get("num_experts", config.get("n_routed_experts"))
    assert (native["rope"]["rotary_percent"], native["kv_channels"]) == {
        "glm4_moe": (0.5, 128), "qwen3_moe": (1.0, 128), "deepseek_v3": (1.0, 64)
    }[RELEASED[name]]  # fmt: skip


def test_the_released_config_of_gpt_oss() -> None:
    layers = ["sliding_attention", "full_attention"] * 12
    config = {
        "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
        "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880, "layer_types": layers,
        "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
        "output_router_logits": False, "pad_token_id": 199999, "rms_norm_eps": 1e-05, "rope_theta": 150000,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn", "truncate": False,
                         "original_max_position_embeddings": 4096},
        "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0", "use_cache": True, "vocab_size": 201088,
    }  # fmt: skip
    native = crosswalk.import_config(config, to="megatron")
    assert (native["window_size"], native["moe_router_topk"], native["num_moe_experts"]) == (127, 4, 32)
    written = crosswalk.export_config(native, "megatron_gpt_oss")
    assert crosswalk.import_config(written, to="megatron") == native
    with pytest.raises(CrosswalkError, match="experts_per_token"):
        crosswalk.import_config(config | {"experts_per_token": 8}, to="megatron")
