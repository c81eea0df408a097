"""Encoded tensors as if they were stored as floats: decoded while they are read, a strip at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dtypes import size_of, torch_dtype
from .encodings import KINDS
from .header import ReadFile, StoredTensor
from .plan import Encoding, TensorSpec

if TYPE_CHECKING:
    import torch

#: Elements decoded at a time from files.
STRIP = 1 << 16
#: Bytes that a thread needs for it: payload, values and scales in float32, and at worst (rows of one element, with a
#: scale each) the numbers of the scales, 48 bytes an element. Part of what ``engine.peak_memory`` states.
SCRATCH = 48 * STRIP
#: The same for tensors in memory, where they and their targets are whole anyway.
_LARGE_STRIP = 1 << 24


@dataclass(frozen=True, slots=True)
class Decoded:
    """The :class:`~.header.Content` of an encoded tensor: ``tensor`` is what it is decoded to, ``parts`` are where the
    tensors of ``encoding.stored`` lie."""

    tensor: TensorSpec
    encoding: Encoding
    parts: tuple[StoredTensor, ...]

    def fill(self, start: int, view: memoryview, read: ReadFile) -> None:
        """Decode the elements from byte ``start`` on, each rounded once from float32 to the dtype of the tensor."""
        import torch

        if not view:
            return

        def fetch(part: int, begin: int, end: int) -> torch.Tensor:
            stored = self.parts[part]
            width = size_of(stored.dtype)
            buffer = bytearray((end - begin) * width)
            read(stored.file, stored.offset + begin * width, memoryview(buffer))
            return torch.frombuffer(buffer, dtype=torch_dtype(stored.dtype))

        result = torch.frombuffer(view, dtype=torch_dtype(self.tensor.dtype))
        first = start // size_of(self.tensor.dtype)
        decode = KINDS[self.encoding.kind].decode
        position = 0
        for values in decode(self.tensor.shape, self.encoding.block, first, first + len(result), STRIP, fetch):
            result[position : position + len(values)].copy_(values)
            position += len(values)


def stored_encoded(tensor: TensorSpec, encoding: Encoding, parts: tuple[StoredTensor, ...]) -> StoredTensor:
    """The encoded tensor as one that is stored, in the place of its payload."""
    payload, content = parts[0], Decoded(tensor, encoding, parts)
    return StoredTensor(payload.file, payload.offset, tensor.nbytes, tensor.dtype, tensor.shape, content)


def decode(tensor: TensorSpec, encoding: Encoding, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The encoded ``tensor`` from the tensors that are stored for it, by name, on the device of the payload."""
    import torch

    flat = [given[part.name].detach().contiguous().view(-1) for part in encoding.stored]
    device = flat[0].device
    result = torch.empty(tensor.elements, dtype=torch_dtype(tensor.dtype), device=device)
    position = 0
    strips = KINDS[encoding.kind].decode(
        tensor.shape,
        encoding.block,
        0,
        tensor.elements,
        _LARGE_STRIP,
        lambda part, begin, end: flat[part][begin:end].to(device),
    )
    for values in strips:
        result[position : position + len(values)].copy_(values)
        position += len(values)
    return result.view(tensor.shape)
