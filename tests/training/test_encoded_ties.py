"""Tied tensors that are stored encoded: both are decoded alike, whatever is asked for, on every number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import rank_cases as cases
import torch
from quantised import fp8_checkpoint
from ranks import Failed, run_ranks
from safetensors.torch import load_file, save_file
from small_checkpoints import LLAMA, edit_tensors, make, shard, tensors_of

import crosswalk
from crosswalk.runtime.checkpoint import decoding
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.plan.model import Encoding, Exemption, Plan, TensorSpec, make_plan

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SIZE = 7  # 14 bytes of bf16: thirds of them would end inside of an element


def tied_checkpoint(tmp_path: Path, decoded: torch.dtype = torch.bfloat16) -> Path:
    """An FP8 checkpoint whose output head is stored, and equal to the embeddings."""
    base = make(tmp_path / "base", LLAMA, dtype="bfloat16", tie_word_embeddings=True)
    edit_tensors(base, lambda found: found.update({HEAD: found[EMBEDDINGS].clone()}))
    return fp8_checkpoint(base, tmp_path / "fp8", chosen=lambda name, tensor: tensor.dim() == 2, decoded=decoded)


@pytest.mark.parametrize("pad", [None, {"vocab": 64}])
@pytest.mark.parametrize("protect", [(), ("embeddings*",)])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_duplicate_is_decoded_like_what_it_is_compared_with(
    dtype: str | None, protect: tuple[str, ...], pad: dict[str, int] | None, tmp_path: Path
) -> None:
    wide = dtype is not None and not protect
    path = tied_checkpoint(tmp_path, torch.float32 if wide else torch.bfloat16)
    report = crosswalk.convert(path, tmp_path / "native", dtype=dtype, protect=protect, pad=pad)
    assert "1 tied tensor" in report.verdict
    embeddings = tensors_of(tmp_path / "native")["embeddings.word_embeddings_weight/weights"]
    expected = load_file(tmp_path / "fp8-decoded" / "model.safetensors")[EMBEDDINGS]
    assert embeddings.dtype == expected.dtype
    assert torch.equal(embeddings[:71], expected)
    assert len(embeddings) == (71 if pad is None else 128)
    assert not embeddings[71:].any()
    crosswalk.verify(path, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    crosswalk.verify(tmp_path / "native", tmp_path / "back")


def test_a_duplicate_that_differs_is_refused(tmp_path: Path) -> None:
    path = tied_checkpoint(tmp_path)
    edit_tensors(path, lambda found: found[f"{HEAD}_scale_inv"][0].mul_(2))
    with pytest.raises(CrosswalkError, match=f"`{HEAD}` is not equal to `{EMBEDDINGS}`"):
        crosswalk.convert(path, tmp_path / "native", dtype="float32")


def vectors(directory: Path) -> Plan:
    """Two equal vectors, in other codes under other scales."""
    tensors = {
        "w": torch.full((SIZE,), 2.0).to(torch.float8_e4m3fn),
        "w_scale": torch.tensor(3.0),
        "v": torch.full((SIZE,), 4.0).to(torch.float8_e4m3fn),
        "v_scale": torch.tensor(1.5),
    }
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    encodings = []
    for name in "wv":
        parts = TensorSpec(name, (SIZE,), "F8_E4M3"), TensorSpec(f"{name}_scale", (), "F32")
        encodings.append(Encoding(name, "fp8_blocks", parts))
    return make_plan(
        [TensorSpec(name, (SIZE,), "BF16") for name in "wv"],
        [TensorSpec("out", (SIZE,), "BF16")],
        [("w", "out", (SIZE,), 0, (1,), 0, (1,), 0)],
        exemptions=[Exemption("tied", "v", "w")],
        encodings=encodings,
    )


def test_workers_decode_in_one_torch_thread_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, source = vectors(tmp_path / "in"), open_checkpoint(tmp_path / "in")
    threads: list[int] = []
    decode = decoding._into
    monkeypatch.setattr(decoding, "_into", lambda *given: (threads.append(torch.get_num_threads()), decode(*given)))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        write_checkpoint(plan, source, tmp_path / "out", options=EngineOptions(workers=2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1, 1]  # both vectors are compared, and one is written


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_share_the_comparing_in_whole_elements(size: int, tmp_path: Path) -> None:
    plan = vectors(tmp_path / "in")
    assert run_ranks(size, cases.ties_are_compared, plan.to_json(), tmp_path / "in") == [[6.0] * SIZE] * size
    found = load_file(tmp_path / "in" / "model.safetensors")
    found["v"].view(torch.uint8)[-1] += 1
    save_file(found, tmp_path / "in" / "model.safetensors")
    for failed in run_ranks(size, cases.ties_are_compared, plan.to_json(), tmp_path / "in"):
        assert isinstance(failed, Failed)
        assert failed.codes == ("tie/differs",)


def test_an_error_names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A payload and its scales may be in different files."""
    plan = vectors(tmp_path / "in")
    files = shard(tmp_path / "in", 2)
    assert files["w"] != files["w_scale"]
    source = open_checkpoint(tmp_path / "in")
    (tmp_path / "in" / files["w_scale"]).unlink()
    with pytest.raises(CrosswalkError) as caught:
        write_checkpoint(plan, source, tmp_path / "out")
    (problem,) = caught.value.diagnostics
    assert problem.position is not None
    assert problem.position.file == str(tmp_path / "in" / files["w_scale"])
