"""Plans that are kept with a model: planned once, for as long as it, its config and what is asked stay as they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.utils.weak import WeakIdKeyDictionary

from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.records import Record
from crosswalk.runtime.training.parameters import Model
from crosswalk.runtime.training.ranks import Team

from .publisher import Publisher

#: Plans of one kind that are kept with a model: some are asked for in turns, as what is saved and what is sent.
MOST = 3
_T = TypeVar("_T")


class Asked(Record, frozen=True):
    """What a plan is made for: the config, the options, the parameters of all ranks. ``same``: objects that have to be
    the very same; ``equal``: what has to be equal, copied."""

    same: tuple[Any, ...]
    equal: tuple[Any, ...]

    def fits(self, other: Asked) -> bool:
        """Whether a plan that was made for the one is right for the other."""
        return all(a is b for a, b in zip(self.same, other.same, strict=True)) and self.equal == other.equal


_Entries = dict[str, list[tuple[Asked, Any]]]
#: By model and kind, the newest first. Nothing here holds the model itself, so that it goes when its owner lets it go.
_kept: Any = WeakIdKeyDictionary()


def _entries(model: Model) -> _Entries | None:
    """What is kept with a module, or with the first tensor of a dict, which has no place for more."""
    anchor: Any = model
    if not isinstance(model, torch.nn.Module):
        anchor = next((value for value in model.values() if isinstance(value, torch.Tensor)), None)
    if anchor is None:
        return None
    found: _Entries = _kept.setdefault(anchor, {})
    return found


def once(kind: str, model: Model, same: tuple[Any, ...], equal: tuple[Any, ...], make: Callable[[], _T]) -> _T:
    """What was kept for all that is asked (see :class:`Asked`), or else what is made now, and kept. Nobody may change
    it, and ranks that ask alike must make it alike."""
    wanted = Asked(same, equal)
    entries = (_entries(model) or {}).get(kind, [])
    found = next((what for other, what in entries if other.fits(wanted)), None)
    if found is None:
        found = make()
        keep(kind, model, wanted, found)
    return cast(_T, found)


def find(kind: str, model: Model, wanted: Asked | None, ranks: Team) -> Any:
    """What was kept for all that is ``wanted``, if every rank has it; None otherwise. A collective."""
    place = None
    with ranks.step("looking for what was planned") as step:
        if wanted is not None:
            entries = (_entries(model) or {}).get(kind, [])
            place = next((i for i, (other, what) in enumerate(entries) if other.fits(wanted) and _fresh(what)), None)
        step.value = place
    if place is None or any(theirs != place for theirs in step.values):
        return None
    return entries[place][1]


def keep(kind: str, model: Model, wanted: Asked | None, what: Any) -> None:
    """Keep it; the oldest of its kind goes when there are too many."""
    by_kind = _entries(model) if wanted is not None else None
    if by_kind is not None and wanted is not None:
        by_kind[kind] = [(wanted, what), *by_kind.get(kind, [])[: MOST - 1]]


def loosely(model: Model) -> Model:
    """The model for something that is kept with it, and that must not keep it."""
    return cast(torch.nn.Module, weakref.proxy(model)) if isinstance(model, torch.nn.Module) else model


def _fresh(what: Any) -> bool:
    """Whether a publisher is of the model as it is now."""
    if isinstance(what, Publisher):
        try:
            what.current.refresh()
        except CrosswalkError:
            return False
    return True
