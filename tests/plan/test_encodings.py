"""Encoded tensors: every code, every part of a tensor, and the library's own decoding."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from pathlib import Path

import oracles
import pytest
import torch
from comparing import same_bytes
from encoded import DTYPES, by_hand, encoding, fp8, fused, identity, logical, mxfp4, reading, stored
from hypothesis import given
from hypothesis import strategies as st
from peak_memory import MEMORY
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from crosswalk.runtime import execute
from crosswalk.runtime.checkpoint import decoding
from crosswalk.runtime.checkpoint.header import build_header
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.checkpoint.source import bind, open_checkpoint
from crosswalk.runtime.dtypes import torch_dtype
from crosswalk.runtime.files.workers import _SLACK
from crosswalk.runtime.plan.model import Encoding, TensorSpec, make_plan

#: Shapes with a block each: partial blocks at both ends, blocks larger than the tensor, matrices in a stack.
FP8 = [
    ((37, 53), (8, 16)),
    ((3, 7, 5), (4, 4)),
    ((301, 1), (1, 1)),
    ((1, 300), (128, 128)),
    ((5, 40), (3, 1)),
    ((2, 3, 9, 11), (4, 3)),
    ((2, 6, 5), (2**70, 2)),
    ((13, 17), ()),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "block"), FP8)
def test_fp8_is_payload_times_scale_rounded_once(
    shape: tuple[int, ...], block: tuple[int, ...], scales: torch.dtype, dtype: str
) -> None:
    given, encoded = fp8(shape, block, scales)
    assert same_bytes(decoding.decode(logical(encoded, dtype), encoded, given), by_hand(given, block, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_of_fp8_under_many_scales(dtype: str) -> None:
    """All 256 codes, with scales of every size up to those that overflow or vanish."""
    scales = torch.cat([torch.tensor([0.0, 1.0, math.inf, 1e38, 1e-45]), torch.randn(123).exp() ** 9]).view(-1, 1)
    codes = torch.arange(256, dtype=torch.uint8).repeat(len(scales), 1)
    given = {"w": codes.view(torch.float8_e4m3fn), "s": scales}
    found = decoding.decode(TensorSpec("w", (128, 256), dtype), encoding("fp8_blocks", given, (1, 256)), given)
    assert same_bytes(found, (given["w"].float() * scales).to(torch_dtype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [(8, 16), (128, 128), ()])
@pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="transformers 4 decodes FP8 on a GPU only")
def test_fp8_is_what_transformers_decodes(block: tuple[int, ...], dtype: str) -> None:
    """It derives the block from the grid, so that it knows no partial blocks."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    shape = (block[0] * 3, block[1] * 5) if block else (13, 17)
    given, encoded = fp8(shape, block)
    theirs = Fp8Dequantize(None)._dequantize_one(given["w"], given["s"], torch_dtype(dtype))
    assert same_bytes(decoding.decode(logical(encoded, dtype), encoded, given), theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_of_mxfp4_under_every_scale(dtype: str) -> None:
    """The codes in both halves of a byte, compared with the arithmetic and with transformers, which transposes."""
    codes = torch.arange(16)
    group = torch.stack([codes, codes.flip(0)], 1).flatten()
    blocks = (group[0::2] | group[1::2] << 4).to(torch.uint8).repeat(1, 256, 1, 1)
    scales = torch.arange(256, dtype=torch.uint8).view(1, 256, 1)
    given = {"b": blocks, "s": scales}
    found = decoding.decode(TensorSpec("w", (1, 256, 32), dtype), encoding("mxfp4", given), given)
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = torch.cat([magnitudes, -magnitudes])[group].double()
    powers = torch.tensor([2.0 ** (scale - 127) for scale in range(256)], dtype=torch.float64)
    assert same_bytes(found[0], (values * powers[:, None]).float().to(torch_dtype(dtype)))
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch_dtype(dtype)).transpose(1, 2)
    assert same_bytes(found, theirs)


def test_mxfp4_is_what_transformers_decodes() -> None:
    given, encoded = mxfp4(3, 7, 96)
    found = decoding.decode(logical(encoded), encoded, given)
    assert same_bytes(found, convert_moe_packed_tensors(given["b"], given["s"]).transpose(1, 2))


# ---- any part, from files --------------------------------------------------------------------------------------------


