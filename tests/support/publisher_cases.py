"""What ranks do in the tests of the publisher. In a module of its own, since every rank imports it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from native_llama import native_state
from rank_cases import MESHES, sharded
from safetensors.torch import load, load_file, save
from torch.distributed.device_mesh import init_device_mesh

import crosswalk
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.publishing.delta import Patch, Row
from crosswalk.runtime.training.placement import Shards, place


def loaded_alone(checkpoint: Path, format: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """What one process loads of a checkpoint: its config, and the tensors of the trainer."""
    plan = crosswalk.compile_plan(json.loads((checkpoint / "config.json").read_text()), format)
    state = {spec.name: torch.zeros(spec.shape) for spec in plan.targets}
    return crosswalk.load(checkpoint, state, format), state


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


def ways(rank: int, checkpoint: Path, kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What comes of each way to hold the same tensors."""
    loaded, whole = alone(lambda: loaded_alone(checkpoint, "mixtral"))
    return {
        kind: all_ways(rank, checkpoint, placed(kind, whole, rank, dist.get_world_size()), loaded) for kind in kinds
    }


def all_ways(rank: int, checkpoint: Path, state: dict[str, Any], loaded: Any) -> dict[str, Any]:
    """Publish to all, to one, to some, packed and shared out, twice; what is wrong, and the bytes moved to rank 0."""
    size = dist.get_world_size()
    expected = load_file(checkpoint / "model.safetensors")
    publisher = crosswalk.publisher(state, loaded, bucket_bytes=200_000)
    described = {m.name: (tuple(m.shape), m.dtype) for m in publisher.metadata}
    wrong: list[Any] = [n for n, t in expected.items() if described.get(n) != (tuple(t.shape), t.dtype)]
    for _ in range(2):
        pairs = list(itertools.chain.from_iterable(publisher.buckets()))
        wrong += [] if [name for name, _ in pairs] == [m.name for m in publisher.metadata] else ["order"]
        wrong += differences(dict(pairs), expected)
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
    wrong += wrong_regions(publisher, state, expected, rank)
    wrong += wrong_chunks(publisher, expected, rank)
    sums = publisher.checksums()
    wrong += [n for n, t in expected.items() if sums[n] != hashlib.sha256(t.numpy().tobytes()).hexdigest()]
    held = sum(part.nbytes for value in state.values() for part in local(value))
    cut = sum(way is not None for way in publisher.chunks.values())
    return {
        "wrong": wrong,
        "chunks": cut,
        "bytes": counts,
        "model": sum(t.nbytes for t in expected.values()),
        "held": held,
    }


def wrong_chunks(publisher: Any, expected: dict[str, torch.Tensor], rank: int) -> list[Any]:
    """What this rank has not as its metadata says: the chunk that torch cuts for its place in the mesh, or all."""
    wrong: list[Any] = []
    pairs = list(publisher.local())
    if [name for name, _ in pairs] != [one.name for one in publisher.metadata]:
        wrong.append("local order")
    for name, tensor in pairs:
        way, whole = publisher.chunks[name], expected[name]
        if way is not None:
            place = divmod(rank, way.mesh[1])[way.axis]
            empty = whole.narrow(way.dim, 0, 0)
            whole = dict(enumerate(whole.chunk(way.mesh[way.axis], way.dim))).get(place, empty)
        wrong += [] if torch.equal(tensor, whole) else [("chunk", name, way)]
    return wrong


def wrong_regions(publisher: Any, state: dict[str, Any], expected: dict[str, torch.Tensor], rank: int) -> list[Any]:
    """What this rank is said to have and has not; and what all are said to have, if it is not everything."""
    wrong: list[Any] = []
    for name, regions in publisher.shards().items():
        covered = torch.zeros(expected[name].shape, dtype=torch.bool)
        for region in regions or ():
            inside = tuple(slice(a, b) for a, b in region.box)
            covered[inside] = True
            if region.rank == rank:
                part = next(p for p in place(state[region.parameter]).parts if p.box == region.held).tensor.contiguous()
                sizes = [b - a for a, b in region.box]
                found = part.as_strided(sizes, region.strides, part.storage_offset() + region.offset)
                wrong += [] if torch.equal(found, expected[name][inside]) else [("region", name, region)]
        if not covered.all():
            wrong.append(("regions", name, regions))
    return wrong


#: What becomes of changed values now and then.
ODD = [math.nan, -0.0, math.inf, 1e-40]
DENSITIES = ("none", "one", 0.01, 0.5, 1.0)


