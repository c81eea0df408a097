"""Plans executed from file to file, against the same moves made on whole tensors by torch, and read by safetensors."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from small_buffers import shrink

from crosswalk.runtime.checkpoint.checksum import CHUNK
from crosswalk.runtime.checkpoint.output import Written, hugging_face_layout, native_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.dtypes import dtype_name, size_of
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files import convert as conversion
from crosswalk.runtime.files import kernels, rearranging, tasks
from crosswalk.runtime.files import schedule as lowering
from crosswalk.runtime.files import workers as engine
from crosswalk.runtime.files.convert import Options, checksum_checkpoint, verify_checkpoint, write_checkpoint
from crosswalk.runtime.plan.model import Exemption, Plan, RawCopy, TensorSpec, make_plan

Tensors = dict[str, torch.Tensor]


def spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), dtype_name(tensor.dtype))


def moved(
    sources: Tensors, build: Callable[[Tensors], Tensors], dtypes: Mapping[str, torch.dtype] | None = None
) -> Plan:
    """The plan of a function that only rearranges elements, found by running it on their numbers.

    Every target is cut into the largest boxes that come from one source by strides, by a search that knows nothing of
    how the function was written.
    """
    numbers, start = {}, 0
    for name, tensor in sources.items():
        numbers[name] = torch.arange(start, start + tensor.numel()).view(tensor.shape)
        start += tensor.numel()
    bounds = [(int(n.flatten()[0]), n.numel(), name) for name, n in numbers.items() if n.numel()]
    copies: list[RawCopy] = []
    targets = []
    for name, result in build(numbers).items():
        found = build(sources)[name]
        dtype = (dtypes or {}).get(name, found.dtype)
        targets.append(TensorSpec(name, tuple(result.shape), dtype_name(dtype)))
        copies += boxes(name, result.reshape(-1).tolist(), tuple(result.shape), bounds)
    return make_plan([spec(name, tensor) for name, tensor in sources.items()], targets, copies)


def boxes(name: str, flat: list[int], shape: tuple[int, ...], bounds: list[tuple[int, int, str]]) -> Iterator[RawCopy]:
    """Runs of constant stride within the rows of a tensor, joined over rows where they repeat."""
    width = shape[-1] if shape else 1
    rows = [flat[i : i + width] for i in range(0, len(flat), width)] if flat else []
    runs: list[tuple[int, int, int, int]] = []  # target offset, source number, length, step
    for number, row in enumerate(rows):
        i = 0
        while i < width:
            home = next(b for b in bounds if b[0] <= row[i] < b[0] + b[1])
            step = row[i + 1] - row[i] if i + 1 < width else 1
            j = i + 1
            while j < width and step > 0 and row[j] - row[j - 1] == step and row[j] < home[0] + home[1]:
                j += 1
            runs.append((number * width + i, row[i], j - i, step if j - i > 1 else 1))
            i = j
    by_column: dict[int, list[tuple[int, int, int, int]]] = {}
    for run in runs:
        by_column.setdefault(run[0] % width, []).append(run)
    for column in by_column.values():
        k = 0
        while k < len(column):
            place, number, length, step = column[k]
            home = next(b for b in bounds if b[0] <= number < b[0] + b[1])
            m = k + 1
            jumps = (0, 0)
            while m < len(column) and column[m][2:] == (length, step):
                jump = column[m][0] - column[m - 1][0], column[m][1] - column[m - 1][1]
                if (m > k + 1 and jump != jumps) or jump[1] <= 0 or not home[0] <= column[m][1] < home[0] + home[1]:
                    break
                if not nested(((m - k + 1, jump[1]), (length, step))):
                    break
                jumps, m = jump, m + 1
            count = m - k
            yield home[2], name, (count, length), number - home[0], (jumps[1], step), place, (jumps[0], 1), 0
            k = m


def nested(axes: tuple[tuple[int, int], ...]) -> bool:
    ordered = sorted((axis for axis in axes if axis[0] > 1), key=lambda axis: axis[1])
    reach = 0
    for extent, stride in ordered:
        if stride <= reach:
            return False
        reach += (extent - 1) * stride
    return True


def noise(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Random bits, so with every kind of not-a-number."""
    width = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * width), dtype=torch.uint8).view(dtype)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit."""
    bits = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def save(tensors: Tensors, directory: Path) -> Path:
    """In two files with an index, in an order that is not that of the names."""
    directory.mkdir()
    names = list(tensors)
    weight_map = {name: f"{'ba'[k % 2]}.safetensors" for k, name in enumerate(names)}
    for file in set(weight_map.values()):
        part = {name: tensors[name].contiguous() for name in names if weight_map[name] == file}
        safetensors.torch.save_file(part, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def load(directory: Path) -> Tensors:
    result: Tensors = {}
    for path in directory.glob("*.safetensors"):
        result |= safetensors.torch.load_file(path)
    return result


def convert(
    tmp_path: Path,
    sources: Tensors,
    build: Callable[[Tensors], Tensors],
    dtypes: Mapping[str, torch.dtype] | None = None,
    options: Options | None = None,
) -> None:
    """Convert, and compare with what the function makes of the tensors."""
    plan = moved(sources, build, dtypes)
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    options = options or Options(workers=2)
    report = write_checkpoint(plan, checkpoint, tmp_path / "out", options=options)
    expected = {name: tensor.to((dtypes or {}).get(name, tensor.dtype)) for name, tensor in build(sources).items()}
    found = load(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert same(found[name], tensor), name
    output = open_checkpoint(tmp_path / "out")
    verify_checkpoint(plan, checkpoint, output, options=options)
    if options.checksum != "none":
        assert report.checksums == checksum_checkpoint(output, options.checksum)
    assert report.total_size == sum(tensor.numel() * tensor.element_size() for tensor in expected.values())


@pytest.fixture(params=[True, False], ids=["torch", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as in a process that has torch, and once as in one that does without where it can."""
    monkeypatch.setattr(conversion, "_has_torch", lambda: request.param)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def dense(t: Tensors) -> Tensors:
    """Rename, concatenate, split and transpose, as dense models need it."""
    q, k, v = t["qkv"].split([21, 7, 7])
    return {
        "q": q,
        "k": k,
        "v": v,
        "gate_up": torch.cat([t["gate"], t["up"]]),
        "down": t["down"].t(),
        "norm": t["norm"],
        "empty": t["empty"],
        "scalar": t["scalar"],
    }


