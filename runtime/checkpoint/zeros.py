"""Padding as one more source: tensors of zeros that no file holds, from which the regions are copied like all else."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from crosswalk.runtime.plan.model import Copy, Plan
from crosswalk.runtime.records import Record, replace

from .header import ReadFile, StoredTensor


class Zeros(Record, frozen=True):
    """The content of a tensor whose bytes are all zero, which is the number zero in every dtype."""

    def fill(self, start: int, view: memoryview, read: ReadFile) -> None:
        """Fill ``view`` with zeros; reads nothing."""
        if view:
            ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(view)), 0, len(view))


def with_zeros(plan: Plan, stored: Sequence[StoredTensor]) -> tuple[Plan, list[StoredTensor]]:
    """The plan for execution between files, and where its sources are: each padded target is filled from one more
    source, zeros of its shape and dtype, listed after the ``stored`` ones. The result is not to be proven: its zeros
    are read only where there is padding."""
    if not plan.padded:
        return plan, list(stored)
    beside = {copy.target: stored[copy.source] for copy in reversed(plan.copies)}
    numbers: dict[int, int] = {}
    sources, places = list(plan.sources), list(stored)
    for target in sorted({region.tensor for region in plan.padded}):
        spec = plan.targets[target]
        name = f"zeros of {spec.name}"
        while name in plan.source_index:
            name = f"zeros of {name}"
        numbers[target] = len(sources)
        sources.append(replace(spec, name=name))
        # Where they are read from only says in which order: that of the first source of the target.
        first = beside.get(target)
        file, offset = (first.file, first.offset) if first else (Path(), 0)
        places.append(StoredTensor(file, offset, spec.nbytes, spec.dtype, spec.shape, Zeros()))
    filling = (
        Copy(numbers[r.tensor], r.tensor, r.extents, r.offset, r.strides, r.offset, r.strides, r.rule)
        for r in plan.padded
    )
    copies = sorted((*plan.copies, *filling), key=lambda c: (c.target, c.target_offset, c.source, c.source_offset))
    return replace(plan, sources=tuple(sources), copies=tuple(copies), padded=()), places
