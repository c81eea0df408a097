"""Plans of functions that only move elements, checkpoints to execute them on, and what must come of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch

from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.dtypes import dtype_name
from crosswalk.runtime.files.convert import EngineOptions, checksum_checkpoint, verify_checkpoint, write_checkpoint
from crosswalk.runtime.plan.model import Plan, RawCopy, TensorSpec, make_plan

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
    options: EngineOptions | None = None,
) -> None:
    """Convert, and compare with what the function makes of the tensors."""
    plan = moved(sources, build, dtypes)
    checkpoint = open_checkpoint(save(sources, tmp_path / "in"))
    options = options or EngineOptions(workers=2)
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
