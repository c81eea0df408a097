"""What a rank gives of each tensor, packed in the order of the checkpoint: every element on one rank, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from crosswalk.runtime.dtypes import size_of, torch_dtype

from .pieces import Strided, into, is_run, moves_of, out_of, owners, packed
from .publisher import Publisher
from .recipes import elements_of, fill


class Slice(NamedTuple):
    """Elements of a target that this rank gives: ``elements`` of part ``part``, at byte ``position`` of its bucket;
    ``copies`` pack them, ``place`` puts them into the target."""

    target: int
    part: int
    position: int
    elements: int
    dtype: torch.dtype
    copies: Sequence[Strided]
    place: Strided


class Packing:
    """The slices of each bucket of a publisher, and the bytes that they take."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        plan, team = publisher.plan, publisher.team
        with team.step("sharing out what is compared"):
            mine = owners(publisher.tables, plan.sources)[team.rank]
            moves = moves_of(plan, {team.rank: mine})
        self.buckets: list[list[Slice]] = []
        self.sizes: list[int] = []
        for targets in publisher.bucketed:
            slices, end = [], 0
            for target in targets:
                spec = plan.targets[target]
                width = size_of(spec.dtype)
                for move in moves.get(target, ()):
                    part = publisher.current.number(move.source, move.box)
                    copies = out_of(packed(move), publisher.current.tensors[part])
                    end = -(-end // width) * width
                    dtype = torch_dtype(spec.dtype)
                    slices.append(Slice(target, part, end, move.elements, dtype, copies, into(move)))
                    end += move.elements * width
            self.buckets.append(slices)
            self.sizes.append(end)

    @torch.no_grad()
    def values(self, number: int) -> Iterator[tuple[Slice, torch.Tensor]]:
        """The slices of a bucket with their elements now, flat: views of parameters where these have them so."""
        held = self._publisher.current.tensors
        for one in self.buckets[number]:
            tensor = held[one.part]
            if tensor.dtype == one.dtype and len(one.copies) == 1 and is_run(one.copies[0]):
                start = tensor.storage_offset() + one.copies[0].offset
                yield one, tensor.as_strided((one.elements,), (1,), start)
                continue
            made = torch.empty(one.elements, dtype=one.dtype, device=tensor.device)
            fill([(tensor, made, copy) for copy in one.copies])
            yield one, made


def slice_of(buffer: torch.Tensor, one: Slice) -> torch.Tensor:
    """The elements of a slice in the bytes of its bucket."""
    return elements_of(buffer, one.position, one.elements, one.dtype)
