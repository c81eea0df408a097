"""Strided copies between buffers in memory: exact for every bit pattern, cast when the dtypes differ.

Transposes of 16- and 32-bit elements go through ``torch.native_channel_shuffle``, which on x86 is a vectorised
transpose of 32-bit words, several times faster than a strided ``copy_``. That is a choice inside torch that nobody
promises, so it is tested once, for equality and for speed, before it is used.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence

import torch

from .dtypes import size_of, torch_dtype
from .lowering import Piece

#: Edge of the square tiles of a transpose, in elements.
TILE = 512
#: Bytes of working memory that a transpose needs.
SCRATCH = 4 * TILE * TILE * 2
#: A transposed plane with a shorter edge is left to ``copy_``.
_SHORTEST = 32

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def move(source: torch.Tensor, source_dtype: str, target: torch.Tensor, target_dtype: str, piece: Piece) -> None:
    """Copy the elements of a piece between two ``uint8`` buffers, which are longer than they have to be."""
    reading = _elements(source, source_dtype, target_dtype == source_dtype)
    writing = _elements(target, target_dtype, target_dtype == source_dtype)
    reading = reading.as_strided(piece.extents, piece.source_strides, reading.storage_offset() + piece.source_offset)
    writing = writing.as_strided(piece.extents, piece.strides, writing.storage_offset() + piece.offset)
    plane = _transposed_plane(piece.extents, piece.source_strides, piece.strides)
    words = reading.dtype in (torch.int16, torch.int32)  # so not a cast
    if plane is None or not words or not shuffle_is_faster(reading.dtype):
        writing.copy_(reading)
        return
    rows, columns = plane
    others = [axis for axis in range(len(piece.extents)) if axis not in plane]
    reading, writing = (tensor.permute(*others, rows, columns) for tensor in (reading, writing))
    for index in itertools.product(*(range(piece.extents[axis]) for axis in others)):
        transpose(reading[index], writing[index])


def _elements(buffer: torch.Tensor, dtype: str, as_integers: bool) -> torch.Tensor:
    """The whole elements that a buffer of bytes holds; as integers, they are moved with all their bits."""
    width = size_of(dtype)
    return buffer[: len(buffer) // width * width].view(_INTEGERS[width] if as_integers else torch_dtype(dtype))


def _transposed_plane(
    extents: Sequence[int], source_strides: Sequence[int], strides: Sequence[int]
) -> tuple[int, int] | None:
    """The axes ``(rows, columns)`` that are contiguous in the target and in the source, if they differ and are long."""
    if 1 not in strides or 1 not in source_strides:
        return None
    rows, columns = strides.index(1), source_strides.index(1)
    if rows == columns or min(extents[rows], extents[columns]) < _SHORTEST:
        return None
    return rows, columns


def transpose(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy a matrix with contiguous rows (``int16`` or ``int32``) to one of the same shape with contiguous columns."""
    rows, columns = source.shape
    even = columns if source.dtype == torch.int32 else columns // 2 * 2
    for top, left in itertools.product(range(0, rows, TILE), range(0, even, TILE)):
        bottom, right = min(top + TILE, rows), min(left + TILE, even)
        _transpose_tile(source[top:bottom, left:right], target[top:bottom, left:right].t())
    if even < columns:
        target[:, even:].copy_(source[:, even:])


def _transpose_tile(source: torch.Tensor, target: torch.Tensor) -> None:
    """``target.copy_(source.t())`` for at most ``TILE`` rows and columns; an even number of 16-bit columns."""
    rows, columns = source.shape[0], source.shape[1] * source.element_size() // 4
    words = torch.empty(source.shape, dtype=source.dtype).copy_(source).view(torch.float32)
    # One "pixel" of rows * columns channels, with the strides by which torch tells channels-last memory.
    pixel = words.as_strided((1, rows * columns, 1, 1), (rows * columns, 1, rows * columns, rows * columns))
    turned = torch.native_channel_shuffle(pixel, rows).as_strided((columns, rows), (rows, 1))
    if target.dtype == torch.int32:
        target.copy_(turned.view(torch.int32))
        return
    # A word holds two columns, the first in its low half; the narrowing copy keeps the low half.
    halves = turned.view(torch.int32)
    target[0::2].copy_(halves)
    target[1::2].copy_(halves.bitwise_right_shift_(16))


@functools.cache
def shuffle_is_faster(dtype: torch.dtype) -> bool:
    """Whether the shuffle transposes this torch's tensors exactly, and faster than ``copy_``. Takes about 10 ms."""
    edge = 2 * TILE
    source = torch.arange(edge * edge, dtype=torch.int32).mul_(0x9E3779B1 - 2**32).to(dtype).view(edge, edge)
    source[0, :4] = torch.tensor([0x7F81, -0x7E, 0x7FC1, -1]).to(dtype)  # not-a-numbers of every kind, as half words
    expected, found = torch.zeros_like(source), torch.zeros_like(source)
    times: dict[str, float] = {}
    for _ in range(3):
        started = time.perf_counter()
        transpose(source, found.t())
        middle = time.perf_counter()
        expected.copy_(source.t())
        times["shuffle"] = min(times.get("shuffle", 1.0), middle - started)
        times["copy"] = min(times.get("copy", 1.0), time.perf_counter() - middle)
    return torch.equal(found, expected) and times["shuffle"] < times["copy"]
