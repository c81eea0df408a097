"""Encoded tensors as if they were stored as floats: decoded while they are read, a strip at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from crosswalk.runtime.dtypes import size_of, torch_dtype
from crosswalk.runtime.plan.encodings import KINDS, Fetch, Runs
from crosswalk.runtime.plan.model import Encoding, TensorSpec
from crosswalk.runtime.records import Record

from .header import ReadFile, StoredTensor

if TYPE_CHECKING:
    import torch

#: Elements decoded at a time from files.
STRIP = 1 << 16
#: Bytes that a thread needs for it: payload, values and scales in float32, and at worst (rows of one element, with a
#: scale each) the numbers of the scales, 48 bytes an element. Part of what ``engine.peak_memory`` states.
SCRATCH = 48 * STRIP
#: The same for tensors in memory, where they and their targets are whole anyway.
_LARGE_STRIP = 1 << 24


class Decoded(Record, frozen=True):
    """The :class:`~.header.Content` of an encoded tensor: ``tensor`` is what it is decoded to, ``parts`` are where the
    tensors of ``encoding.stored`` lie."""

    tensor: TensorSpec
    encoding: Encoding
    parts: tuple[StoredTensor, ...]

    def fill(self, start: int, view: memoryview, read: ReadFile) -> None:
        """Decode the elements from byte ``start`` on, each rounded once from float32 to the dtype of the tensor."""
        self._fill(Runs(start // (width := size_of(self.tensor.dtype)), len(view) // width), view, read)

    def fill_runs(self, starts: Iterable[int], nbytes: int, view: memoryview, read: ReadFile) -> None:
        """The same for runs of ``nbytes`` bytes, one after the other in ``view``: many short ones at once."""
        width, place = size_of(self.tensor.dtype), 0
        for start, number, step in _regular(starts, STRIP * width // max(nbytes, 1)):
            runs = Runs(start // width, nbytes // width, number, step // width)
            self._fill(runs, view[place : place + number * nbytes], read)
            place += number * nbytes

    def _fill(self, runs: Runs, view: memoryview, read: ReadFile) -> None:
        import torch

        if not view:
            return

        def fetch(part: int, needed: Runs) -> torch.Tensor:
            stored, (start, length, number, step) = self.parts[part], needed
            width = size_of(stored.dtype)
            buffer = memoryview(bytearray(number * length * width))
            if number == 1 or step == length:
                read(stored.file, stored.offset + start * width, buffer)
            else:
                for row in range(number):
                    at = stored.offset + (start + row * step) * width
                    read(stored.file, at, buffer[row * length * width : (row + 1) * length * width])
            return torch.frombuffer(buffer, dtype=torch_dtype(stored.dtype))

        _into(
            torch.frombuffer(view, dtype=torch_dtype(self.tensor.dtype)), self.tensor, self.encoding, runs, STRIP, fetch
        )


def _regular(starts: Iterable[int], most: int) -> Iterator[tuple[int, int, int]]:
    """``(first, number, step)`` of stretches of numbers at equal distances, each of at most ``most`` numbers."""
    first, number, step = 0, 0, 0
    for start in starts:
        if number and number < most and start > first and start - first == (step or start - first) * number:
            step = step or start - first
            number += 1
            continue
        if number:
            yield first, number, step
        first, number, step = start, 1, 0
    if number:
        yield first, number, step


def stored_encoded(tensor: TensorSpec, encoding: Encoding, parts: tuple[StoredTensor, ...]) -> StoredTensor:
    """The encoded tensor as one that is stored, in the place of its payload."""
    payload, content = parts[0], Decoded(tensor, encoding, parts)
    return StoredTensor(payload.file, payload.offset, tensor.nbytes, tensor.dtype, tensor.shape, content)


def decode(tensor: TensorSpec, encoding: Encoding, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The encoded ``tensor`` from the tensors that are stored for it, by name, on the device of the payload."""
    import torch

    flat = [given[part.name].detach().contiguous().view(-1) for part in encoding.stored]
    device = flat[0].device

    def fetch(part: int, needed: Runs) -> torch.Tensor:
        start, length, number, step = needed
        shape, strides = ((number, length), (step, 1)) if number > 1 else ((length,), (1,))
        offset = flat[part].storage_offset() + start
        return flat[part].as_strided(shape, strides, offset).reshape(-1).to(device)

    result = torch.empty(tensor.elements, dtype=torch_dtype(tensor.dtype), device=device)
    _into(result, tensor, encoding, Runs(0, tensor.elements), _LARGE_STRIP, fetch)
    return result.view(tensor.shape)


def _into(result: torch.Tensor, tensor: TensorSpec, encoding: Encoding, runs: Runs, limit: int, fetch: Fetch) -> None:
    """Decode into a flat tensor, which rounds."""
    position = 0
    for values in KINDS[encoding.kind].decode(tensor.shape, encoding.block, runs, limit, fetch):
        result[position : position + len(values)].copy_(values)
        position += len(values)
