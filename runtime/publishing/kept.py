"""Plans that are kept with a model: planned once, for as long as it, its config and what is asked stay as they are."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, cast

import torch

from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.training.parameters import Model
from crosswalk.runtime.training.ranks import Team

from .publisher import Publisher

#: Plans of one kind that are kept with a model: some are asked for in turns, as what is saved and what is sent.
MOST = 3


@dataclass(frozen=True)
class Asked:
    """What a plan is made for: the config, the options, the parameters of all ranks. ``same``: objects that have to be
    the very same; ``equal``: what has to be equal, copied."""

    same: tuple[Any, ...]
    equal: tuple[Any, ...]

    def fits(self, other: Asked) -> bool:
        """Whether a plan that was made for the one is right for the other."""
        return all(a is b for a, b in zip(self.same, other.same, strict=True)) and self.equal == other.equal


#: By model and kind, the newest first. Nothing here holds the model itself, so that it goes when its owner lets it go.
_kept: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, list[tuple[Asked, Any]]]] = weakref.WeakKeyDictionary()


def find(kind: str, model: Model, wanted: Asked | None, ranks: Team) -> Any:
    """What was kept for all that is ``wanted``, if every rank has it; None otherwise. A collective."""
    place = None
    with ranks.step("looking for what was planned") as step:
        if wanted is not None and isinstance(model, torch.nn.Module):
            entries = _kept.get(model, {}).get(kind, [])
            place = next((i for i, (other, what) in enumerate(entries) if other.fits(wanted) and _fresh(what)), None)
        step.value = place
    if place is None or any(theirs != place for theirs in step.values):
        return None
    return entries[place][1]


def keep(kind: str, model: Model, wanted: Asked | None, what: Any) -> None:
    """Keep it; the oldest of its kind goes when there are too many."""
    if wanted is not None and isinstance(model, torch.nn.Module):
        entries = _kept.setdefault(model, {}).setdefault(kind, [])
        entries[:] = [(wanted, what), *entries[: MOST - 1]]


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
