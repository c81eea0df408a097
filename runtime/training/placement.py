"""Which part of a parameter this process holds: boxes of the global tensor, each with the local memory behind it.

A ``DTensor`` says it with a mesh and placements; :class:`Shards` says it with a list of boxes, for trainers that shard
without DTensor or shard each half of a fused parameter for itself; any other tensor is held whole.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from crosswalk.runtime.dtypes import dtype_name
from crosswalk.runtime.errors import CrosswalkError, fail
from crosswalk.runtime.plan.algebra import Box
from crosswalk.runtime.records import Record, replace

from .intervals import Interval, chunk

#: Dimensions of a tensor, each with the mesh dimensions that shard it, in the order in which they do.
_Order = tuple[tuple[int, tuple[int, ...]], ...]


class Part(Record, frozen=True):
    """A box of the global tensor and the local tensor, of the shape of the box, that holds it."""

    box: Box
    tensor: torch.Tensor


class Shards(Record, frozen=True):
    """A parameter of global ``shape`` of which this process holds some boxes: ``(box, tensor)`` each, the box being
    ``(start, stop)`` per dimension and the tensor having its shape. A rank without a part names the ``dtype``."""

    shape: Sequence[int]
    parts: Sequence[tuple[Box, torch.Tensor]]
    dtype: torch.dtype | None = None

    @staticmethod
    def of_intervals(shape: Sequence[int], intervals: Sequence[Sequence[Interval]], local: torch.Tensor) -> Shards:
        """The boxes that are the product of some intervals in each dimension. ``local`` is as long in a dimension as
        the intervals together, and has them one after the other; the parts are views of it."""
        if not local.numel():  # a part nevertheless: it tells the dtype and the device
            return Shards(tuple(shape), [(tuple((0, size) for size in local.shape), local)])
        return Shards(tuple(shape), [(part.box, part.tensor) for part in _parts(intervals, local)])


class Placed(Record, frozen=True):
    """A parameter as this process holds it. ``dtype`` is a safetensors name; ``parts`` may be empty."""

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held here."""
        return sum(part.tensor.numel() * part.tensor.element_size() for part in self.parts)


def place(value: torch.Tensor | Shards) -> Placed:
    """Where the elements of a parameter lie on this rank. Parts alias the memory of the parameter.

    Raises ``CrosswalkError`` for a tensor that safetensors cannot store, pending sums (``Partial``), a local tensor
    that is not what its placements say, and boxes that leave the tensor or do not fit their memory.
    """
    if isinstance(value, Shards):
        return _place_shards(value)
    dtype = _dtype(value.dtype)
    if value.layout != torch.strided:
        raise fail("live/layout", f"it is a tensor of layout {value.layout}; only strided ones can be read or written")
    if not isinstance(value, DTensor):
        tensor = value.detach()
        return Placed(tuple(value.shape), dtype, (Part(tuple((0, size) for size in value.shape), tensor),))
    shape = tuple(value.shape)
    local = local_tensor(value)
    if value.device_mesh.get_coordinate() is None:
        return Placed(shape, dtype, ())
    intervals = local_intervals(value)
    found = tuple(sum(stop - start for start, stop in dimension) for dimension in intervals)
    if found != tuple(local.shape):
        raise fail(
            "live/placement",
            f"its local tensor has the shape {list(local.shape)}, its placements {list(map(str, value.placements))} of "
            f"{list(shape)} make {list(found)}",
        )
    return Placed(shape, dtype, tuple(_parts(intervals, local)))


def local_tensor(value: DTensor) -> torch.Tensor:
    """The memory of this rank, without autograd."""
    if torch.is_grad_enabled():  # every call would become a node of autograd, which takes 20 µs
        with torch.no_grad():  # takes longer than the call: who asks for many does it once for all
            return local_tensor(value)
    local = value.to_local().detach()
    assert isinstance(local, torch.Tensor)
    return local


def local_intervals(value: DTensor) -> Sequence[Sequence[Interval]]:
    """Per dimension of the tensor, the intervals of global indices that this rank holds, in local order."""
    mesh = value.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    order = getattr(value._spec, "shard_order", None)
    explicit = None if order is None else tuple((entry.tensor_dim, tuple(entry.mesh_dims)) for entry in order)
    return _intervals(tuple(value.shape), tuple(value.placements), tuple(mesh.shape), tuple(coordinate), explicit)


@functools.lru_cache(1024)
def _intervals(
    shape: tuple[int, ...],
    placements: tuple[Placement, ...],
    sizes: tuple[int, ...],
    coordinate: tuple[int, ...],
    explicit: _Order | None,
) -> Sequence[Sequence[Interval]]:
    """The same for a mesh of ``sizes``: the layers of a model have parameters that are alike."""
    intervals: list[list[Interval]] = [[(0, size)] if size else [] for size in shape]
    orders = _shard_orders(placements, sizes, explicit)
    if orders is None:
        # Not the shards of anything sharded before: the literal meaning, from left to right.
        for dimension, placement in enumerate(placements):
            if placement.is_replicate():
                continue
            axis, factor = _sharded_dimension(placement)
            pieces = [chunk(intervals[axis], piece, factor) for piece in range(factor)]
            intervals[axis] = [
                interval for piece in pieces for interval in chunk(piece, coordinate[dimension], sizes[dimension])
            ]
        return intervals
    for axis, dimensions in orders.items():
        for dimension in dimensions:
            intervals[axis] = chunk(intervals[axis], coordinate[dimension], sizes[dimension])
    return intervals


