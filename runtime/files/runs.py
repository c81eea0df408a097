"""Parts of tensors that are read into a buffer, by the engine for files and by the one for live models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.gathering import AVAILABLE

MIB = 1 << 20
#: Bytes that are read at a time where they pass through a buffer; they stay in a core's cache until they are used.
STEP = 1 * MIB
#: Reading this many bytes takes as long as one run: closer ones are read together with what is between them.
SEEK = (8 if AVAILABLE else 16) << 10
#: Runs of more than this many times ``SEEK`` are worth a call each, however close they stand.
LONGEST_TOGETHER = 4


class StridedRuns(NamedTuple):
    """Runs of ``length`` bytes of a file each, the first at ``start``, one for each index over ``axes``:
    ``(extent, step)``, outermost first."""

    start: int
    length: int
    axes: tuple[tuple[int, int], ...]

    @property
    def number(self) -> int:
        """How many runs there are."""
        return math.prod(extent for extent, _ in self.axes)

    @property
    def nbytes(self) -> int:
        """Bytes in all runs."""
        return self.number * self.length

    def starts(self) -> Iterator[int]:
        """Where each run begins. There can be many: they are never listed."""
        if not self.axes:
            yield self.start
            return
        *outer, (extent, step) = self.axes
        for offsets in itertools.product(*(range(0, n * s, s) for n, s in outer)):
            begin = self.start + sum(offsets)
            yield from range(begin, begin + extent * step, step)


class SourceBlock(NamedTuple):
    """Parts of a tensor in a file, and where they are kept: ``runs`` stand one after the other from byte ``at`` of a
    buffer on. ``together``: runs along the innermost axis stand so close that reading what is between them, and leaving
    it out of the buffer, is faster than a call for each."""

    source: int
    runs: StridedRuns
    at: int
    together: bool = False

    @property
    def bytes_read(self) -> int:
        """Bytes of the file that are read for it."""
        if not self.together:
            return self.runs.nbytes
        extent, step = self.runs.axes[-1]
        calls = -(-extent // (STEP // step))
        return self.runs.number // extent * ((extent - calls) * step + calls * self.runs.length)


def read_block(reader: Reader, block: SourceBlock, view: memoryview, step: memoryview) -> None:
    """Fill ``view`` with the runs of a block. ``step``: what to read through. Raises ``CrosswalkError``."""
    start, length, axes = block.runs
    if not axes:
        reader.read(block.source, start, view[:length])
    elif not block.together:
        reader.read_runs(block.source, block.runs.starts(), length, view)
    else:
        extent, _ = axes[-1]
        for first in StridedRuns(start, length, axes[:-1]).starts():
            _pick(reader, block.source, StridedRuns(first, length, axes[-1:]), view, step)
            view = view[extent * length :]


def _pick(reader: Reader, source: int, runs: StridedRuns, view: memoryview, step: memoryview) -> None:
    """Fill ``view`` with runs along one axis, reading all that is between them."""
    import numpy as np  # which conversions that only copy ranges do without

    start, length, ((count, stride),) = runs
    rows = len(step) // stride
    for row in range(0, count, rows):
        now = min(rows, count - row)
        reader.read(source, start + row * stride, step[: (now - 1) * stride + length])
        kept = np.ndarray((now, length), np.uint8, view, row * length)
        np.copyto(kept, np.ndarray((now, length), np.uint8, step, 0, (stride, 1)))
