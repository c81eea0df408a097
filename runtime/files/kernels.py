"""Strided copies between buffers in memory: exact for every bit pattern, cast when the dtypes differ.

``copy_`` is as fast as memory for everything but transposes. Those are cut into tiles that stay in the cache. On x86
torch's library has a vectorised transpose (of FBGEMM), which no function of torch calls for whole elements of 16 bits,
so it is called by its name, in which C++ puts the types of all arguments: a library with other arguments has no such
name. It is tested once, for equality and for speed, before it is used.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import torch

from crosswalk.runtime.dtypes import size_of, torch_dtype
from crosswalk.runtime.plan.affine import Piece

from .rearranging import transposed_plane

#: Bytes of a tile, of its rows in the target, and of a line of the cache.
_TILE, _ROW, _LINE = 512 << 10, 2 << 10, 64
#: How C++ writes the types of elements that its transpose is made for.
_SIMD = {torch.uint8: "h", torch.int16: "t", torch.int32: "f"}

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
    tile_transpose = _tile_by_simd if simd_is_faster(source.dtype) else _tile_by_copy
    rows, columns = source.shape
    height = min(max(rows, 1), _ROW // source.element_size())
    width = _TILE // (height * source.element_size())
    for top, left in itertools.product(range(0, rows, height), range(0, columns, width)):
        place = slice(top, top + height), slice(left, left + width)
        tile_transpose(source[place], target[place].t())


def _tile_by_copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """``target.copy_(source.t())``, between tiles that are contiguous: torch blocks only those."""
    turned, tile = _scratch(1, target.shape, target.dtype), _scratch(0, source.shape, source.dtype)
    target.copy_(turned.copy_(tile.copy_(source).t()))


def _tile_by_simd(source: torch.Tensor, target: torch.Tensor) -> None:
    """The same for contiguous rows. What writes whole rows of the target is ``copy_``: the vectorised transpose writes
    a few bytes of many rows at a time."""
    (rows, columns), line = source.shape, _LINE // source.element_size()
    # Rows whose distance is a power of two would share few places of the cache.
    distance = (rows // line | 1) * line + line
    turned = _scratch(0, torch.Size((columns, distance)), source.dtype)
    simd = _simd(source.dtype)
    simd(rows, columns, source.data_ptr(), source.stride(0), turned.data_ptr(), distance)
    target.copy_(turned[:, :rows])


def _scratch(number: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """This thread's memory for one tile: touching new memory takes longer than a transpose."""
    nbytes = shape.numel() * dtype.itemsize
    if not hasattr(_local, "scratch"):
        _local.scratch = [torch.empty(0, dtype=torch.uint8)] * 2
    if len(_local.scratch[number]) < nbytes:
        _local.scratch[number] = torch.empty(nbytes, dtype=torch.uint8)
    scratch: torch.Tensor = _local.scratch[number][:nbytes]
    return scratch.view(dtype).view(shape)


@functools.cache
def _simd(dtype: torch.dtype) -> Any:
    """The vectorised transpose of torch's library: rows, columns, and for source and target where it is, and how many
    elements its rows are apart. None if there is none."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
        found = getattr(library, f"_ZN6fbgemm14transpose_simdI{_SIMD[dtype]}EEvllPKT_lPS1_l")
    except (OSError, AttributeError, KeyError):
        return None
    size, place = ctypes.c_int64, ctypes.c_void_p
    found.argtypes, found.restype = [size, size, place, size, place, size], None
    return found


@functools.cache
def simd_is_faster(dtype: torch.dtype) -> bool:
    """Whether torch's library transposes elements of this size exactly, and faster than ``copy_``. Takes a few ms."""
    if _simd(dtype) is None:
        return False
    rows, columns = 261, 515
    source = torch.arange(rows * columns, dtype=torch.int32).mul_(0x9E3779B1 - 2**32).to(dtype).view(rows, columns)
    signalling = torch.tensor([0x7F800001, -0x7FFFFF, 0x7FC00001, -1], dtype=torch.int32)
    source[0, :4] = signalling.to(dtype)
    found, expected = torch.zeros(2, columns, rows, dtype=dtype)
    times = {_tile_by_simd: 1.0, _tile_by_copy: 1.0}
    for _ in range(5):
        for function, target in ((_tile_by_simd, found), (_tile_by_copy, expected)):
            started = time.perf_counter()
            function(source, target)
            times[function] = min(times[function], time.perf_counter() - started)
    return torch.equal(found, expected) and times[_tile_by_simd] < times[_tile_by_copy]
