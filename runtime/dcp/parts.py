"""Tensors that are stored in parts: boxes, each an archive in some file, read as the one tensor that they make."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from crosswalk.runtime.checkpoint.header import ReadFile, StoredTensor
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.plan.affine import Piece, clip, make_piece, tiling_faults
from crosswalk.runtime.records import Record
from crosswalk.runtime.torch_files.archives import row_major

from .metadata import StoredEntry

#: Bytes of a part that are read at a time where its rows do not stand together in the tensor. A worker of the engine
#: has room for as much (see ``peak_memory``).
_STRIP = 1 << 20
#: As many elements of a row, and the copy is left to torch; shorter work is done here.
_WIDTHS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


def pieces_of(entry: StoredEntry) -> list[Piece]:
    """The parts of a tensor: where the elements of each are in the tensor, and in the part."""
    strides = row_major(entry.shape)
    return [
        make_piece(
            sum(start * stride for start, stride in zip(chunk.offsets, strides, strict=True)),
            strides, 0, row_major(chunk.sizes), chunk.sizes,
        )
        for chunk in entry.chunks
    ]  # fmt: skip


def uncovered(entry: StoredEntry, pieces: Sequence[Piece]) -> str | None:
    """What is wrong with the parts of a tensor if they do not fill it, each element once; ``pieces`` are these."""
    total = math.prod(entry.shape)
    named = [
        Piece(piece.here, index, tuple((extent, stride, 0) for extent, stride, _ in piece.axes))
        for index, (piece, chunk) in enumerate(zip(pieces, entry.chunks, strict=True))
        if math.prod(chunk.sizes)
    ]
    fault = next(tiling_faults(named, 0, total), None)
    if fault is None:
        return None
    if not fault.places:
        return "has parts whose sizes have nothing in common: that they fill it cannot be proved"
    what = "overlap" if fault.copies else "leave out"
    return f"has parts that {what} {'at ' if fault.copies else ''}elements {fault.start} to {fault.stop - 1}"


class Parts(Record, frozen=True):
    """The :class:`~crosswalk.runtime.checkpoint.header.Content` of a tensor in parts, in the order of their first
    elements; ``places`` are where the bytes of each begin, ``reach`` one past the last element up to each."""

    dtype: str
    pieces: tuple[Piece, ...]
    places: tuple[tuple[Path, int], ...]
    starts: tuple[int, ...]
    reach: tuple[int, ...]

    @classmethod
    def of(cls, dtype: str, pieces: Sequence[Piece], places: Sequence[tuple[Path, int]]) -> Parts:
        """From parts in any order."""
        order = sorted(range(len(pieces)), key=lambda index: pieces[index].here)
        ordered = [pieces[index] for index in order]
        reach = tuple(accumulate((piece.stop for piece in ordered), max))
        here = tuple(piece.here for piece in ordered)
        return cls(dtype, tuple(ordered), tuple(places[index] for index in order), here, reach)

    def fill(self, start: int, view: memoryview, read: ReadFile) -> None:
        """Fill ``view`` with the bytes of the tensor from byte ``start`` on, from all parts that have some of them."""
        width = size_of(self.dtype)
        begin, end = start // width, (start + len(view)) // width
        for index in range(bisect_right(self.reach, begin), bisect_left(self.starts, end)):
            for piece in clip(self.pieces[index], begin, end):
                _fill(piece._replace(here=piece.here - begin), self.places[index], width, view, read)

    def runs_in_files(self, starts: Iterable[int], nbytes: int) -> Iterator[tuple[Path | None, list[int]]]:
        """Where runs of the tensor are in files (:class:`~crosswalk.runtime.checkpoint.header.ContentInFiles`)."""
        width = size_of(self.dtype)
        file: Path | None = None
        shift, found = 0, list[int]()
        low = high = 0  # the bytes of the tensor of which the same is true
        for start in starts:
            if not (low <= start and start + nbytes <= high):
                if found:
                    yield file, found
                file, shift, found = None, 0, []
                low, high = start, start + nbytes
                index = bisect_right(self.reach, start // width)
                piece = self.pieces[index]
                if _is_run(piece) and piece.here * width <= start and high <= piece.stop * width:
                    file, offset = self.places[index]
                    low, high = piece.here * width, piece.stop * width
                    shift = offset + piece.there * width - low
            found.append(start + shift)
        if found:
            yield file, found


def _is_run(piece: Piece) -> bool:
    """Whether a piece, whose elements stand together in its part, does so in the tensor."""
    return not piece.axes or (len(piece.axes) == 1 and piece.axes[0][1] == 1)


def _fill(piece: Piece, place: tuple[Path, int], width: int, view: memoryview, read: ReadFile) -> None:
    """Fill what a piece, whose elements stand together in its part, has in ``view``."""
    file, offset = place
    offset += piece.there * width
    count = math.prod(extent for extent, _, _ in piece.axes)
    if _is_run(piece):
        read(file, offset, view[piece.here * width : (piece.here + count) * width])
        return
    extent, stride, step = piece.axes[0]
    rows = max(1, _STRIP // (step * width))
    if rows == 1 and len(piece.axes) > 1 and step * width > _STRIP:
        for row in range(extent):
            inner = Piece(piece.here + row * stride, 0, piece.axes[1:])
            _fill(inner, (file, offset + row * step * width), width, view, read)
        return
    import torch

    dtype = getattr(torch, _WIDTHS[width])
    target = torch.frombuffer(view, dtype=dtype)
    buffer = memoryview(bytearray(min(rows, extent) * step * width))
    for row in range(0, extent, rows):
        now = min(rows, extent - row)
        read(file, offset + row * step * width, buffer[: now * step * width])
        shape = (now, *(size for size, _, _ in piece.axes[1:]))
        found = torch.frombuffer(buffer, dtype=dtype).as_strided(shape, tuple(axis[2] for axis in piece.axes))
        place_at = piece.here + row * stride
        target.as_strided(shape, tuple(axis[1] for axis in piece.axes), place_at).copy_(found)


def slice_of(stored: StoredTensor, start: int, shape: tuple[int, ...]) -> StoredTensor:
    """The elements of a tensor from ``start`` on that make one of the given shape."""
    width, count = size_of(stored.dtype), math.prod(shape)
    content, offset = stored.content, stored.offset + start * width
    if not isinstance(content, Parts):
        return StoredTensor(stored.file, offset, count * width, stored.dtype, shape, content)
    pieces, places = [], []
    for index in range(bisect_right(content.reach, start), bisect_left(content.starts, start + count)):
        for piece in clip(content.pieces[index], start, start + count):
            pieces.append(piece._replace(here=piece.here - start))
            places.append(content.places[index])
    if len(pieces) == 1 and _is_run(pieces[0]):
        file, begin = places[0]
        return StoredTensor(file, begin + pieces[0].there * width, count * width, stored.dtype, shape)
    file, begin = places[0]
    return StoredTensor(file, begin, count * width, stored.dtype, shape, Parts.of(stored.dtype, pieces, places))
