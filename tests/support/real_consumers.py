"""Modules of the packages of inference engines and trainers, from where they were unpacked, and what they make of what
a publisher gives them on two ranks. What they import and does not matter here is stubbed."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import class_cases as cases
import real_folders
import torch

import crosswalk
from crosswalk.publish import checkpoint_engine, sglang, verl, vllm

#: Packages that are only folders here: what stands in their ``__init__`` needs devices and servers.
FOLDERS = {
    "vllm": ("vllm", "vllm.distributed", "vllm.distributed.weight_transfer", "vllm.model_executor",
             "vllm.model_executor.model_loader", "vllm.config"),
    "sglang": ("sglang", "sglang.srt", "sglang.srt.weight_sync"),
    "verl": ("verl", "verl.checkpoint_engine", "verl.workers", "verl.workers.rollout",
             "verl.workers.rollout.sglang_rollout"),
    "checkpoint_engine": ("checkpoint_engine",),
}  # fmt: skip
#: Modules that they import, of which any name is an empty class.
STUBS = (
    "vllm.config.parallel", "vllm.config.weight_transfer", "vllm.distributed.weight_transfer.nccl_common", "loguru",
)  # fmt: skip


def install(home: Path) -> None:
    """Let the modules below ``home/PACKAGE`` be imported."""
    for package, names in FOLDERS.items():
        for name in names:
            module = types.ModuleType(name)
            module.__path__ = [str(home / package / name.replace(".", "/"))]
            sys.modules[name] = module
    for name in STUBS:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__getattr__ = lambda key: type(key, (), {"info": print})  # type: ignore[method-assign]


class Engine(torch.nn.Module):
    """What vLLM and SGLang have of a model: ``load_weights``, which copies, here under the names of the files."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = set()
        for name, tensor in weights:
            self.tensors[name].copy_(tensor)
            loaded.add(name)
        return loaded


def on_ranks(rank: int, home: Path, out: Path) -> list[Any]:
    """What is wrong with any of the receivers, for a sharded model with fused experts, in bf16 with an fp32 router."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = cases.made("Qwen3MoeForCausalLM")
    install(home)  # the model first: transformers looks for packages
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    policy = {"*.mlp.gate.weight": "float32", "*": "bfloat16"}
    publisher = crosswalk.publisher(model, model.config, dtype=policy, bucket_bytes=20_000)

    def whole() -> dict[str, torch.Tensor]:
        return {n: t.clone() for n, t in itertools.chain.from_iterable(publisher.buckets())}

    expected = whole()
    wrong = _vllm_source(publisher, model, expected) + _sglang(publisher, expected, rank)
    wrong += _checkpoint_engine(publisher, expected, rank)
    snapshot = publisher.snapshot()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.to_local().view(-1)[::7].mul_(1.5)
    now = whole()
    for receiver in (_verl, _vllm_patches):
        found = receiver(publisher.delta(snapshot), Engine(expected), rank)
        wrong += [] if found is None else cases.differences(found, now)
    if (home / "slime").is_dir() or (home / "skyrl").is_dir():
        wrong += real_folders.pulled(publisher, real_folders.changing(model), home, out, rank)
    return wrong


def _vllm_source(publisher: Any, model: Any, expected: dict[str, torch.Tensor]) -> list[Any]:
    """The source, against vLLM's own of the same module: what it has as it is in memory it has with the same layout."""
    base = importlib.import_module("vllm.distributed.weight_transfer.base")
    source, theirs = vllm.source(publisher), base.ModuleSource(model)
    wrong = cases.differences(dict(source.iter_full()), expected)
    names = [meta.name for meta in source.metadata]
    packing = importlib.import_module("vllm.distributed.weight_transfer.packed_tensor")
    pairs, cut = source.iter_full(), {}
    while (chunk := packing.pack_tensors(pairs, lambda pair: pair[1], 3_000)) is not None:
        sizes = (chunk.names, chunk.shapes, chunk.dtypes, chunk.tensor_sizes)
        cut |= dict(packing.unpack_tensor(chunk.packed_tensor, *sizes))
    wrong += cases.differences(cut, expected)
    wrong += [] if source.owned_names(1) == names else ["names"]
    wrong += [] if list(itertools.chain(*base.layerwise_groups(names))) == names else ["groups"]
    layouts = {meta.name: (meta.owners, meta.shape, meta.placements) for meta in theirs.metadata}
    mine, local = dict(source.iter_local()), dict(theirs.iter_local())
    for meta in source.metadata:
        if meta.name not in layouts:  # an expert, of which each rank has some
            wrong += [] if meta.placements is None and torch.equal(mine[meta.name], expected[meta.name]) else [meta]
            continue
        owners, shape, placements = layouts[meta.name]
        cut = [place for place in meta.placements or () if place != base.Replicate()]
        same = (owners, shape, list(placements or ())) == (meta.owners, meta.shape, cut)
        wrong += [] if same and torch.equal(mine[meta.name], local[meta.name].to(meta.dtype)) else [meta]
    return wrong


