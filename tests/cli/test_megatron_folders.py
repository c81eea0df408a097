"""Folders of Megatron-core's dist_checkpointing, which megatron-core 0.19.2 wrote (``golden_megatron/folders``): two
tensor parallel ranks with a padded vocabulary, and two expert parallel ranks. ``hf.safetensors`` is what they were made
from.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from comparing import tensor_differences
from golden_cases import load_tensors
from small_checkpoints import tensors_of
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

import crosswalk as cw
from crosswalk.checkpoints.kinds.torch_dist import places, stacked, unstacked
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.dcp.folder import open_folder
from crosswalk.runtime.dcp.output import Place
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import EngineOptions
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.records import replace

GOLDEN = Path(__file__).parents[1] / "golden_megatron" / "folders"
CASES = ("llama_tp2_padded", "qwen3_moe_ep2")


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The directory of a run, with its original beside it."""
    name = getattr(request, "param", "llama_tp2_padded")
    shutil.copytree(GOLDEN / name, tmp_path / "run")
    (tmp_path / "like").mkdir()
    shutil.copy(GOLDEN / name / "hf_config.json", tmp_path / "like" / "config.json")
    (tmp_path / "like" / "tokenizer.json").write_text("{}")
    return tmp_path / "run"


def folder(run: Path) -> Path:
    return run / "iter_0000007"


def convert(run: Path, to: str | None = None) -> tuple[Path, Any]:
    out = run.parent / "out"
    return out, cw.convert(run, out, to=to, layout="megatron", like=run.parent / "like")


@pytest.mark.parametrize(("run", "name"), [(name, name) for name in CASES], indirect=["run"])
@pytest.mark.parametrize("named", ["run", "iteration"])
def test_what_megatron_saved_is_what_it_was_made_from(run: Path, name: str, named: str) -> None:
    source = run if named == "run" else folder(run)
    out, report = convert(source) if named == "run" else (run.parent / "out", None)
    if named == "iteration":
        report = cw.convert(source, out, layout="megatron", like=run.parent / "like")
    assert tensor_differences(tensors_of(out), load_tensors(GOLDEN / name / "hf.safetensors")) == []
    assert report.carried == ("tokenizer.json",)
    assert any("left out as no tensors" in note for note in report.notes)  # _extra_state
    assert not any("common_state" in note for note in report.notes)
    cw.verify(source, out, layout="megatron", like=run.parent / "like")


def test_a_padded_vocabulary_is_cut_to_that_of_the_original(run: Path) -> None:
    report = convert(run)[1]
    assert "axis `vocab` is cut from 64 to 58: the last 6 are left out, unread" in report.notes


@pytest.mark.parametrize("run", CASES[:1], indirect=True)
def test_from_megatron_to_the_trainer_in_one_pass(run: Path) -> None:
    out = convert(run, to="fast_llm")[0]
    cw.convert(out, run.parent / "back")
    assert tensor_differences(tensors_of(run.parent / "back"), load_tensors(run / "hf.safetensors")) == []


# Written.


