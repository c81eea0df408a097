"""Models with a vision encoder: llava with its text models and names, llava_hybrid_ssm, and apriel2."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import custom_oracles
import oracles
import pytest
import torch
from comparing import differences, shapes, tensor_differences
from golden_cases import CASES, NEWEST, load_tensors
from hypothesis import given
from hypothesis import strategies as st
from real_configs import CONFIGS, llava_hybrid
from safetensors.torch import save_file
from strategies import llava as llava_configs

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

Config = dict[str, Any]
IN_MEMORY = "in-memory"


def _llava() -> Config:
    return CASES["llava_pixtral"].hf_config()


def _import(config: Config, format: str = "llava") -> Config:
    return crosswalk.import_config(config, format=format)


def _normal(native: Config) -> Config:
    return crosswalk.normalize_native(native, root="multimodal_model")


def _with_text(**keys: Any) -> Config:
    config = _llava()
    return config | {"text_config": config["text_config"] | keys}


def _in_memory(name: str) -> str:
    """The name of a llava tensor in a transformers 5 object, from its name on disk."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return f"model.{name}"


# Llava: the config.


def test_a_config_of_the_older_exporter_is_read() -> None:
    """It has the type of the adapter at its root, and a text model without a type, which is a Llama by the class."""
    config = CASES["llava_pixtral"].hf_config_export()
    assert config["type"] == "mlp"
    assert "model_type" not in config["text_config"]
    assert differences(_normal(_import(config)), _normal(CASES["llava_pixtral"].native_config())) == []
    exported = crosswalk.export_config(_import(config), "llava")
    assert "type" not in exported
    assert exported["text_config"]["model_type"] == "mistral"


def test_a_window_in_a_text_model_without_a_type_is_refused() -> None:
    """The class reads a Llama, which has no window; the exporter meant a Mistral. Nobody can tell."""
    config = CASES["llava_pixtral"].hf_config_export()
    config["text_config"]["sliding_window"] = 24
    with pytest.raises(CrosswalkError, match=r"sliding_window.*\n.*model_type: mistral"):
        _import(config)


@pytest.mark.parametrize("window", [None, 24])
def test_the_window_of_the_text_model_is_kept(window: int | None) -> None:
    native = _import(_with_text(sliding_window=window))
    assert native["decoder"]["block"]["mixer"]["window_size"] == window
    assert crosswalk.export_config(native, "llava")["text_config"]["sliding_window"] == window


def test_the_text_model_may_be_a_llama_or_a_qwen2() -> None:
    text = _llava()["text_config"]
    del text["sliding_window"], text["head_dim"]
    llama = _import(_llava() | {"text_config": text | {"model_type": "llama", "attention_bias": True}})
    assert llama["decoder"]["block"]["mixer"]["add_linear_biases"] is True
    assert crosswalk.export_config(llama, "llava")["text_config"]["model_type"] == "llama"
    config = _llava() | {"text_config": text | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}}
    qwen2 = _import(config)
    assert qwen2["decoder"]["block"]["mixer"]["query_layer"]["bias"]["enabled"] is True
    exported = crosswalk.export_config(qwen2, "llava")
    assert exported["text_config"]["model_type"] == "qwen2"
    assert shapes(crosswalk.compile_plan(config, format="llava").sources) == oracles.names_and_shapes(config)


