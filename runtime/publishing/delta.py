"""What has changed since the receivers were last known to be right: compared on the shard, bit for bit, in the dtypes
and coordinates of the checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch

from crosswalk.runtime.dtypes import FLOATS, torch_dtype
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail
from crosswalk.runtime.files.kernels import as_integers
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.model import TensorSpec

from .exchange import Ranks
from .locate import through
from .packing import Packing, Slice, slice_of
from .publisher import Publisher
from .recipes import elements_of

#: Most bytes that are compared at a time.
_BLOCK = 32 << 20
#: Flat indices in a tensor of the checkpoint, and the values there.
Pair = tuple[torch.Tensor, torch.Tensor]
_NOTHING: Pair = (torch.empty(0, dtype=torch.int32), torch.empty(0))
#: As many elements have indices of 32 bits.
_NARROW = 2**31
#: A tensor that must be sent whole, whatever the number of its changes.
_DENSE = -1


class Patch(NamedTuple):
    """The elements of a tensor that have changed: flat ``indices`` (int32, ascending, each once) and their new
    ``values``; or all of it, with ``indices`` None and ``values`` of its shape."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    indices: torch.Tensor | None
    values: torch.Tensor


class Row(NamedTuple):
    """What this rank alone has of some tensors of one dtype: their names and shapes, how many elements of each have
    changed, and the flat indices and values of these, tensor after tensor."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: torch.dtype
    counts: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor


class Replaced(NamedTuple):
    """A tensor that has changed, whole: what it is, and what it was when the snapshot was made."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    now: torch.Tensor
    before: torch.Tensor


class Changes(NamedTuple):
    """Changes of one slice: their numbers in it, ascending, and their values; all of it, without numbers."""

    slice: Slice
    numbers: torch.Tensor | None
    values: torch.Tensor


class Snapshot:
    """What the receivers have: the share of this rank, of all elements one, in the bytes that were published. It moves
    when a delta is committed, and at no other time. ``device``: where it is kept, the CPU (``pin``: in memory that an
    accelerator reads directly) or that of the parameters."""

    def __init__(self, publisher: Publisher, device: torch.device | str = "cpu", pin: bool = False) -> None:
        self.publisher, self.packing = publisher, Packing(publisher)
        publisher.begin("snapshot")
        with publisher.team.step("making a snapshot"):
            self.buffers = [
                torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pin) for size in self.packing.sizes
            ]
        for number, buffer in enumerate(self.buffers):
            for one, values in self.packing.values(number):
                slice_of(buffer, one).copy_(values)

    @property
    def nbytes(self) -> int:
        """Bytes kept by this rank."""
        return sum(self.packing.sizes)

    def delta(self, dense: str | Iterable[str] = ()) -> Delta:
        """What has changed since. ``dense``: patterns of names that are sent whole if anything of them has changed, for
        receivers that cannot patch them. Nothing is compared before the delta is used."""
        return Delta(self, (dense,) if isinstance(dense, str) else tuple(dense))


