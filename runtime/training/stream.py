"""The tensors of a checkpoint made from live parameters, bucket by bucket, on the device: to refit an engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from crosswalk.runtime.dtypes import torch_dtype
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.algebra import Box
from crosswalk.runtime.plan.model import Copy, Plan

from .load import Model, collect, place_all
from .placement import Placed, Shards
from .ranks import Team, share_out, table
from .save import natural_order, owned

NamedTensor = tuple[str, torch.Tensor]


def stream(
    plan: Plan, model: Model, team: Team, bucket_bytes: int, group: dist.ProcessGroup | None = None
) -> Iterator[list[NamedTensor]]:
    """Buckets of ``(name, tensor)`` for every target of ``plan``, whose sources ``model`` holds.

    A bucket holds at most ``bucket_bytes`` bytes, or one larger tensor. Tensors are whole, on every rank, and where the
    parameters are; one that equals a part of a parameter as it stands is a view of it, so a receiver that keeps tensors
    copies them before the parameters change. Sharded parameters are gathered when the first bucket needs them (a
    collective: every rank must consume the iterator) and released after the last.

    Raises ``CrosswalkError`` before the first bucket, on every rank, for what any of them finds.
    """
    values = collect(model)
    with team.step("checking the model") as step:
        step.agree |= {"bucket_bytes": bucket_bytes, "plan": plan.digest, "metadata": plan.metadata}
        problems = plan.verify().problems
        if problems:
            raise CrosswalkError(problems)
        placed = place_all(values, plan.sources)
        # Ranks that hold a parameter in different ways would wait for each other's collectives.
        step.agree["kinds"] = {name: type(values[name]).__name__ for name in placed}
        step.value = table(placed) if any(isinstance(value, Shards) for value in values.values()) else None
    owned_boxes: Mapping[str, list[Box]] = {}
    if any(found is not None for found in step.values):
        owned_boxes = share_out([found or {} for found in step.values], plan.sources)[team.rank]
    return _buckets(plan, _Whole(plan, values, placed, owned_boxes, group), bucket_bytes)


class _Whole:
    """The parameters as whole tensors, each gathered at its first use and kept until its last."""

    def __init__(
        self,
        plan: Plan,
        values: Mapping[str, torch.Tensor | Shards],
        placed: Mapping[str, Placed],
        boxes: Mapping[str, list[Box]],
        group: dist.ProcessGroup | None,
    ) -> None:
        self._plan, self._values, self._placed, self._boxes, self._group = plan, values, placed, boxes, group
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
        value = self._values[name]
        if isinstance(value, DTensor):
            whole = value.full_tensor().detach()
            assert isinstance(whole, torch.Tensor)
            return whole
        if isinstance(value, torch.Tensor):
            return value.detach()
        # Bytes that are zero everywhere but on the rank that owns them: their sum is exact.
        placed = self._placed[name]
        device = value.parts[0][1].device if value.parts else torch.get_default_device()
        whole = torch.zeros(placed.shape, dtype=torch_dtype(placed.dtype), device=device)
        for part, _ in owned(placed, self._boxes.get(name, ())):
            view = whole
            for axis, (start, stop) in enumerate(part.box):
                view = view.narrow(axis, start, stop - start)
            view.copy_(part.tensor)
        if dist.is_initialized():
            dist.all_reduce(whole.view(-1).view(torch.uint8), group=self._group)
        return whole


def _buckets(plan: Plan, whole: _Whole, bucket_bytes: int) -> Iterator[list[NamedTensor]]:
    by_target: dict[int, list[Copy]] = defaultdict(list)
    for copy in plan.copies:
        by_target[copy.target].append(copy)
    bucket: list[int] = []
    size = 0
    for target in _order(plan, by_target):
        nbytes = plan.targets[target].nbytes
        if bucket and size + nbytes > bucket_bytes:
            yield _make(plan, bucket, by_target, whole)
            bucket, size = [], 0
        bucket.append(target)
        size += nbytes
    if bucket:
        yield _make(plan, bucket, by_target, whole)


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
