"""Parameters of a model in memory: found, checked against a plan, and filled from the files of a checkpoint.

Each rank reads only the bytes of the boxes that it holds (:mod:`.placement`), straight into its local tensors.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.checkpoint.source import Checkpoint, bind
from crosswalk.runtime.checkpoint.zeros import with_zeros
from crosswalk.runtime.dtypes import FLOATS, size_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic
from crosswalk.runtime.plan.model import Plan, TensorSpec

from .moves import Moves, moves
from .placement import Placed, Shards, local_tensor, named, place
from .transfer import BUCKET, Bucket, Memory, Slot, buckets, host_view, run, worker_count

if TYPE_CHECKING:
    from .ranks import Team

#: What wrappers put into the names of parameters.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module"}

#: A module, or what its ``state_dict`` returns; values may also be ``Shards``.
Model = torch.nn.Module | MutableMapping[str, Any]
Values = dict[str, torch.Tensor | Shards]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What this rank did. ``bytes_held``: what the parameters of this rank take in the files; ``bytes_read``: what was
    read for them (both of encoded tensors as they are decoded); ``bytes_compared``: what was read to compare tied
    duplicates. ``on_meta``: names in the model that are on the meta device still, because no file holds them."""

    rank: int
    bytes_held: int
    bytes_read: int
    bytes_compared: int
    seconds: float
    materialized: tuple[str, ...] = ()
    on_meta: tuple[str, ...] = ()


