"""Stand-ins for what inference engines and trainers take, with the interfaces of their packages: vLLM 0.33.0, SGLang
0.5.23, checkpoint-engine 0.4.2; and receivers of the folders of slime and SkyRL. The interfaces were compared with the
packages themselves."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import types
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open


@dataclass(frozen=True)
class ParamMeta:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    owners: tuple[int, ...] | None = field(default=None, kw_only=True)
    mesh_shape: tuple[int, ...] | None = field(default=None, kw_only=True)
    placements: tuple[Any, ...] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Replicate:
    pass


@dataclass(frozen=True)
class Shard:
    dim: int


class WeightSource:
    """Of vLLM: a class whose metadata is no cached property cannot be defined."""

    def __init_subclass__(cls) -> None:
        metadata = cls.__dict__.get("metadata")
        if metadata is not None and not isinstance(metadata, functools.cached_property):
            raise TypeError(f"{cls.__name__}.metadata must be a functools.cached_property")

    def implements_iter_full(self) -> bool:
        return type(self).iter_full is not WeightSource.iter_full

    def iter_full(self) -> Iterator[tuple[str, torch.Tensor]]:
        raise NotImplementedError


@dataclass
class SparseWeightPatch:
    name: str
    indices: torch.Tensor
    values: torch.Tensor
    full_shape: tuple[int, ...]


@dataclass
class FlattenedTensorMetadata:
    name: str
    shape: torch.Size
    dtype: torch.dtype
    start_idx: int
    end_idx: int
    numel: int


class ParameterServer:
    """Of checkpoint-engine."""

    def __init__(self) -> None:
        self.registered: dict[str, dict[str, torch.Tensor]] = {}

    def register_checkpoint(
        self,
        checkpoint_name: str,
        *,
        files: list[str] | None = None,
        named_tensors: dict[str, torch.Tensor] | None = None,
        use_shared_memory_pool: bool = False,
    ) -> None:
        self.registered[checkpoint_name] = dict(named_tensors or {})


class ZstdCompressor:
    def __init__(self, level: int) -> None:
        self.level = level

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data, self.level)


def install(patch: pytest.MonkeyPatch) -> None:
    """Let the stand-ins be imported as the packages."""
    modules: dict[str, dict[str, Any]] = {
        "vllm": {}, "vllm.distributed": {}, "vllm.distributed.weight_transfer": {},
        "vllm.distributed.weight_transfer.base": {
            "ParamMeta": ParamMeta, "WeightSource": WeightSource, "Replicate": Replicate, "Shard": Shard
        },
        "vllm.distributed.weight_transfer.sparse_nccl_engine": {"SparseWeightPatch": SparseWeightPatch},
        "sglang": {}, "sglang.srt": {}, "sglang.srt.weight_sync": {},
        "sglang.srt.weight_sync.tensor_bucket": {"FlattenedTensorMetadata": FlattenedTensorMetadata},
        "zstandard": {"ZstdCompressor": ZstdCompressor},
    }  # fmt: skip
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        patch.setitem(sys.modules, name, module)


def cut(described: dict[str, Any], buffer: torch.Tensor) -> dict[str, torch.Tensor]:
    """What SGLang and vLLM cut out of a buffer: one tensor after the other, without padding."""
    result = {}
    start = 0
    for name, dtype, shape in zip(described["names"], described["dtypes"], described["shapes"], strict=True):
        kind = getattr(torch, dtype)
        stop = start + torch.Size(shape).numel() * kind.itemsize
        result[name] = buffer[start:stop].view(kind).reshape(shape)
        start = stop
    assert start == buffer.numel()
    return result


def apply_sparse(state: dict[str, torch.Tensor], patch: SparseWeightPatch) -> None:
    """As vLLM does: a whole tensor of NaN, filled at the indices, is copied where it is a number."""
    assert patch.indices.dtype == torch.int32
    whole = torch.full((torch.Size(patch.full_shape).numel(),), float("nan"), dtype=patch.values.dtype)
    whole.index_copy_(0, patch.indices.long(), patch.values)
    whole = whole.view(patch.full_shape)
    state[patch.name] = torch.where(torch.isnan(whole), state[patch.name], whole)


def checksum(algorithm: str, data: bytes) -> str:
    return f"{zlib.adler32(data):08x}" if algorithm == "adler32" else hashlib.sha256(data).hexdigest()


def xor_into(state: dict[str, torch.Tensor], name: str, patch: torch.Tensor, algorithm: str, expected: str) -> None:
    """As slime's and SkyRL's receivers do, who then compare what they have."""
    flat = state[name].view(-1).view(torch.uint8)
    flat.bitwise_xor_(torch.frombuffer(bytearray(zlib.decompress(patch.numpy().tobytes())), dtype=torch.uint8))
    assert checksum(algorithm, flat.numpy().tobytes()) == expected, name


def apply_slime(folder: Path, state: dict[str, torch.Tensor], version: int) -> list[str]:
    index = json.loads((folder / f"weight_v{version:06d}" / "model.safetensors.index.json").read_text())
    metadata = index["metadata"]
    assert (metadata["version"], metadata["base_version"]) == (f"{version:06d}", f"{version - 1:06d}")
    assert (metadata["delta_encoding"], metadata["compression_format"]) == ("xor", "zstd")
    for name, file in index["weight_map"].items():
        with safe_open(folder / f"weight_v{version:06d}" / file, framework="pt") as payload:
            expected = payload.metadata()[name]
            xor_into(state, name, payload.get_tensor(name), metadata["checksum_format"], expected)
    return list(index["weight_map"])


def apply_skyrl(folder: Path, state: dict[str, torch.Tensor], version: int) -> list[str]:
    path = folder / f"delta-{version:08d}"
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["version"], manifest["base_version"]) == (version, version - 1)
    for record in manifest["tensors"]:
        assert record["shape"] == list(state[record["name"]].shape)
        assert record["dtype"] == str(state[record["name"]].dtype).removeprefix("torch.")
        assert record["uncompressed_num_bytes"] == state[record["name"]].nbytes
        with safe_open(path / record["payload_file"], framework="pt") as payload:
            patch = payload.get_tensor(record["payload_key"])
        assert record["compressed_num_bytes"] == patch.numel()
        xor_into(state, record["name"], patch, record["checksum_algorithm"], record["checksum"])
    return [record["name"] for record in manifest["tensors"]]
