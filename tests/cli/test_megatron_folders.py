"""Folders of Megatron-core's dist_checkpointing, which megatron-core 0.19.2 wrote (``golden_megatron/folders``): two
tensor parallel ranks with a padded vocabulary, and two expert parallel ranks. ``hf.safetensors`` is what they were made
from.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import tensor_differences
from golden_cases import load_tensors
from small_checkpoints import tensors_of

import crosswalk as cw
from crosswalk.checkpoints.kinds.torch_dist import unstacked
from crosswalk.runtime.errors import CrosswalkError

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


def test_names_in_folders() -> None:
    names = {"decoder.layers": "decoder.layers.{}", "experts.experts": "experts.local.{}", "old": "new"}
    for before, after in {
        "decoder.layers.mlp.fc.weight": "decoder.layers.None.mlp.fc.weight",
        "decoder.layers.3.mlp.fc.weight": "decoder.layers.3.mlp.fc.weight",
        "decoder.layers.mlp.experts.experts.fc.weight": "decoder.layers.None.mlp.experts.local.None.fc.weight",
        "mtp.layers.0.old.fc": "mtp.layers.0.new.fc",
        "output.weight": "output.weight",
        "decoder.layers": "decoder.layers.None",
        "a.{}.b": "a.{}.b",
    }.items():
        assert ".".join(str(part) for part in unstacked(before, names)) == after


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
    with pytest.raises(CrosswalkError, match=r"`attention_output_gate` is true in the arguments of the run"):
        convert(run)
    shutil.copy(GOLDEN / "common_0_16_1.pt", common)  # as megatron-core 0.16.1 wrote it
    convert(run)
    assert not (run / "ran").exists()
    common.write_bytes(b"no archive")
    with pytest.raises(CrosswalkError, match="the state that ranks have in common: it is no archive"):
        convert(run)


def test_the_old_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    legacy = tmp_path / "iter_0000007" / "mp_rank_00"
    legacy.mkdir(parents=True)
    (legacy / "model_optim_rng.pt").write_bytes(pickle.dumps({}))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7\n")
    for path in (tmp_path, legacy.parent):
        with pytest.raises(CrosswalkError, match=r"old format `torch`.*\n.*--ckpt-convert-format torch_dist"):
            cw.convert(path, tmp_path / "out", layout="megatron")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda run: (run / "latest_checkpointed_iteration.txt").write_text("9"), "the last iteration is 9"),
        (lambda run: (run / "latest_checkpointed_iteration.txt").write_text("release"), "there is no release"),
        (
            lambda run: (folder(run) / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"})),
            "`sharded_backend` is 'zarr', and only torch_dist is read",
        ),
        (lambda run: (folder(run) / "__1_0.distcp").unlink(), "the file __1_0.distcp"),
    ],
)
def test_a_run_that_is_wrong_is_refused(run: Path, damage: Any, expected: str) -> None:
    damage(run)
    with pytest.raises(CrosswalkError, match=expected):
        convert(run)


def test_megatron_folders_are_not_written(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CrosswalkError, match="cannot be written as `torch_dist`"):
        cw.convert(run, tmp_path / "out", to="megatron", kind="torch_dist", layout="megatron", like=tmp_path / "like")
