"""Live models in one process: real transformers checkpoints into modules and state dicts."""

from __future__ import annotations

import inspect
import itertools
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from native_llama import LLAMA, Tree, assert_equal, blank, native_state
from oracles import make_checkpoint
from publisher_cases import apply
from safetensors.torch import load_file, save_file

import crosswalk
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError


def codes(error: pytest.ExceptionInfo[CrosswalkError]) -> list[str]:
    return sorted(diagnostic.code for diagnostic in error.value.diagnostics)


def test_load_into_a_state_dict(checkpoint: Path) -> None:
    expected = native_state(checkpoint)
    state = blank(expected)
    loaded = crosswalk.load(checkpoint, state)
    assert_equal(state, expected)
    assert loaded.format == "llama"
    assert loaded.config["hidden_size"] == 48
    size = sum(tensor.nbytes for tensor in load_file(checkpoint / "model.safetensors").values())
    assert loaded.report.bytes_read == loaded.report.bytes_held == size


def test_load_fills_the_parameters_behind_what_a_state_dict_makes_up(checkpoint: Path) -> None:
    """A hook that shows a copy in the place of a parameter, as fused layers have: what is filled is the parameter."""

    def copied(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state["head.output_weights"] = state["head.output_weights"] * 1

    expected = native_state(checkpoint)
    model = Tree(blank(expected))
    model.register_state_dict_post_hook(copied)
    crosswalk.load(checkpoint, model)
    assert_equal(dict(model.named_parameters()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_load_casts_floats(checkpoint: Path, dtype: torch.dtype) -> None:
    expected = native_state(checkpoint)
    state = blank(expected, dtype=dtype)
    crosswalk.load(checkpoint, state)
    assert_equal(state, expected)


def test_load_into_memory_that_is_not_contiguous(checkpoint: Path) -> None:
    expected = native_state(checkpoint)
    state = {}
    for name, tensor in expected.items():
        wide = torch.full([2 * size + 1 for size in reversed(tensor.shape)], math.nan)
        state[name] = wide[tuple(slice(1, None, 2) for _ in tensor.shape)].permute(*reversed(range(tensor.dim())))
    crosswalk.load(checkpoint, state)
    assert_equal(state, expected)


def test_load_into_a_module_in_its_wrappers(checkpoint: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    expected = native_state(checkpoint)
    model = Tree(blank(expected))
    model.decoder = checkpoint_wrapper(model.decoder)
    compiled = torch.compile(model)
    assert all("_orig_mod" in name for name in compiled.state_dict())
    assert any("_checkpoint_wrapped_module" in name for name, _ in compiled.named_modules())
    crosswalk.load(checkpoint, compiled)
    model.decoder = model.decoder._checkpoint_wrapped_module
    assert_equal(model.state_dict(), expected)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tied") / "hf"
    make_checkpoint(path, {**LLAMA, "tie_word_embeddings": True})
    return path


def test_meta_modules_get_memory_and_keep_their_ties(tied: Path) -> None:
    expected = native_state(tied)
    assert "head.output_weights" not in expected
    model = Tree(blank(expected, device="meta"), {"head.output_weights": "embeddings.word_embeddings_weight"})
    model.register_buffer("inverse_frequencies", torch.empty(4, device="meta"), persistent=False)
    loaded = crosswalk.load(tied, model)
    assert model.head.output_weights is model.embeddings.word_embeddings_weight
    assert model.head.output_weights.requires_grad
    state = model.state_dict()
    assert torch.equal(state.pop("head.output_weights"), expected["embeddings.word_embeddings_weight"])
    assert_equal(state, expected)
    # What no file holds is never made up: using it fails.
    assert loaded.report.on_meta == ("inverse_frequencies",)
    assert model.inverse_frequencies.is_meta


@pytest.mark.parametrize("how", ["the same", "a copy", "a copy without memory"])
def test_a_tied_parameter_is_the_other_or_a_copy_of_it(tied: Path, tmp_path: Path, how: str) -> None:
    state = blank(native_state(tied))
    owner = state["embeddings.word_embeddings_weight"]
    copy = torch.empty_like(owner, device="meta" if how == "a copy without memory" else "cpu")
    state["head.output_weights"] = owner if how == "the same" else copy
    config = crosswalk.load(tied, state).config
    assert torch.equal(state["head.output_weights"], native_state(tied)["embeddings.word_embeddings_weight"])
    crosswalk.save(state, config, tmp_path / "out", "llama")
    if how != "the same":
        state["head.output_weights"] = -state["head.output_weights"]
        with pytest.raises(CrosswalkError) as error:
            crosswalk.save(state, config, tmp_path / "no", "llama")
        assert codes(error) == ["tie/differs"]
        del state["embeddings.word_embeddings_weight"]
        with pytest.raises(CrosswalkError, match="a copy of the one that it is tied to, which must be passed too"):
            crosswalk.load(tied, state)
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), load_file(tied / "model.safetensors"))


def test_a_tied_duplicate_in_the_file_must_be_equal(tied: Path, tmp_path: Path) -> None:
    state = blank(native_state(tied))
    file = load_file(tied / "model.safetensors")
    (tmp_path / "config.json").write_text((tied / "config.json").read_text())
    twice = {**file, "lm_head.weight": file["model.embed_tokens.weight"].clone()}
    save_file(twice, tmp_path / "model.safetensors")
    loaded = crosswalk.load(tmp_path, state)
    assert loaded.report.bytes_compared == 2 * twice["lm_head.weight"].nbytes
    twice["lm_head.weight"][5, 7] += 1
    save_file(twice, tmp_path / "model.safetensors")
    differs = r"`lm_head.weight` is not equal to `model.embed_tokens.weight`"
    with pytest.raises(CrosswalkError, match=differs):
        crosswalk.load(tmp_path, state)
    with pytest.raises(dcp.api.CheckpointException, match=differs):
        dcp.load(state, storage_reader=crosswalk.reader(tmp_path), no_dist=True)


def test_everything_wrong_is_said_at_once_and_nothing_is_changed(checkpoint: Path) -> None:
    state = blank(native_state(checkpoint))
    del state["decoder.1.norm_2.weight"]
    state["decoder.0.mixer.query.weight"] = torch.zeros(48, 47)
    state["head.final_norm.weight"] = torch.zeros(48, dtype=torch.int32)
    state["extra"] = torch.zeros(3)
    with pytest.raises(CrosswalkError) as error:
        crosswalk.load(checkpoint, state)
    assert codes(error) == ["live/dtype", "live/missing", "live/shape", "live/unexpected"]
    assert "`decoder.1.norm_2.weight` [48]" in str(error.value)
    assert "tied" not in str(error.value)
    assert torch.isnan(state["embeddings.word_embeddings_weight"]).all()


def test_memory_that_cannot_hold_a_parameter_is_refused(checkpoint: Path) -> None:
    state = blank(native_state(checkpoint))
    with pytest.raises(CrosswalkError) as error:
        crosswalk.load(checkpoint, state | {"head.final_norm.weight": torch.zeros(1).expand(48)})
    assert codes(error) == ["live/layout"]


def test_an_error_that_nobody_expects_is_one_of_the_step_that_it_came_in(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> int:
        raise ZeroDivisionError("nothing to divide by")

    state = blank(native_state(checkpoint))
    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(CrosswalkError, match=r"headers: ZeroDivisionError: nothing.* \[distributed/failed\]"):
        crosswalk.load(checkpoint, state)


def test_errors_of_layers_are_one_line_a_pattern(checkpoint: Path) -> None:
    state = blank(native_state(checkpoint))
    for layer in range(3):
        del state[f"decoder.{layer}.norm_2.weight"]
        state[f"decoder.{layer}.mixer.query.weight"] = torch.zeros(48, 47)
        state[f"decoder.{layer}.mixer.query.lora_A.default.weight"] = torch.zeros(5, 48)
    with pytest.raises(CrosswalkError) as error:
        crosswalk.load(checkpoint, state)
    assert codes(error) == ["live/missing", "live/shape", "live/unexpected"]
    missing, shape, unexpected = sorted(error.value.diagnostics, key=lambda problem: problem.code)
    assert "`decoder.{0..2}.norm_2.weight` [48]" in missing.message
    assert "`decoder.{0..2}.mixer.query.weight` has the shape [48, 47], the plan says [48, 48]" in shape.message
    assert "`decoder.{0..2}.mixer.query.lora_A.default.weight` [5, 48]" in unexpected.message
    merge = "it belongs to an adapter (LoRA): merge the adapters into the model first"
    assert unexpected.hint == merge
    config = crosswalk.load(checkpoint, native_state(checkpoint)).config
    with pytest.raises(CrosswalkError) as error:
        crosswalk.save(state, config, checkpoint / "never", "llama")
    assert codes(error) == ["tensors/missing", "tensors/shape", "tensors/unexpected"]
    assert [problem.hint for problem in error.value.diagnostics if problem.code == "tensors/unexpected"] == [merge]


@pytest.mark.parametrize("as_object", [False, True])
def test_a_config_of_hugging_face_in_the_place_of_the_native_one(checkpoint: Path, as_object: bool) -> None:
    theirs = transformers.AutoConfig.from_pretrained(checkpoint)
    state = native_state(checkpoint)
    with pytest.raises(CrosswalkError) as error:
        crosswalk.save(state, theirs if as_object else theirs.to_dict(), checkpoint / "never", "llama")
    (problem,) = error.value.diagnostics
    assert problem.code == "native/hugging-face"
    assert "is a config of Hugging Face (model_type `llama`), not one of layout `fast_llm`" in problem.message
    assert "import_config" in (problem.hint or "")


def test_a_truncated_file_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(CrosswalkError, match=r"model\.safetensors"):
        crosswalk.load(tmp_path, blank(native_state(checkpoint)))


def test_shards_read_their_own_bytes(checkpoint: Path) -> None:
    expected = native_state(checkpoint)
    config = crosswalk.load(checkpoint, blank(expected)).config
    size, hidden = LLAMA["intermediate_size"], LLAMA["hidden_size"]
    for rank in range(2):
        state: dict[str, Any] = blank(expected)
        for i in range(3):
            state[f"decoder.{i}.mlp.layer_1.weight"] = torch.full((size, hidden), math.nan)
        gated = {name: tensor for name, tensor in state.items() if "layer_1" in name}
        state |= crosswalk.shards(gated, config, {"intermediate": (rank, 2)})
        report = crosswalk.load(checkpoint, state).report
        assert report.bytes_read == report.bytes_held < sum(tensor.nbytes for tensor in expected.values())


def test_the_documentation_names_every_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    options = text[text.index("## Options") : text.index("## What moves")]
    for function in (crosswalk.load, crosswalk.save, crosswalk.stream, crosswalk.reader, crosswalk.writer):
        names = set(inspect.signature(function).parameters) - {"hf_dir", "model"}
        assert not [name for name in names if f"`{name}`" not in options], function.__name__


def test_the_documentation_names_what_is_not_converted(checkpoint: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    section = text[text.index("## What is not converted") : text.index("## torch.distributed.checkpoint")]
    for word in ("Optimizer state", "resume", "LoRA", "Pipeline", "Expert parallelism", "Buffers", "FSDP1"):
        assert word in section
    state = blank(native_state(checkpoint))
    lora = "decoder.0.mixer.query.lora_A.default.weight"
    assert "`lora_A` are refused" in section
    with pytest.raises(CrosswalkError, match="merge the adapters into the model first"):
        crosswalk.load(checkpoint, {**state, lora: torch.zeros(2, 48)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(checkpoint: Path, tmp_path: Path) -> None:
    expected = native_state(checkpoint)
    for dtype in (torch.float32, torch.bfloat16):
        state = blank(expected, dtype=dtype, device="cuda")
        config = crosswalk.load(checkpoint, state).config
        assert_equal({name: tensor.cpu() for name, tensor in state.items()}, expected)
        for blocking in (True, False):
            path = tmp_path / f"{dtype}-{blocking}"
            done = crosswalk.save(state, config, path, "llama", blocking=blocking)
            if not blocking:
                for tensor in state.values():
                    tensor.zero_()
                done.result()
                crosswalk.load(path, state)
            cast = {k: v.to(dtype) for k, v in load_file(checkpoint / "model.safetensors").items()}
            assert_equal(load_file(path / "model.safetensors"), cast)
        streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, config, "llama", bucket_bytes=30_000)))
        assert all(tensor.is_cuda for tensor in streamed.values())
        assert_equal({name: tensor.cpu() for name, tensor in streamed.items()}, cast)
        publisher = crosswalk.publisher(state, config, "llama", bucket_bytes=30_000)
        for snapshot in (publisher.snapshot(pin=True), publisher.snapshot("cuda")):
            engine = {name: tensor.clone() for name, tensor in itertools.chain.from_iterable(publisher.buckets())}
            for tensor in state.values():
                tensor.view(-1)[3::41] *= 2
            delta = publisher.delta(snapshot)
            apply(engine, delta.patches())
            delta.commit()
            now = dict(itertools.chain.from_iterable(publisher.buckets()))
            assert_equal(engine, now)
        name = "decoder.1.mlp.layer_2.weight"
        for target, positions, indices in publisher.locate(name, torch.arange(state[name].numel(), device="cuda")):
            assert torch.equal(now[target].view(-1)[indices.long()], state[name].view(-1)[positions])


def test_open_checkpoint_sees_what_save_wrote(checkpoint: Path, tmp_path: Path) -> None:
    state = native_state(checkpoint)
    config = crosswalk.load(checkpoint, blank(state)).config
    crosswalk.save(state, config, tmp_path / "out", "llama", max_shard_size="50KB")
    names = list(open_checkpoint(tmp_path / "out").tensors)
    assert sorted(names) == sorted(load_file(checkpoint / "model.safetensors"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
