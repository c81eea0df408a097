"""Folders that torch.distributed.checkpoint saved from two ranks, under names of a trainer and of Hugging Face."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from comparing import tensor_differences
from golden_cases import load_tensors
from ranks import Failed, run_ranks
from safetensors.torch import save_file
from small_checkpoints import CommandLine, assert_refused, contents, tensors_of
from titan_cases import hugging_face, read, state_dict, tensors
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import crosswalk as cw
from crosswalk.runtime.errors import CrosswalkError

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def crosswalk(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def save_training(rank: int, path: Path, model: Tensors, theirs: Tensors) -> None:
    """A state of training as a trainer saves it, sharded over two ranks; and models under names of Hugging Face."""
    mesh = init_device_mesh("cpu", (2,))
    placed, named = (
        {
            name: distribute_tensor(tensor, mesh, [Shard(tensor.dim() - 1) if tensor.dim() > 1 else Replicate()])
            for name, tensor in tensors.items()
        }
        for tensors in (model, theirs)
    )
    dcp.save({"model": named, "optim": {"lr": 0.5}}, checkpoint_id=path / "named")
    dcp.save(named, storage_writer=dcp.HuggingFaceStorageWriter(str(path / "parts"), save_distributed=True))
    state: dict[str, Any] = {
        **placed, "train_state": torch.zeros(3), "dataloader": {"dp_rank_0": b"x"}, "lr_scheduler": {"last_epoch": 7},
        **{f"optimizer.state.{name}.exp_avg": tensor for name, tensor in placed.items()},
    }  # fmt: skip
    dcp.save(state, checkpoint_id=path / "step-7")
    dcp.save({"model": placed, "optim": {"lr": 0.5}}, checkpoint_id=path / "nested")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks saved, beside the original in ``hf``."""
    name, path = "qwen3_separate_tied", tmp_path_factory.mktemp("trained")
    hugging_face(name, path / "hf")
    ran = run_ranks(2, save_training, path, state_dict(name), tensors(name, "hf"))
    failed = [found for found in ran if isinstance(found, Failed)]
    assert not failed, failed[0].text
    return path


def test_what_a_trainer_saved_needs_its_config(trained: Path, tmp_path: Path, crosswalk: CommandLine) -> None:
    name, original, saved = "qwen3_separate_tied", trained / "hf", trained / "step-7"
    ran = crosswalk("convert", str(saved), str(tmp_path / "out"))
    assert_refused(ran, "no crosswalk.yaml here", "[usage/layout]", code=2)
    assert "pass --layout NAME" in ran.err
    ran = crosswalk("convert", str(saved), str(tmp_path / "out"), "--layout", "torchtitan", "--format", "qwen3")
    assert_refused(ran, "nothing here says the config", code=2)
    assert "pass --native-config FILE, or --like DIR" in ran.err
    config = cw.import_config(read(name)["hf_config"], to="torchtitan")
    (tmp_path / "native.json").write_text(json.dumps(config))
    (tmp_path / "native.yaml").write_text(yaml.safe_dump(config))
    for number, options in enumerate(
        (
            ("--native-config", str(tmp_path / "native.json"), "--format", "qwen3"),
            ("--native-config", str(tmp_path / "native.yaml"), "--format", "qwen3"),
            ("--like", str(original)),
        )
    ):
        for folder in (saved, trained / "nested"):
            out = tmp_path / f"out-{number}-{folder.name}"
            ran = crosswalk("convert", str(folder), str(out), "--layout", "torchtitan", *options)
            assert ran.code == 0, ran.err
            assert tensor_differences(tensors_of(out), tensors(name, "hf")) == []
            assert crosswalk("verify", str(folder), str(out), "--layout", "torchtitan", *options).code == 0
    report = cw.check(saved, layout="torchtitan", like=original)
    text = " ".join(report.notes)
    assert "tensors: `optimizer.*`" in text
    assert "`train_state`" in text
    assert "`dataloader.*`" in text
    assert (out / "config.json").read_bytes() == (original / "config.json").read_bytes()


@pytest.mark.parametrize("kind", ["named", "parts"])
def test_a_folder_under_names_of_hugging_face(kind: str, trained: Path, tmp_path: Path, crosswalk: CommandLine) -> None:
    """As trainers save that train the class itself, in folders of torch, or in safetensors files for each rank."""
    original, saved = trained / "hf", trained / kind
    ran = crosswalk("check", str(saved), "--layout", "hf")
    assert_refused(ran, "config.json: error: cannot read it")
    assert "and --like DIR" in ran.err
    report = cw.convert(saved, tmp_path / "out", layout="hf", like=original)
    assert (report.to, report.verdict) == ("hf", "bijective")
    assert contents(tmp_path / "out") == contents(original)
    assert [note for note in report.notes if "optim" in note] == (
        ["left out as no tensors, 1 entries: `optim.*`"] if kind == "named" else []
    )
    cw.convert(saved, tmp_path / "titan", layout="hf", like=original, to="torchtitan")
    cw.convert(tmp_path / "titan", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(original)


def test_parts_in_safetensors_files_that_are_wrong(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "parts", tmp_path / "parts")
    shutil.copy(trained / "hf" / "config.json", tmp_path / "parts")
    cw.convert(tmp_path / "parts", tmp_path / "out")
    first, second = sorted((tmp_path / "parts").glob("*.safetensors"))
    stored = load_tensors(second)
    for offsets, expected in (
        ({}, r"where in tensor `.*dcp/metadata"),
        (
            {name: {"saved_offsets": [0] * value.dim()} for name, value in stored.items()},
            r"that overlap at .*dcp/parts",
        ),
        (
            {name: {"saved_offsets": [1 << 60] * value.dim()} for name, value in stored.items()},
            r"leave out .*dcp/parts",
        ),
        ({name: {"saved_offsets": [-1] * value.dim()} for name, value in stored.items()}, r"where in .*dcp/metadata"),
    ):
        save_file(stored, second, {"DCP_SHARDING_INFO": json.dumps(offsets)})
        with pytest.raises(CrosswalkError, match=expected):
            cw.check(tmp_path / "parts")
    first.unlink()
    shutil.copy(trained / "parts" / second.name, second)
    with pytest.raises(CrosswalkError, match=r"leave out elements .*dcp/parts.*\n.*copy the files of all ranks"):
        cw.check(tmp_path / "parts")
