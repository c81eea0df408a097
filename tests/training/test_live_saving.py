"""What a live model writes and streams is what transformers wrote; failing, it leaves nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from golden_cases import CASES
from native_llama import assert_equal, blank, native_state
from oracles import logits
from safetensors.torch import load_file

import crosswalk
from crosswalk.runtime.errors import CrosswalkError


def codes(error: pytest.ExceptionInfo[CrosswalkError]) -> list[str]:
    return sorted(diagnostic.code for diagnostic in error.value.diagnostics)


def test_save_is_what_transformers_wrote(checkpoint: Path, tmp_path: Path) -> None:
    state = native_state(checkpoint)
    config = crosswalk.load(checkpoint, blank(state)).config
    report = crosswalk.save(state, config, tmp_path / "out", "llama", carry_from=checkpoint)
    written, original = (load_file(path / "model.safetensors") for path in (tmp_path / "out", checkpoint))
    assert_equal(written, original)
    assert report.bytes_written == sum(tensor.nbytes for tensor in original.values())
    assert report.files == {"model.safetensors": (tmp_path / "out" / "model.safetensors").stat().st_size}
    assert torch.equal(logits(tmp_path / "out"), logits(checkpoint))
    assert (tmp_path / "out" / "generation_config.json").read_text() == (
        checkpoint / "generation_config.json"
    ).read_text()
    assert not [entry for entry in tmp_path.iterdir() if entry.name != "out"]


def test_save_in_the_background_keeps_the_values_of_its_moment(checkpoint: Path, tmp_path: Path) -> None:
    state = native_state(checkpoint)
    config = crosswalk.load(checkpoint, blank(state)).config
    saves = []
    for step in range(3):
        options = {"blocking": False, "dtype": "bfloat16", "max_shard_size": "50KB"}
        saves.append(crosswalk.save(state, config, tmp_path / f"step-{step}", "llama", **options))
        for tensor in state.values():
            tensor.add_(1)
    for step, future in enumerate(saves):
        assert len(future.result().files) > 2
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"step-{step}", dtype="auto")
        assert model.dtype == torch.bfloat16
        expected = native_state(checkpoint)["decoder.1.norm_1.weight"]
        for _ in range(step):
            expected += 1
        found = model.state_dict()["model.layers.1.input_layernorm.weight"]
        assert torch.equal(found, expected.bfloat16())


def test_saving_onto_something_leaves_it_alone(checkpoint: Path, tmp_path: Path) -> None:
    state = native_state(checkpoint)
    config = crosswalk.load(checkpoint, blank(state)).config
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(CrosswalkError) as error:
        crosswalk.save(state, config, tmp_path / "out", "llama")
    assert codes(error) == ["output/exists"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    with pytest.raises(CrosswalkError) as error:  # it is no checkpoint
        crosswalk.save(state, config, tmp_path / "out", "llama", overwrite=True)
    assert codes(error) == ["output/foreign"]
    assert (tmp_path / "out" / "notes").read_text() == "mine"
    (tmp_path / "out" / "config.json").write_text("{}")
    crosswalk.save(state, config, tmp_path / "out", "llama", overwrite=True)
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_a_failed_write_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    state = native_state(checkpoint)
    config = crosswalk.load(checkpoint, blank(state)).config
    pwrite = os.pwrite
    calls = itertools.count()

    def failing(descriptor: int, data: Any, offset: int) -> int:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(CrosswalkError, match="No space left on device"):
        crosswalk.save(state, config, tmp_path / "out", "llama")
    assert not list(tmp_path.iterdir())


def test_stream_is_what_transformers_wrote(checkpoint: Path) -> None:
    state = native_state(checkpoint)
    config = crosswalk.load(checkpoint, blank(state)).config
    buckets = list(crosswalk.stream(state, config, "llama", bucket_bytes=30_000))
    assert len(buckets) > 5
    assert all(sum(tensor.nbytes for _, tensor in bucket) <= 30_000 or len(bucket) == 1 for bucket in buckets)
    found = dict(itertools.chain.from_iterable(buckets))
    assert_equal(found, load_file(checkpoint / "model.safetensors"))
    # What stands together in a parameter is not copied.
    query = state["decoder.0.mixer.query.weight"]
    assert found["model.layers.0.self_attn.q_proj.weight"].data_ptr() == query.data_ptr()


def test_dcp_reads_and_writes_hugging_face_files(checkpoint: Path, tmp_path: Path) -> None:
    expected = native_state(checkpoint)
    state = blank(expected, dtype=torch.float64)
    reader = crosswalk.reader(checkpoint)
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert_equal(state, expected)
    assert reader.bytes_read == sum(tensor.nbytes for tensor in expected.values())
    config = crosswalk.load(checkpoint, blank(expected)).config
    dcp.save(expected, storage_writer=crosswalk.writer(tmp_path / "out", config, "llama"), no_dist=True)
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), load_file(checkpoint / "model.safetensors"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    crosswalk.save(expected, config, tmp_path / "same", "llama")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()


def test_dcp_refuses_a_part_of_a_model(checkpoint: Path, tmp_path: Path) -> None:
    state = native_state(checkpoint)
    config = crosswalk.load(checkpoint, blank(state)).config
    with pytest.raises(dcp.api.CheckpointException, match=r"`step` is no tensor: .*\[dcp/bytes\]"):
        dcp.save({**state, "step": 7}, storage_writer=crosswalk.writer(tmp_path / "out", config, "llama"), no_dist=True)
    del state["decoder.1.norm_2.weight"]
    with pytest.raises(dcp.api.CheckpointException, match=r"decoder\.1\.norm_2\.weight"):
        dcp.save(state, storage_writer=crosswalk.writer(tmp_path / "out", config, "llama"), no_dist=True)
    assert not list(tmp_path.iterdir())


def test_a_class_of_its_own_code_is_not_saved_without(tmp_path: Path) -> None:
    case = CASES["mtp_llama_3heads"]
    state, config = case.native_tensors(), case.native_config()
    with pytest.raises(CrosswalkError) as caught:
        crosswalk.save(state, config, tmp_path / "out", "mtp_llama")
    (problem,) = caught.value.diagnostics
    assert problem.code == "files/model-code"
    assert "configuration_mtp_llama.py, modeling_mtp_llama.py" in problem.message
    assert "carry_from" in str(problem.hint)
    assert not list(tmp_path.iterdir())
    code = tmp_path / "code"
    code.mkdir()
    (code / "config.json").write_text(json.dumps(case.hf_config()))
    for name in ("configuration_mtp_llama.py", "modeling_mtp_llama.py"):
        (code / name).write_text("code")
    crosswalk.save(state, config, tmp_path / "out", "mtp_llama", carry_from=code)
    assert (tmp_path / "out" / "modeling_mtp_llama.py").read_text() == "code"
