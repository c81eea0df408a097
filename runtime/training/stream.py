"""The tensors of a checkpoint made from live parameters, bucket by bucket, on the device: to refit an engine."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from crosswalk.runtime.dtypes import torch_dtype
from crosswalk.runtime.errors import CrosswalkError, fail
from crosswalk.runtime.plan.algebra import Box
from crosswalk.runtime.plan.model import Copy, Plan, TensorSpec

from .parameters import Model, collect, place_all
from .placement import Placed, Shards
from .ranks import Team, share_out, table
from .save import natural_order, owned

NamedTensor = tuple[str, torch.Tensor]


def stream(
    plan: Plan,
    model: Model,
    team: Team,
    bucket_bytes: int,
    group: dist.ProcessGroup | None = None,
    elsewhere: Mapping[str, TensorSpec] | None = None,
) -> Iterator[list[NamedTensor]]:
    """Buckets of ``(name, tensor)`` for every target of ``plan``, whose sources ``model`` holds.

    A bucket holds at most ``bucket_bytes`` bytes, or one larger tensor. Tensors are whole, on every rank, and where the
    parameters are; one that equals a part of a parameter as it stands is a view of it, so a receiver that keeps tensors
    copies them before the parameters change. Sharded parameters are gathered when the first bucket needs them (a
    collective: every rank must consume the iterator) and released after the last. ``elsewhere``: what other ranks have,
    which may be absent here.

    Raises ``CrosswalkError`` before the first bucket, on every rank, for what any of them finds; later, if a rank does
    not come for the next bucket.
    """
    values = collect(model)
    with team.step("checking the model") as step:
        step.agree |= {"bucket_bytes": bucket_bytes, "plan": plan.digest, "metadata": plan.metadata}
        problems = plan.verify().problems
        if problems:
            raise CrosswalkError(problems)
        placed = place_all(values, plan.sources, elsewhere=elsewhere)
        step.value = {name: _kind(values.get(name)) for name in placed}
    # What the ranks hold in different ways is put together from boxes; a whole tensor or a DTensor is the same on all.
    kinds = {name: {theirs[name] for theirs in step.values} for name in placed}
    boxed = [name for name, found in kinds.items() if len(found) > 1 or None in found]
    owned_boxes: Mapping[str, list[Box]] = {}
    if boxed:
        with team.step("comparing the shards of the ranks") as step:
            step.value = table({name: placed[name] for name in boxed})
        owned_boxes = share_out(step.values, [spec for spec in plan.sources if spec.name in set(boxed)])[team.rank]
    gathered = {*boxed, *(name for name, found in kinds.items() if "DTensor" in found)}
    whole = _Whole(plan, values, placed, owned_boxes, set(boxed), group)
    return _buckets(plan, whole, bucket_bytes, team, gathered)


def _kind(value: torch.Tensor | Shards | None) -> str | None:
    """How a parameter is held, if its own mesh makes it whole, or it is; None if by boxes, or not at all."""
    if isinstance(value, DTensor):
        return "DTensor" if value.device_mesh.get_coordinate() is not None else None
    return "whole" if isinstance(value, torch.Tensor) else None


class _Whole:
    """The parameters as whole tensors, each gathered at its first use and kept until its last."""

    def __init__(
        self,
        plan: Plan,
        values: Mapping[str, torch.Tensor | Shards],
        placed: Mapping[str, Placed],
        boxes: Mapping[str, list[Box]],
        boxed: Collection[str],
        group: dist.ProcessGroup | None,
    ) -> None:
        self._plan, self._values, self._placed, self._boxes, self._group = plan, values, placed, boxes, group
        self._boxed = boxed
        self._device = next((part.tensor.device for value in placed.values() for part in value.parts), None)
        self._uses: dict[int, int] = defaultdict(int)
        for copy in plan.copies:
            self._uses[copy.source] += 1
        self._kept: dict[int, torch.Tensor] = {}

    def take(self, source: int) -> torch.Tensor:
        """The source tensor, contiguous; to be called once for each copy, in the same order on every rank."""
        if source not in self._kept:
            self._kept[source] = self._gather(self._plan.sources[source].name).contiguous()
        self._uses[source] -= 1
        return self._kept[source] if self._uses[source] else self._kept.pop(source)

    def _gather(self, name: str) -> torch.Tensor:
        value = self._values.get(name)
        if isinstance(value, torch.Tensor) and name not in self._boxed:
            if not isinstance(value, DTensor):
                return value.detach()
            with _together(name):
                whole = value.full_tensor().detach()
            assert isinstance(whole, torch.Tensor)
            return whole
        # Bytes that are zero everywhere but on the rank that owns them: their sum is exact.
        placed = self._placed[name]
        device = next((part.tensor.device for part in placed.parts), self._device)
        whole = torch.zeros(placed.shape, dtype=torch_dtype(placed.dtype), device=device)
        for part, _ in owned(placed, self._boxes.get(name, ())):
            view = whole
            for axis, (start, stop) in enumerate(part.box):
                view = view.narrow(axis, start, stop - start)
            view.copy_(part.tensor)
        if dist.is_initialized():
            with _together(name):
                dist.all_reduce(whole.view(-1).view(torch.uint8), group=self._group)
        return whole


@contextlib.contextmanager
def _together(name: str) -> Iterator[None]:
    """Raise ``CrosswalkError`` if the collective inside of it breaks."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        text = f"rank {dist.get_rank()} was left alone while gathering `{name}`: {reason}"
        raise fail("distributed/lost", text, hint="the first error of the rank that failed says why") from error