def _vllm_patches(delta: Any, engine: Engine, rank: int) -> dict[str, torch.Tensor] | None:
    loader = importlib.import_module("vllm.model_executor.model_loader.checkpoint_weight_patch")
    importlib.import_module("vllm.distributed.weight_transfer.sparse_nccl_engine")
    sparse, dense = vllm.patches(delta)
    if rank != 0:
        return None
    patches = [
        loader.CheckpointWeightPatch(p.name, tuple(p.full_shape), p.values.dtype, p.values, p.indices) for p in sparse
    ]
    loader.load_checkpoint_weight_patches(engine, patches)
    engine.load_weights(dense)
    return engine.tensors


def _sglang(publisher: Any, expected: dict[str, torch.Tensor], rank: int) -> list[Any]:
    bucket_of = importlib.import_module("sglang.srt.weight_sync.tensor_bucket").FlattenedTensorBucket
    found: list[dict[str, torch.Tensor]] = [{}, {}]
    for bucket in publisher.packed(to=0):
        said = sglang.described(bucket)
        received = bucket_of.empty(said["names"], said["dtypes"], said["shapes"], "cpu")
        received.get_flattened_tensor().copy_(bucket.buffer)  # the broadcast
        found[0] |= dict(received.reconstruct_tensors())
        found[1] |= dict(bucket_of(**sglang.flattened(bucket)).reconstruct_tensors())
    return [wrong for one in found for wrong in cases.differences(one, expected if rank == 0 else {})]


def _checkpoint_engine(publisher: Any, expected: dict[str, torch.Tensor], rank: int) -> list[Any]:
    """Registered by the function that its server has for that, without pinning."""
    module = importlib.import_module("checkpoint_engine.pin_memory")
    registered: list[Any] = []

    def register(name: str, *, named_tensors: dict[str, torch.Tensor]) -> None:
        registered.extend(module._register_checkpoint(files=[], named_tensors=named_tensors, rank=rank))

    empty = torch.empty
    with mock.patch.object(torch, "empty", lambda *sizes, pin_memory=False, **more: empty(*sizes, **more)):
        checkpoint_engine.register(types.SimpleNamespace(register_checkpoint=register), "step-1", publisher)
    wrong: list[Any] = []
    for buffer in registered:
        offset = 0
        for meta in buffer.metas:
            tensor = expected[meta.name]
            stored = buffer.buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            wrong += [] if torch.equal(stored, tensor) else [meta.name]
            offset += meta.aligned_size
    return wrong


def _verl(delta: Any, engine: Engine, rank: int) -> dict[str, torch.Tensor] | None:
    """Gathered, put into flushes and applied by what verl has for that."""
    gather = importlib.import_module("verl.checkpoint_engine.delta_sync.sparse_gather").gather_slot_entries_to_rank0
    encode = importlib.import_module("verl.checkpoint_engine.delta_sync.encode")
    loader = importlib.import_module("verl.workers.rollout.sglang_rollout.delta_loader")
    entries, _ = verl.delta_shard(delta)
    for slots, dtype, counts, indices, values, group in entries:
        pieces = gather(indices, values, counts, group)
        if pieces is None:
            continue
        params, place = [], 0
        for (name, shape), (found, _) in zip(slots, pieces, strict=True):
            stop = place + found.numel()
            params.append(encode.DeltaParam(name, dtype, list(shape), place * 4, stop * 4, 4, place, stop))
            place = stop
        positions = torch.cat([found.int() for found, _ in pieces]).view(torch.uint8)
        new = torch.cat([found for _, found in pieces])
        spec = {"encoding": "indices", "params": [dataclasses.asdict(param) for param in params],
                "checksum": encode.checksum(positions, new)}  # fmt: skip
        text = torch.frombuffer(bytearray(json.dumps(spec).encode()), dtype=torch.uint8)
        sent = {"__delta_spec__": text, "__positions__": positions, "__values__": new}
        loader.apply_delta(engine, list(sent.items()))
    return engine.tensors if rank == 0 else None
