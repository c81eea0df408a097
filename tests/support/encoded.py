"""Encoded tensors of random bits, decoded by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from crosswalk.runtime.checkpoint import decoding
from crosswalk.runtime.checkpoint.source import bind, open_checkpoint
from crosswalk.runtime.dtypes import dtype_name, torch_dtype
from crosswalk.runtime.plan.encodings import KINDS
from crosswalk.runtime.plan.model import Encoding, Plan, RawCopy, TensorSpec, make_plan
from crosswalk.runtime.records import replace

DTYPES = ("BF16", "F16", "F32")


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
    target = replace(spec, name="out")
    return make_plan([spec], [target], [copy], encodings=[replace(encoded, **changes)])


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def fused() -> tuple[Plan, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two encoded matrices into one, an encoded one transposed and cast, and a plain one; with what comes out."""
    a, one = fp8((37, 53), (8, 16))
    b, two = fp8((11, 53), (8, 16))
    c, three = mxfp4(9, 64)
    given = {"a": a["w"], "a_s": a["s"], "b": b["w"], "b_s": b["s"], "c_b": c["b"], "c_s": c["s"]}
    given["plain"] = torch.randn(7).bfloat16()
    specs, encodings = [TensorSpec("plain", (7,), "BF16")], []
    for name, encoded, names in (("a", one, "a a_s"), ("b", two, "b b_s"), ("c", three, "c_b c_s")):
        parts = tuple(replace(p, name=n) for p, n in zip(encoded.stored, names.split(), strict=True))
        specs.append(replace(logical(encoded), name=name))
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
