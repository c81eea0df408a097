"""Models of torchtitan filled from checkpoints and saved, fused and sharded ones too, as its own classes have them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from comparing import tensor_differences
from golden_cases import load_tensors
from native_llama import Tree
from titan_cases import FORMATS, FUSED, blocks, for_bf16, fused, hugging_face, live, native_of, read, tensors

import crosswalk
from crosswalk.runtime import execute
from crosswalk.runtime.errors import CrosswalkError


@pytest.mark.parametrize("name", FORMATS)
def test_state_dicts_are_loaded_and_saved(name: str, tmp_path: Path) -> None:
    case, format = read(name), FORMATS[name][0]
    hugging_face(name, tmp_path / "hf")
    expected = tensors(name, "titan")
    state = {key: torch.zeros_like(value) for key, value in expected.items()}
    if case["hf_config"]["tie_word_embeddings"]:
        state["lm_head.weight"] = state["tok_embeddings.weight"]
    loaded = crosswalk.load(tmp_path / "hf", state, format)
    assert tensor_differences({key: state[key] for key in expected}, expected) == []
    crosswalk.save(state, loaded.config, tmp_path / "back", format)
    assert tensor_differences(load_tensors(tmp_path / "back" / "model.safetensors"), tensors(name, "hf")) == []


@pytest.mark.parametrize("name", FUSED)
def test_fused_parameters_are_loaded_and_saved(name: str, tmp_path: Path) -> None:
    """With the config of the class, which the checkpoint does not tell."""
    case, format = read(name), FORMATS[name][0]
    native = native_of(case, format)
    path = hugging_face(name, tmp_path / "hf")
    expected = live(name)
    state = {key: torch.zeros_like(value) for key, value in expected.items()}
    loaded = crosswalk.load(path, state, format, native_config=native)
    assert tensor_differences(state, expected) == []
    assert loaded.config == native
    crosswalk.save(state, loaded.config, tmp_path / "back", format)
    assert tensor_differences(load_tensors(tmp_path / "back" / "model.safetensors"), tensors(name, "hf")) == []
    again = {key: torch.zeros_like(value) for key, value in expected.items()}
    dcp.load(again, storage_reader=crosswalk.reader(path, layout="torchtitan", native_config=native), no_dist=True)
    assert tensor_differences(again, expected) == []
    plan = crosswalk.compile_plan(case["hf_config"], to="torchtitan", native_config=native)
    assert tensor_differences(dict(execute(for_bf16(plan), tensors(name, "hf"))), expected) == []


@pytest.mark.parametrize("name", FUSED)
def test_the_model_shows_how_its_parameters_are_stored(name: str, tmp_path: Path) -> None:
    """Fused or not is in no checkpoint: names and shapes of the live model say it, in both directions."""
    format = FORMATS[name][0]
    path, theirs = hugging_face(name, tmp_path / "hf"), tensors(name, "hf")
    separate = crosswalk.import_config(read(name)["hf_config"], format)
    for number, (expected, kind) in enumerate(((live(name), "fused"), (tensors(name, "titan"), "separate"))):
        state = {key: torch.zeros_like(value) for key, value in expected.items()}
        loaded = crosswalk.load(path, state, format)
        assert tensor_differences(state, expected) == []
        assert {block["attention"]["qkv_linear"]["type"] for block in blocks(loaded.config)} == {kind}
        for config in (loaded.config, separate, fused(separate)):
            out = tmp_path / f"out-{number}"
            crosswalk.save(state, config, out, format, overwrite=True)
            assert tensor_differences(load_tensors(out / "model.safetensors"), theirs) == []
            streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, config, format)))
            assert tensor_differences(streamed, theirs) == []
            dcp.save(state, storage_writer=crosswalk.writer(out, config, format, overwrite=True), no_dist=True)
            assert tensor_differences(load_tensors(out / "model.safetensors"), theirs) == []
        again = {key: torch.zeros_like(value) for key, value in expected.items()}
        dcp.load(again, storage_reader=crosswalk.reader(path, format), no_dist=True)
        assert tensor_differences(again, expected) == []


def test_a_model_that_fits_no_variant_is_told_the_nearest(tmp_path: Path) -> None:
    path = hugging_face("llama3", tmp_path / "hf")
    state = {key: torch.zeros_like(value) for key, value in live("llama3").items()}
    for layer in range(2):
        name = f"layers.{layer}.attention.qkv_linear.wqkv.weight"
        state[name] = torch.zeros(7, *state[name].shape[1:])
    with pytest.raises(CrosswalkError) as error:
        crosswalk.load(path, state, "torchtitan_llama3")
    (problem,) = error.value.diagnostics
    assert problem.code == "live/shape"
    assert "`layers.{0..1}.attention.qkv_linear.wqkv.weight` has the shape [7, " in problem.message
    assert "`" not in (hint := problem.hint or "")
    assert "layers.block.attention.qkv_linear: fused" in hint
    assert "native_config" in hint


def test_a_given_config_wins_over_what_the_model_shows(tmp_path: Path) -> None:
    path = hugging_face("llama3", tmp_path / "hf")
    separate = crosswalk.import_config(read("llama3")["hf_config"], "torchtitan_llama3")
    state = {key: torch.zeros_like(value) for key, value in live("llama3").items()}
    with pytest.raises(CrosswalkError) as error:
        crosswalk.load(path, state, "torchtitan_llama3", native_config=separate)
    assert {problem.code for problem in error.value.diagnostics} == {"live/missing", "live/unexpected"}
    assert "qkv_linear: separate" in str(error.value)


def test_a_module_whose_state_dict_shows_its_fused_parameter_in_three(tmp_path: Path) -> None:
    """As torchtitan's fused layers do: what is filled is the parameter, not what the hook makes of it."""

    def split(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for key in [key for key in state if key.endswith("wqkv.weight")]:
            whole = state.pop(key)
            for part, tensor in zip("qkv", whole.clone().chunk(3), strict=True):
                state[key.replace("wqkv", f"w{part}")] = tensor

    expected = live("llama3")
    model = Tree({key: torch.zeros_like(value) for key, value in expected.items()})
    model.register_state_dict_post_hook(split)
    loaded = crosswalk.load(hugging_face("llama3", tmp_path / "hf"), model, "torchtitan_llama3")
    assert tensor_differences(dict(model.named_parameters()), expected) == []
    assert loaded.config["layers"]["block"]["attention"]["qkv_linear"] == {"type": "fused"}


def test_a_buffer_that_the_format_has_not_is_named_with_its_reason(tmp_path: Path) -> None:
    path = hugging_face("qwen3_moe", tmp_path / "hf")
    state = {key: torch.zeros_like(value) for key, value in tensors("qwen3_moe", "titan").items()}
    for layer in range(2):
        state[f"layers.{layer}.moe.expert_bias_E"] = torch.zeros(5)
    with pytest.raises(CrosswalkError) as error:
        crosswalk.load(path, state, "torchtitan_qwen3_moe")
    (problem,) = error.value.diagnostics
    assert problem.code == "live/unexpected"
    assert "`layers.{0..1}.moe.expert_bias_E` [5]" in problem.message
    assert "`load_balance_coeff != null` in `layers.block.moe`" in (problem.hint or "")
    assert "tied" not in str(error.value)


@pytest.mark.parametrize("rank", range(2))
def test_fused_parameters_are_sharded_by_groups(rank: int, tmp_path: Path) -> None:
    """Every group of heads has its queries, keys and values together: two ranks have one group each."""
    native = native_of(read("qwen3"), "torchtitan_qwen3")
    expected = {}
    for key, value in live("qwen3").items():
        along = 0 if "wqkv" in key else 1 if "wo." in key else None
        expected[key] = value if along is None else value.chunk(2, along)[rank]
    local = {key: torch.zeros_like(value) for key, value in expected.items()}
    state = crosswalk.shards(local, native, {"group": (rank, 2)}, "qwen3", "torchtitan")
    crosswalk.load(hugging_face("qwen3", tmp_path / "hf"), state, layout="torchtitan", native_config=native)
    assert tensor_differences(local, expected) == []


def test_the_config_of_another_model_is_refused(tmp_path: Path) -> None:
    path = hugging_face("qwen3", tmp_path / "hf")
    native = native_of(read("qwen3"), "torchtitan_qwen3")
    block = native["layers"]["block"]
    block["attention"] |= {"n_heads": 4, "n_kv_heads": 1}
    block["feed_forward"]["hidden_dim"] = 34
    native["norm"]["eps"] = 1e-3
    state = {"norm.weight": torch.zeros(20)}
    fillings: list[Callable[[], object]] = [
        lambda: crosswalk.load(path, state, layout="torchtitan", native_config=native),
        lambda: crosswalk.reader(path, layout="torchtitan", native_config=native),
        lambda: crosswalk.compile_plan(read("qwen3")["hf_config"], to="torchtitan", native_config=native),
    ]
    for fill in fillings:
        with pytest.raises(CrosswalkError) as error:
            fill()
        assert [diagnostic.code for diagnostic in error.value.diagnostics] == ["native/differs"] * 4
        text = str(error.value)
        assert "`layers.block.attention.n_heads` is 4, the checkpoint says 6" in text
        assert "`layers.block.attention.n_kv_heads` is 1, the checkpoint says 2" in text
        assert "`layers.block.feed_forward.hidden_dim` is 34, the checkpoint says 33" in text
        assert "`norm.eps` is 0.001, the checkpoint says 1e-06" in text
    native["layers"]["num_blocks"] = 3
    with pytest.raises(CrosswalkError, match=r"`layers\.num_blocks` is 3, the checkpoint says 2"):
        crosswalk.reader(path, layout="torchtitan", native_config=native)
    with pytest.raises(CrosswalkError, match="did you mean `vocab_size`"):
        crosswalk.reader(path, layout="torchtitan", native_config={"vocab_sise": 3})
    with pytest.raises(CrosswalkError, match="the config is native"):
        crosswalk.compile_plan(native, "torchtitan_qwen3", "hf", native_config=native)


def test_layers_are_compared_one_by_one(tmp_path: Path) -> None:
    """A fused layer and a separate one are two kinds of layers for torchtitan, and one for the checkpoint."""
    native = native_of(read("llama3"), "torchtitan_llama3")
    block = native["layers"]["block"]
    other = copy.deepcopy(block)
    other["attention"]["qkv_linear"] = {"type": "separate"}
    native["layers"] = {"type": "pattern", "blocks": {"a": block, "b": other}, "pattern": ["a", "b"], "num_blocks": 2}
    expected = {key: value for key, value in live("llama3").items() if not key.startswith("layers.1.attention.qkv")}
    expected |= {key: value for key, value in tensors("llama3", "titan").items() if key.startswith("layers.1.")}
    path = hugging_face("llama3", tmp_path / "hf")
    state = {key: torch.zeros_like(value) for key, value in expected.items()}
    crosswalk.load(path, state, layout="torchtitan", native_config=native)
    assert tensor_differences(state, expected) == []
    with pytest.raises(dcp.api.CheckpointException, match=r"of several variants of the layout.*\[dcp/variants\]"):
        dcp.load(state, storage_reader=crosswalk.reader(path, layout="torchtitan"), no_dist=True)
    other["feed_forward"]["hidden_dim"] += 1
    with pytest.raises(CrosswalkError, match=r"`layers\.blocks\.b\.feed_forward\.hidden_dim` is \d+, the"):
        crosswalk.reader(path, layout="torchtitan", native_config=native)
