"""What a plan moves between files and the parts of tensors that this process holds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from crosswalk.runtime.plan.affine import Piece, PieceOf, dense, intersect, make_piece
from crosswalk.runtime.plan.algebra import Cut, box_cuts, cut
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.records import Record

from .placement import Part
from .transfer import Memory


class Moves(Record, frozen=True):
    """Pieces between the tensors of files, by number in the plan, and memory."""

    placements: Mapping[int, Sequence[PieceOf]]
    memories: Sequence[Memory]

    def by_device(self) -> Iterator[tuple[torch.device, dict[int, list[PieceOf]]]]:
        """The pieces of each device that holds memory."""
        devices: dict[torch.device, dict[int, list[PieceOf]]] = {}
        for tensor, placements in self.placements.items():
            for placed in placements:
                found = devices.setdefault(self.memories[placed.number].flat.device, defaultdict(list))
                found[tensor].append(placed)
        yield from devices.items()

    def elements(self, tensor: int) -> int:
        """Elements of a tensor of the files that are moved."""
        return sum(piece.elements for _, piece in self.placements.get(tensor, ()))


def moves(plan: Plan, parts: Mapping[str, Sequence[tuple[Part, str]]], memory_end: str) -> Moves:
    """What the plan moves into (``memory_end="target"``) or out of (``"source"``) parts in memory, given with their
    dtype names, by tensor."""
    into = memory_end == "target"
    specs, index = (plan.targets, plan.target_index) if into else (plan.sources, plan.source_index)
    memories = _Memories()
    boxes = {index[name]: _Boxes(specs[index[name]].shape, found, memories) for name, found in parts.items()}
    placements: dict[int, list[PieceOf]] = defaultdict(list)
    for copy in plan.copies:
        held, file = (copy.target, copy.source) if into else (copy.source, copy.target)
        if held in boxes:
            placements[file] += boxes[held].placements(copy.piece if into else copy.piece.swapped)
    return Moves(placements, memories.found)


class _Memories:
    """The storages that parts are in, each once."""

    def __init__(self) -> None:
        self.found: list[Memory] = []
        self._numbers: dict[tuple[torch.device, int, str], int] = {}

    def number(self, tensor: torch.Tensor, dtype: str) -> int:
        key = (tensor.device, tensor.untyped_storage().data_ptr(), dtype)
        if key not in self._numbers:
            self._numbers[key] = len(self.found)
            self.found.append(Memory.of(tensor, dtype))
        return self._numbers[key]


class _Box(NamedTuple):
    """A part of a tensor: its elements lie in ``[first, stop)`` of the flattened tensor."""

    first: int
    stop: int
    cuts: list[Cut]
    tensor: torch.Tensor
    memory: int


class _Boxes:
    """The parts of a tensor of the given shape, in the order in which they begin."""

    def __init__(self, shape: tuple[int, ...], parts: Sequence[tuple[Part, str]], memories: _Memories) -> None:
        strides = dense(shape)
        self._boxes = []
        for part, dtype in parts:
            if part.tensor.numel():
                first = sum(start * stride for (start, _), stride in zip(part.box, strides, strict=True))
                last = sum((stop - 1) * stride for (_, stop), stride in zip(part.box, strides, strict=True))
                memory = memories.number(part.tensor, dtype)
                self._boxes.append(_Box(first, last + 1, box_cuts(shape, part.box), part.tensor, memory))
        self._boxes.sort(key=lambda box: (box.first, box.stop))
        self._starts = [box.first for box in self._boxes]
        #: How far the parts up to each one reach.
        self._reach = list(accumulate((box.stop for box in self._boxes), max))

    def placements(self, piece: Piece) -> Iterator[PieceOf]:
        """What the parts hold of a piece, whose ``here`` end is in the tensor and ``there`` end in a file."""
        begin, end = bisect_right(self._reach, piece.here), bisect_left(self._starts, piece.stop)
        for box in self._boxes[begin:end]:
            for inside in cut(piece, box.cuts):
                for placed in _in_storage(inside, box.tensor):
                    yield PieceOf(box.memory, placed)


def _in_storage(piece: Piece, tensor: torch.Tensor) -> list[Piece]:
    """A piece of a box (here), as pieces from the file (here) to the storage of the tensor that is the box (there)."""
    start = int(tensor.storage_offset())
    if tensor.is_contiguous():
        extents, own, far = piece.columns
        return [make_piece(piece.there, far, piece.here + start, own, extents)]
    shape = tuple(tensor.shape)
    pieces = []
    for part in intersect(piece, make_piece(0, dense(shape), start, tensor.stride(), shape)):
        extents, own, far = part.columns
        pieces.append(make_piece(part.here, own, part.there, far, extents))
    return pieces