@pytest.mark.parametrize(("run", "name"), [(name, name) for name in CASES], indirect=["run"])
def test_what_is_written_has_the_entries_that_megatron_writes(run: Path, name: str) -> None:
    """Names, shapes and every byte, by torch's own reader; ``with_megatron/folders.py`` loads such folders."""
    shutil.copy(GOLDEN / name / "hf.safetensors", run.parent / "like" / "model.safetensors")
    pad = {"vocab": 64} if "padded" in name else {}
    report = cw.convert(run.parent / "like", run.parent / "made", to="megatron", pad=pad)
    assert report.to == "megatron"
    made = run.parent / "made"
    assert sorted(os.listdir(made)) == ["latest_checkpointed_iteration.txt", "release", "tokenizer.json"]
    cw.convert(made / "release", run.parent / "named")  # what was carried stands beside the iterations
    assert (run.parent / "named" / "tokenizer.json").is_file()
    assert tensor_differences(by_torch(made / "release"), by_torch(folder(run))) == []
    entries, theirs = (open_folder(path).entries for path in (made / "release", folder(run)))
    assert entries.objects.keys() == theirs.objects.keys()  # states of modules without weights among them
    for stack in ("decoder.layers.mlp.linear_fc2.weight", "decoder.layers.mlp.experts.experts.linear_fc2.weight"):
        if stack in entries.tensors:  # each layer and expert is an archive, so that a rank reads what it has
            assert len(entries.tensors[stack].chunks) == math.prod(entries.tensors[stack].shape[:-2]) > 1
    for place in ("common.pt", None):  # of old versions and of new ones
        with torch.serialization.safe_globals([argparse.Namespace]):  # as megatron-core has it
            common = torch.load(made / "release" / place, weights_only=True) if place else entry(made / "release")
        assert common["checkpoint_version"] == 3.0
        assert common["args"].padded_vocab_size == theirs.tensors["embedding.word_embeddings.weight"].shape[0]
    cw.verify(run.parent / "like", made)
    cw.convert(made, run.parent / "back")
    assert tensor_differences(tensors_of(run.parent / "back"), load_tensors(GOLDEN / name / "hf.safetensors")) == []
    assert (run.parent / "back" / "tokenizer.json").exists()
    cw.convert(run.parent / "like", made, to="megatron", pad=pad, options=EngineOptions(overwrite=True))


@pytest.mark.parametrize("run", CASES[1:], indirect=True)
def test_the_spec_local_has_the_norm_before_a_router_under_another_name(run: Path) -> None:
    """As megatron-core 0.19.2 saves a model of it: ``with_megatron/folders.py`` reads and loads such folders."""
    old, new = "decoder.layers.pre_mlp_layernorm.weight", "decoder.layers.mlp.linear_fc1.layer_norm_weight"
    state = by_torch(folder(run))
    state[new] = state.pop(old)
    about = (folder(run) / "metadata.json").read_bytes()
    shutil.rmtree(folder(run))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder(run), no_dist=True)
    (folder(run) / "metadata.json").write_bytes(about)
    out, _ = convert(run)
    assert tensor_differences(tensors_of(out), load_tensors(GOLDEN / CASES[1] / "hf.safetensors")) == []
    native = cw.import_config(json.loads((out / "config.json").read_text()), to="megatron")
    cw.convert(out, run.parent / "made", to="megatron", native_config=native | {"transformer_impl": "local"})
    assert tensor_differences(by_torch(run.parent / "made" / "release"), state) == []


