"""The tensors of a model, found once and looked at again: whether they are what a plan was made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import is_, methodcaller
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor

from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.algebra import Box
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.training.parameters import Model, Values, collect, place_all
from crosswalk.runtime.training.placement import Placed, Shards
from crosswalk.runtime.training.save import owned

#: A box of a parameter, by the parameter's number in the plan.
Part = tuple[int, Box]


class _Seat(NamedTuple):
    """Where a tensor keeps its elements."""

    local: torch.Tensor
    address: int


class _Entries:
    """The tensors of a model, by the names that its modules have for them, and its modules: each by its dict of
    parameters, which is no other's as long as it is held here. All of them at once, since there may be many thousands.
    """

    def __init__(self, model: Model) -> None:
        modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
        tensors: list[Mapping[str, Any]] = [] if isinstance(model, torch.nn.Module) else [model]
        tensors += [entries for module in modules for entries in (module._parameters, module._buffers)]
        self._tensors = [entries for entries in tensors if entries]
        self._modules = [module._modules for module in modules if module._modules]
        self._empty = [entries for entries in (*tensors, *(module._modules for module in modules)) if not entries]
        self._names, self._members = self._found()

    def _found(self) -> tuple[list[Any], list[Any]]:
        full = [*self._tensors, *self._modules]
        members = [*chain.from_iterable(map(_VALUES, self._tensors))]
        members += [
            None if child is None else child._parameters for child in chain.from_iterable(map(_VALUES, self._modules))
        ]
        return [*chain.from_iterable(full), *map(len, full)], members

    @property
    def unchanged(self) -> bool:
        """Whether all is what it was, under the same names."""
        if any(self._empty):
            return False
        names, members = self._found()
        return names == self._names and all(map(is_, members, self._members))


_VALUES = methodcaller("values")


class Current:
    """What this rank holds of the parameters of a plan. ``parts`` are boxes that are read, as tensors in the same order
    in ``tensors``.

    Memory that has moved is followed; a model that has become another one is refused by :meth:`refresh`.
    """

    def __init__(self, model: Model, specs: Sequence[TensorSpec], elsewhere: Mapping[str, TensorSpec] | None) -> None:
        self._model, self._specs, self._elsewhere = model, specs, elsewhere
        values = collect(model)
        self.placed = place_all(values, specs, elsewhere=elsewhere)
        self._seats, self._entries = _seats(model, values, self.placed), _Entries(model)
        self._kinds = {name: _kind(values.get(name)) for name in self.placed}
        self.parts: list[Part] = []
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[Part, int] = {}

    @property
    def device(self) -> torch.device:
        """Where the parameters of this rank are; the CPU, if it has none."""
        parts = (part.tensor.device for value in self.placed.values() for part in value.parts)
        return next(parts, torch.device("cpu"))

    def number(self, source: int, box: Box) -> int:
        """The number in ``tensors`` of a box inside one that is held here."""
        if (source, box) not in self._numbers:
            self._numbers[source, box] = len(self.parts)
            self.parts.append((source, box))
            self.tensors.append(self._tensor(source, box))
        return self._numbers[source, box]

    def local(self, name: str) -> Iterator[tuple[int, Box, torch.Tensor]]:
        """The boxes of a parameter with their tensors, and where each begins in the memory of this rank: in the local
        tensor, or in the parts of ``Shards``, one after the other. Raises ``CrosswalkError`` (``publisher/locate``) if
        that memory is not contiguous."""
        parts = self.placed[name].parts
        count = sum(part.tensor.numel() for part in parts)
        first = min((int(part.tensor.storage_offset()) for part in parts), default=0)
        storages = {part.tensor.untyped_storage().data_ptr() for part in parts}
        last = max((_last(part.tensor) for part in parts), default=first)
        together = len(storages) == 1 and last + 1 - first == count
        if not together and not all(part.tensor.is_contiguous() for part in parts):
            text = f"what this rank holds of `{name}` is not contiguous, so that its elements have no flat index"
            raise fail("publisher/locate", text, None, "locate by parameters that are contiguous")
        before = 0
        for part in parts:
            yield int(part.tensor.storage_offset()) - first if together else before, part.box, part.tensor
            before += part.tensor.numel()

    def _tensor(self, source: int, box: Box) -> torch.Tensor:
        return owned(self.placed[self._specs[source].name], [box])[0][0].tensor

    def refresh(self) -> None:
        """Look at the model again. Raises ``CrosswalkError`` (``publisher/stale``) with every parameter that is gone,
        new, or of another shape, dtype or placement; where only memory has moved, ``tensors`` are what is there now."""
        there = self._seats is not None and all(local.data_ptr() == address for local, address in self._seats)
        if there and self._entries.unchanged:
            return
        values = collect(self._model)
        try:
            placed = place_all(values, self._specs, elsewhere=self._elsewhere)
        except CrosswalkError as error:
            raise CrosswalkError(_stale(d.message) for d in error.diagnostics) from error
        changed = [name for name, before in self.placed.items() if self._differs(name, before, placed[name], values)]
        if changed:
            gone = [name for name in changed if not placed[name].parts]
            others = [name for name in changed if placed[name].parts]
            said = {"is gone": gone, "has another dtype, placement or strides now": others}
            raise CrosswalkError(
                _stale(f"parameter `{pattern}` {what}") for what, names in said.items() for pattern, _ in fold(names)
            )
        self.placed = placed
        self._seats, self._entries = _seats(self._model, values, placed), _Entries(self._model)
        self.tensors[:] = [self._tensor(*part) for part in self.parts]

    def _differs(self, name: str, before: Placed, now: Placed, values: Values) -> bool:
        return bool(_form(before) != _form(now) or self._kinds[name] != _kind(values.get(name)))


def _last(tensor: torch.Tensor) -> int:
    """Where the last element of a tensor is in its storage."""
    steps = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset()) + steps


def _stale(message: str) -> Diagnostic:
    return Diagnostic("publisher/stale", f"the model has changed since the publisher was made: {message}")


def _form(placed: Placed) -> Any:
    """What must stay as it is for copies to stay right."""
    return placed.shape, placed.dtype, [(part.box, part.tensor.stride()) for part in placed.parts]


def _kind(value: torch.Tensor | Shards | None) -> Any:
    return tuple(map(str, value.placements)) if isinstance(value, DTensor) else type(value) is Shards


def _seats(model: Model, values: Values, wanted: Iterable[str]) -> list[_Seat] | None:
    """Where the tensors are; None if the model holds some of them nowhere, so that only a state dict has them."""
    needed = {id(values[name]): values[name] for name in wanted if name in values}
    if isinstance(model, torch.nn.Module):
        held = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    else:
        held = {id(value) for value in model.values()}
    seats = []
    for number, value in needed.items():
        if not isinstance(value, torch.Tensor) or number not in held:
            return None
        local = value._local_tensor if isinstance(value, DTensor) else value
        seats.append(_Seat(local, local.data_ptr()))
    return seats
