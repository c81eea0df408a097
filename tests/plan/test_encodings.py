"""Encoded tensors: every code, every part of a tensor, the library's own decoding, and plans that read them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import oracles
import pytest
import safetensors.torch
import torch
from comparing import same_bytes
from hypothesis import given
from hypothesis import strategies as st
from peak_memory import MEMORY
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from crosswalk.compiler.catalog import schema
from crosswalk.runtime import execute
from crosswalk.runtime.checkpoint import decoding
from crosswalk.runtime.checkpoint.header import build_header
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.checkpoint.source import bind, open_checkpoint
from crosswalk.runtime.dtypes import DTYPES as KNOWN_DTYPES
from crosswalk.runtime.dtypes import dtype_name, torch_dtype
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import Options, verify_checkpoint, write_checkpoint
from crosswalk.runtime.files.workers import _SLACK
from crosswalk.runtime.plan.encodings import KINDS
from crosswalk.runtime.plan.model import Encoding, Exemption, Plan, RawCopy, TensorSpec, make_plan

DTYPES = ("BF16", "F16", "F32")
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


def bits(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def fp8(
    shape: tuple[int, ...], block: tuple[int, ...], scales: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], Encoding]:
    """A random tensor ``w``, every code among its elements as far as there is room."""
    grid = KINDS["fp8_blocks"].grids(shape, block)[-1]
    given = {"w": bits(*shape).view(torch.float8_e4m3fn), "s": torch.randn(grid).to(scales)}
    return given, encoding("fp8_blocks", given, block)


def mxfp4(*shape: int) -> tuple[dict[str, torch.Tensor], Encoding]:
    given = {"b": bits(*shape[:-1], shape[-1] // 32, 16), "s": bits(*shape[:-1], shape[-1] // 32)}
    return given, encoding("mxfp4", given)


def encoding(kind: str, given: dict[str, torch.Tensor], block: tuple[int, ...] = ()) -> Encoding:
    stored = tuple(TensorSpec(name, tuple(t.shape), dtype_name(t.dtype)) for name, t in given.items())
    return Encoding("w", kind, stored, block)


def logical(encoded: Encoding, dtype: str = "BF16") -> TensorSpec:
    shape = KINDS[encoded.kind].shape(encoded.stored[0].shape)
    assert shape is not None
    return TensorSpec("w", shape, dtype)


def by_hand(given: dict[str, torch.Tensor], block: tuple[int, ...], dtype: str) -> torch.Tensor:
    """FP8 element by element: its row and column over the block sizes are its scale's."""
    payload, scales = given["w"].float(), given["s"].float()
    if block:
        rows, columns = (
            torch.arange(size) // min(width, 2**40) for size, width in zip(payload.shape[-2:], block, strict=True)
        )
        scales = scales[..., rows, :][..., columns]
    return (payload * scales).to(torch_dtype(dtype))