def _shard_orders(
    placements: Sequence[Placement], sizes: Sequence[int], explicit: _Order | None
) -> dict[int, Sequence[int]] | None:
    """Dimension of the tensor -> the mesh dimensions that shard it, in the order in which they do: as it is told
    (``explicit``), or else by the placements.

    ``_StridedShard`` with a split factor was sharded after the mesh dimensions to its right whose sizes multiply to the
    factor, as when tensor parallelism comes before FSDP. None if a split factor is not such a product.
    """
    if explicit is not None:
        for placement in placements:
            _sharded_dimension(placement)
        return dict(explicit)
    orders: dict[int, list[int]] = {}
    for dimension, placement in reversed(list(enumerate(placements))):
        if placement.is_replicate():
            continue
        axis, factor = _sharded_dimension(placement)
        order = orders.setdefault(axis, [])
        products = list(itertools.accumulate((sizes[d] for d in order), initial=1, func=operator.mul))
        if factor not in products:
            return None
        order.insert(products.index(factor), dimension)
    return dict(orders)


def _sharded_dimension(placement: object) -> tuple[int, int]:
    """Dimension and split factor of a sharding placement; 0 and 1 for ``Replicate``."""
    if isinstance(placement, Replicate):
        return 0, 1
    if isinstance(placement, Shard):
        return placement.dim, int(getattr(placement, "split_factor", 1))
    if type(placement).__name__ == "_StridedShard":  # not a Shard in all versions of torch
        strided: Any = placement
        return int(strided.dim), int(strided.split_factor)
    raise fail(
        "live/placement", f"its placement {placement} is no part of a stored value", None, "redistribute it first"
    )


def _parts(intervals: Sequence[Sequence[Interval]], local: torch.Tensor) -> Iterator[Part]:
    placed = []
    for dimension in intervals:
        starts = itertools.accumulate((stop - start for start, stop in dimension), initial=0)
        placed.append(list(zip(dimension, starts, strict=False)))
    for choice in itertools.product(*placed):
        view = local
        for axis, ((start, stop), place) in enumerate(choice):
            if stop - start != view.shape[axis]:
                view = view.narrow(axis, place, stop - start)
        yield Part(tuple(interval for interval, _ in choice), view)


def _place_shards(value: Shards) -> Placed:
    shape = tuple(value.shape)
    dtypes = {tensor.dtype for _, tensor in value.parts} | ({value.dtype} if value.dtype is not None else set())
    if len(dtypes) != 1:
        found = ", ".join(sorted(map(str, dtypes))) or "none is given"
        raise fail("live/dtype", f"its parts must have one dtype: {found}")
    parts = []
    for box, tensor in value.parts:
        fits = len(box) == len(shape) and all(0 <= a <= b <= n for (a, b), n in zip(box, shape, strict=True))
        if not fits or tuple(tensor.shape) != tuple(stop - start for start, stop in box):
            raise fail(
                "live/box",
                f"the box {[list(interval) for interval in box]} with a tensor of shape {list(tensor.shape)} is no box "
                f"of a tensor of shape {list(shape)}",
            )
        if tensor.numel():
            parts.append(Part(tuple((int(a), int(b)) for a, b in box), tensor.detach()))
    return Placed(shape, _dtype(dtypes.pop()), tuple(parts))


def _dtype(dtype: torch.dtype) -> str:
    try:
        return dtype_name(dtype)
    except KeyError:
        raise fail("live/dtype", f"it has the dtype {dtype}, which safetensors files cannot hold") from None


def volume(box: Box) -> int:
    """Elements in a box."""
    return math.prod(stop - start for start, stop in box)


def subtract(box: Box, others: Iterable[Box]) -> list[Box]:
    """The part of a box outside all the others, as disjoint boxes."""
    remaining = [box] if volume(box) else []
    for other in others:
        remaining = [rest for piece in remaining for rest in _without(piece, other)]
    return remaining


def _without(box: Box, other: Box) -> Iterator[Box]:
    common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, other, strict=True)]
    if any(low >= high for low, high in common):
        yield box
        return
    for axis, ((start, stop), (low, high)) in enumerate(zip(box, common, strict=True)):
        for begin, end in ((start, low), (high, stop)):
            if begin < end:
                yield (*common[:axis], (begin, end), *box[axis + 1 :])


def named(name: str, error: CrosswalkError) -> CrosswalkError:
    """The error of one parameter, with its name."""
    return CrosswalkError(replace(d, message=f"parameter `{name}`: {d.message}") for d in error.diagnostics)
