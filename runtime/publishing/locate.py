"""Indices of elements, from the memory that holds them to the tensors of the checkpoint, many at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from crosswalk.runtime.errors import fail
from crosswalk.runtime.plan.affine import dense
from crosswalk.runtime.plan.model import Plan

from .current import Current
from .pieces import Strided, moves_of, out_of

#: Indices that are worked on at a time: their digits stay in the cache.
_BLOCK = 1 << 17
#: Below this, indices are 32 bits wide.
_NARROW = 2**31
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Located(NamedTuple):
    """Elements of one tensor of the checkpoint: its name, their positions in what was asked for, and their flat indices
    there, in the same order."""

    name: str
    positions: slice | torch.Tensor
    indices: torch.Tensor


def flat_indices(indices: Any, count: int) -> torch.Tensor:
    """What is given as flat indices among ``count`` elements, wide enough for any of them. Raises ``CrosswalkError``
    (``publisher/locate``) if it is no list of whole numbers as a tensor."""
    if isinstance(indices, torch.Tensor) and indices.dim() == 1 and indices.dtype in _WHOLE:
        return indices if count <= torch.iinfo(indices.dtype).max else indices.long()
    found = f"{indices.dtype} {list(indices.shape)}" if isinstance(indices, torch.Tensor) else type(indices).__name__
    raise fail(
        "publisher/locate", f"indices are a tensor of whole numbers with one dimension, not {found}", None,
        "pass flat ones: (...).nonzero().view(-1) of the flattened parameter",
    )  # fmt: skip


def locate(copies: Sequence[tuple[str, Strided]], indices: torch.Tensor, count: int) -> Iterator[Located]:
    """Where elements of a tensor in memory, which has ``count``, go: flat ``indices`` in it, by the copies that read it
    (with the names of what they write). Ascending indices are cut at the bounds of the copies; others are sorted first.
    What no copy reads is in no answer. Raises ``CrosswalkError`` (``publisher/locate``) for what the tensor has not."""
    order: torch.Tensor | None = None
    if not _ascending(indices):
        indices, order = indices.sort()
    if indices.numel() and (int(indices[0]) < 0 or int(indices[-1]) >= count):
        text = f"there are indices from {int(indices[0])} to {int(indices[-1])}, and this rank holds {count} elements"
        raise fail("publisher/locate", text, None, "count in what this rank holds of the parameter, from 0 on")
    bounds = torch.tensor([bound for _, copy in copies for bound in _hull(copy)], dtype=torch.int64)
    cuts = torch.searchsorted(indices, bounds.to(indices.device, indices.dtype)).tolist()
    for number, (name, copy) in enumerate(copies):
        first, stop = cuts[2 * number : 2 * number + 2]
        if first == stop:
            continue
        found, kept = _located(indices[first:stop], copy)
        if kept is None and order is None:
            yield Located(name, slice(first, stop), found)
        elif found.numel():
            positions = torch.arange(first, stop, device=indices.device)
            positions = positions if kept is None else positions[kept]
            yield Located(name, positions if order is None else order[positions], found)


def readers(plan: Plan, current: Current, parameter: str) -> list[tuple[str, Strided]]:
    """The copies that read what this rank holds of a parameter, with the names of what they write; they count in the
    memory of the parameter. Raises ``CrosswalkError`` (``publisher/locate``)."""
    if parameter not in current.placed:
        raise fail(
            "publisher/locate", f"the model has no parameter `{parameter}`", None, "names are those of the model"
        )
    result = []
    for start, box, tensor in current.local(parameter):
        for target, moves in moves_of(plan, {0: {parameter: [box]}}).items():
            for move in moves:
                for copy in out_of(move.piece, tensor):
                    result.append((plan.targets[target].name, copy._replace(offset=copy.offset + start)))
    return result


def through(places: torch.Tensor, copy: Strided) -> torch.Tensor:
    """Flat indices in what is written, of elements given by their number in a copy: ``int32`` where they fit."""
    kind = torch.int32 if _widest(copy) < _NARROW else torch.int64
    return _blockwise(places, kind, lambda block: _written(block.to(kind), copy))


def _located(indices: torch.Tensor, copy: Strided) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The flat indices of what is written for those that are read, and which are (None for all)."""
    kind = torch.int32 if _widest(copy) < _NARROW else torch.int64
    if copy.strides == dense(copy.extents):
        return _blockwise(indices, kind, lambda block: _written((block - copy.offset).to(kind), copy)), None
    axes = sorted(zip(copy.strides, copy.extents, dense(copy.extents), strict=True), reverse=True)
    if _without_holes(axes):

        def step(block: torch.Tensor) -> torch.Tensor:
            return _written(_numbers((block - copy.offset).to(kind), axes, False)[0], copy)

        return _blockwise(indices, kind, step), None
    found, kept = [], []
    for start in range(0, indices.numel(), _BLOCK):
        number, inside = _numbers((indices[start : start + _BLOCK] - copy.offset).to(kind), axes, True)
        assert inside is not None
        kept.append(inside)
        found.append(_written(number[inside], copy))
    return torch.cat(found), torch.cat(kept)