def by_torch(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder that torch's own reader finds."""
    described = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in described.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is not distributed
        dcp.load(state, checkpoint_id=path, no_dist=True)
    return state


def entry(path: Path) -> Any:
    """What ranks have in common, as newer versions of megatron-core find it."""
    state: dict[str, Any] = {"common_state/shard_0_1": io.BytesIO()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=path, no_dist=True)
    found = state["common_state/shard_0_1"]
    return (torch.load(found, weights_only=True) if isinstance(found, io.BytesIO) else found)[0]


NAMES = {
    "decoder.layers": "decoder.layers.{}",
    "experts.experts.fc.bias": "experts.fc.bias{}",
    "experts.experts": "experts.local.{}",
    "old": "new",
}


@pytest.mark.parametrize(
    ("there", "here", "axes"),
    [
        ("decoder.layers.mlp.fc.weight", "decoder.layers.7.mlp.fc.weight", (7,)),
        ("decoder.layers.experts.experts.fc.weight", "decoder.layers.7.experts.local.8.fc.weight", (7, 8)),
        ("decoder.layers.experts.experts.fc.bias", "decoder.layers.7.experts.fc.bias8", (7, 8)),
        ("mtp.layers.0.old.fc", "mtp.layers.0.new.fc", ()),
        ("output.weight", "output.weight", ()),
        ("a.{}.b", "a.{}.b", ()),
    ],
)
def test_names_in_folders(there: str, here: str, axes: tuple[int, ...]) -> None:
    places = iter((7, 8))
    parts = unstacked(there, NAMES)
    assert ".".join(f"{text}{next(places)}" if is_axis else text for text, is_axis in parts) == here
    assert stacked(here, NAMES) == (there, axes)


def test_layers_that_differ_keep_their_numbers() -> None:
    numbered = unstacked("decoder.layers.3.mlp.fc.weight", NAMES)
    assert numbered == [(part, False) for part in ["decoder", "layers", "3", "mlp", "fc", "weight"]]
    specs = [TensorSpec(f"decoder.layers.{i}.fc", (2, 3 + i // 2), "F32") for i in range(3)]
    specs += [TensorSpec(f"decoder.layers.{i}.norm", (3,), "F32") for i in range(3)]
    layout = replace(catalog().layout("megatron"), stacked=NAMES)
    assert places(specs, layout) == {spec.name: Place(spec.name) for spec in specs}
    alike = [spec for spec in specs if spec.shape != (2, 4) and not spec.name.startswith("decoder.layers.2.")]
    found = places(alike, layout)
    for name in ("fc", "norm"):
        for i in range(2):
            assert found[f"decoder.layers.{i}.{name}"] == Place(f"decoder.layers.{name}", (i,), (2,))


# What is read beside the tensors, and what is refused.


class Switch:
    """Unpickled, it would make a file; real arguments have enums of Megatron in such places."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def arguments(**values: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({"args": argparse.Namespace(**values), "iteration": 7}, stream)
    return stream.getvalue()


def test_the_arguments_of_the_run_are_read_and_nothing_in_them_is_run(run: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(run)
    common = folder(run) / "common.pt"
    common.write_bytes(arguments(num_layers=4, attention_output_gate=True, backend=Switch()))
    with pytest.raises(CrosswalkError, match=r"`attention_output_gate` is true in the arg.*\[native/run\]"):
        convert(run)
    shutil.copy(GOLDEN / "common_0_16_1.pt", common)  # as megatron-core 0.16.1 wrote it
    convert(run)
    assert not (run / "ran").exists()
    common.write_bytes(b"no archive")
    with pytest.raises(CrosswalkError, match=r"that ranks have in common: it is no archive.*\[directory/common\]"):
        convert(run)


def test_the_old_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    legacy = tmp_path / "iter_0000007" / "mp_rank_00"
    legacy.mkdir(parents=True)
    (legacy / "model_optim_rng.pt").write_bytes(pickle.dumps({}))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7\n")
    for path in (tmp_path, legacy.parent):
        with pytest.raises(CrosswalkError, match=r"\[directory/legacy\]\n.*--ckpt-convert-format torch_dist"):
            cw.convert(path, tmp_path / "out", layout="megatron")


def rename(run: Path, old: str, new: str) -> None:
    """Another name for an entry of a folder, written by torch's own classes."""
    path = folder(run) / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.state_dict_metadata[new] = metadata.state_dict_metadata.pop(old)
    for index in [index for index in metadata.storage_data if index.fqn == old]:
        metadata.storage_data[dataclasses.replace(index, fqn=new)] = metadata.storage_data.pop(index)
    path.write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda run: (run / "latest_checkpointed_iteration.txt").write_text("9"),
            r"is 9.*\[directory/latest\]",
        ),
        (lambda run: (run / "latest_checkpointed_iteration.txt").write_text("release"), "there is no release"),
        (
            lambda run: (folder(run) / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"})),
            r'`sharded_backend` is "zarr", and only torch_dist is read \[directory/backend\]',
        ),
        (lambda run: (folder(run) / "__1_0.distcp").unlink(), "the file __1_0.distcp"),
        (
            lambda run: rename(run, "decoder.final_layernorm.weight", "decoder.layers.mlp.experts.experts.linear_fc1"),
            r"`decoder.layers.mlp.experts.experts.linear_fc1` \[\d+\] is no stack of layers.*\[directory/stack\]",
        ),
    ],
)
def test_a_run_that_is_wrong_is_refused(run: Path, damage: Any, expected: str) -> None:
    damage(run)
    with pytest.raises(CrosswalkError, match=expected):
        convert(run)