def dense_sources(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    return {
        "down": noise(33, 67, dtype=dtype),
        "qkv": noise(35, 33, dtype=dtype),
        "gate": noise(67, 33, dtype=dtype),
        "norm": noise(33, dtype=dtype),
        "up": noise(67, 33, dtype=dtype),
        "empty": noise(0, 5, dtype=dtype),
        "scalar": noise(1, dtype=dtype)[0],
    }


def experts(t: Tensors) -> Tensors:
    """Stack experts, interleave their gate and up rows, transpose each."""
    gate_up = [torch.stack([t[f"{e}.gate"], t[f"{e}.up"]], 1).flatten(0, 1) for e in range(5)]
    return {
        "gate_up": torch.stack(gate_up),
        "down": torch.stack([t[f"{e}.down"].t() for e in range(5)]),
        "router": t["router"].view(5, 3, 11).transpose(0, 1).reshape(15, 11),
        "pairs": t["pairs"].view(9, 2, 35).transpose(1, 2).reshape(9, 70),
    }


def expert_sources(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    shapes = {"gate": (37, 41), "up": (37, 41), "down": (41, 37)}
    result = {f"{e}.{name}": noise(*shape, dtype=dtype) for e in range(5) for name, shape in shapes.items()}
    return {**result, "router": noise(15, 11, dtype=dtype), "pairs": noise(18, 35, dtype=dtype)}


WORKLOADS = {"dense": (dense, dense_sources), "experts": (experts, expert_sources)}


@pytest.mark.usefixtures("small", "either")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("checksum", ["xxh3", "none"])
def test_rearranging(tmp_path: Path, workload: str, dtype: torch.dtype, checksum: str) -> None:
    build, sources = WORKLOADS[workload]
    convert(tmp_path, sources(dtype), build, options=Options(workers=3, checksum=checksum))


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
    options = Options(workers=2, memory=engine.peak_memory(2, 1 << 20))
    report = write_checkpoint(plan, checkpoint, tmp_path / "out", options=options)
    found = load(tmp_path / "out")
    assert same(found["a"], sources["a"].t())
    assert same(found["b"], sources["b"].t())
    assert report.peak_memory <= options.memory if options.memory else False
    assert report.checksums == checksum_checkpoint(open_checkpoint(tmp_path / "out"))


@pytest.mark.usefixtures("small", "either")
@pytest.mark.parametrize("checksum", ["xxh3", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tall_transposes_move_in_tiles(tmp_path: Path, dtype: torch.dtype, checksum: str) -> None:
    """So tall that a panel of whole rows would read runs of an element or two; alone, and stacked behind another."""
    tall, stack, norm = torch.randn(1501, 301), torch.randn(3, 1101, 307), torch.randn(5)
    sources = {name: t.bfloat16() for name, t in (("tall", tall), ("stack", stack), ("norm", norm))}
    name = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
    size = stack.numel()
    plan = make_plan(
        [spec(name, tensor) for name, tensor in sources.items()],
        [TensorSpec("tall", (301, 1501), name), TensorSpec("both", (5 + size,), name)],
        [
            ("tall", "tall", (301, 1501), 0, (1, 301), 0, (1501, 1), 0),
            ("norm", "both", (5,), 0, (1,), 0, (1,), 0),
            ("stack", "both", (3, 307, 1101), 0, (size // 3, 1, 307), 5, (size // 3, 1101, 1), 0),
        ],
    )
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    lowered = lowering.Lowering(plan, checkpoint.match(plan.sources, "the plan reads"), engine.PANEL)
    segments = [segment for task in lowered.tasks((0, 1)) for segment in task]
    assert {plan.targets[s.target].name for s in segments if s.run < s.nbytes} == {"both", "tall"}

    report = write_checkpoint(plan, checkpoint, tmp_path / "out", options=Options(workers=3, checksum=checksum))
    found = load(tmp_path / "out")
    assert same(found["tall"], sources["tall"].t().to(dtype))
    both = torch.cat([sources["norm"], sources["stack"].transpose(1, 2).flatten()])
    assert same(found["both"], both.to(dtype))
    output = open_checkpoint(tmp_path / "out")
    verify_checkpoint(plan, checkpoint, output, options=Options(workers=3))
    if checksum != "none":
        assert report.checksums == checksum_checkpoint(output)
    stored = output.tensors["both"]
    with open(stored.file, "r+b") as file:
        file.seek(stored.offset + stored.nbytes - 4003)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CrosswalkError, match=f"from byte {stored.nbytes - 4003} on"):
        verify_checkpoint(plan, checkpoint, open_checkpoint(tmp_path / "out"), options=Options(workers=3))


@given(st.data())
@settings(max_examples=60, deadline=None)
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
    piece = tasks.Piece(0, tuple(numbers.shape), 0, numbers.stride(), offset, tuple(strides))
    flat = numbers.reshape(-1)
    cuts = sorted({offset, offset + size, *data.draw(st.lists(st.integers(offset, offset + size), max_size=4))})
    for start, stop in itertools.pairwise(cuts):
        panel = torch.full((stop - start,), -1)
        for box in lowering.clip(piece, start, stop):
            runs, staged, _ = lowering.stage(box, data.draw(st.integers(0, 200)), data.draw(st.integers(0, 8)))
            read = torch.cat([torch.arange(begin, begin + runs.length) for begin in runs.starts()])
            assert len(read) == runs.number * runs.length
            moved = read.as_strided(box.extents, staged)
            panel.as_strided(box.extents, box.strides, box.offset - start).copy_(moved)
        assert torch.equal(panel, flat[start - offset : stop - offset])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_transpose_kernel_is_exact(dtype: torch.dtype, shuffle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shuffle and without, for whole and for part matrices, odd and even."""
    words = dtype in (torch.int16, torch.int32)
    monkeypatch.setattr(kernels, "shuffle_is_faster", lambda dtype: shuffle and words)
    for rows, columns in ((512, 512), (513, 1025), (1, 2), (1, 1), (37, 1030), (700, 33)):
        source = noise(rows, columns, dtype=dtype)
        target = torch.zeros(columns, rows, dtype=dtype)
        kernels.transpose(source, target.t())
        assert torch.equal(target, source.t()), (rows, columns)
    wide = noise(300, 700, dtype=dtype)
    target = torch.zeros(90, 400, dtype=dtype)
    kernels.transpose(wide[:, 50:140], target[:, 7:307].t())
    assert torch.equal(target[:, 7:307], wide[:, 50:140].t())


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
    piece = tasks.Piece(0, tuple(shape), offsets[0], read, offsets[1], written)
    size = (math.prod(shape) + 6) * width
    source, expected = noise(size, dtype=torch.uint8), noise(size, dtype=torch.uint8)
    shift = data.draw(st.integers(0, width - 1))
    buffer = bytearray(shift) + bytearray(expected.numpy().tobytes())
    rearranging.move(memoryview(source.numpy()), memoryview(buffer)[shift:], width, piece)
    kernels.move(source, dtype, expected, dtype, piece)
    assert buffer[shift:] == expected.numpy().tobytes()


def test_shards_and_index(tmp_path: Path) -> None:
    sources = dense_sources()
    plan = moved(sources, dense)
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    write_checkpoint(
        plan,
        checkpoint,
        tmp_path / "out",
        layout=hugging_face_layout(max_shard_bytes=5000),
        extra={"config.json": b"{}"},
        carried={"tokenizer.json": tmp_path / "in" / "model.safetensors.index.json"},
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(target.nbytes for target in plan.targets)
    assert index["weight_map"].keys() == {target.name for target in plan.targets}
    assert len(set(index["weight_map"].values())) > 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *index["weight_map"].values(),
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
    }
    expected = dense(sources)
    for file in set(index["weight_map"].values()):
        with safetensors.safe_open(tmp_path / "out" / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == {name for name, where in index["weight_map"].items() if where == file}
            total = sum(expected[name].numel() * 2 for name in opened.keys())  # noqa: SIM118
            assert total <= 5000 or len(opened.keys()) == 1
    assert {t.name: t for t in open_checkpoint(tmp_path / "out").specs()} == {t.name: t for t in plan.targets}


def test_native_layout_gets_the_index_and_the_checksums(tmp_path: Path) -> None:
    sources = dense_sources()
    seen: list[Written] = []

    def finish(written: Written) -> dict[str, bytes]:
        seen.append(written)
        assert not (tmp_path / "out").exists()
        return {"metadata.yaml": b"x: 1\n", "ok": b""}

    plan = moved(sources, dense)
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    report = write_checkpoint(plan, checkpoint, tmp_path / "out", layout=native_layout(finish, 5000))
    (written,) = seen
    assert written.weight_map.keys() == {f"{target.name}/weights" for target in plan.targets}
    assert set(written.weight_map.values()) == {f"model_{k}.safetensors" for k in range(len(report.files))}
    assert written.checksums == {f"{name}/weights": value for name, value in report.checksums.items()}
    output = open_checkpoint(tmp_path / "out", written.weight_map)
    verify_checkpoint(plan, checkpoint, output.select({f"{t.name}/weights": t.name for t in plan.targets}))


def test_mixed_dtypes_are_aligned(tmp_path: Path) -> None:
    sources = {"a": noise(3, dtype=torch.uint8), "b": noise(5), "c": noise(7, dtype=torch.int64), "d": noise(1)}
    plan = moved(sources, lambda t: {f"new.{name}": tensor for name, tensor in t.items()})
    write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out")
    assert {name: same(t, sources[name[4:]]) for name, t in load(tmp_path / "out").items()} == dict.fromkeys(
        ["new.a", "new.b", "new.c", "new.d"], True
    )
    for stored in open_checkpoint(tmp_path / "out").tensors.values():
        assert stored.offset % (stored.nbytes // math.prod(stored.shape)) == 0


def tied_plan(sources: Tensors) -> Plan:
    specs = [spec(name, tensor) for name, tensor in sources.items()]
    size = sources["embed"].numel()
    return make_plan(
        specs,
        [TensorSpec("out", tuple(sources["embed"].shape), "BF16")],
        [("embed", "out", (size,), 0, (1,), 0, (1,), 0)],
        exemptions=[Exemption("tied", "head", "embed")],
    )


def test_ties_are_compared(tmp_path: Path) -> None:
    embed = noise(1300, 1100)
    sources = {"embed": embed, "head": embed.clone()}
    write_checkpoint(tied_plan(sources), open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out")
    sources["head"].view(torch.uint8)[1299, 2199] ^= 1
    broken = open_checkpoint(save(sources, tmp_path / "broken"))
    with pytest.raises(CrosswalkError, match=r"`head`, tied to `embed`, .* from byte 2859999 on"):
        write_checkpoint(tied_plan(sources), broken, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_verify_names_every_difference(tmp_path: Path) -> None:
    sources = expert_sources()
    plan = moved(sources, experts)
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    write_checkpoint(plan, checkpoint, tmp_path / "out")
    output = open_checkpoint(tmp_path / "out")
    raw = bytearray((tmp_path / "out" / "model.safetensors").read_bytes())
    for name, place in {"down": 7, "router": 100, "gate_up": 4000}.items():
        raw[output.tensors[name].offset + place] ^= 255
    (tmp_path / "out" / "model.safetensors").write_bytes(raw)
    with pytest.raises(CrosswalkError) as error:
        verify_checkpoint(plan, checkpoint, open_checkpoint(tmp_path / "out"))
    messages = sorted(diagnostic.message for diagnostic in error.value.diagnostics)
    assert [(m.split("`")[1], m.split()[-2]) for m in messages] == [
        ("down", "7"),
        ("gate_up", "4000"),
        ("router", "100"),
    ]


def test_a_source_that_is_not_what_the_plan_reads(tmp_path: Path) -> None:
    sources = dense_sources()
    plan = moved(sources, dense)
    sources["norm"] = noise(34)
    sources["up"] = noise(67, 33, dtype=torch.float16)
    sources["more"] = sources.pop("gate")
    with pytest.raises(CrosswalkError) as error:
        write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out")
    assert sorted((d.code, d.message.split("`")[1]) for d in error.value.diagnostics) == [
        ("checkpoint/missing-tensor", "gate"),
        ("checkpoint/tensor-differs", "norm"),
        ("checkpoint/tensor-differs", "up"),
        ("checkpoint/unexpected-tensor", "more"),
    ]
    assert not (tmp_path / "out").exists()


def test_a_plan_that_is_no_bijection_is_refused(tmp_path: Path) -> None:
    sources = {"a": noise(9)}
    plan = make_plan(
        [spec("a", sources["a"])], [TensorSpec("b", (9,), "BF16")], [("a", "b", (8,), 0, (1,), 0, (1,), 0)]
    )
    with pytest.raises(CrosswalkError):
        write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (Options(workers=0), "options/workers"),
        (Options(checksum="md5"), "options/checksum"),
        (Options(memory=1000), "options/memory"),
        (Options(resume=True, checksum="none"), "options/resume"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: Options, code: str) -> None:
    sources = {"a": noise(9)}
    plan = moved(sources, lambda t: {"b": t["a"]})
    with pytest.raises(CrosswalkError) as error:
        write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out", options=options)
    assert [diagnostic.code for diagnostic in error.value.diagnostics] == [code]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "model.safetensors", "", "./x"])
def test_output_names(tmp_path: Path, name: str) -> None:
    sources = {"a": noise(9)}
    plan = moved(sources, lambda t: {"b": t["a"]})
    with pytest.raises(CrosswalkError) as error:
        write_checkpoint(plan, open_checkpoint(save(sources, tmp_path / "in")), tmp_path / "out", extra={name: b""})
    assert [diagnostic.code for diagnostic in error.value.diagnostics] == ["output/file-name"]


def test_checksum_definition(tmp_path: Path) -> None:
    """The checksum can be computed by anyone, by its definition."""
    tensor = noise(3 * CHUNK // 2 + 5)
    safetensors.torch.save_file({"a": tensor}, tmp_path / "model.safetensors")
    raw = tensor.view(torch.uint8).numpy().tobytes()
    digests = [xxhash.xxh3_128_digest(raw[i : i + CHUNK]) for i in range(0, len(raw), CHUNK)]
    expected = xxhash.xxh3_128_hexdigest(b"".join(digests))
    assert len(digests) == 4
    assert checksum_checkpoint(open_checkpoint(tmp_path)) == {"a": expected}


def test_sha256_is_that_of_the_bytes_of_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied, transposed, cast or empty, written by one worker or by several: what hashlib says of it."""
    shrink(monkeypatch)
    sources = {"copied": noise(70, 121), "turned": noise(75, 103), "cast": noise(71, 97), "none": noise(0, 3)}
    plan = moved(
        sources,
        lambda t: {"a": t["copied"], "b": t["turned"].T, "c": t["cast"], "d": t["none"]},
        {"c": torch.bfloat16},
    )
    source = open_checkpoint(save(sources, tmp_path / "in"))
    report = write_checkpoint(plan, source, tmp_path / "out", options=Options(workers=3, checksum="sha256"))
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    expected = {
        name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in written.items()
    }
    assert report.checksums == expected
    assert checksum_checkpoint(open_checkpoint(tmp_path / "out"), "sha256") == expected


def test_progress(tmp_path: Path) -> None:
    sources = {f"{i}": noise(512, 1024) for i in range(40)}
    plan = renamed(sources)
    calls: list[tuple[int, int, str]] = []
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    write_checkpoint(plan, checkpoint, tmp_path / "out", on_progress=lambda *call: calls.append(call))
    total = 40 * 512 * 1024 * 2
    assert calls[-1][:2] == (total, total)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert all(call[2].startswith("new.") for call in calls)


def renamed(sources: Tensors) -> Plan:
    return make_plan(
        [spec(name, tensor) for name, tensor in sources.items()],
        [spec(f"new.{name}", tensor) for name, tensor in sources.items()],
        [(name, f"new.{name}", (t.numel(),), 0, (1,), 0, (1,), 0) for name, t in sources.items()],
    )


MEMORY = """
import resource, sys
from pathlib import Path
from crosswalk.runtime.files import convert as conversion
from crosswalk.runtime.files.convert import Options, write_checkpoint
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.files import workers as engine
import torch, threading

plan = Plan.from_json(Path(sys.argv[1]).read_text())
source = open_checkpoint(Path(sys.argv[2]))
plan.verify()
def status(key):
    return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith(key))
before = status("RssAnon")
# Threads and their allocator arenas reserve address space without using it.
limit = status("VmData") + engine.peak_memory(2) + 2 * (8 << 20) + 3 * (64 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
peak = [0]
stop = threading.Event()
def watch():
    while not stop.wait(0.002):
        peak[0] = max(peak[0], status("RssAnon"))
threading.Thread(target=watch, daemon=True).start()
write_checkpoint(plan, source, Path(sys.argv[3]), options=Options(workers=2))
stop.set()
print(peak[0] - before, engine.peak_memory(2))
"""


def test_memory_is_bounded_whatever_the_model(tmp_path: Path) -> None:
    """A sparse model of 2 GB, all transposed or cast, within the stated memory, enforced by the system."""
    rows, columns, count = 4096, 8192, 12
    names = [f"{i}" for i in range(count)]
    specs = [TensorSpec(name, (rows, columns), "F32") for name in names]
    from crosswalk.runtime.checkpoint.header import build_header

    header = build_header(specs, {})
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in" / "model.safetensors", "wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + count * rows * columns * 4)
    targets, copies = [], []
    size = rows * columns
    for name in names[:2]:
        targets.append(TensorSpec(name, (columns, rows), "F32"))
        copies.append((name, name, (columns, rows), 0, (1, columns), 0, (rows, 1), 0))
    for name in names[2:]:
        targets.append(TensorSpec(name, (rows, columns), "BF16"))
        copies.append((name, name, (size,), 0, (1,), 0, (1,), 0))
    (tmp_path / "plan.json").write_text(make_plan(specs, targets, copies).to_json())
    arguments = [str(tmp_path / name) for name in ("plan.json", "in", "out")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used, stated = map(int, done.stdout.split())
    assert used <= stated, f"{used >> 20} of {stated >> 20} MiB"
    assert engine.peak_memory(4) < 300 << 20
    for file in (tmp_path / "out").iterdir():
        os.unlink(file)


def test_random_plans(tmp_path: Path, small: None) -> None:
    """Shuffled stacks of rows from several tensors, of any size."""
    generator = random.Random(5)
    for case in range(8):
        sources = {f"{i}": noise(generator.randrange(1, 40), 13) for i in range(4)}
        total = sum(len(tensor) for tensor in sources.values())
        order = list(range(total))
        if case % 2:
            generator.shuffle(order)

        def build(t: Tensors, order: list[int] = order, cut: int = total // 3) -> Tensors:
            rows = torch.cat(list(t.values()))[order]
            return {"a": rows[:cut], "b": rows[cut:]}

        (tmp_path / str(case)).mkdir()
        convert(tmp_path / str(case), sources, build)
