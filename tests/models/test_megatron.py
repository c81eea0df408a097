"""Megatron-core as a layout, against what its own GPTModel holds.

``golden_megatron`` was recorded with megatron-core 0.19.2: a random model of the Hugging Face class and the same model
as the state dict of a GPTModel (Transformer Engine spec), whose logits were equal on a CPU; ``case.json`` has both
configs, and the names and shapes of the state dict under both specs. The tests do not need Megatron.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from comparing import differences, shapes, tensor_differences
from golden_cases import load_tensors
from megatron_cases import (
    CASES,
    GOLDEN,
    LAYERS,
    SPECS,
    Tensors,
    flat,
    for_fp32,
    format_of,
    hugging_face,
    native_of,
    needs_transformers_5,
    ours,
    read,
    theirs,
)
from safetensors.torch import save_file

import crosswalk
from crosswalk.runtime import execute
from crosswalk.runtime.errors import CrosswalkError


@pytest.mark.parametrize("name", CASES)
def test_the_config_is_the_transformer_config(name: str) -> None:
    found, expected = flat(native_of(name)), read(name)["transformer_config"]
    expected["activation_func"] = expected["activation_func"].removeprefix("callable:")
    compared = {key for key in expected if key in found}
    assert {"num_layers", "hidden_size", "kv_channels", "num_query_groups", "rotary_base", "rope_scaling"} <= compared
    assert differences({key: found[key] for key in compared}, {key: expected[key] for key in compared}) == []


@needs_transformers_5
@pytest.mark.parametrize("name", CASES)
def test_the_config_comes_back_as_its_class_writes_it(name: str) -> None:
    config = read(name)["hf_config"]
    written = crosswalk.export_config(native_of(name), format_of(name))
    written.pop("experts_per_token", None)  # the second name that released files of gpt-oss have, and the class has not
    kept = {
        key: config[key] for key in ("max_position_embeddings", "eos_token_id", "max_window_layers") if key in config
    }
    kept |= {"bos_token_id": config.get("bos_token_id"), "pad_token_id": config.get("pad_token_id")}
    kept["dtype"] = config["dtype"]  # none of these means anything to the weights: they are carried
    assert differences(oracles.as_saved(written | kept), oracles.as_saved(config)) == []
    assert crosswalk.import_config(written, to="megatron") == native_of(name)


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("llama_untied", {"attention_bias": True}, "one switch for the biases"),
        ("llama_untied", {"mlp_bias": True}, "one switch for the biases"),
        ("llama_untied", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
        ("llama_untied", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
        ("gpt_oss", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_type"),
        ("llama_untied", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
        ("llama_untied", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama_untied", {"sliding_window": 7}, "sliding_window"),
        ("gpt_oss", {"swiglu_alpha": 1.5}, "swiglu_alpha"),
        ("gpt_oss", {"attention_bias": False}, "attention_bias"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "needs window_size"),
    ],
)
def test_what_megatron_cannot_hold_is_refused_by_name(name: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(CrosswalkError, match=said):
        crosswalk.import_config(read(name)["hf_config"] | keys, to="megatron")


@pytest.mark.parametrize("key", ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_the_constants_of_the_rotary_embedding_of_llama_3(key: str) -> None:
    config = read("llama_tied_rope3")["hf_config"]
    config["rope_parameters"][key] *= 2
    with pytest.raises(CrosswalkError, match=key):
        crosswalk.import_config(config, to="megatron")


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("llama_untied", {"layernorm_zero_centered_gamma": True}, "layernorm_zero_centered_gamma"),
        ("llama_untied", {"normalization": "LayerNorm"}, "normalization"),
        ("llama_untied", {"gated_linear_unit": False}, "gated_linear_unit"),
        ("llama_untied", {"activation_func": "squared_relu"}, "activation_func"),
        ("llama_untied", {"qk_layernorm": True}, "qk_layernorm"),
        ("llama_untied", {"add_qkv_bias": True}, "add_qkv_bias"),
        ("llama_untied", {"softmax_type": "learnable"}, "softmax_type"),
        ("llama_untied", {"attention_output_gate": True}, "attention_output_gate"),
        ("llama_untied", {"mtp_num_layers": 1}, "mtp_num_layers"),
        ("llama_untied", {"window_size": 6}, "window_size"),
        ("qwen2", {"add_bias_linear": True}, "add_bias_linear"),
        ("gpt_oss", {"softmax_type": "vanilla"}, "softmax_type"),
        ("gpt_oss", {"add_bias_linear": False}, "add_bias_linear"),
        ("gpt_oss", {"window_size": None}, "a layer with a window needs window_size"),
        ("mixtral", {"moe_router_pre_softmax": True}, "moe_router_pre_softmax"),
        ("mixtral", {"moe_router_score_function": "sigmoid"}, "moe_router_score_function"),
        ("mixtral", {"moe_shared_expert_intermediate_size": 8}, "moe_shared_expert_intermediate_size"),
        ("mixtral", {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias"),
        ("mixtral", {"moe_router_num_groups": 3}, "moe_router_num_groups"),
        ("mixtral", {"moe_ffn_hidden_size": 41}, "moe_ffn_hidden_size"),
        ("mixtral", {"layers": {"block": {"moe": False}, "num_blocks": 2}}, "moe"),
        ("qwen3_moe", {"moe_mlp_glu_interleave_size": 3}, "all gate rows before all up rows"),
        ("qwen3_moe", {"num_moe_experts": None}, "num_moe_experts"),
        ("qwen2", {"kv_channels": 12}, "kv_channels"),
    ],
)
def test_what_hugging_face_cannot_hold_is_refused_by_name(name: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(CrosswalkError, match=said):
        crosswalk.export_config(native_of(name) | fields, format_of(name))


# Names, shapes and values.


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes_are_those_of_the_state_dict(name: str, spec: str) -> None:
    plan = crosswalk.compile_plan(native_of(name, spec), format_of(name), to="hf")
    assert shapes(plan.sources) == {key: tuple(shape) for key, shape in read(name)[spec].items()}
    assert shapes(plan.targets) == {key: tuple(value.shape) for key, value in theirs(name).items()}
    assert str(plan.verify()) == "bijective"


def test_experts_of_transformer_engine_may_be_modules_of_their_own() -> None:
    """``moe_grouped_gemm`` false: the experts' names are those of the spec ``local``, all others are not."""
    recorded = read("mixtral")
    plan = crosswalk.compile_plan(native_of("mixtral") | {"moe_grouped_gemm": False}, "megatron_mixtral", to="hf")
    expected = {name: shape for name, shape in recorded["transformer_engine"].items() if "experts" not in name}
    expected |= {name: shape for name, shape in recorded["local"].items() if "experts" in name}
    assert shapes(plan.sources) == {name: tuple(shape) for name, shape in expected.items()}
    found = dict(execute(for_fp32(plan.inverse()), theirs("mixtral")))
    for expert in range(3):
        for layer in ("linear_fc1", "linear_fc2"):
            alone = found[f"{LAYERS}mlp.experts.local_experts.{expert}.{layer}.weight"]
            assert torch.equal(alone, ours("mixtral")[f"{LAYERS}mlp.experts.{layer}.weight{expert}"])


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_the_state_dict(name: str) -> None:
    there = for_fp32(crosswalk.compile_plan(read(name)["hf_config"], to="megatron"))
    assert there.metadata["mapping"] == format_of(name)
    assert tensor_differences(dict(execute(there, theirs(name))), ours(name)) == []
    back = for_fp32(crosswalk.compile_plan(native_of(name), format_of(name), to="hf"))
    assert tensor_differences(dict(execute(back, ours(name))), theirs(name)) == []
    assert back.digest == there.inverse().digest


