"""Parameters of a model in memory, filled from the files of a checkpoint.

Each rank reads only the bytes of the boxes that it holds (:mod:`.placement`), straight into its local tensors.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.checkpoint.source import Checkpoint, bind
from crosswalk.runtime.checkpoint.zeros import with_zeros
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.runs import read_block
from crosswalk.runtime.files.ties import compare_ties
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.records import Record, replace

from .moves import Moves, moves
from .parameters import Advice, Model, Values, bare, check_owned, check_writable, own, place_all
from .placement import Part
from .transfer import BUCKET, Memory, Slot, TransferBucket, buckets, host_view, run, worker_count

if TYPE_CHECKING:
    from .ranks import Team


class LoadReport(Record, frozen=True):
    """What this rank did. ``bytes_held``: what the parameters of this rank take in the files; ``bytes_read``: what was
    read for them (both of encoded tensors as they are decoded); ``bytes_compared``: what was read to compare tied
    duplicates. ``on_meta``: names in the model that are on the meta device still, because no file holds them;
    ``recomputed``: those that the class of the model has computed instead."""

    rank: int
    bytes_held: int
    bytes_read: int
    bytes_compared: int
    seconds: float
    materialized: tuple[str, ...] = ()
    on_meta: tuple[str, ...] = ()
    recomputed: tuple[str, ...] = ()


def materialize(model: Model, names: Iterable[str], device: torch.device | None) -> tuple[str, ...]:
    """Give the named parameters that are on the meta device memory: on the device of its mesh for a ``DTensor``, else
    on ``device`` (by default torch's). Parameters that are one object stay one. Other meta tensors stay as they are:
    what no file holds is the model's to initialise. In a state dict the entries are replaced."""
    wanted = set(names)
    done: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    result = []
    if isinstance(model, torch.nn.Module):
        for prefix, module in model.named_modules(remove_duplicate=False):
            for entries in (module._parameters, module._buffers):
                for key, value in entries.items():
                    if value is None or not value.is_meta:
                        continue
                    name = f"{prefix}.{key}" if prefix else key
                    if id(value) in done or _bare(name, model) in wanted:
                        entries[key] = _with_memory(value, device, done)
                        result.append(_bare(name, model))
        # Ties to what was found later: a second look finds every object that has been replaced.
        for module in model.modules():
            for key, value in module._parameters.items():
                if value is not None and id(value) in done:
                    module._parameters[key] = _with_memory(value, device, done)
        return tuple(result)
    for name, value in model.items():
        if isinstance(value, torch.Tensor) and value.is_meta and (name in wanted or id(value) in done):
            model[name] = _with_memory(value, device, done)
            result.append(name)
    return tuple(result)


def _bare(name: str, model: torch.nn.Module) -> str:
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        name = name.removeprefix("module.")
    return bare(name)


def _with_memory(
    value: torch.Tensor, device: torch.device | None, done: dict[int, tuple[torch.Tensor, torch.Tensor]]
) -> Any:
    if id(value) not in done:
        where: Any = device
        if isinstance(value, DTensor):
            where = value.device_mesh.device_type
        elif device is None:
            where = torch.get_default_device()
        made = torch.empty_like(value.detach(), device=where)
        if isinstance(value, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=value.requires_grad)
        done[id(value)] = (value, made)  # the old one lives on, so that no other object gets its id
    return done[id(value)][1]


def load(
    plan: Plan,
    checkpoint: Checkpoint,
    model: Model,
    team: Team,
    device: torch.device | None = None,
    bucket_bytes: int = BUCKET,
    *,
    elsewhere: Mapping[str, TensorSpec] | None = None,
    advice: Advice | None = None,
    copies: Mapping[str, str] = MappingProxyType({}),
    values: Values | None = None,
) -> LoadReport:
    """Fill the parameters of ``model`` with the targets of ``plan``, whose sources ``checkpoint`` holds.

    Dtypes may differ between floats: what is read is cast once. Parameters on the meta device get memory, see
    :func:`materialize`. ``elsewhere`` and ``advice`` are those of :func:`~.parameters.place_all`. ``copies``: further
    parameters of the model, each with the target that it gets the values of. ``values``: what :func:`~.parameters.own`
    found in the model, if that has been asked. Every rank of the team must call this;
    all is checked, on all ranks, before anything changes.
    Raises ``CrosswalkError`` on every rank for what any of them finds.
    """
    started = time.monotonic()
    values = own(model) if values is None else values
    any_on_meta = any(value.is_meta for _, value in _tensors(model))
    with team.step("checking the model") as step:
        step.agree |= {"plan": plan.digest, "metadata": plan.metadata}
        problems = plan.verify().problems
        if problems:
            raise CrosswalkError(problems)
        targets = {spec.name: spec for spec in plan.targets}
        wanted = (*plan.targets, *(replace(targets[of], name=name) for name, of in copies.items()))
        placed = place_all(values, wanted, True, elsewhere, advice)
        check_writable(placed)
        check_owned(model, {name: values[name] for name in placed if name in values})
        stored = bind(plan, checkpoint)
    compared = 0
    if plan.ties:
        with team.step("comparing tied tensors"):
            compared = compare_ties(plan, stored, checkpoint, rank=team.rank, ranks=team.size)
    with team.step("reading"):
        materialized = materialize(model, placed, device) if any_on_meta else ()
        if materialized:
            placed = place_all(own(model), wanted, elsewhere=elsewhere)
        parts: dict[str, list[tuple[Part, str]]] = defaultdict(list)
        for name, found in placed.items():
            parts[copies.get(name, name)] += [(part, found.dtype) for part in found.parts]
        filled, stored = with_zeros(plan, stored)
        planned = moves(filled, parts, "target")
        read = read_moves(planned, [spec.name for spec in filled.sources], stored, checkpoint, bucket_bytes)
    held = sum(planned.elements(number) * size_of(spec.dtype) for number, spec in enumerate(plan.sources))
    on_meta = tuple(name for name, value in _tensors(model) if value.is_meta) if any_on_meta else ()
    return LoadReport(team.rank, held, read, compared, time.monotonic() - started, materialized, on_meta)


def read_moves(
    planned: Moves,
    names: Sequence[str],
    stored: Sequence[StoredTensor],
    checkpoint: Checkpoint,
    bucket_bytes: int = BUCKET,
) -> int:
    """Read what the moves need, and put it into their memories. Returns the bytes read."""
    total = 0
    with contextlib.closing(Reader(names, stored, checkpoint.files)) as reader:
        for device, placements in planned.by_device():
            slots = [Slot(device, bucket_bytes, hosts=2) for _ in range(worker_count(device))]
            tasks = buckets(stored, placements, planned.memories, exact=False, size=bucket_bytes)
            total += run(tasks, slots, _reading(reader, stored, planned.memories))
            for slot in slots:
                slot.wait()
        reader.check()
    return total


def _reading(
    reader: Reader, stored: Sequence[StoredTensor], memories: Sequence[Memory]
) -> Callable[[Slot, TransferBucket], int]:
    def work(slot: Slot, bucket: TransferBucket) -> int:
        for direct in bucket.direct:
            flat = memories[direct.memory].flat
            reader.read(direct.tensor, direct.offset, host_view(flat[direct.start : direct.start + direct.nbytes]))
        if not bucket.blocks:
            return bucket.moved
        slot.turn()
        view = host_view(slot.host)
        for block in bucket.blocks:
            read_block(reader, block, view[block.at :], slot.step)
        slot.fill_tensors(bucket, stored, memories)
        return bucket.moved

    return work


def _tensors(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a module, those that its state dict leaves out too."""
    if isinstance(model, torch.nn.Module):
        yield from model.named_parameters(remove_duplicate=False)
        yield from model.named_buffers(remove_duplicate=False)
    else:
        yield from ((name, value) for name, value in model.items() if isinstance(value, torch.Tensor))