def _blockwise(
    indices: torch.Tensor, kind: torch.dtype, function: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    if indices.numel() <= _BLOCK:
        return function(indices)
    result = torch.empty(indices.numel(), dtype=kind, device=indices.device)
    for start in range(0, indices.numel(), _BLOCK):
        result[start : start + _BLOCK] = function(indices[start : start + _BLOCK])
    return result


def _written(numbers: torch.Tensor, copy: Strided) -> torch.Tensor:
    """Flat indices in what is written, of elements by their number in the copy."""
    if copy.out_strides == dense(copy.extents):
        return numbers + copy.out_offset if copy.out_offset else numbers
    result = torch.full_like(numbers, copy.out_offset)
    rest = numbers
    for extent, stride in reversed(list(zip(copy.extents[1:], copy.out_strides[1:], strict=True))):
        above = _divided(rest, extent)
        result.add_(torch.sub(rest, above, alpha=extent), alpha=stride)
        rest = above
    return result.add_(rest, alpha=copy.out_strides[0])


def _numbers(
    relative: torch.Tensor, axes: Sequence[tuple[int, int, int]], holes: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The number in the copy of each element, counted from the first that is read, and with ``holes`` whether it is
    read. ``axes``: stride in memory, extent, and what a step counts, largest stride first."""
    rest, number = relative, torch.zeros_like(relative)
    inside = torch.ones_like(relative, dtype=torch.bool) if holes else None
    for stride, extent, size in axes:
        digit = _divided(rest, stride)
        number.add_(digit, alpha=size)
        if inside is not None:
            inside &= digit < extent
        if stride > 1:
            rest = torch.sub(rest, digit, alpha=stride)
    if inside is not None and axes[-1][0] > 1:
        inside &= rest == 0
    return number, inside


def _divided(numbers: torch.Tensor, by: int) -> torch.Tensor:
    """Whole parts of quotients of numbers that are not negative."""
    if by == 1:
        return numbers
    if by & (by - 1) == 0:
        return numbers.bitwise_right_shift(by.bit_length() - 1)
    if numbers.dtype == torch.int32:
        return numbers.double().div_(by).to(torch.int32)  # exact below 2**31, and faster than whole numbers
    return numbers.div(by, rounding_mode="floor")


def _without_holes(axes: Sequence[tuple[int, int, int]]) -> bool:
    """Whether every element between the first and the last is read."""
    expected = 1
    for stride, extent, _ in reversed(axes):
        if stride != expected:
            return False
        expected = stride * extent
    return True


def _ascending(indices: torch.Tensor) -> bool:
    steps = range(0, indices.numel() - 1, 8 * _BLOCK)
    return all(
        bool(
            (
                indices[start + 1 : start + 8 * _BLOCK + 1]
                >= indices[start : start + 8 * _BLOCK][: indices.numel() - start - 1]
            ).all()
        )
        for start in steps
    )


def _hull(copy: Strided) -> tuple[int, int]:
    """The first element that is read, and one past the last."""
    return copy.offset, copy.offset + 1 + _span(copy.extents, copy.strides)


def _widest(copy: Strided) -> int:
    """One more than any number that comes up."""
    return (
        max(
            copy.out_offset + _span(copy.extents, copy.out_strides),
            _span(copy.extents, copy.strides),
            math.prod(copy.extents),
        )
        + 1
    )


def _span(extents: Sequence[int], strides: Sequence[int]) -> int:
    return sum((extent - 1) * stride for extent, stride in zip(extents, strides, strict=True))
