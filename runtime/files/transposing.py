"""Panels that are a matrix and come out transposed: rearranged in two steps, the first while they are read.

Rows that were read just now are still in the cache when their elements are put side by side into words of 8 bytes; a
stripe is then nothing but words transposed. :mod:`.rearranging` would find neither rows nor words there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from crosswalk.runtime.checkpoint.reading import Reader

from .rearranging import SHORTEST, WORD, Array, scratch
from .runs import SourceBlock, StridedRuns, read_block
from .tasks import Panel

#: Bytes that are read together: they and what is made of them stay in a core's second-level cache.
_HOT = 512 << 10
#: Rows and columns of a tile, in words.
_EDGE = 256


class Matrix(NamedTuple):
    """``rows`` of ``columns`` elements of ``width`` bytes each, as they are stored."""

    rows: int
    columns: int
    width: int


def matrix_of(panel: Panel, width: int, room: int) -> Matrix | None:
    """The matrix of elements of ``width`` bytes that a panel transposes, some whole rows of which take at most ``room``
    bytes; None for what it rearranges otherwise."""
    (block, *others), (stripe, *_) = panel.blocks, panel.stripes
    if others or any(len(stripe.moves) > 1 for stripe in panel.stripes):
        return None
    extents, here, there = stripe.moves[0].piece.columns
    if len(extents) != 2 or here != (extents[1], 1) or there[0] != 1:
        return None
    matrix = Matrix(extents[1], there[1], width)
    as_read = block.runs.axes[:-1] == () and block.runs.number in (1, matrix.rows)
    is_whole = matrix.rows * matrix.columns * width == block.runs.nbytes == panel.nbytes
    is_large = width < WORD and min(matrix.rows, matrix.columns) >= SHORTEST
    first = 0
    for stripe in panel.stripes:
        count = stripe.nbytes // width // matrix.rows
        if stripe.moves[0].piece != (0, first, ((count, matrix.rows, 1), (matrix.rows, 1, matrix.columns))):
            return None
        first += count
    return matrix if as_read and is_whole and is_large and matrix.columns * WORD <= room else None


def transposed(
    reader: Reader, panel: Panel, matrix: Matrix, staging: memoryview, output: memoryview, step: memoryview
) -> Iterator[memoryview]:
    """Read the matrix of a panel and yield its stripes, each in ``output`` until the next is asked for."""
    rows, columns, width = matrix
    together = WORD // width
    whole, (block,) = rows // together * together, panel.blocks
    words = np.ndarray((whole // together, columns), f"u{WORD}", staging)
    parts = np.ndarray((whole // together, columns, together), f"u{width}", staging)
    batch = max(min(_HOT, len(output)) // (columns * WORD), 1) * together
    for first in range(0, whole, batch):
        last = min(first + batch, whole)
        read_block(reader, _rows(block, matrix, first, last), output, step)
        found = np.ndarray((last - first, columns), f"u{width}", output)
        for row in range(together):
            np.copyto(parts[first // together : last // together, :, row], found[row::together])
    rest = np.ndarray((rows - whole, columns), f"u{width}", staging, whole * columns * width)
    if whole < rows:
        read_block(reader, _rows(block, matrix, whole, rows), staging[whole * columns * width :], step)
    first = 0
    for stripe in panel.stripes:
        target = np.ndarray((stripe.nbytes // width // rows, rows), f"u{width}", output)
        last = first + len(target)
        _transpose(words[:, first:last], target[:, :whole].view(words.dtype))
        np.copyto(target[:, whole:], rest[:, first:last].T)
        yield output[: stripe.nbytes]
        first = last


def _rows(block: SourceBlock, matrix: Matrix, first: int, last: int) -> SourceBlock:
    """The rows from ``first`` up to ``last`` of a block."""
    start, length, axes = block.runs
    if axes:
        ((_, step),) = axes
        return block._replace(runs=StridedRuns(start + first * step, length, ((last - first, step),)))
    nbytes = matrix.columns * matrix.width
    return block._replace(runs=StridedRuns(start + first * nbytes, (last - first) * nbytes, ()))


def _transpose(words: Array, target: Array) -> None:
    """``target[...] = words.T``, in tiles that stay in the cache."""
    for top, left in itertools.product(range(0, len(words), _EDGE), range(0, words.shape[1], _EDGE)):
        tile = words[top : top + _EDGE, left : left + _EDGE]
        copied = scratch()[: tile.shape[0], : tile.shape[1]]
        np.copyto(copied, tile)
        np.copyto(target[left : left + _EDGE, top : top + _EDGE], copied.T)