def stored(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    return directory


def reading(directory: Path, encoded: Encoding, dtype: str) -> Any:
    """``read(start, stop)``: those elements, as a worker reads them from the files."""
    plan = identity(encoded, dtype)
    (tensor,) = bind(plan, open_checkpoint(directory))
    width = torch_dtype(dtype).itemsize

    def read(start: int, stop: int) -> torch.Tensor:
        buffer = bytearray((stop - start) * width)
        assert tensor.content is not None

        def from_file(path: Path, offset: int, view: memoryview) -> None:
            with path.open("rb") as stream:
                stream.seek(offset)
                assert stream.readinto(view) == len(view)

        tensor.content.fill(start * width, memoryview(buffer), from_file)
        return (
            torch.frombuffer(buffer, dtype=torch_dtype(dtype)) if buffer else torch.empty(0, dtype=torch_dtype(dtype))
        )

    return read


def identity(encoded: Encoding, dtype: str = "BF16", **changes: Any) -> Plan:
    """The plan that only decodes."""
    spec = logical(encoded, dtype)
    copy: RawCopy = ("w", "out", spec.shape, 0, strides(spec.shape), 0, strides(spec.shape), 0)
    target = dataclasses.replace(spec, name="out")
    return make_plan([spec], [target], [copy], encodings=[dataclasses.replace(encoded, **changes)])


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


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
            reader.read_runs(0, tensors[0].offset, iter(starts), length, 2, memoryview(buffer))
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


# ---- plans -----------------------------------------------------------------------------------------------------------


def fused() -> tuple[Plan, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two encoded matrices into one, an encoded one transposed and cast, and a plain one; with what comes out."""
    a, one = fp8((37, 53), (8, 16))
    b, two = fp8((11, 53), (8, 16))
    c, three = mxfp4(9, 64)
    given = {"a": a["w"], "a_s": a["s"], "b": b["w"], "b_s": b["s"], "c_b": c["b"], "c_s": c["s"]}
    given["plain"] = torch.randn(7).bfloat16()
    specs, encodings = [TensorSpec("plain", (7,), "BF16")], []
    for name, encoded, names in (("a", one, "a a_s"), ("b", two, "b b_s"), ("c", three, "c_b c_s")):
        parts = tuple(dataclasses.replace(p, name=n) for p, n in zip(encoded.stored, names.split(), strict=True))
        specs.append(dataclasses.replace(logical(encoded), name=name))
        encodings.append(Encoding(name, encoded.kind, parts, encoded.block))
    copies: list[RawCopy] = [
        ("a", "ab", (37 * 53,), 0, (1,), 0, (1,), 0),
        ("b", "ab", (11 * 53,), 0, (1,), 37 * 53, (1,), 0),
        ("c", "ct", (64, 9), 0, (1, 64), 0, (9, 1), 0),
        ("plain", "plain", (7,), 0, (1,), 0, (1,), 0),
    ]
    targets = [TensorSpec("ab", (48, 53), "BF16"), TensorSpec("ct", (64, 9), "F32"), TensorSpec("plain", (7,), "BF16")]
    whole = {name: decoding.decode(spec, e, given) for name, spec, e in zip("abc", specs[1:], encodings, strict=True)}
    expected = {"ab": torch.cat([whole["a"], whole["b"]]), "ct": whole["c"].T.float(), "plain": given["plain"]}
    return make_plan(specs, targets, copies, encodings=encodings), given, expected


def test_execute_decodes_what_is_given() -> None:
    plan, given, expected = fused()
    found = dict(execute(plan, given))
    assert found.keys() == expected.keys()
    assert all(same_bytes(found[name], expected[name]) for name in expected)
    with pytest.raises(CrosswalkError) as caught:
        execute(plan, {name: tensor for name, tensor in given.items() if name != "a_s"} | {"x": torch.ones(1)})
    assert [d.message for d in caught.value.diagnostics] == [
        "the plan needs the tensor `a_s`, which is not given",
        "the plan does not use the given tensor `x`",
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_files_are_decoded_on_the_way(workers: int, tmp_path: Path) -> None:
    plan, given, expected = fused()
    source = open_checkpoint(stored(tmp_path / "in", given))
    report = write_checkpoint(plan, source, tmp_path / "out", options=Options(workers=workers))
    assert report.total_size == sum(t.nbytes for t in expected.values())
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert all(same_bytes(found[name], expected[name]) for name in expected)
    verify_checkpoint(plan, source, open_checkpoint(tmp_path / "out"))
    found["ab"].view(torch.int16)[5, 5] ^= 1
    (tmp_path / "out" / "model.safetensors").unlink()
    safetensors.torch.save_file(found, tmp_path / "out" / "model.safetensors")
    with pytest.raises(CrosswalkError, match=r"`ab`.*differs"):
        verify_checkpoint(plan, source, open_checkpoint(tmp_path / "out"))


def test_a_checkpoint_without_scales_does_not_match(tmp_path: Path) -> None:
    plan, given, _ = fused()
    del given["c_s"]
    with pytest.raises(CrosswalkError, match="there is no tensor `c_s`, which the plan reads"):
        write_checkpoint(plan, open_checkpoint(stored(tmp_path / "in", given)), tmp_path / "out")


def test_tied_duplicates_are_compared_as_they_are_decoded(tmp_path: Path) -> None:
    """One stored in other codes under another scale is equal all the same."""
    given = {"w": torch.tensor([[2.0, 4.0]]).to(torch.float8_e4m3fn), "s": torch.tensor([[3.0]])}
    given |= {"v": torch.tensor([[4.0, 8.0]]).to(torch.float8_e4m3fn), "t": torch.tensor([[1.5]])}
    specs = [TensorSpec(name, (1, 2), "BF16") for name in "wv"]

    def encoded(name: str, scales: str) -> Encoding:
        return Encoding(
            name, "fp8_blocks", (TensorSpec(name, (1, 2), "F8_E4M3"), TensorSpec(scales, (1, 1), "F32")), (8, 8)
        )

    encodings = [encoded("w", "s"), encoded("v", "t")]
    copy: RawCopy = ("w", "out", (2,), 0, (1,), 0, (1,), 0)
    target = TensorSpec("out", (1, 2), "BF16")
    plan = make_plan(specs, [target], [copy], (), [Exemption("tied", "v", "w")], encodings=encodings)
    assert dict(execute(plan, given))["out"].tolist() == [[6.0, 12.0]]
    write_checkpoint(plan, open_checkpoint(stored(tmp_path / "in", given)), tmp_path / "out")
    given["t"] += 1
    with pytest.raises(CrosswalkError, match="`v` differs from `w`"):
        execute(plan, given)
    with pytest.raises(CrosswalkError, match="`v`, tied to `w`,"):
        write_checkpoint(plan, open_checkpoint(stored(tmp_path / "in2", given)), tmp_path / "out2")


def test_the_verdict_counts_what_is_decoded() -> None:
    plan, given, _ = fused()
    verdict = plan.verify()
    assert verdict.ok
    assert not verdict.bijective
    assert str(verdict) == (
        "bijective but for 2 tensors decoded from FP8 blocks of 8 x 16, 1 tensor decoded from MXFP4 groups of 32; "
        "1 tensor cast BF16 -> F32 (exact)"
    )
    assert plan.summary()["bytes_read"] == sum(tensor.nbytes for tensor in given.values())


def test_algebra_is_of_the_decoded_tensors() -> None:
    plan, given, expected = fused()
    back = plan.inverse()
    assert back.encodings == ()
    assert {spec.name: spec.dtype for spec in back.targets} == dict.fromkeys(["a", "b", "c", "plain"], "BF16")
    there = plan.compose(back)
    assert there.encodings == plan.encodings
    again = dict(execute(there.compose(plan), given))
    assert all(same_bytes(again[name], expected[name]) for name in expected)
    part = plan.restrict(targets={"ab": ((30, 48), (0, 53))})
    assert [e.tensor for e in part.encodings] == ["a", "b"]
    used = {name: given[name] for name in ("a", "a_s", "b", "b_s")}
    assert same_bytes(dict(execute(part, used))["ab"], expected["ab"][30:])
    boxes = {"a": ((0, 5), (0, 53)), "b": ((0, 11), (0, 53))}
    assert [e.tensor for e in plan.restrict(sources=boxes).encodings] == ["b"]


def test_json_digest_and_schema() -> None:
    plan, _, _ = fused()
    text = plan.to_json()
    jsonschema.validate(json.loads(text), schema("plan"))
    assert Plan.from_json(text) == plan
    assert plan.digest != dataclasses.replace(plan, encodings=()).digest
    assert "encodings" not in json.loads(plan.inverse().to_json())
    assert schema("plan")["$defs"]["encoding"]["prefixItems"][1]["enum"] == list(KINDS)
    for wrong in ("F7", "F8"):
        with pytest.raises(CrosswalkError, match="unknown dtype"):
            Plan.from_json(text.replace("F8_E4M3", wrong))


def test_every_kind_is_documented_and_of_known_dtypes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    for name, kind in KINDS.items():
        assert f"| `{name}` |" in page
        assert {*kind.payload, *kind.scales} <= set(KNOWN_DTYPES)


_SPEC = TensorSpec
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "fp9"}, "`fp9` is no kind of encoding; there are fp8_blocks, mxfp4"),
    "parts": ({"stored": (_SPEC("w", (37, 53), "F8_E4M3"),)}, "a payload and scales are stored, not 1 tensors"),
    "block": ({"block": (8,)}, "a block of sizes [8] is none of fp8_blocks"),
    "empty block": ({"block": (8, 0)}, "a block of sizes [8, 0] is none of fp8_blocks"),
    "dtype": (
        {"stored": (_SPEC("w", (37, 53), "U8"), _SPEC("s", (5, 4), "F32"))},
        "`w` has the dtype U8, not F8_E4M3",
    ),
    "grid": (
        {"stored": (_SPEC("w", (37, 53), "F8_E4M3"), _SPEC("s", (4, 5), "F32"))},
        "`s` has the shape [4, 5]; FP8 blocks of 8 x 16 have [5, 4]",
    ),
    "one scale": (
        {"block": ()},
        "`s` has the shape [5, 4]; FP8 with one scale each have [] or [1]",
    ),
    "vector": (
        {"stored": (_SPEC("w", (37,), "F8_E4M3"), _SPEC("s", (5,), "F32"))},
        "`w` has the shape [37], which no payload of FP8 blocks of 8 x 16 has",
    ),
    "shape": (
        {"stored": (_SPEC("w", (36, 53), "F8_E4M3"), _SPEC("s", (5, 4), "F32"))},
        "it has the shape [37, 53], and decoding gives [36, 53]",
    ),
    "mxfp4": (
        {"kind": "mxfp4", "block": (), "stored": (_SPEC("w", (37, 53), "U8"), _SPEC("s", (37,), "U8"))},
        "`w` has the shape [37, 53], which no payload of MXFP4 groups of 32 has",
    ),
    "no numbers": (
        {"stored": (_SPEC("w", (37, -1), "F8_E4M3"), _SPEC("s", (5, 4), "F32"))},
        "the shapes [[37, -1], [5, 4]] are none",
    ),
    "unknown": ({"tensor": "x"}, "the encoded `x` is not a source tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_encoding_is_a_problem(name: str) -> None:
    changes, expected = WRONG[name]
    _, encoded = fp8((37, 53), (8, 16))
    problems = identity(encoded, **changes).verify().problems
    assert any(expected in problem.message and problem.code == "plan/encoding" for problem in problems), problems


def test_a_stored_tensor_belongs_to_one_encoding_and_is_no_source() -> None:
    plan, _, _ = fused()
    a, b, c = plan.encodings
    shared = dataclasses.replace(b, stored=(b.stored[0], dataclasses.replace(b.stored[1], name="a_s")))
    taken = dataclasses.replace(b, stored=(b.stored[0], dataclasses.replace(b.stored[1], name="plain")))
    for wrong, expected in (
        ((a, a, b, c), "source tensor `a` is encoded 2 times"),
        ((a, shared, c), "the stored `a_s` belongs to 2 encodings"),
        ((a, taken, c), "`plain` is stored for an encoded tensor, and a source itself"),
    ):
        messages = [p.message for p in dataclasses.replace(plan, encodings=wrong).verify().problems]
        assert expected in messages
    integer = dataclasses.replace(plan.sources[0], dtype="I16")
    problems = dataclasses.replace(plan, sources=(integer, *plan.sources[1:])).verify().problems
    assert any("decoded to I16, which is no float" in problem.message for problem in problems)
