"""Strided copies between buffers in memory: exact for every bit pattern, cast when the dtypes differ.

``copy_`` is as fast as memory for everything but transposes. Those are cut into tiles that stay in the cache. On x86
``torch.native_channel_shuffle`` is a vectorised transpose of 32-bit words, which two 16-bit elements share. That is a
choice inside torch that nobody promises, so it is tested once, for equality and for speed, before it is used.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time

import torch

from crosswalk.runtime.dtypes import size_of, torch_dtype
from crosswalk.runtime.plan.affine import Piece

from .rearranging import SHORTEST, transposed_plane

#: Bytes of a tile, at least, and of a line of the cache.
_TILE, _LINE = 1 << 20, 64

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_local = threading.local()


def move(source: torch.Tensor, source_dtype: str, target: torch.Tensor, target_dtype: str, piece: Piece) -> None:
    """Copy the elements of a piece, ``there`` in the source and ``here`` in the target, between two ``uint8`` buffers,
    which may be longer than they have to be."""
    cast = target_dtype != source_dtype
    reading, writing = elements(source, source_dtype, not cast), elements(target, target_dtype, not cast)
    extents, strides, others = piece.columns
    reading = reading.as_strided(extents, others, reading.storage_offset() + piece.there)
    writing = writing.as_strided(extents, strides, writing.storage_offset() + piece.here)
    if cast:
        writing.copy_(reading)
    else:
        copy_integers(reading, writing)


def copy_integers(reading: torch.Tensor, writing: torch.Tensor) -> None:
    """Copy integers between two tensors of one shape and dtype; transposes in tiles."""
    extents = reading.shape
    plane = transposed_plane(extents, reading.stride(), writing.stride())
    if plane is None:
        writing.copy_(reading)
        return
    rows, columns = plane
    others = [axis for axis in range(len(extents)) if axis not in plane]
    reading, writing = (tensor.permute(*others, rows, columns) for tensor in (reading, writing))
    for index in itertools.product(*(range(extents[axis]) for axis in others)):
        transpose(reading[index], writing[index])


def move_between(source: memoryview, source_dtype: str, target: memoryview, target_dtype: str, piece: Piece) -> None:
    """The same between two buffers of bytes."""
    reading, writing = (torch.frombuffer(buffer, dtype=torch.uint8) for buffer in (source, target))
    move(reading, source_dtype, writing, target_dtype, piece)


def as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, which are copied and compared with all their bits."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def elements(buffer: torch.Tensor, dtype: str, as_integers: bool) -> torch.Tensor:
    """The whole elements that a buffer of bytes holds; as integers, they are moved with all their bits."""
    width = size_of(dtype)
    return buffer[: len(buffer) // width * width].view(_INTEGERS[width] if as_integers else torch_dtype(dtype))


def transpose(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy a matrix of integers with contiguous rows to one of the same shape with contiguous columns."""
    rows, columns = source.shape
    if source.dtype == torch.int16 and columns % 2:  # pairs of columns become words
        target[:, -1].copy_(source[:, -1])
        source, target, columns = source[:, :-1], target[:, :-1], columns - 1
    elements = _TILE // source.element_size()
    whole_rows = source.stride(0) == columns <= elements // SHORTEST
    width = columns if whole_rows else 512
    # Whole lines of the target; an odd number of them, since columns whose distance is a power of two share few places
    # in the cache.
    line = _LINE // source.element_size()
    height = (elements // max(width, 1) // line | 1) * line
    tile_transpose = _tile_by_shuffle if shuffle_is_faster(source.dtype) else _tile_by_copy
    for top, left in itertools.product(range(0, rows, height), range(0, columns, width)):
        tile = source[top : top + height, left : left + width]
        if not whole_rows:
            tile = _scratch(0, tile.shape, tile.dtype).copy_(tile)
        tile_transpose(tile, target[top : top + height, left : left + width].t())


def _tile_by_copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """``target.copy_(source.t())`` for a contiguous source, by way of a contiguous target: torch blocks only those."""
    target.copy_(_scratch(1, target.shape, target.dtype).copy_(source.t()))


def _tile_by_shuffle(source: torch.Tensor, target: torch.Tensor) -> None:
    """``target.copy_(source.t())`` for a contiguous source of 32-bit elements, or an even number of 16-bit columns."""
    words = source.view(torch.float32)
    rows, columns = words.shape
    # One "pixel" of rows * columns channels, with the strides by which torch tells channels-last memory.
    size = rows * columns
    pixel = words.as_strided((1, size, 1, 1), (size, 1, size, size), words.storage_offset())
    turned = torch.native_channel_shuffle(pixel, rows).as_strided((columns, rows), (rows, 1)).view(torch.int32)
    if target.dtype == torch.int32:
        target.copy_(turned)
        return
    # A word holds two columns, the first in its low half; the narrowing copy keeps the low half.
    target[0::2].copy_(turned)
    target[1::2].copy_(turned.bitwise_right_shift_(16))


def _scratch(number: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """This thread's memory for one tile: touching new memory takes longer than a transpose."""
    if not hasattr(_local, "scratch"):
        _local.scratch = torch.empty(2, 2 * _TILE, dtype=torch.uint8)
    scratch: torch.Tensor = _local.scratch[number, : shape.numel() * dtype.itemsize]
    return scratch.view(dtype).view(shape)


@functools.cache
def shuffle_is_faster(dtype: torch.dtype) -> bool:
    """Whether the shuffle transposes this torch's tensors exactly, and faster than ``copy_``. Takes a few ms."""
    if dtype not in (torch.int16, torch.int32):
        return False
    source = torch.arange(128 * 2048, dtype=torch.int32).mul_(0x9E3779B1 - 2**32).to(dtype).view(128, 2048)
    source[0, :4] = torch.tensor([0x7F81, -0x7E, 0x7FC1, -1]).to(dtype)  # not-a-numbers of every kind, as half words
    found, expected = torch.zeros(2, 2048, 128, dtype=dtype)
    times = {_tile_by_shuffle: 1.0, _tile_by_copy: 1.0}
    for _ in range(5):
        for function, target in ((_tile_by_shuffle, found), (_tile_by_copy, expected)):
            started = time.perf_counter()
            function(source, target)
            times[function] = min(times[function], time.perf_counter() - started)
    return torch.equal(found, expected) and times[_tile_by_shuffle] < times[_tile_by_copy]