def _buckets(
    plan: Plan, whole: _Whole, bucket_bytes: int, team: Team, gathered: Collection[str]
) -> Iterator[list[NamedTensor]]:
    by_target: dict[int, list[Copy]] = defaultdict(list)
    for copy in plan.copies:
        by_target[copy.target].append(copy)

    def make(bucket: Sequence[int]) -> list[NamedTensor]:
        needed = {plan.sources[copy.source].name for target in bucket for copy in by_target[target]}
        if not needed.isdisjoint(gathered):
            # The collectives of the parameters wait as long as their groups were made to, and name nobody.
            team.gather("gathering parameters to stream", None)
        return _make(plan, bucket, by_target, whole)

    bucket: list[int] = []
    size = 0
    for target in _order(plan, by_target):
        nbytes = plan.targets[target].nbytes
        if bucket and size + nbytes > bucket_bytes:
            yield make(bucket)
            bucket, size = [], 0
        bucket.append(target)
        size += nbytes
    if bucket:
        yield make(bucket)


def _order(plan: Plan, by_target: Mapping[int, Sequence[Copy]]) -> list[int]:
    """Targets by the first parameter that they need, so that few are held at a time."""
    rank = {source: place for place, source in enumerate(natural_order(plan.sources))}
    return sorted(
        natural_order(plan.targets), key=lambda target: min((rank[c.source] for c in by_target[target]), default=0)
    )


def _make(
    plan: Plan, bucket: Sequence[int], by_target: Mapping[int, Sequence[Copy]], whole: _Whole
) -> list[NamedTensor]:
    result: list[NamedTensor] = []
    padded = {region.tensor for region in plan.padded}
    into: list[torch.Tensor] = []
    out_of: list[torch.Tensor] = []
    with torch.no_grad():
        for target in bucket:
            spec = plan.targets[target]
            copies = by_target[target]
            sources = [whole.take(copy.source) for copy in copies]
            dtype = torch_dtype(spec.dtype)
            if len(copies) == 1 and sources[0].dtype == dtype and _is_run(copies[0], spec.elements):
                start = copies[0].source_offset
                result.append((spec.name, sources[0].view(-1)[start : start + spec.elements].view(spec.shape)))
                continue
            device = sources[0].device if sources else None
            make = torch.zeros if target in padded else torch.empty
            made = make(spec.shape, dtype=dtype, device=device)
            for copy, source in zip(copies, sources, strict=True):
                into.append(made.as_strided(copy.extents, copy.target_strides, copy.target_offset))
                start = int(source.storage_offset()) + copy.source_offset
                out_of.append(source.as_strided(copy.extents, copy.source_strides, start))
            result.append((spec.name, made))
        if into:
            # One launch where the copies allow it.
            torch._foreach_copy_(into, out_of, non_blocking=True)
    return result


def _is_run(copy: Copy, elements: int) -> bool:
    dense = not copy.extents or (len(copy.extents) == 1 and copy.source_strides == copy.target_strides == (1,))
    return dense and copy.elements == elements
