"""What code does to tensors, if all it does is move elements: run on tensors without memory, and written down.

A view on the meta device has the storage, the offset and the strides that it would have anywhere, so it says itself
which elements it is. What copies (``cat``, ``stack``, ``clone``, an index of whole slices) is met on its way to the
device, and its result remembered as what it was copied from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from crosswalk.runtime.plan.affine import Piece, dense, intersect, make_piece

_ATEN = torch.ops.aten
#: Results that are what their first argument is, elsewhere.
_COPIES = {_ATEN.clone.default, _ATEN._to_copy.default}
_ZEROS = {_ATEN.new_zeros.default, _ATEN.zeros.default, _ATEN.zeros_like.default}


class Moved(NamedTuple):
    """Elements of a tensor (``here``, flat) that are those of a root (``there``); of none, if they are zeros."""

    root: str | None
    piece: Piece


class NotMoved(Exception):
    """An operation is met that does more than move elements."""


class KnownNumbers(TorchFunctionMode):
    """Inside of it, lists of numbers that choose elements stay on the host, where they can be read."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            chosen = (torch.tensor(one) if isinstance(one, list) else one for one in args[1])
            args = (args[0], tuple(chosen))
        return func(*args, **(kwargs or {}))


class Tracing(TorchDispatchMode):
    """Inside of it, tensors made by :meth:`root` are followed."""

    def __init__(self) -> None:
        super().__init__()
        self._roots: dict[int, str] = {}
        self._made: dict[int, list[Moved]] = {}
        self._kept: list[torch.Tensor] = []

    def root(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor without memory whose elements are followed."""
        tensor = torch.empty_strided(tuple(shape), dense(shape), dtype=dtype, device="meta")
        self._roots[_storage(tensor)] = name
        self._kept.append(tensor)
        return tensor

    def moved(self, tensor: torch.Tensor) -> list[Moved]:
        """Where the elements of a tensor come from, as it would be stored: row-major. Raises :class:`NotMoved`."""
        return self._from(tensor, dense(tensor.shape), 0)

    def _from(self, tensor: torch.Tensor, strides: Sequence[int], offset: int) -> list[Moved]:
        """The elements of a tensor, put at ``offset`` and ``strides`` of another."""
        if not tensor.numel():
            return []
        key, shape = _storage(tensor), tuple(tensor.shape)
        start, own = int(tensor.storage_offset()), tuple(tensor.stride())
        if any(size > 1 and step == 0 for size, step in zip(shape, own, strict=True)):
            raise NotMoved("elements are repeated")
        if key in self._roots:
            return [Moved(self._roots[key], make_piece(offset, tuple(strides), start, own, shape))]
        if key not in self._made:
            raise NotMoved("a tensor comes from nowhere")
        view = make_piece(start, own, offset, tuple(strides), shape)
        return [
            Moved(root, Piece(part.here, part.there, tuple(sorted(part.axes, key=lambda axis: -axis[1]))))
            for root, piece in self._made[key]
            for part in intersect(view, piece)
        ]

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, torch.Tensor) or not result.is_meta or self._known(result):
            return result
        strides = tuple(result.stride())
        if func in _COPIES:  # casts are the plan's
            self._note(result, self._from(args[0], strides, 0))
        elif func in _ZEROS:
            shape = tuple(result.shape)
            zeros = [Moved(None, make_piece(0, strides, 0, (0,) * len(shape), shape))] if result.numel() else []
            self._note(result, zeros)
        elif func is _ATEN.cat.default:
            self._note(result, self._cat(args[0], (args[1] if len(args) > 1 else 0) % result.dim(), strides))
        elif func is _ATEN.stack.default:
            dim = (args[1] if len(args) > 1 else 0) % result.dim()
            inner = strides[:dim] + strides[dim + 1 :]
            pieces = [self._from(one, inner, i * strides[dim]) for i, one in enumerate(args[0])]
            self._note(result, [moved for piece in pieces for moved in piece])
        elif func is _ATEN.index.Tensor:
            self._note(result, self._index(args[0], args[1], strides))
        elif any(isinstance(one, torch.Tensor) and one.is_meta for one in args):
            raise NotMoved(f"`{func}` computes")
        return result

    def _known(self, tensor: torch.Tensor) -> bool:
        """Whether it is a view of something that is followed."""
        return _storage(tensor) in self._roots or _storage(tensor) in self._made

    def _note(self, result: torch.Tensor, moved: list[Moved]) -> None:
        self._made[_storage(result)] = moved
        self._kept.append(result)

    def _cat(self, tensors: Sequence[torch.Tensor], dim: int, strides: tuple[int, ...]) -> list[Moved]:
        found, place = [], 0
        for one in tensors:
            found += self._from(one, strides, place * strides[dim]) if one.numel() else []
            place += one.shape[dim] if one.dim() == len(strides) else 0
        return found

    def _index(self, tensor: torch.Tensor, indices: Sequence[Any], strides: tuple[int, ...]) -> list[Moved]:
        """Whole slices, chosen by a list of numbers along one dimension."""
        chosen = [(dim, index) for dim, index in enumerate(indices) if index is not None]
        if len(chosen) != 1 or chosen[0][1].is_meta or chosen[0][1].dim() != 1 or chosen[0][1].dtype == torch.bool:
            raise NotMoved("elements are chosen by numbers that are not known")
        dim, index = chosen[0]
        inner = strides[:dim] + strides[dim + 1 :]
        numbers = [int(number) % tensor.shape[dim] for number in index.tolist()]
        pieces = [self._from(tensor.select(dim, number), inner, i * strides[dim]) for i, number in enumerate(numbers)]
        return [moved for piece in pieces for moved in piece]


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