def test_another_text_model_is_refused() -> None:
    with pytest.raises(CrosswalkError, match=r"text_config.model_type.*gemma"):
        _import(_with_text(model_type="gemma"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer.*\n.*last layer"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy.*\n.*every patch"),
        ({"projector_hidden_act": "gelu"}, "projector_hidden_act.*tanh"),
        ({"surprise": 1}, "surprise"),
        ({"type": "moe"}, "type"),
        ({"text_config": None}, "text_config"),
        ({"vision_config": None}, "vision_config"),
        ({"image_token_index": None}, None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_converted_is_refused_by_name(change: Config, named: str | None) -> None:
    if named is None:  # null is as if absent: what the class says
        assert _import(_llava() | change)["image_token_index"] == 32000
        return
    with pytest.raises(CrosswalkError, match=named):
        _import(_llava() | change)


@pytest.mark.parametrize("key", ["vision_feature_layer", "vision_feature_select_strategy"])
def test_the_defaults_of_the_class_cannot_be_converted_either(key: str) -> None:
    config = _llava()
    del config[key]
    with pytest.raises(CrosswalkError, match=key):
        _import(config)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_keys_of_parts_are_claimed_one_by_one(part: str) -> None:
    config = _llava()
    config[part]["surprise"] = 1
    with pytest.raises(CrosswalkError, match=rf"{part}.surprise"):
        _import(config)


def test_both_names_of_the_image_token_are_read() -> None:
    config = _llava()
    config["image_token_id"] = config.pop("image_token_index")
    assert _import(config)["image_token_index"] == 87
    assert crosswalk.export_config(_import(config), "llava")["image_token_index"] == 87
    with pytest.raises(CrosswalkError, match=r"image_token_id"):
        _import(_llava() | {"image_token_id": 3})


@pytest.mark.parametrize(("root", "text"), [(False, False), (False, True), (True, True)])
def test_the_tie_is_that_of_the_text_model(root: bool, text: bool) -> None:
    config = _with_text(tie_word_embeddings=text) | {"tie_word_embeddings": root}
    plan = crosswalk.compile_plan(config, format="llava")
    assert shapes(plan.sources) == oracles.names_and_shapes(config)
    exported = crosswalk.export_config(_import(config), "llava")
    assert exported["text_config"]["tie_word_embeddings"] is text
    assert oracles.names_and_shapes(exported) == oracles.names_and_shapes(config)


def test_ties_that_two_versions_read_differently_are_refused() -> None:
    with pytest.raises(CrosswalkError, match=r"tie_word_embeddings"):
        _import(_llava() | {"tie_word_embeddings": True})


def test_a_file_that_leaves_the_sizes_to_the_classes() -> None:
    """As the public Pixtral-12B does."""
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": 1,
        "image_token_index": 10,
        "model_type": "llava",
        "projector_hidden_act": "gelu",
        "text_config": {
            "head_dim": 128, "hidden_size": 5120, "intermediate_size": 14336, "is_composition": True,
            "max_position_embeddings": 1024000, "model_type": "mistral", "num_hidden_layers": 2,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0, "sliding_window": None,
            "vocab_size": 131072,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
            "head_dim": 64, "hidden_act": "silu", "image_size": 1024, "is_composition": True, "model_type": "pixtral",
            "patch_size": 16, "rope_theta": 10000.0, "tie_word_embeddings": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }  # fmt: skip
    plan = crosswalk.compile_plan(config, allow_lossy=True)
    assert shapes(plan.sources) == oracles.names_and_shapes(config)


def test_an_adapter_of_another_size_is_refused() -> None:
    native = CASES["llava_pixtral"].native_config()
    native["vision_encoder"]["adapter"]["intermediate_size"] += 2
    with pytest.raises(CrosswalkError, match=r"adapter.intermediate_size"):
        crosswalk.export_config(native, "llava")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_encoder", None),
        ("image_token_index", None),
        ("vision_encoder.embeddings.patch_width", 5),
        ("vision_encoder.embeddings.normalization.epsilon", 1e-4),
        ("vision_encoder.encoder.block.normalization.epsilon", 1e-4),
        ("vision_encoder.encoder.block.mixer.head_groups", 1),
        ("vision_encoder.encoder.block.mixer.head_size", 6),
        ("vision_encoder.encoder.block.mixer.causal", True),
        ("vision_encoder.encoder.block.mixer.rotary", {"type": "default"}),
        ("vision_encoder.adapter.gated", True),
    ],
)
def test_what_the_vision_config_cannot_say_is_refused(path: str, value: Any) -> None:
    native = _normal(CASES["llava_pixtral"].native_config())
    *parents, leaf = path.split(".")
    place = native
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    with pytest.raises(CrosswalkError, match=leaf):
        crosswalk.export_config(native, "llava")


# Llava: names of tensors.