class Delta:
    """What has changed since a snapshot. Each use compares anew; :meth:`commit` makes the snapshot what the last use
    has sent, once the receivers are known to have it: a delta that is dropped, or that they refused, is in the next
    one. All methods are collectives."""

    def __init__(self, snapshot: Snapshot, dense: Sequence[str]) -> None:
        self._snapshot, self._dense = snapshot, dense
        self.publisher = snapshot.publisher
        self._found: dict[int, list[Changes]] | None = None

    def patches(self, *, to: int | Collection[int] | None = 0) -> Iterator[Patch]:
        """The tensors that have changed, on the ranks ``to``, in publishing order: sparse where that takes fewer bytes
        than all of it; whole if not, if it is no tensor of floats, or if a changed value is no number (receivers mark
        with those what does not change)."""
        publisher = self.publisher
        ranks = publisher.ranks(to)
        publisher.begin(f"patches to {to}")
        return self._patches(ranks)

    def rows(self) -> Iterator[Row]:
        """What this rank has, without a word to the others: the same number of rows of the same tensors on all. Raises
        ``CrosswalkError`` (``delta/large``) for tensors whose elements ``int32`` cannot number."""
        self._refuse_large()
        self.publisher.begin("rows")
        return self._rows()

    def replaced(self, *, to: int = 0) -> Iterator[Replaced]:
        """The tensors that have changed, whole, as they are and as they were, on rank ``to``: for formats that compare
        all of a tensor. Raises ``CrosswalkError`` as :meth:`rows` does."""
        self._refuse_large()
        ranks = self.publisher.ranks(to)
        self.publisher.begin(f"what was replaced, to {to}")
        return self._replaced(ranks, to)

    def _refuse_large(self) -> None:
        specs = (self.publisher.plan.targets[target] for target in self.publisher.targets)
        large = [spec.name for spec in specs if spec.elements >= _NARROW]
        if large:
            raise CrosswalkError(
                Diagnostic("delta/large", f"`{pattern}` has more elements than 32 bits number", None, "use `patches`")
                for pattern, _ in fold(large)
            )

    def commit(self) -> None:
        """The receivers have what the last use gave. Raises ``CrosswalkError`` (``delta/unfinished``) if it was not
        consumed to the end, on any rank."""
        with self.publisher.team.step("committing a delta"):
            if self._found is None or len(self._found) < len(self._snapshot.buffers):
                text = "the delta was not consumed to its end, so that no receiver can have all of it"
                raise fail(
                    "delta/unfinished", text, None, "consume what `patches`, `rows` or `replaced` return, on all ranks"
                )
        assert self._found is not None
        for number, changes in self._found.items():
            for one, numbers, values in changes:
                kept = slice_of(self._snapshot.buffers[number], one)
                if numbers is None:
                    kept.copy_(values)
                else:
                    kept[numbers.to(kept.device)] = values.to(kept.device)
        self._found = None

    def discard(self) -> None:
        """The receivers do not have it: all of it is in the next delta."""
        self._found = None

    def _rows(self) -> Iterator[Row]:
        self._found = {}
        plan = self.publisher.plan
        for number, targets in enumerate(self.publisher.bucketed):
            found = self._compared(number)
            pieces = _by_target(found)
            for dtype in dict.fromkeys(plan.targets[target].dtype for target in targets):
                members = [target for target in targets if plan.targets[target].dtype == dtype]
                pairs = [_merged(_pairs(pieces[target])) if target in pieces else _NOTHING for target in members]
                tensors = tuple((plan.targets[t].name, plan.targets[t].shape) for t in members)
                counts = torch.tensor([indices.numel() for indices, _ in pairs], dtype=torch.int64)
                yield Row(tensors, torch_dtype(dtype), counts, *_joined(pairs, torch_dtype(dtype), self._device))
            self._found[number] = found

    def _patches(self, to: Ranks | None) -> Iterator[Patch]:
        self._found = {}
        publisher = self.publisher
        everyone = tuple(range(publisher.team.size))
        wanted = everyone if to is None else to
        for number, targets in enumerate(publisher.bucketed):
            found = self._compared(number)
            counts = self._counts(targets, found)
            every = publisher.meet(counts) if len(everyone) > 1 else [counts]
            whole = {target for k, target in enumerate(targets) if self._is_whole(target, [c[k] for c in every])}
            kept = [self._all(number, one) if one.slice.target in whole else one for one in found]
            sparse = [k for k, target in enumerate(targets) if target not in whole and any(c[k] for c in every)]
            made = dict(publisher.some(to, [t for t in targets if t in whole]))
            parts = self._gathered([targets[k] for k in sparse], [[c[k] for k in sparse] for c in every], kept, wanted)
            for target in targets if publisher.team.rank in wanted else ():
                spec = publisher.plan.targets[target]
                head = (spec.name, spec.shape, torch_dtype(spec.dtype))
                if target in whole:
                    yield Patch(*head, None, made[spec.name])
                elif target in parts:
                    yield Patch(*head, *_merged(parts[target]))
            self._found[number] = kept

    @torch.no_grad()
    def _replaced(self, ranks: Ranks | None, to: int) -> Iterator[Replaced]:
        self._found = {}
        publisher = self.publisher
        for number, targets in enumerate(publisher.bucketed):
            found = self._compared(number)
            sums = dict.fromkeys(targets, 0)
            for one, _, values in found:
                sums[one.target] += values.numel()
            every = publisher.meet(list(sums.values()))
            changed = [k for k in range(len(targets)) if any(counts[k] for counts in every)]
            before = [self._before(number, one) for one in found]
            now = dict(publisher.some(ranks, [targets[k] for k in changed]))
            counts = [[theirs[k] for k in changed] for theirs in every]
            parts = self._gathered([targets[k] for k in changed], counts, before, (to,))
            for target in (targets[k] for k in changed if publisher.team.rank == to):
                spec = publisher.plan.targets[target]
                old = now[spec.name].clone()
                for indices, values in parts[target]:
                    old.view(-1)[indices.long()] = values
                yield Replaced(spec.name, spec.shape, torch_dtype(spec.dtype), now[spec.name], old)
            self._found[number] = found

    def _before(self, number: int, changes: Changes) -> Changes:
        """What the elements that have changed were."""
        one, numbers, values = changes
        assert numbers is not None
        old = slice_of(self._snapshot.buffers[number], one)[numbers.to(self._snapshot.buffers[number].device)]
        return Changes(one, numbers, old.to(values.device))

    def _counts(self, targets: Sequence[int], found: Sequence[Changes]) -> list[int]:
        """Of each target, how many elements have changed here; ``_DENSE`` if values among them are not numbers."""
        counts = dict.fromkeys(targets, 0)
        for one, numbers, values in found:
            changed = one.elements if numbers is None else numbers.numel()
            nothing = changed and one.dtype.is_floating_point and bool(torch.isnan(values).any())
            before = counts[one.target]
            counts[one.target] = _DENSE if nothing or before == _DENSE else before + changed
        return list(counts.values())

    def _is_whole(self, target: int, counts: Sequence[int]) -> bool:
        spec: TensorSpec = self.publisher.plan.targets[target]
        if not any(counts):
            return False
        if _DENSE in counts or spec.dtype not in FLOATS or spec.elements >= _NARROW:
            return True
        if any(fnmatchcase(spec.name, pattern) for pattern in self._dense):
            return True
        width = spec.nbytes // spec.elements
        return sum(counts) * (4 + width) >= spec.nbytes

    @property
    def _device(self) -> torch.device:
        return self.publisher.current.device

    @torch.no_grad()
    def _compared(self, number: int) -> list[Changes]:
        """What has changed in each slice of a bucket, where anything has."""
        found = []
        for one, values in self._snapshot.packing.values(number):
            old = slice_of(self._snapshot.buffers[number], one)
            numbers = _changed(values, old)
            if numbers.numel():
                found.append(Changes(one, numbers, values[numbers]))
        return found

    def _all(self, number: int, changes: Changes) -> Changes:
        """The slice as it is now, whole: fewer bytes than what has changed of it, and where."""
        one, numbers, values = changes
        if numbers is None or numbers.numel() * (8 + values.element_size()) < one.elements * values.element_size():
            return changes
        now = slice_of(self._snapshot.buffers[number], one).to(values.device, copy=True)
        now[numbers] = values
        return Changes(one, None, now)

    def _gathered(
        self, targets: Sequence[int], counts: Sequence[Sequence[int]], found: Sequence[Changes], to: Ranks
    ) -> dict[int, list[Pair]]:
        """By target, the indices and values of each rank that has any, on the ranks ``to``."""
        publisher = self.publisher
        rank = publisher.team.rank
        pieces = _by_target(found)
        own = {target: _pairs(pieces[target]) for target in targets if target in pieces}
        parts = dict(own) if rank in to else {}
        if publisher.team.size == 1 or not targets:
            return parts
        specs = [publisher.plan.targets[target] for target in targets]
        outgoing = {}
        if any(counts[rank]) and to != (rank,):
            joined = [_concatenated(own[target]) if target in own else _NOTHING for target in targets]
            outgoing[to] = _wire(specs, counts[rank], joined, self._device)
        incoming = {
            (sender, to): _layout(specs, theirs)[1]
            for sender, theirs in enumerate(counts)
            if rank in to and sender != rank and any(theirs)
        }
        for (sender, _), buffer in sorted(publisher.exchange(outgoing, incoming).items()):
            offsets, _ = _layout(specs, counts[sender])
            for target, spec, count, (first, second) in zip(targets, specs, counts[sender], offsets, strict=True):
                if count:
                    indices = elements_of(buffer, first, count, torch.int32)
                    values = elements_of(buffer, second, count, torch_dtype(spec.dtype))
                    parts.setdefault(target, []).append((indices.to(self._device), values.to(self._device)))
        return parts


