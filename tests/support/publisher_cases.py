"""What ranks do in the tests of the publisher. In a module of its own, since every rank imports it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from native_llama import native_state
from rank_cases import MESHES, sharded
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh

import crosswalk
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.training.placement import Shards


def expert_config(checkpoint: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The config and the native tensors of a checkpoint, as one process loads them."""
    plan = crosswalk.compile_plan(json.loads((checkpoint / "config.json").read_text()))
    state = {spec.name: torch.zeros(spec.shape) for spec in plan.targets}
    return crosswalk.load(checkpoint, state), state


def placed(kind: str, whole: dict[str, torch.Tensor], rank: int, size: int) -> dict[str, Any]:
    """The same tensors, held by the ranks in one of several ways."""
    if kind in MESHES:
        _, shape, placements = MESHES[kind]
        mesh = init_device_mesh("cpu", shape)
        return {name: sharded(tensor.clone(), mesh, placements) for name, tensor in whole.items()}
    if kind == "by hand":  # uneven boxes, of columns where there are any
        return {name: by_hand(tensor, rank, size) for name, tensor in whole.items()}
    assert kind == "stages"
    return {name: tensor.clone() for i, (name, tensor) in enumerate(sorted(whole.items())) if i % size == rank}


def by_hand(tensor: torch.Tensor, rank: int, size: int) -> Shards:
    axis = tensor.dim() - 1
    length = tensor.shape[axis]
    cuts = [0, *(max(1, length * (r + 1) // size - r) for r in range(size - 1)), length]
    start, stop = min(cuts[rank], length), min(cuts[rank + 1], length)
    box = tuple((start, stop) if i == axis else (0, n) for i, n in enumerate(tensor.shape))
    parts = [(box, tensor.narrow(axis, start, stop - start).clone())] if stop > start else []
    return Shards(tuple(tensor.shape), parts, tensor.dtype)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes that this rank receives and sends, at the group: ``[received, sent]``."""
    counts = [0, 0]
    single, everyone = dist.batch_isend_irecv, dist.broadcast

    def singles(operations: list[dist.P2POp]) -> Any:
        for operation in operations:
            counts[operation.op is dist.isend] += operation.tensor.nbytes
        return single(operations)

    def broadcast(tensor: torch.Tensor, src: int, **options: Any) -> Any:
        counts[src == dist.get_rank()] += tensor.nbytes
        return everyone(tensor, src, **options)

    dist.batch_isend_irecv, dist.broadcast = singles, broadcast
    try:
        yield counts
    finally:
        dist.batch_isend_irecv, dist.broadcast = single, everyone


def differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    wrong = sorted(found.keys() ^ expected.keys())
    return wrong + [n for n in found.keys() & expected.keys() if not torch.equal(found[n], expected[n])]


def ways(rank: int, checkpoint: Path, kind: str) -> dict[str, Any]:
    """Publish to all, to one, to some, packed and shared out, twice; what is wrong, and the bytes moved to rank 0."""
    size = dist.get_world_size()
    loaded, whole = alone(lambda: expert_config(checkpoint))
    state = placed(kind, whole, rank, size)
    expected = load_file(checkpoint / "model.safetensors")
    publisher = crosswalk.publisher(state, loaded, bucket_bytes=20_000)
    described = {m.name: (tuple(m.shape), m.dtype) for m in publisher.metadata}
    wrong: list[Any] = [n for n, t in expected.items() if described.get(n) != (tuple(t.shape), t.dtype)]
    for _ in range(2):
        names = [name for bucket in publisher.buckets() for name, _ in bucket]
        wrong += [(a, b.name) for a, b in itertools.zip_longest(names, publisher.metadata) if b is None or a != b.name]
        wrong += differences(dict(itertools.chain.from_iterable(publisher.buckets())), expected)
    with counted() as counts:
        mine = dict(itertools.chain.from_iterable(publisher.buckets(to=0)))
    wrong += differences(mine, expected) if rank == 0 else list(mine)
    some = dict(itertools.chain.from_iterable(publisher.buckets(to={0, size - 1})))
    wrong += differences(some, expected) if rank in (0, size - 1) else list(some)
    for align in (1, 256):
        buckets = list(publisher.packed(to=0, align=align))
        wrong += [b for b in buckets for start in b.offsets if start % align]
        if rank == 0:
            wrong += differences({n: t for b in buckets for n, t in b.named()}, expected)
    shares: list[Any] = [None] * size
    dist.all_gather_object(shares, publisher.share())
    if sum(map(len, shares)) != len(expected):
        wrong.append("shares overlap")
    wrong += differences({name: tensor for share in shares for name, tensor in share.items()}, expected)
    held = sum(part.nbytes for value in state.values() for part in local(value))
    return {"wrong": wrong, "bytes": counts, "model": sum(t.nbytes for t in expected.values()), "held": held}


def local(value: Any) -> list[torch.Tensor]:
    if isinstance(value, Shards):
        return [tensor for _, tensor in value.parts]
    return [value.to_local() if hasattr(value, "to_local") else value]


def alone(action: Callable[[], Any]) -> Any:
    """What the action returns without torch.distributed, as far as crosswalk can tell."""
    initialized = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        return action()
    finally:
        dist.is_initialized = initialized


def refused(rank: int, checkpoint: Path) -> list[list[str]]:
    """The codes of what every rank refuses, though one has caused it."""
    state = native_state(checkpoint)
    loaded = crosswalk.load(checkpoint, state)
    publisher = crosswalk.publisher(state, loaded)
    name = "decoder.1.norm_2.weight"
    if rank == 1:
        state[name] = state[name][:-1].clone()
    found = [codes(lambda: list(publisher.buckets())), codes(lambda: crosswalk.publisher(state, loaded))]
    if rank == 1:
        state[name] = torch.cat([state[name], torch.ones(1)])
    dist.barrier()
    found += [codes(lambda: publisher.buckets(to=7))]
    found += [codes(lambda: crosswalk.publisher(state, loaded, dtype={"no.such": "float16"}))]
    return [*found, codes(lambda: list(publisher.buckets()))]


def codes(action: Callable[[], Any]) -> list[str]:
    try:
        action()
    except CrosswalkError as error:
        return sorted({diagnostic.code for diagnostic in error.diagnostics})
    return []