def _checkpoint(directory: Path, config: Config, tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_names_of_objects_in_memory_are_found_and_kept(tmp_path: Path) -> None:
    case = CASES["llava_pixtral"]
    tensors = {_in_memory(name): tensor for name, tensor in case.hf_tensors().items()}
    assert set(tensors) == set(oracles.real_model(case.hf_config(), "meta").state_dict())
    source = _checkpoint(tmp_path / "source", case.hf_config(), tensors)
    crosswalk.convert(source, tmp_path / "native", to="fast_llm")
    native = {
        name.removesuffix("/weights"): tensor
        for file in (tmp_path / "native").glob("*.safetensors")
        for name, tensor in load_tensors(file).items()
    }
    assert tensor_differences(native, case.native_tensors()) == []
    crosswalk.convert(tmp_path / "native", tmp_path / "back", to="hf")
    assert tensor_differences(load_tensors(tmp_path / "back" / "model.safetensors"), tensors) == []
    crosswalk.convert(tmp_path / "native", tmp_path / "newest", to="hf", dialect=NEWEST)
    assert tensor_differences(load_tensors(tmp_path / "newest" / "model.safetensors"), case.hf_tensors()) == []


def test_names_of_objects_in_memory_are_written_on_request() -> None:
    native = CASES["llava_pixtral"].native_config()
    on_disk, in_memory = (
        shapes(crosswalk.compile_plan(native, format="llava", to="hf", dialect=dialect).targets)
        for dialect in (None, IN_MEMORY)
    )
    assert in_memory == {_in_memory(name): shape for name, shape in on_disk.items()}


def test_names_of_both_kinds_in_one_checkpoint_are_refused(tmp_path: Path) -> None:
    case = CASES["llava_pixtral"]
    names = sorted(case.hf_tensors())
    tensors = {_in_memory(n) if n == names[0] else n: tensor for n, tensor in case.hf_tensors().items()}
    with pytest.raises(CrosswalkError, match=r"two dialects"):
        crosswalk.check(_checkpoint(tmp_path / "source", case.hf_config(), tensors))


@given(data=st.data())
def test_drawn_configs_are_the_model_of_the_class_after_export(data: st.DataObject) -> None:
    config = data.draw(llava_configs())
    exported = crosswalk.export_config(_import(config), "llava")
    assert oracles.names_and_shapes(exported) == oracles.names_and_shapes(config)


@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_logits_with_other_text_models(text: str, tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIGS["llava"])
    keys = {key: value for key, value in config["text_config"].items() if key not in ("head_dim", "sliding_window")}
    config["text_config"] = keys | {"model_type": text}
    oracles.make_checkpoint(tmp_path / "original", config)
    crosswalk.convert(tmp_path / "original", tmp_path / "native", to="fast_llm")
    crosswalk.convert(tmp_path / "native", tmp_path / "back", to="hf")
    assert torch.equal(oracles.logits(tmp_path / "back"), oracles.logits(tmp_path / "original"))


# llava_hybrid_ssm


@pytest.mark.parametrize("model_type", ["llava_hybrid", "llava_hybrid_ssm"])
def test_the_hybrid_is_read_with_the_type_of_its_class_and_of_the_older_exporter(model_type: str) -> None:
    config = llava_hybrid() | {"model_type": model_type}
    plan = crosswalk.compile_plan(config)
    text = custom_oracles.BY_MODEL_TYPE["apriel_hybrid_ssm"](config["text_config"])
    vision = {
        name: shape
        for name, shape in oracles.names_and_shapes(_llava()).items()
        if not name.startswith("language_model.")
    }
    assert shapes(plan.sources) == {f"language_model.{name}": shape for name, shape in text.items()} | vision
    exported = crosswalk.export_config(crosswalk.import_config(config), "llava_hybrid_ssm")
    assert exported["model_type"] == "llava_hybrid"
    assert exported["text_config"]["model_type"] == "apriel_hybrid_ssm"
    assert exported["text_config"]["hybrid_block_layout"] == ["t", "m2", "t"]
    # its class looks at one of the two, by the version of transformers
    theta = config["text_config"]["rope_theta"]
    assert exported["text_config"]["rope_theta"] == exported["text_config"]["rope_parameters"]["rope_theta"] == theta
    assert differences(crosswalk.import_config(exported), crosswalk.import_config(config)) == []


# apriel2


def test_apriel2_without_a_vision_encoder() -> None:
    """Null is what the class writes; the original converter crashes on it."""
    config = CASES["apriel2_mm_fixed"].hf_config() | {"vision_encoder": None, "image_token_index": None}
    native = _import(config, "apriel2")
    assert native["vision_encoder"] is None
    assert not any("vision" in name for name in shapes(crosswalk.compile_plan(config).sources))
    exported = crosswalk.export_config(native, "apriel2")
    assert exported["vision_encoder"] is None
    del config["vision_encoder"]
    assert differences(_import(config, "apriel2"), native) == []


def test_apriel2_says_its_sizes_again_where_the_class_reads_them() -> None:
    vision = crosswalk.export_config(CASES["apriel2_mm_fixed"].native_config(), "apriel2")["vision_encoder"]
    assert (vision["patch_size"], vision["num_channels"], vision["num_hidden_layers"]) == (4, 3, 2)
    rotary = vision["encoder"]["block"]["mixer"]["rotary"]
    assert rotary == {"type": "pixtral_2d", "theta": 7777.0, "patch_size": 4, "max_image_size": 1024}


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("embeddings.input_channels", 1, "input_channels"),
        ("embeddings.patch_width", 5, "square patches"),
        ("encoder.type", "pattern", "encoder.type"),
        ("encoder.block.mixer.type", "mamba", "mixer.type"),
        ("encoder.block.mixer.cross_document_attention", True, "cross_document_attention"),
        ("encoder.block.mixer.surprise", 1, "surprise"),
        ("adapter.type", "moe", "adapter.type"),
    ],
)
def test_apriel2_vision_that_cannot_be_converted_is_refused(path: str, value: Any, named: str) -> None:
    config = CASES["apriel2_mm_fixed"].hf_config()
    *parents, leaf = path.split(".")
    place = config["vision_encoder"]
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    with pytest.raises(CrosswalkError, match=named):
        _import(config, "apriel2")