def _changed(now: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The numbers of the elements whose bits differ, ascending."""
    if not now.numel():
        return torch.empty(0, dtype=torch.int64, device=now.device)
    one, other = as_integers(now), as_integers(old)
    step = _BLOCK // now.element_size()
    found = [
        (one[start : start + step] != other[start : start + step].to(now.device, non_blocking=True)).nonzero().view(-1)
        + start
        for start in range(0, one.numel(), step)
    ]
    return torch.cat(found) if len(found) > 1 else found[0]


def _by_target(found: Iterable[Changes]) -> dict[int, list[Changes]]:
    result: dict[int, list[Changes]] = {}
    for one in found:
        result.setdefault(one.slice.target, []).append(one)
    return result


def _pairs(changes: Iterable[Changes]) -> list[Pair]:
    """Flat indices in the target, and values, of each slice of one target."""
    return [
        (through(numbers, one.place).to(torch.int32), values) for one, numbers, values in changes if numbers is not None
    ]


def _concatenated(pairs: Sequence[Pair]) -> Pair:
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([indices for indices, _ in pairs]), torch.cat([values for _, values in pairs])


def _joined(pairs: Sequence[Pair], dtype: torch.dtype, device: torch.device) -> Pair:
    """The pairs that have anything, one after the other."""
    full = [pair for pair in pairs if pair[0].numel()]
    if not full:
        return torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, dtype=dtype, device=device)
    return _concatenated(full)


def _merged(pairs: Sequence[Pair]) -> Pair:
    """One pair with ascending indices."""
    indices, values = _concatenated(pairs)
    if not bool((indices[1:] > indices[:-1]).all()):
        indices, order = indices.sort()
        values = values[order]
    return indices, values


def _layout(specs: Sequence[TensorSpec], counts: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
    """Where the indices and the values of each tensor are in what a rank sends, and its size, in bytes."""
    end, offsets = 4 * sum(counts), []
    first = 0
    for spec, count in zip(specs, counts, strict=True):
        width = spec.nbytes // spec.elements
        end = -(-end // width) * width
        offsets.append((first, end))
        first += 4 * count
        end += width * count
    return offsets, end


def _wire(
    specs: Sequence[TensorSpec],
    counts: Sequence[int],
    pairs: Sequence[Pair],
    device: torch.device,
) -> torch.Tensor:
    offsets, size = _layout(specs, counts)
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    for (indices, values), count, (first, second) in zip(pairs, counts, offsets, strict=True):
        if count:
            elements_of(buffer, first, count, torch.int32).copy_(indices)
            elements_of(buffer, second, count, values.dtype).copy_(values)
    return buffer