def changed(whole: dict[str, torch.Tensor], density: Any, seed: int) -> dict[str, torch.Tensor]:
    """The same tensors, with some of their elements changed: the same on every rank."""
    random = torch.Generator().manual_seed(seed)
    result = {name: tensor.clone() for name, tensor in whole.items()}
    for number, (name, tensor) in enumerate(sorted(result.items())):
        count = {"none": 0, "one": int(number == seed % len(result))}.get(density)
        count = math.ceil(tensor.numel() * density) if count is None else count
        places = torch.randperm(tensor.numel(), generator=random)[:count]
        values = torch.randn(count, generator=random).to(tensor.dtype)
        if number % 5 == 0 and count > len(ODD):
            values[: len(ODD)] = torch.tensor(ODD)
        result[name].view(-1)[places] = values
    return result


def fill_in(state: dict[str, Any], whole: dict[str, torch.Tensor]) -> None:
    for name, value in state.items():
        for part in place(value).parts:
            part.tensor.copy_(whole[name][tuple(slice(a, b) for a, b in part.box)])


def apply(engine: dict[str, torch.Tensor], patches: Iterable[Patch]) -> int:
    """Patch what an engine has; the number of elements that were sent one by one."""
    sent = 0
    for name, shape, dtype, indices, values in patches:
        assert (engine[name].shape, engine[name].dtype) == (torch.Size(shape), dtype)
        if indices is None:
            engine[name] = values.clone()
            continue
        assert indices.dtype == torch.int32
        assert bool((indices[1:] > indices[:-1]).all())
        engine[name].view(-1)[indices.long()] = values
        sent += indices.numel()
    return sent


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def deltas(rank: int, checkpoint: Path, formats: Sequence[str], kinds: Sequence[str]) -> list[Any]:
    """What is wrong with any of the layouts, in any of the ways to hold them."""
    found: list[Any] = []
    for format in formats:
        loaded, whole = alone(lambda format=format: loaded_alone(checkpoint, format))
        for kind in kinds:
            found += [(format, kind, *wrong) for wrong in steps(rank, whole, loaded, kind)]
    return found


def steps(rank: int, whole: dict[str, torch.Tensor], loaded: Any, kind: str) -> list[tuple[Any, ...]]:
    """After each of several steps, what is patched equals what is published; what was discarded comes again."""
    wrong: list[tuple[Any, ...]] = []
    size = dist.get_world_size()
    state = placed(kind, whole, rank, size)
    publisher = crosswalk.publisher(state, loaded, dtype={"*q_proj*": "bfloat16"}, bucket_bytes=150_000)
    snapshot = publisher.snapshot()
    kept: list[Any] = [None] * size
    dist.all_gather_object(kept, snapshot.nbytes)
    if sum(kept) != sum(m.nbytes for m in publisher.metadata):
        wrong.append(("snapshot", kept))
    engine = {n: t.clone() for bucket in publisher.buckets() for n, t in bucket}
    for seed, density in enumerate(DENSITIES):
        whole = changed(whole, density, seed)
        fill_in(state, whole)
        before = {name: tensor.clone() for name, tensor in engine.items()}
        after = {n: t.clone() for bucket in publisher.buckets() for n, t in bucket}
        delta = publisher.delta(snapshot)
        if density == 0.01:  # the receivers refused it, and training goes on
            refused = list(delta.patches(to=0))
            if rank == 0:
                apply(before, refused)
                wrong += [(density, n) for n in after if not torch.equal(bits(before[n]), bits(after[n]))]
            delta.discard()
            continue
        rows: list[Any] = [None] * size
        dist.all_gather_object(rows, list(delta.rows()))
        wrong += [(density, *w) for w in wrong_rows(rows, before, after)]
        with counted() as sparse:
            patches = list(delta.patches(to=0))
        said = [(patch.values.nbytes, patch.indices.nbytes if patch.indices is not None else 0) for patch in patches]
        whole_bytes, said_bytes = sum(m.nbytes for m in publisher.metadata), sum(map(sum, said))
        if said_bytes > whole_bytes or sparse[0] > said_bytes + 8 * size * len(said):
            wrong.append((density, "bytes", sparse, said_bytes, whole_bytes))
        if rank != 0:
            wrong += patches
            engine = after
        else:
            apply(engine, patches)
            wrong += [(density, n) for n in after if not torch.equal(bits(engine[n]), bits(after[n]))]
            differ = [m.name for m in publisher.metadata if not torch.equal(bits(before[m.name]), bits(after[m.name]))]
            if [patch.name for patch in patches] != differ:
                wrong.append((density, "names", differ))
        delta.commit()
    return wrong + [("not committed", patch.name) for patch in publisher.delta(snapshot).patches(to=None)]


