"""torchtitan as a second layout, against its own classes and adapters; and fast_llm to torchtitan in one plan.

The data was recorded with torchtitan itself, which the tests do not need: ``golden_torchtitan/make.py``.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from comparing import differences, shapes, tensor_differences
from safetensors.torch import save_file
from titan_cases import (
    BOTH,
    FORMATS,
    FUSED,
    OF_TYPE,
    REGISTRY,
    ROOTS,
    Tensors,
    blocks,
    for_bf16,
    fused,
    native_of,
    read,
    stored_once,
    tensors,
)

import crosswalk
from crosswalk.runtime import execute
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Plan

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
needs_transformers_5 = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="config.json of transformers 5")


# Configs.


@pytest.mark.parametrize("name", [*FORMATS, *REGISTRY])
def test_the_config_of_hugging_face_is_the_config_of_the_class(name: str) -> None:
    case = REGISTRY[name] if name in REGISTRY else read(name)
    found = crosswalk.import_config(case["hf_config"], to="torchtitan")
    expected = native_of(case, OF_TYPE[case["hf_config"]["model_type"]])
    for block in blocks(expected):
        attention = block["attention"]
        attention["rope"]["max_seq_len"] = blocks(found)[0]["attention"]["rope"]["max_seq_len"]
        if "qkv_linear" in attention:
            attention["qkv_linear"] = {"type": "separate"}  # as in checkpoints
            if attention["n_kv_heads"] is None:
                attention["n_kv_heads"] = attention["n_heads"]
            if attention["head_dim"] is None:
                attention["head_dim"] = expected["dim"] // attention["n_heads"]
        if block["moe"] is not None and case["hf_config"]["model_type"] != "deepseek_v3":
            block["moe"]["load_balance_coeff"] = None
        if (
            block["moe"] is not None
            and block["moe"]["router"]["num_expert_groups"] is None
            and "n_group" in case["hf_config"]
        ):
            block["moe"]["router"] |= {"num_expert_groups": 1, "num_limited_groups": 1}
    assert differences(blocks(found), blocks(expected)) == []
    rest = {key: value for key, value in expected.items() if key != "layers"}
    assert differences({key: found[key] for key in rest}, rest) == []
    assert found.keys() == expected.keys()


@needs_transformers_5
@pytest.mark.parametrize("name", FORMATS)
def test_the_config_comes_back_as_its_class_writes_it(name: str) -> None:
    format = FORMATS[name][0]
    config = read(name)["hf_config"]
    written = crosswalk.export_config(native_of(read(name), format), format)
    kept = {"max_position_embeddings": config["max_position_embeddings"]}  # means nothing to the weights: carried
    written.pop("experts_per_token", None)  # a second name, as released files have it
    assert differences(oracles.as_saved(written | kept), oracles.as_saved(config)) == []
    saved = crosswalk.import_config(oracles.as_saved(config), to="torchtitan")
    assert differences(saved, crosswalk.import_config(config, to="torchtitan")) == []


@pytest.mark.parametrize(
    ("format", "path", "value", "said"),
    [
        ("torchtitan_llama3", "attention.qk_norm", {"eps": 1e-5}, "qk_norm"),
        ("torchtitan_llama3", "attention.rope.scaling", "yarn", "rope"),
        ("torchtitan_qwen3", "ffn_norm.eps", 1e-3, "rms_norm_eps"),
        ("torchtitan_qwen3", "attention_norm.elementwise_affine", False, "elementwise_affine"),
        ("torchtitan_qwen3_moe", "moe.router.score_func", "sigmoid", "score_func"),
        ("torchtitan_qwen3_moe", "moe.router.route_scale", 2.5, "route_scale"),
        # The bias of a balanced router is a buffer of the model that Hugging Face's class has not.
        ("torchtitan_qwen3_moe", "moe.load_balance_coeff", 1e-3, "load_balance_coeff"),
    ],
)
def test_what_hugging_face_cannot_hold_is_refused(format: str, path: str, value: Any, said: str) -> None:
    name = next(name for name, formats in FORMATS.items() if formats[0] == format)
    native = native_of(read(name), format)
    place = native["layers"]["block"]
    *parents, last = path.split(".")
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises(CrosswalkError, match=said):
        crosswalk.export_config(native, format)


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("llama3", {"attention_bias": True}, "attention_bias"),
        ("llama3", {"mlp_bias": True}, "mlp_bias"),
        ("llama3", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
        ("llama3", {"rope_parameters": YARN}, "attention_factor"),
        ("qwen3", {"rope_parameters": YARN | {"attention_factor": 1.25}}, "attention_factor"),
        ("deepseek_v3", {"rope_parameters": YARN}, "mscale"),
        ("deepseek_v3", {"rope_parameters": YARN | {"mscale": 0.7}}, "mscale"),
        ("deepseek_v3", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.9}}, "mscale"),
        ("deepseek_v3", {"rope_parameters": YARN | {"mscale_all_dim": 0.7}}, "mscale"),
        ("deepseek_v3", {"rope_parameters": YARN | {"factor": 0.5, "mscale": 0.7, "mscale_all_dim": 0.7}}, "factor"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("deepseek_v3", {"topk_group": 5}, "more groups are chosen than there are"),
        ("deepseek_v3", {"n_group": 3}, "must be a multiple of num_expert_groups"),
        ("gpt_oss", {"num_experts_per_tok": 6}, "more experts are chosen than there are"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
        ("gpt_oss", {"attention_bias": False}, "attention_bias"),
        ("gpt_oss", {"swiglu_alpha": 1.5}, "swiglu_alpha"),
        ("gpt_oss", {"rope_parameters": YARN | {"attention_factor": 1.0}}, "attention_factor"),
        ("qwen3", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ],
)
def test_what_torchtitan_cannot_hold_is_refused(name: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(CrosswalkError, match=said):
        crosswalk.import_config(read(name)["hf_config"] | keys, to="torchtitan")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1], "intermediate_size": 19}),
        ("qwen3_moe", {"num_hidden_layers": 4, "decoder_sparse_step": 2, "intermediate_size": 19}),
        ("qwen3", {"rope_parameters": YARN | {"attention_factor": 1.0}}),
        ("llama3", {"rope_parameters": YARN | {"attention_factor": 1.0, "truncate": False}}),
        ("deepseek_v3", {"first_k_dense_replace": 3}),
        ("deepseek_v3", {"first_k_dense_replace": 0}),
        ("gpt_oss", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        ("gpt_oss", {"layer_types": ["full_attention"] * 3}),
        ("gpt_oss", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    ],
)
def test_what_else_torchtitan_can_hold_comes_back(name: str, keys: dict[str, Any]) -> None:
    config, format = read(name)["hf_config"] | keys, FORMATS[name][0]
    native = crosswalk.import_config(config, to="torchtitan")
    written = crosswalk.export_config(native, format)
    assert crosswalk.import_config(written, to="torchtitan") == native
    assert shapes(crosswalk.compile_plan(config, to="torchtitan").sources) == oracles.names_and_shapes(config)


# Formats of two layouts for one class.


def test_a_config_means_the_formats_of_the_layout_asked_for() -> None:
    config = read("llama3")["hf_config"]
    assert crosswalk.compile_plan(config).metadata["mapping"] == "llama"
    assert crosswalk.compile_plan(config, to="torchtitan").metadata["mapping"] == "torchtitan_llama3"
    assert crosswalk.compile_plan(config, format="torchtitan_llama3").metadata["layout"] == "torchtitan"
    assert set(crosswalk.formats("torchtitan")) == set(ROOTS)
    assert not set(crosswalk.formats("torchtitan")) & set(crosswalk.formats("fast_llm"))
    assert {*crosswalk.formats("torchtitan"), *crosswalk.formats("fast_llm")} < set(crosswalk.formats())
    for name in ("llama3", "llama", "torchtitan_llama3"):  # its own, by its model_type, and that of its file
        plan = crosswalk.compile_plan(config, format=name, to="torchtitan")
        assert plan.metadata["mapping"] == "torchtitan_llama3"
    for options in ({"format": "mixtral", "to": "torchtitan"}, {"format": "torchtitan_llama3", "to": "fast_llm"}):
        with pytest.raises(CrosswalkError, match="not to"):
            crosswalk.compile_plan(config, **options)
    with pytest.raises(CrosswalkError, match="did you mean `torchtitan`"):
        crosswalk.compile_plan(config, to="torchtitn")


# Names, shapes and values.


@pytest.mark.parametrize("name", FORMATS)
def test_names_and_shapes_are_those_of_the_state_dict(name: str) -> None:
    case = read(name)
    plan = crosswalk.compile_plan(case["hf_config"], to="torchtitan")
    assert shapes(plan.targets) == stored_once(case, "state_dict")
    assert shapes(plan.sources) == shapes_of(tensors(name, "hf"))
    assert str(plan.verify()) == "bijective"


@pytest.mark.parametrize("name", FUSED)
def test_fused_names_and_shapes_are_those_of_the_parameters(name: str) -> None:
    case, format = read(name), FORMATS[name][0]
    plan = crosswalk.compile_plan(native_of(case, format), format, to="hf")
    assert shapes(plan.sources) == stored_once(case, "parameters")
    assert shapes(plan.targets) == shapes_of(tensors(name, "hf"))
    assert str(plan.verify()) == "bijective"


@pytest.mark.parametrize("name", REGISTRY)
def test_names_and_shapes_of_real_sizes(name: str) -> None:
    case = REGISTRY[name]
    layers, expected = case["hf_config"]["num_hidden_layers"], {}
    for key, shape in stored_once(case, "state_dict").items():
        if "expert_bias_E" not in key:  # a buffer that starts at zero; see `load_balance_coeff`
            expected |= {key.replace("layers.0.", f"layers.{i}."): shape for i in range(layers)}
    plan = crosswalk.compile_plan(case["hf_config"], to="torchtitan")
    assert shapes(plan.targets) == expected
    assert str(plan.verify()) == "bijective"


def shapes_of(values: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in values.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_values_are_those_of_the_adapter(name: str) -> None:
    config, format = read(name)["hf_config"], FORMATS[name][0]
    there = for_bf16(crosswalk.compile_plan(config, to="torchtitan"))
    assert tensor_differences(dict(execute(there, tensors(name, "hf"))), tensors(name, "titan")) == []
    native = crosswalk.import_config(config, to="torchtitan")
    back = for_bf16(crosswalk.compile_plan(native, format, to="hf"))
    assert tensor_differences(dict(execute(back, tensors(name, "titan"))), tensors(name, "hf")) == []
    assert back.digest == there.inverse().digest


@pytest.mark.parametrize("name", FUSED)
def test_fused_values_are_those_of_the_live_model(name: str) -> None:
    format = FORMATS[name][0]
    back = for_bf16(crosswalk.compile_plan(native_of(read(name), format), format, to="hf"))
    live = dict(execute(back.inverse(), tensors(name, "hf")))
    expected = {key: value for key, value in tensors(name, "titan").items() if ".qkv_linear." not in key}
    assert tensor_differences(live, expected | tensors(name, "fused")) == []
    assert tensor_differences(dict(execute(back, live)), tensors(name, "hf")) == []


# From one trainer to another.


def composed(config: dict[str, Any], name: str, live: bool = False) -> tuple[Plan, Plan, Plan]:
    """fast_llm to Hugging Face, that to torchtitan (with ``live``: to its fused parameters), and both in one."""
    titan, fast = FORMATS[name]
    assert fast is not None
    out = crosswalk.compile_plan(crosswalk.import_config(config, fast), fast, to="hf")
    on = crosswalk.compile_plan(config, to="torchtitan")
    if live:
        on = crosswalk.compile_plan(fused(crosswalk.import_config(config, titan)), titan, to="hf").inverse()
    out, on = for_bf16(out), for_bf16(on)
    return out, on, out.compose(on)


@pytest.mark.parametrize("name", BOTH)
def test_one_plan_does_what_two_do_and_what_the_adapter_does(name: str) -> None:
    config = read(name)["hf_config"]
    out, on, plan = composed(config, name)
    assert str(plan.verify()) == "bijective"
    assert (plan.sources, plan.targets) == (out.sources, on.targets)
    native = dict(execute(crosswalk.compile_plan(config), tensors(name, "hf")))
    found = dict(execute(plan, native))
    assert tensor_differences(found, dict(execute(on, dict(execute(out, native))))) == []
    assert tensor_differences(found, tensors(name, "titan")) == []
    assert tensor_differences(dict(execute(plan.inverse(), found)), native) == []


@pytest.mark.parametrize("name", [name for name in BOTH if name in FUSED])
def test_one_plan_from_trainer_to_live_model(name: str) -> None:
    config = read(name)["hf_config"]
    native = dict(execute(crosswalk.compile_plan(config), tensors(name, "hf")))
    plan = composed(config, name, live=True)[2]
    assert str(plan.verify()) == "bijective"
    found = dict(execute(plan, native))
    assert tensor_differences({key: found[key] for key in tensors(name, "fused")}, tensors(name, "fused")) == []


def test_the_code_of_the_documentation_runs() -> None:
    config = read("llama3")["hf_config"]
    text = (Path(__file__).parents[2] / "docs" / "composition.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    native = dict(execute(crosswalk.compile_plan(config), tensors("llama3", "hf")))
    names: dict[str, Any] = {"native_config": crosswalk.import_config(config), "native_tensors": native}
    for block in blocks:
        exec(block, names)
    assert tensor_differences(names["titan_tensors"], tensors("llama3", "titan")) == []
    found = dict(execute(names["fused"], native))
    assert tensor_differences({key: found[key] for key in tensors("llama3", "fused")}, tensors("llama3", "fused")) == []


def test_real_sizes_are_composed_copy_by_copy() -> None:
    """No tensor of an 8B model is cut into more copies than its axes ask for."""
    config = REGISTRY["llama3 8B"]["hf_config"]
    _, on, plan = composed(config, "llama3")
    assert str(plan.verify()) == "bijective"
    assert len(plan.copies) == len(plan.targets) == len(on.copies) == 291
    live = composed(config, "llama3", live=True)[2]
    assert str(live.verify()) == "bijective"
    assert len(live.copies) == 291  # three for each fused matrix, from two tensors
    assert composed(config, "llama3")[2].digest == plan.digest


def test_stacks_of_experts_are_not_a_copy_an_expert() -> None:
    """Through one tensor an expert, from a stack to a stack: what was taken apart is one copy again."""
    config = REGISTRY["qwen3 30B-A3B"]["hf_config"] | {"num_hidden_layers": 3}
    plan = crosswalk.compile_plan(config, to="torchtitan")
    assert len(plan.copies) > 3 * 3 * 128
    same = plan.inverse().compose(plan)
    assert str(same.verify()) == "bijective"
    assert len(same.copies) == len(same.targets)
    assert all(len(copy.extents) == 1 and copy.source_offset == copy.target_offset == 0 for copy in same.copies)


# Logits: what torchtitan's model computed from the very weights that the tests above compare.


@needs_transformers_5
@pytest.mark.parametrize("name", FORMATS)
def test_logits_of_torchtitan_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config = read(name)["hf_config"]
    plan = for_bf16(crosswalk.compile_plan(config, to="torchtitan"))
    theirs = dict(execute(plan.inverse(), tensors(name, "titan")))
    if config.get("num_nextn_predict_layers"):  # the class has none of them
        theirs = {
            key: value for key, value in theirs.items() if not key.startswith(("model.layers.2.", "model.layers.3."))
        }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(theirs, tmp_path / "model.safetensors", metadata={"format": "pt"})
    recorded = tensors(name, "logits")
    tokens = (torch.arange(recorded["logits"].shape[1]) * 7 + 3) % (config["vocab_size"] - 2)
    assert torch.equal(tokens, recorded["tokens"])
    found = oracles.logits(tmp_path, len(tokens))
    tolerance = 2e-5
    assert (found - recorded["logits"]).abs().max() <= tolerance * recorded["logits"].abs().max()
    if name.startswith("llama3"):
        turned = {**theirs, **{key: rows_in_pairs(value) for key, value in theirs.items() if "q_proj" in key}}
        save_file(turned, tmp_path / "model.safetensors", metadata={"format": "pt"})
        wrong = oracles.logits(tmp_path, len(tokens))
        assert (wrong - recorded["logits"]).abs().max() > 100 * tolerance * recorded["logits"].abs().max()


def rows_in_pairs(weight: torch.Tensor) -> torch.Tensor:
    """Queries in the order of torchtitan: what would be read if no axis were turned."""
    return weight.reshape(6, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()
