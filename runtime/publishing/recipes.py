"""How a bucket of tensors is made on one rank: what is viewed, copied, packed for others and received, all of it known
before a byte moves and the same each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from crosswalk.runtime.dtypes import size_of, torch_dtype
from crosswalk.runtime.files.kernels import as_integers, copy_integers
from crosswalk.runtime.plan.affine import dense
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.records import Record, field
from crosswalk.runtime.training.ranks import Table
from crosswalk.runtime.training.transfer import on_host

from .current import Current
from .exchange import Ranks
from .pieces import Move, Strided, into, is_run, moves_of, out_of, owners, packed, whole_box


class Out(NamedTuple):
    """A copy out of part ``part`` of what this rank holds into slot ``slot`` of a bucket."""

    slot: int
    part: int
    copy: Strided


class Arrival(NamedTuple):
    """A copy from byte ``position`` of what was received under ``key`` into slot ``slot``."""

    slot: int
    key: tuple[int, Ranks]
    position: int
    elements: int
    copy: Strided


class Packed(NamedTuple):
    """Elements that are packed for others: ``elements`` of ``dtype`` at byte ``position``."""

    position: int
    elements: int
    dtype: torch.dtype
    part: int
    copies: Sequence[Strided]


class Recipe(Record):
    """``targets``: what this rank gets, by slot. ``views`` are slots that one run of a part is already; ``outgoing``:
    receivers -> bytes, and what is packed for them; ``incoming``: sender and receivers -> bytes; ``zeroed``: slots that
    are not written in full; ``meets``: whether ranks need each other for this bucket."""

    targets: list[int] = field(default_factory=list)
    views: list[Out] = field(default_factory=list)
    copies: list[Out] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    outgoing: dict[Ranks, int] = field(default_factory=dict)
    packings: dict[Ranks, list[Packed]] = field(default_factory=dict)
    incoming: dict[tuple[int, Ranks], int] = field(default_factory=dict)
    zeroed: set[int] = field(default_factory=set)
    meets: bool = False


class Way:
    """The way of all targets to the ranks that want them (``receivers``, by target), for this rank. A parameter that
    all receivers have whole is not sent; anything else is given away by one of the ranks that have it."""

    def __init__(
        self, plan: Plan, current: Current, tables: Sequence[Table], rank: int, receivers: Sequence[Ranks]
    ) -> None:
        self._plan, self._current, self._rank, self._receivers = plan, current, rank, receivers
        groups = set(receivers)
        whole = [_whole(table, plan.sources) for table in tables]
        #: Receivers -> the parameters that all of them have whole.
        self._near = {ranks: frozenset.intersection(*(whole[r] for r in ranks)) for ranks in groups}
        nearest = next(iter(groups))[0] if len(groups) == 1 and len(next(iter(groups))) == 1 else None
        everywhere = frozenset.intersection(*self._near.values())
        sent = [spec for i, spec in enumerate(plan.sources) if i not in everywhere]
        shares = owners(tables, sent, nearest)
        receives = any(rank in ranks for ranks in groups)
        self._moves = moves_of(plan, {r: share for r, share in enumerate(shares) if receives or r == rank})
        mine = frozenset.union(frozenset(), *(near for ranks, near in self._near.items() if rank in ranks))
        self._own = moves_of(plan, {rank: {name: [whole_box(plan.sources[i].shape)] for i, name in _named(plan, mine)}})
        self._feeding: dict[int, set[int]] = {}
        for copy in plan.copies:
            self._feeding.setdefault(copy.target, set()).add(copy.source)
        self._padded = {region.tensor for region in plan.padded}
        self._recipes: dict[tuple[int, ...], Recipe] = {}

    def recipe(self, targets: Sequence[int], keep: bool = True) -> Recipe:
        """The recipe of a bucket, kept for the next time."""
        key = tuple(targets)
        found = self._recipes.get(key) or self._made(key)
        if keep:
            self._recipes[key] = found
        return found

    def _made(self, targets: Sequence[int]) -> Recipe:
        recipe = Recipe()
        for target in targets:
            ranks = self._receivers[target]
            near = self._near[ranks]
            recipe.meets |= not self._feeding.get(target, set()) <= near
            slot = None
            if self._rank in ranks:
                slot = len(recipe.targets)
                recipe.targets.append(target)
                moves = [move for move in self._own.get(target, ()) if move.source in near]
                self._add(recipe, slot, target, moves)
            self._add(recipe, slot, target, [m for m in self._moves.get(target, ()) if m.source not in near])
        return recipe

    def _add(self, recipe: Recipe, slot: int | None, target: int, moves: Iterable[Move]) -> None:
        """What is done with moves of one target; ``slot`` is its place here, None if this rank does not get it."""
        spec, ranks = self._plan.targets[target], self._receivers[target]
        if slot is not None and target in self._padded:
            recipe.zeroed.add(slot)
        for move in moves:
            sent = move.source not in self._near[ranks]
            if move.rank == self._rank:
                part = self._current.number(move.source, move.box)
                tensor = self._current.tensors[part]
                if slot is not None:
                    self._keep(recipe, slot, spec, part, out_of(move.piece, tensor), tensor.dtype)
                if sent and ranks != (self._rank,):
                    position, recipe.outgoing[ranks] = _append(recipe.outgoing.get(ranks, 0), move, spec)
                    dtype = torch_dtype(spec.dtype)
                    packing = Packed(position, move.elements, dtype, part, out_of(packed(move), tensor))
                    recipe.packings.setdefault(ranks, []).append(packing)
            elif slot is not None:
                key = (move.rank, ranks)
                position, recipe.incoming[key] = _append(recipe.incoming.get(key, 0), move, spec)
                recipe.arrivals.append(Arrival(slot, key, position, move.elements, into(move)))

    def _keep(
        self, recipe: Recipe, slot: int, spec: TensorSpec, part: int, copies: Sequence[Strided], dtype: torch.dtype
    ) -> None:
        kept = [Out(slot, part, copy) for copy in copies]
        alone = len(copies) == 1 and is_run(copies[0]) and (copies[0].extents or (1,))[0] == spec.elements
        (recipe.views if alone and dtype == torch_dtype(spec.dtype) else recipe.copies).extend(kept)


def _append(used: int, move: Move, spec: TensorSpec) -> tuple[int, int]:
    """Where the elements of a move are packed behind ``used`` bytes, and the bytes used then."""
    width = size_of(spec.dtype)
    position = -(-used // width) * width
    return position, position + move.elements * width


def _whole(table: Table, specs: Sequence[TensorSpec]) -> frozenset[int]:
    """The parameters that a rank holds as one box."""
    return frozenset(i for i, spec in enumerate(specs) if whole_box(spec.shape) in table.get(spec.name, ()))


def _named(plan: Plan, sources: Iterable[int]) -> list[tuple[int, str]]:
    return [(source, plan.sources[source].name) for source in sources]


def fill(pairs: Sequence[tuple[torch.Tensor, torch.Tensor, Strided]]) -> None:
    """Copy between tensors, ``(from, to, how)`` each, casting where their dtypes differ."""
    reading: list[torch.Tensor] = []
    writing: list[torch.Tensor] = []
    for source, target, (extents, strides, offset, out_strides, out_offset) in pairs:
        same = source.dtype == target.dtype
        if same and len(extents) > 1 and on_host(source.device) and on_host(target.device):
            one, other = as_integers(source), as_integers(target)
            copy_integers(
                one.as_strided(extents, strides, one.storage_offset() + offset),
                other.as_strided(extents, out_strides, other.storage_offset() + out_offset),
            )
            continue
        reading.append(source.as_strided(extents, strides, source.storage_offset() + offset))
        writing.append(target.as_strided(extents, out_strides, target.storage_offset() + out_offset))
    if writing:
        # One launch where the copies allow it.
        torch._foreach_copy_(writing, reading, non_blocking=True)


def pack(recipe: Recipe, ranks: Ranks, tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """What this rank sends to some others: elements as they will be in the checkpoint, cast here."""
    buffer = torch.empty(recipe.outgoing[ranks], dtype=torch.uint8, device=device)
    fill(
        [
            (tensors[part], elements_of(buffer, position, elements, dtype), copy)
            for position, elements, dtype, part, copies in recipe.packings[ranks]
            for copy in copies
        ]
    )
    return buffer


def elements_of(buffer: torch.Tensor, position: int, elements: int, dtype: torch.dtype) -> torch.Tensor:
    """``elements`` of a dtype from byte ``position`` of a buffer on."""
    return buffer[position : position + elements * dtype.itemsize].view(dtype)


def viewed(tensor: torch.Tensor, spec: TensorSpec, offset: int) -> torch.Tensor:
    """A target as a view of the run of a tensor that it is."""
    return tensor.as_strided(spec.shape, dense(spec.shape), tensor.storage_offset() + offset)


def received(
    arrivals: Iterable[Arrival],
    came: Mapping[tuple[int, Ranks], torch.Tensor],
    made: Sequence[torch.Tensor],
) -> list[tuple[torch.Tensor, torch.Tensor, Strided]]:
    """The copies from what was received into the tensors that are made."""
    return [
        (elements_of(came[key], position, elements, made[slot].dtype).to(made[slot].device), made[slot], copy)
        for slot, key, position, elements, copy in arrivals
    ]