@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*range(len(FP8)), "mxfp4"])
def test_a_part_is_a_slice_of_the_whole(
    case: int | str, dtype: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For strips of every length, so that they end anywhere in a row and a block."""
    given, encoded = mxfp4(2, 5, 96) if isinstance(case, str) else fp8(*FP8[case])
    whole = decoding.decode(logical(encoded, dtype), encoded, given).flatten()
    read = reading(stored(tmp_path_factory.mktemp("part") / "x", given), encoded, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "STRIP", data.draw(st.integers(1, 200)))
        for _ in range(10):
            start, stop = sorted((data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))))
            assert same_bytes(read(start, stop), whole[start:stop]), (start, stop)


@given(data=st.data())
@pytest.mark.parametrize("case", [*range(len(FP8)), "mxfp4"])
def test_runs_are_slices_of_the_whole(
    case: int | str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Short ones at equal distances, as down a column, and others; many are decoded at once."""
    given, encoded = mxfp4(2, 5, 96) if isinstance(case, str) else fp8(*FP8[case])
    spec = logical(encoded)
    whole = decoding.decode(spec, encoded, given).flatten()
    checkpoint = open_checkpoint(stored(tmp_path_factory.mktemp("runs") / "x", given))
    tensors = bind(identity(encoded), checkpoint)
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(Reader(["w"], tensors, checkpoint.files)) as reader:
        patch.setattr(decoding, "STRIP", data.draw(st.integers(1, 200)))
        for _ in range(5):
            length = data.draw(st.integers(1, min(40, len(whole))))
            step = data.draw(st.sampled_from([1, 7, 32, spec.shape[-1], 2 * spec.shape[-1]]))
            first = data.draw(st.integers(0, len(whole) - length))
            starts = [*range(first, len(whole) - length + 1, step)][:50]
            starts += data.draw(st.lists(st.integers(0, len(whole) - length), max_size=5))
            buffer = bytearray(len(starts) * length * 2 + 6)
            reader.read_runs(0, (tensors[0].offset + 2 * start for start in starts), 2 * length, memoryview(buffer))
            expected = torch.cat([whole[start : start + length] for start in starts])
            assert same_bytes(torch.frombuffer(buffer[:-6], dtype=torch.bfloat16), expected), (starts, length)
            assert buffer[-6:] == bytes(6)


def test_large_tensors_are_decoded_in_strips(tmp_path: Path) -> None:
    """No read asks for more than a strip, and what a strip needs fits what a worker has beside its buffers."""
    given, encoded = fp8((700, 500), (128, 128))
    (tensor,) = bind(identity(encoded), open_checkpoint(stored(tmp_path / "x", given)))
    longest = 0

    def read(path: Path, offset: int, view: memoryview) -> None:
        nonlocal longest
        longest = max(longest, len(view))
        with path.open("rb") as stream:
            stream.seek(offset)
            stream.readinto(view)

    buffer = bytearray(tensor.nbytes)
    assert tensor.content is not None
    tensor.content.fill(0, memoryview(buffer), read)
    assert longest <= decoding.STRIP < 700 * 500
    assert decoding.SCRATCH < _SLACK // 2
    assert same_bytes(torch.frombuffer(buffer, dtype=torch.bfloat16).view(700, 500), by_hand(given, (128, 128), "BF16"))


def test_memory_is_bounded_while_decoding(tmp_path: Path) -> None:
    """A sparse model of matrices that are decoded, some also transposed, within the stated memory."""
    rows, columns, count = 4096, 8192, 6
    specs, copies, targets, encodings, stored_specs = [], [], [], [], []
    for number in range(count):
        name = f"{number}"
        payload, scales = TensorSpec(name, (rows, columns), "F8_E4M3"), TensorSpec(f"{name}.s", (32, 64), "F32")
        stored_specs += [payload, scales]
        encodings.append(Encoding(name, "fp8_blocks", (payload, scales), (128, 128)))
        specs.append(TensorSpec(name, (rows, columns), "BF16"))
        turned = number < 2
        targets.append(TensorSpec(name, (columns, rows) if turned else (rows, columns), "BF16"))
        axes = ((columns, rows), 0, (1, columns), 0, (rows, 1)) if turned else ((rows * columns,), 0, (1,), 0, (1,))
        copies.append((name, name, *axes, 0))
    plan = make_plan(specs, targets, copies, encodings=encodings)
    header = build_header(stored_specs, {})
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "model.safetensors").open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + sum(spec.nbytes for spec in stored_specs))
    (tmp_path / "plan.json").write_text(plan.to_json())
    arguments = [str(tmp_path / name) for name in ("plan.json", "in", "out")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used, stated = map(int, done.stdout.split())
    assert used <= stated, f"{used >> 20} of {stated >> 20} MiB"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_decoding_on_a_gpu_is_the_same() -> None:
    plan, given, expected = fused()
    for name, tensor in execute(plan, {name: tensor.cuda() for name, tensor in given.items()}):
        assert tensor.is_cuda
        torch.testing.assert_close(tensor.cpu(), expected[name], rtol=0, atol=0, equal_nan=True)