def test_a_layer_that_predicts_a_further_token(tmp_path: Path) -> None:
    """Against a distributed checkpoint of Megatron, which has experts stacked and an older name of the layer.

    Hugging Face has it behind the other layers, with copies of the embedding and of the head."""
    folder = GOLDEN / "deepseek_v3_mtp"
    held: Tensors = {}
    for name, value in load_tensors(folder / "global.safetensors").items():
        live = name.replace("transformer_layer", "mtp_model_layer").replace("experts.experts", "experts")
        each = "experts.experts" in name
        held |= {f"{live}{i}": part for i, part in enumerate(value)} if each else {live: value}
    source = dict(load_tensors(folder / "hf.safetensors"))
    config = json.loads((folder / "hf_config.json").read_text())
    plan = for_fp32(crosswalk.compile_plan(config, to="megatron"))
    copies = {f"model.layers.3.{name}.weight" for name in ("embed_tokens", "shared_head.head")}
    assert copies < source.keys()
    for path, change in ((tmp_path / "same", 0.0), (tmp_path / "other", 1.0)):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        copy = "model.layers.3.embed_tokens.weight"
        save_file(source | {copy: source[copy] + change}, path / "model.safetensors")
    state = {name: torch.zeros_like(value) for name, value in held.items()}
    crosswalk.load(tmp_path / "same", state, "megatron_deepseek_v3")
    assert tensor_differences(state, held) == []
    with pytest.raises(CrosswalkError, match=r"model\.layers\.3\.embed_tokens\.weight"):
        crosswalk.load(tmp_path / "other", state, "megatron_deepseek_v3")
    source = {name: value for name, value in source.items() if name not in copies}
    assert tensor_differences(dict(execute(plan, source)), held) == []
    back = dict(execute(plan.inverse(), held))
    assert tensor_differences(back, source) == []
    native = crosswalk.import_config(config, to="megatron")
    assert native["mtp_num_layers"] == 1
    assert crosswalk.export_config(native, "megatron_deepseek_v3")["num_nextn_predict_layers"] == 1