def collect(model: Model) -> Values:
    """The parameters and persistent buffers of a module, or the tensors of a state dict, by name.

    Names are those of the bare model: without the parts that DistributedDataParallel, torch.compile and activation
    checkpointing put in. Entries that are no tensors (``_extra_state``) are left out.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    state: Mapping[str, Any] = model.state_dict(keep_vars=True) if isinstance(model, torch.nn.Module) else model
    return {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): value
        for name, value in state.items()
        if isinstance(value, torch.Tensor | Shards)
    }


def untied(values: Mapping[str, torch.Tensor | Shards]) -> dict[str, TensorSpec]:
    """Name, global shape and dtype of each tensor, without those that share the memory of an earlier one. Raises
    ``CrosswalkError`` with every value that no file can hold."""
    placed = _place(values)
    first = {_identity(values[name]): name for name in reversed(list(values))}
    return {name: TensorSpec(name, placed[name].shape, placed[name].dtype) for name in first.values()}


def place_all(
    values: Mapping[str, torch.Tensor | Shards], expected: Sequence[TensorSpec], given_memory: bool = False
) -> dict[str, Placed]:
    """Where the expected tensors lie on this rank. Raises ``CrosswalkError`` with all that are missing, unexpected, of
    another shape, of a dtype that cannot be cast, or on the meta device, unless they are ``given_memory`` later. Names
    tied to an expected one are left out."""
    placed = _place(values)
    wanted = {spec.name: spec for spec in expected}
    problems = []
    for name, spec in wanted.items():
        found = placed.get(name)
        if found is None:
            text = f"the model has no parameter `{name}` {list(spec.shape)}, which the plan has"
            problems.append(Diagnostic("live/missing", text))
            continue
        if found.shape != spec.shape:
            text = f"parameter `{name}` has the shape {list(found.shape)}, the plan says {list(spec.shape)}"
            problems.append(Diagnostic("live/shape", text))
        if found.dtype != spec.dtype and not {found.dtype, spec.dtype} <= set(FLOATS):
            text = f"parameter `{name}` is {found.dtype}, the plan says {spec.dtype}: only floats are cast"
            problems.append(Diagnostic("live/dtype", text))
        later = given_memory and isinstance(values[name], torch.Tensor)
        if not later and any(part.tensor.is_meta for part in found.parts):
            text = f"parameter `{name}` is on the meta device, where nothing can be read or written"
            problems.append(Diagnostic("live/meta", text, None, "give it memory first: torch.empty_like"))
    identities = {_identity(values[name]) for name in wanted if name in values}
    for name, value in values.items():
        if name not in wanted and _identity(value) not in identities:
            text = f"the model has a parameter `{name}` {list(placed[name].shape)}, which the plan does not have"
            hint = "a tied parameter must share the memory of the other; other tensors are left out of a state dict"
            problems.append(Diagnostic("live/unexpected", text, None, hint))
    if problems:
        raise CrosswalkError(problems)
    return {name: placed[name] for name in wanted}


def _place(values: Mapping[str, torch.Tensor | Shards]) -> dict[str, Placed]:
    placed: dict[str, Placed] = {}
    problems: list[Diagnostic] = []
    for name, value in values.items():
        try:
            placed[name] = place(value)
        except CrosswalkError as error:
            problems += named(name, error).diagnostics
    if problems:
        raise CrosswalkError(problems)
    return placed


def _identity(value: torch.Tensor | Shards) -> Any:
    """Equal for tensors that are the same memory."""
    if isinstance(value, Shards):
        return tuple((box, _identity(tensor)) for box, tensor in value.parts) or id(value)
    local = local_tensor(value) if isinstance(value, DTensor) else value
    if local.is_meta or not local.numel():
        return id(value)
    return local.data_ptr(), tuple(local.shape), local.stride(), local.device


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
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


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
) -> LoadReport:
    """Fill the parameters of ``model`` with the targets of ``plan``, whose sources ``checkpoint`` holds.

    Dtypes may differ between floats: what is read is cast once. Parameters on the meta device get memory, see
    :func:`materialize`. Every rank of the team must call this; all is checked, on all ranks, before anything changes.
    Raises ``CrosswalkError`` on every rank for what any of them finds.
    """
    started = time.monotonic()
    values = collect(model)
    with team.step("checking the model") as step:
        step.agree |= {"plan": plan.digest, "metadata": plan.metadata}
        problems = plan.verify().problems
        if problems:
            raise CrosswalkError(problems)
        placed = place_all(values, plan.targets, given_memory=True)
        _check_writable(placed)
        _check_owned(model, {name: values[name] for name in placed})
        stored = bind(plan, checkpoint)
    compared = 0
    if any(exemption.kind == "tied" for exemption in plan.exemptions):
        with team.step("comparing tied tensors"):
            compared = compare_ties(plan, stored, checkpoint, team.rank, team.size)
    with team.step("reading"):
        materialized = materialize(model, placed, device)
        if materialized:
            placed = place_all(collect(model), plan.targets)
        parts = {name: [(part, found.dtype) for part in found.parts] for name, found in placed.items()}
        filled, stored = with_zeros(plan, stored)
        planned = moves(filled, parts, "target")
        read = read_moves(planned, [spec.name for spec in filled.sources], stored, checkpoint, bucket_bytes)
    held = sum(planned.elements(number) * size_of(spec.dtype) for number, spec in enumerate(plan.sources))
    on_meta = tuple(name for name, value in _tensors(model) if value.is_meta)
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
) -> Callable[[Slot, Bucket], None]:
    def work(slot: Slot, bucket: Bucket) -> None:
        for direct in bucket.direct:
            flat = memories[direct.memory].flat
            reader.read(direct.tensor, direct.offset, host_view(flat[direct.start : direct.start + direct.nbytes]))
        if not bucket.stretches:
            return
        slot.turn()
        view = host_view(slot.host)
        for tensor, offsets, length, position in bucket.stretches:
            if len(offsets) == 1:
                reader.read(tensor, offsets[0], view[position : position + length])
            else:
                reader.read_runs(tensor, 0, offsets, length, 1, view[position:])
        slot.fill_tensors(bucket, stored, memories)

    return work


def _check_owned(model: Model, values: Mapping[str, torch.Tensor | Shards]) -> None:
    """Raise for what hooks of a module put into its state dict and that is no tensor of the module: filling it would
    change nothing."""
    if not isinstance(model, torch.nn.Module):
        return
    owned = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    hint = "pass a dict of the parameters, with a plan for their names"
    problems = []
    for name, value in values.items():
        if id(value) not in owned:
            text = f"`{name}` is made by a hook of the state dict and is no parameter of the model: it cannot be loaded"
            problems.append(Diagnostic("live/not-owned", text, None, hint))
    if problems:
        raise CrosswalkError(problems)


def _check_writable(placed: Mapping[str, Placed]) -> None:
    """Raise for tensors whose elements share memory: they cannot hold what is read."""
    problems = []
    for name, value in placed.items():
        for part in value.parts:
            if any(size > 1 and step == 0 for size, step in zip(part.tensor.shape, part.tensor.stride(), strict=True)):
                text = f"parameter `{name}` is an expanded tensor, whose elements share memory"
                problems.append(Diagnostic("live/layout", text))
                break
    if problems:
        raise CrosswalkError(problems)


def compare_ties(
    plan: Plan, stored: Sequence[StoredTensor], checkpoint: Checkpoint, rank: int = 0, ranks: int = 1
) -> int:
    """Compare tied duplicates with what they are tied to: share ``rank`` of as many as there are ``ranks``. Returns the
    bytes read. Raises ``CrosswalkError`` with every one that differs."""
    problems = []
    total = 0
    one, other = bytearray(1 << 20), bytearray(1 << 20)
    with contextlib.ExitStack() as stack:
        for exemption in plan.exemptions:
            if exemption.kind != "tied" or exemption.of is None:
                continue
            pair = [stored[plan.source_index[name]] for name in (exemption.tensor, exemption.of)]
            reader = stack.enter_context(
                contextlib.closing(Reader([exemption.tensor, exemption.of], pair, checkpoint.files))
            )
            width = size_of(pair[0].dtype)  # what is decoded is decoded in whole elements
            share = -(-pair[0].nbytes // (width * ranks)) * width
            stop = min((rank + 1) * share, pair[0].nbytes)
            for start in range(rank * share, stop, len(one)):
                count = min(len(one), stop - start)
                for number, buffer in ((0, one), (1, other)):
                    reader.read(number, pair[number].offset + start, memoryview(buffer)[:count])
                total += 2 * count
                if one[:count] != other[:count]:
                    text = f"tensor `{exemption.tensor}` is not equal to `{exemption.of}`, which it is tied to"
                    problems.append(Diagnostic("tie/differs", text))
                    break
    if problems:
        raise CrosswalkError(problems)
    return total


def _tensors(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a module, those that its state dict leaves out too."""
    if isinstance(model, torch.nn.Module):
        yield from model.named_parameters(remove_duplicate=False)
        yield from model.named_buffers(remove_duplicate=False)
    else:
        yield from ((name, value) for name, value in model.items() if isinstance(value, torch.Tensor))