def killed(rank: int, checkpoint: Path) -> dict[str, Any]:
    """Rank 1 dies when all of a delta was sent, before anybody commits it: what rank 0 says, whether its snapshot is
    still what it was, and what the receivers have."""
    whole = native_state(checkpoint)
    loaded = alone(lambda: crosswalk.load(checkpoint, whole))
    state = placed("by hand", whole, rank, 2)
    publisher = crosswalk.publisher(state, loaded, bucket_bytes=60_000)
    engine = {n: t.clone() for bucket in publisher.buckets() for n, t in bucket}
    snapshot = publisher.snapshot()
    before = [buffer.clone() for buffer in snapshot.buffers]
    fill_in(state, changed(whole, 0.01, 3))
    delta = publisher.delta(snapshot)
    apply(engine, delta.patches(to=0))
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    found = codes(delta.commit)
    kept = all(map(torch.equal, snapshot.buffers, before))
    return {"codes": found, "kept": kept, "engine": save(engine)}


def restarted(rank: int, checkpoint: Path, taken: bytes) -> list[str]:
    """The job comes back, with the parameters of the step after, and sends all once, and changes from then on; to
    receivers that have ``taken`` something."""
    engine = load(taken)
    whole = changed(changed(native_state(checkpoint), 0.01, 3), 0.01, 4)
    loaded = alone(lambda: crosswalk.load(checkpoint, native_state(checkpoint)))
    state = placed("stages", whole, rank, 2)
    publisher = crosswalk.publisher(state, loaded, bucket_bytes=60_000)
    snapshot = publisher.snapshot()
    for name, tensor in itertools.chain.from_iterable(publisher.buckets(to=0)):
        engine[name].copy_(tensor)
    fill_in(state, changed(whole, 0.01, 5))
    delta = publisher.delta(snapshot)
    apply(engine, delta.patches(to=0))
    delta.commit()
    now = dict(itertools.chain.from_iterable(publisher.buckets()))
    wrong = [patch.name for patch in publisher.delta(snapshot).patches(to=None)]
    return wrong + [n for n in now if rank == 0 and not torch.equal(bits(engine[n]), bits(now[n]))]


def wrong_rows(every: list[list[Row]], before: dict[str, Any], after: dict[str, Any]) -> list[Any]:
    """What is not as it should be: all ranks have the same rows, and together every change, each once."""
    found = {name: tensor.clone().view(-1) for name, tensor in before.items()}
    total = 0
    for rows in zip(*every, strict=True):
        if len({(row.tensors, row.dtype) for row in rows}) != 1:
            return [("rows differ",)]
        for row in rows:
            total += row.indices.numel()
            pieces = zip(row.indices.split(row.counts.tolist()), row.values.split(row.counts.tolist()), strict=True)
            for (name, shape), (indices, values) in zip(row.tensors, pieces, strict=True):
                assert tuple(before[name].shape) == tuple(shape)
                found[name][indices.long()] = values
    wrong: list[Any] = [(name,) for name in after if not torch.equal(bits(found[name]), bits(after[name]))]
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    changes = 0
    for name, tensor in after.items():
        kind = kinds[tensor.element_size()]
        changes += int((before[name].view(-1).view(kind) != tensor.contiguous().view(-1).view(kind)).sum())
    return wrong + ([("elements", total, changes)] if total != changes else [])


def in_a_group(rank: int, checkpoint: Path) -> list[Any]:
    """Ranks 2 and 1 of three publish to the first of the two, by its number in their group."""
    group = dist.new_group([1, 2])
    if rank == 0:
        return []
    whole = native_state(checkpoint)
    loaded = alone(lambda: crosswalk.load(checkpoint, whole))
    state = {name: by_hand(tensor, rank - 1, 2) for name, tensor in whole.items()}
    publisher = crosswalk.publisher(state, loaded, group=group, bucket_bytes=60_000)
    found = dict(itertools.chain.from_iterable(publisher.buckets(to=0)))
    snapshot = publisher.snapshot()
    for part in place(state["head.final_norm.weight"]).parts:
        part.tensor.add_(1)
    patches = list(publisher.delta(snapshot).patches(to=0))
    expected = load_file(checkpoint / "model.safetensors")
    if rank == 2:
        return [*found, *patches]
    return differences(found, expected) + [p.name for p in patches if p.name != "model.norm.weight"]


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
