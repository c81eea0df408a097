"""Strided copies between buffers in memory with numpy: exact for every bit pattern, and without torch, which takes
longer to import than a conversion of a few gigabytes takes. :mod:`.kernels` casts, and transposes twice as fast.

``copyto`` is as fast as memory for everything but transposes, which move one element at a time. So elements of several
rows are put side by side into words of 8 bytes, and a tile of words that stays in the cache is transposed.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crosswalk.runtime.plan.affine import Piece

#: A transposed plane with a shorter edge is left to ``copyto``.
SHORTEST = 32
#: Rows and columns of a tile, in words of 8 bytes: half a MiB.
_HEIGHT, _WIDTH, WORD = 256, 256, 8

Array = npt.NDArray[Any]
_local = threading.local()


def move(source: memoryview, target: memoryview, width: int, piece: Piece) -> None:
    """Copy the elements of a piece, of ``width`` bytes each, between two buffers of bytes that hold them: from where it
    is ``there`` in the source to where it is ``here`` in the target."""
    extents, strides, others = piece.columns
    reading = _elements(source, width, extents, piece.there, others)
    writing = _elements(target, width, extents, piece.here, strides)
    plane = transposed_plane(extents, others, strides)
    if plane is None:
        np.copyto(writing, reading)
        return
    outer = [axis for axis in range(len(extents)) if axis not in plane]
    reading, writing = (array.transpose(*outer, *plane) for array in (reading, writing))
    for index in itertools.product(*(range(extents[axis]) for axis in outer)):
        transpose(reading[index], writing[index])


def _elements(buffer: memoryview, width: int, extents: Sequence[int], offset: int, strides: Sequence[int]) -> Array:
    """A view of a buffer, which must hold it; offset and strides count elements. Integers keep all their bits."""
    steps = tuple(stride * width for stride in strides)
    return np.ndarray(tuple(extents), f"u{width}", buffer, offset * width, steps)


def transposed_plane(
    extents: Sequence[int], source_strides: Sequence[int], strides: Sequence[int]
) -> tuple[int, int] | None:
    """The axes ``(rows, columns)`` that are contiguous in the target and in the source, if they differ and are long."""
    if 1 not in strides or 1 not in source_strides:
        return None
    rows, columns = strides.index(1), source_strides.index(1)
    if rows == columns or min(extents[rows], extents[columns]) < SHORTEST:
        return None
    return rows, columns


def transpose(source: Array, target: Array) -> None:
    """Copy a matrix of integers with contiguous rows to one of the same shape with contiguous columns."""
    together = WORD // source.itemsize
    rows = len(source) // together * together
    np.copyto(target[rows:], source[rows:])
    for top, left in itertools.product(range(0, rows, _HEIGHT * together), range(0, source.shape[1], _WIDTH)):
        bottom, right = min(top + _HEIGHT * together, rows), left + _WIDTH
        _transpose_tile(source[top:bottom, left:right], target[top:bottom, left:right].T, together)


def _transpose_tile(source: Array, target: Array, together: int) -> None:
    """``target[...] = source.T`` for rows of both that are contiguous; ``source`` has whole words of ``together``."""
    height, width = len(source) // together, source.shape[1]
    words = scratch()[:height]
    parts = words.view(source.dtype)[:, : width * together]
    for row in range(together):
        np.copyto(parts[:, row::together], source[row::together])
    np.copyto(target.view(words.dtype), words[:, :width].T)


def scratch() -> Array:
    """This thread's words of one tile. Rows are longer than it by one, so that those of one column do not fall on the
    same lines of the cache."""
    if not hasattr(_local, "scratch"):
        _local.scratch = np.empty((_HEIGHT, _WIDTH + 1), f"u{WORD}")
    found: Array = _local.scratch
    return found
