"""What a plan moves between files and the parts of tensors that this process holds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from .affine import Piece, intersect, make_piece
from .placement import Part
from .plan import Copy, Plan
from .regions import Placement
from .transfer import Memory


@dataclass(frozen=True, slots=True)
class Moves:
    """Pieces between the tensors of files, by number in the plan, and memory."""

    placements: Mapping[int, Sequence[Placement]]
    memories: Sequence[Memory]

    def by_device(self) -> Iterator[tuple[torch.device, dict[int, list[Placement]]]]:
        """The pieces of each device that holds memory."""
        devices: dict[torch.device, dict[int, list[Placement]]] = {}
        for tensor, placements in self.placements.items():
            for placed in placements:
                found = devices.setdefault(self.memories[placed.memory].flat.device, defaultdict(list))
                found[tensor].append(placed)
        yield from devices.items()

    def elements(self, tensor: int) -> int:
        """Elements of a tensor of the files that are moved."""
        return sum(math.prod(axis[0] for axis in placed.piece.axes) for placed in self.placements.get(tensor, ()))


def moves(plan: Plan, parts: Mapping[str, Sequence[tuple[Part, str]]], memory_end: str) -> Moves:
    """What the plan moves into (``memory_end="target"``) or out of (``"source"``) parts in memory, given with their
    dtype names, by tensor."""
    memories: list[Memory] = []
    placements: dict[int, list[Placement]] = defaultdict(list)
    into = memory_end == "target"
    for turn in range(max((len(found) for found in parts.values()), default=0)):
        chosen = {name: found[turn] for name, found in parts.items() if len(found) > turn}
        boxes = {name: part.box for name, (part, _) in chosen.items()}
        restricted = plan.restrict(targets=boxes) if into else plan.restrict(sources=boxes)
        ours, theirs = (restricted.targets, restricted.sources) if into else (restricted.sources, restricted.targets)
        index = plan.source_index if into else plan.target_index
        numbers: dict[str, int] = {}
        for copy in restricted.copies:
            name = ours[copy.target if into else copy.source].name
            part, dtype = chosen[name]
            if name not in numbers:
                numbers[name] = len(memories)
                memories.append(Memory.of(part.tensor, dtype))
            file = index[theirs[copy.source if into else copy.target].name]
            placements[file] += [Placement(numbers[name], piece) for piece in _in_storage(copy, part.tensor, into)]
    return Moves(placements, memories)


def _in_storage(copy: Copy, tensor: torch.Tensor, into: bool) -> Iterable[Piece]:
    """A copy as pieces from the file (here) to the storage of the tensor that has the shape of the box (there)."""
    ends = (copy.source_offset, copy.source_strides, copy.target_offset, copy.target_strides)
    here, strides, there, others = ends if into else (*ends[2:], *ends[:2])
    start = int(tensor.storage_offset())
    if tensor.is_contiguous():
        return [make_piece(here, strides, there + start, others, copy.extents)]
    shape = tuple(tensor.shape)
    dense, size = [], 1
    for extent in reversed(shape):
        dense.append(size)
        size *= extent
    view = make_piece(0, tuple(reversed(dense)), start, tensor.stride(), shape)
    box = make_piece(there, others, here, strides, copy.extents)
    pieces = []
    for piece in intersect(box, view):
        extents, own, far = zip(*piece.axes, strict=True) if piece.axes else ((), (), ())
        pieces.append(make_piece(piece.here, own, piece.there, far, extents))
    return pieces