def test_the_other_formats_are_the_same_tensors() -> None:
    """A Mistral has the tensors of a Llama, and the class of a Qwen3 says which it has more."""
    config = read("llama_untied")["hf_config"]
    mistral = config | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    for key in ("attention_bias", "mlp_bias", "pretraining_tp"):
        del mistral[key]
    plan = for_fp32(crosswalk.compile_plan(mistral, to="megatron"))
    assert plan.metadata["mapping"] == "megatron_mistral"
    assert shapes(plan.sources) == oracles.names_and_shapes(mistral)
    assert tensor_differences(dict(execute(plan, theirs("llama_untied"))), ours("llama_untied")) == []
    qwen3 = read("qwen2")["hf_config"] | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 14}
    plan = crosswalk.compile_plan(qwen3, to="megatron")
    assert plan.metadata["mapping"] == "megatron_qwen3"
    assert shapes(plan.sources) == oracles.names_and_shapes(qwen3)
    assert shapes(plan.targets)[f"{LAYERS}self_attention.q_layernorm.weight"] == (14,)
    assert shapes(plan.targets)[f"{LAYERS}self_attention.linear_qkv.weight"] == ((4 + 2 * 2) * 14, 40)
    assert not any("linear_qkv.bias" in name for name in shapes(plan.targets))
    assert str(plan.verify()) == "bijective"


def test_a_llama_with_all_biases() -> None:
    config = read("llama_untied")["hf_config"] | {"attention_bias": True, "mlp_bias": True}
    plan = crosswalk.compile_plan(config, to="megatron")
    assert shapes(plan.sources) == oracles.names_and_shapes(config)
    assert str(plan.verify()) == "bijective"
    found = {name: shape for name, shape in shapes(plan.targets).items() if name.startswith(LAYERS) and "bias" in name}
    assert found == {
        f"{LAYERS}self_attention.linear_qkv.bias": (100,),
        f"{LAYERS}self_attention.linear_proj.bias": (24,),
        f"{LAYERS}mlp.linear_fc1.bias": (76,),
        f"{LAYERS}mlp.linear_fc2.bias": (24,),
    }


# Live models: names and shapes show the spec.


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", CASES)
def test_state_dicts_are_loaded_and_saved(name: str, spec: str, tmp_path: Path) -> None:
    path, format = hugging_face(name, tmp_path / "hf"), format_of(name)
    state = {key: torch.zeros(shape) for key, shape in read(name)[spec].items()}
    loaded = crosswalk.load(path, state, format)
    assert loaded.config["transformer_impl"] == spec
    same = [key for key in read(name)["transformer_engine"] if key in state]
    assert len(same) > len(state) / 3
    assert tensor_differences({key: state[key] for key in same}, {key: ours(name)[key] for key in same}) == []
    crosswalk.save(state, loaded.config, tmp_path / "back", format)
    assert tensor_differences(load_tensors(tmp_path / "back" / "model.safetensors"), theirs(name)) == []


def test_a_padded_vocabulary_is_cut_again() -> None:
    config = read("llama_untied")["hf_config"]
    plan = for_fp32(crosswalk.compile_plan(config, to="megatron", pad={"vocab": 64}))
    padded = dict(execute(plan, theirs("llama_untied")))
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert torch.equal(padded[key][:61], ours("llama_untied")[key])
        assert padded[key].shape[0] == 64
        assert not padded[key][61:].any()
    assert tensor_differences(dict(execute(plan.inverse(), padded)), theirs("llama_untied")) == []
