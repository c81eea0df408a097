"""Tensors rearranged from file to file: fused, transposed, permuted and cast, against the same moves made by torch."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from budgets import times
from hypothesis import given
from hypothesis import strategies as st
from moved_files import WORKLOADS, convert, load, noise, same, save, spec
from small_buffers import shrink

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files import convert as conversion
from crosswalk.runtime.files import kernels, rearranging
from crosswalk.runtime.files import schedule as lowering
from crosswalk.runtime.files import workers as engine
from crosswalk.runtime.files.convert import EngineOptions, checksum_checkpoint, verify_checkpoint, write_checkpoint
from crosswalk.runtime.plan.affine import Piece, PieceOf
from crosswalk.runtime.plan.model import TensorSpec, make_plan


@pytest.fixture(params=[True, False], ids=["torch", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as in a process that has torch, and once as in one that does without where it can."""
    monkeypatch.setattr(conversion, "_has_torch", lambda: request.param)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.mark.usefixtures("small", "either")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("checksum", ["xxh3", "none"])
def test_rearranging(tmp_path: Path, workload: str, dtype: torch.dtype, checksum: str) -> None:
    build, sources = WORKLOADS[workload]
    convert(tmp_path, sources(dtype), build, options=EngineOptions(workers=3, checksum=checksum))


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("workload", WORKLOADS)
def test_rearranging_at_full_size(tmp_path: Path, workload: str) -> None:
    build, sources = WORKLOADS[workload]
    convert(tmp_path, sources(), build)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float64),
        (torch.float8_e4m3fn, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_cast(tmp_path: Path, workload: str, source: torch.dtype, target: torch.dtype) -> None:
    build, make = WORKLOADS[workload]
    sources = {name: torch.randn(tensor.shape).to(source) for name, tensor in make().items()}
    kept = {"norm", "router", "empty"}
    dtypes = {name: target for name in build(sources) if name not in kept}
    convert(tmp_path, sources, build, dtypes)


@pytest.mark.usefixtures("either")
def test_transpose_wider_than_a_panel(tmp_path: Path) -> None:
    sources = {"a": noise(1031, 2053), "b": noise(2500, 3000, dtype=torch.float32)}
    plan = make_plan(
        [spec(name, tensor) for name, tensor in sources.items()],
        [TensorSpec("a", (2053, 1031), "BF16"), TensorSpec("b", (3000, 2500), "F32")],
        [
            ("a", "a", (2053, 1031), 0, (1, 2053), 0, (1031, 1), 0),
            ("b", "b", (3000, 2500), 0, (1, 3000), 0, (2500, 1), 0),
        ],
    )
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    options = EngineOptions(workers=2, memory=engine.peak_memory(2, 1 << 20))
    report = write_checkpoint(plan, checkpoint, tmp_path / "out", options=options)
    found = load(tmp_path / "out")
    assert same(found["a"], sources["a"].t())
    assert same(found["b"], sources["b"].t())
    assert report.peak_memory <= options.memory if options.memory else False
    assert report.checksums == checksum_checkpoint(open_checkpoint(tmp_path / "out"))


@pytest.mark.parametrize(
    ("shape", "tiles"), [((14336, 4096), 0), ((4096, 14336), 0), ((53248, 16384), 52), ((152064, 5120), 76)]
)
def test_only_what_panels_would_read_in_very_short_runs_moves_in_tiles(shape: tuple[int, int], tiles: int) -> None:
    rows, columns = shape
    plan = make_plan(
        [TensorSpec("a", shape, "BF16")],
        [TensorSpec("a", (columns, rows), "BF16")],
        [("a", "a", (columns, rows), 0, (1, columns), 0, (rows, 1), 0)],
    )
    stored = StoredTensor(Path("model.safetensors"), 0, 2 * rows * columns, "BF16", shape)
    segments = [segment for task in lowering.Lowering(plan, [stored], engine.PANEL).tasks([0]) for segment in task]
    assert sum(segment.run < segment.nbytes for segment in segments) == tiles
    assert sum(segment.nbytes for segment in segments) == 2 * rows * columns


@pytest.mark.usefixtures("small", "either")
@pytest.mark.parametrize("checksum", ["xxh3", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tall_transposes_move_in_tiles(tmp_path: Path, dtype: torch.dtype, checksum: str) -> None:
    """So tall that a panel of whole rows would read runs of an element or two; alone, and stacked behind another."""
    tall, stack, norm = torch.randn(701, 151), torch.randn(3, 501, 157), torch.randn(5)
    sources = {name: t.bfloat16() for name, t in (("tall", tall), ("stack", stack), ("norm", norm))}
    name = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
    size = stack.numel()
    plan = make_plan(
        [spec(name, tensor) for name, tensor in sources.items()],
        [TensorSpec("tall", (151, 701), name), TensorSpec("both", (5 + size,), name)],
        [
            ("tall", "tall", (151, 701), 0, (1, 151), 0, (701, 1), 0),
            ("norm", "both", (5,), 0, (1,), 0, (1,), 0),
            ("stack", "both", (3, 157, 501), 0, (size // 3, 1, 157), 5, (size // 3, 501, 1), 0),
        ],
    )
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    lowered = lowering.Lowering(plan, checkpoint.match(plan.sources, "the plan reads"), engine.PANEL)
    segments = [segment for task in lowered.tasks((0, 1)) for segment in task]
    assert {plan.targets[s.target].name for s in segments if s.run < s.nbytes} == {"both", "tall"}

    report = write_checkpoint(plan, checkpoint, tmp_path / "out", options=EngineOptions(workers=3, checksum=checksum))
    found = load(tmp_path / "out")
    assert same(found["tall"], sources["tall"].t().to(dtype))
    both = torch.cat([sources["norm"], sources["stack"].transpose(1, 2).flatten()])
    assert same(found["both"], both.to(dtype))
    output = open_checkpoint(tmp_path / "out")
    verify_checkpoint(plan, checkpoint, output, options=EngineOptions(workers=3))
    if checksum != "none":
        assert report.checksums == checksum_checkpoint(output)
    stored = output.tensors["both"]
    with open(stored.file, "r+b") as file:
        file.seek(stored.offset + stored.nbytes - 4003)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CrosswalkError, match=f"from byte {stored.nbytes - 4003} on"):
        verify_checkpoint(plan, checkpoint, open_checkpoint(tmp_path / "out"), options=EngineOptions(workers=3))


@given(st.data())
@times(3)
def test_any_permutation_of_axes(data: st.DataObject) -> None:
    """Clipping to panels keeps every element, whatever the axes and wherever the cuts are."""
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(shape))))
    numbers = torch.arange(math.prod(shape)).view(shape).permute(order)
    offset = data.draw(st.integers(0, 5))
    strides, size = [], 1
    for extent in reversed(numbers.shape):
        strides.insert(0, size)
        size *= extent
    piece = Piece(offset, 0, tuple(zip(numbers.shape, strides, numbers.stride(), strict=True)))
    flat = numbers.reshape(-1)
    cuts = sorted({offset, offset + size, *data.draw(st.lists(st.integers(offset, offset + size), max_size=4))})
    for start, stop in itertools.pairwise(cuts):
        panel = torch.full((stop - start,), -1)
        for _, box in lowering.inside([PieceOf(0, piece)], start, stop):
            runs, staged, _ = lowering.stage(box, data.draw(st.integers(0, 200)), data.draw(st.integers(0, 8)))
            read = torch.cat([torch.arange(begin, begin + runs.length) for begin in runs.starts()])
            assert len(read) == runs.number * runs.length
            extents, strides_in_panel, strides_in_runs = staged.columns
            panel.as_strided(extents, strides_in_panel, box.here).copy_(read.as_strided(extents, strides_in_runs))
        assert torch.equal(panel, flat[start - offset : stop - offset])


@pytest.mark.parametrize("simd", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_transpose_kernel_is_exact(dtype: torch.dtype, simd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what torch's library has and without, for whole and for part matrices, odd and even."""
    has = kernels._simd(dtype) is not None
    monkeypatch.setattr(kernels, "simd_is_faster", lambda dtype: simd and has)
    for rows, columns in ((512, 512), (513, 1025), (1, 2), (1, 1), (37, 1030), (700, 33)):
        source = noise(rows, columns, dtype=dtype)
        target = torch.zeros(columns, rows, dtype=dtype)
        kernels.transpose(source, target.t())
        assert torch.equal(target, source.t()), (rows, columns)
    wide = noise(300, 700, dtype=dtype)
    target = torch.zeros(90, 400, dtype=dtype)
    kernels.transpose(wide[:, 50:140], target[:, 7:307].t())
    assert torch.equal(target[:, 7:307], wide[:, 50:140].t())
    assert not target[:, :7].any()
    assert not target[:, 307:].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_transposing_without_torch_is_exact(dtype: torch.dtype) -> None:
    for rows, columns in ((512, 512), (513, 1025), (1, 2), (1, 1), (37, 1030), (2100, 33)):
        source = noise(rows, columns, dtype=dtype)
        target = torch.zeros(columns, rows, dtype=dtype)
        rearranging.transpose(source.numpy(), target.numpy().T)
        assert torch.equal(target, source.t()), (rows, columns)
    wide = noise(300, 700, dtype=dtype)
    target = torch.zeros(90, 401, dtype=dtype)
    rearranging.transpose(wide.numpy()[:, 50:140], target.numpy()[:, 7:307].T)
    assert torch.equal(target[:, 7:307], wide[:, 50:140].t())
    assert not target[:, :7].any()
    assert not target[:, 307:].any()


@pytest.mark.parametrize("dtype", ["U8", "BF16", "F32", "I64"])
@given(data=st.data())
def test_moves_without_torch_are_those_of_torch(dtype: str, data: st.DataObject) -> None:
    """Any order of axes on both ends, at any place of a buffer, aligned or not; nothing beside them is touched."""
    width = size_of(dtype)
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 5, 33, 40]), max_size=4).filter(lambda s: math.prod(s) < 9000))
    orders = [data.draw(st.permutations(range(len(shape)))) for _ in range(2)]
    offsets = [data.draw(st.integers(0, 5)) for _ in range(2)]
    read, written = (
        tuple(torch.empty([shape[axis] for axis in order]).stride(order.index(axis)) for axis in range(len(shape)))
        for order in orders
    )
    piece = Piece(offsets[1], offsets[0], tuple(zip(shape, written, read, strict=True)))
    size = (math.prod(shape) + 6) * width
    source, expected = noise(size, dtype=torch.uint8), noise(size, dtype=torch.uint8)
    shift = data.draw(st.integers(0, width - 1))
    buffer = bytearray(shift) + bytearray(expected.numpy().tobytes())
    rearranging.move(memoryview(source.numpy()), memoryview(buffer)[shift:], width, piece)
    kernels.move(source, dtype, expected, dtype, piece)
    assert buffer[shift:] == expected.numpy().tobytes()
