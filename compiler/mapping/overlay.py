"""Lay one section over another: how ``extends``, cases, kinds and derived types change what they inherit.

An entry replaces every inherited entry with the same left side or the same right side, so nothing ever needs to be
deleted. What was replaced is kept for ``crosswalk formats NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crosswalk.runtime.records import defaults_of, replace

from .model import CheckEntry, Entry, Line, ReplacedLine, Section, TensorEntry

_WORDS = [name for name in Section.__struct_fields__ if name != "name"]
_UNSAID = dict.fromkeys(_WORDS) | defaults_of(Section)


def overlay(base: Section, over: Section) -> Section:
    """``over`` laid on ``base``: an entry replaces every inherited entry with the same left or the same right side."""
    replaced = list(base.replaced) + list(over.replaced)

    def keep(old: Line, new: tuple[Line, ...]) -> bool:
        for entry in new:
            if _touches(old, entry):
                replaced.append(ReplacedLine(old, entry))
                return False
        return True

    claims: tuple[Line, ...] = (*over.config, *over.sets)
    # Any other word that a section says takes the place of the inherited one.
    said = {word: found for word in _WORDS if (found := getattr(over, word)) != _UNSAID[word]}
    special: dict[str, Any] = {
        "config": (*(e for e in base.config if keep(e, claims)), *over.config),
        "sets": (*(f for f in base.sets if keep(f, claims)), *over.sets),
        "tensors": (*(t for t in base.tensors if keep(t, over.tensors)), *over.tensors),
        "checks": _laid_over(base.checks, over.checks),
        "by_default": base.by_default if over.by is None else over.by_default,
        "cases": _cases(base, over),
        "repeats": base.repeats if over.each is None else over.repeats,
        "kinds": _kinds(base, over),
        "nothing": (base.nothing - over.cases.keys() - over.kinds.keys()) | over.nothing,
        "overridable": over.overridable if over.overrides else base.overridable,
        "refused": over.refused,
        "cuts": {**base.cuts, **over.cuts},
        "replaced": tuple(replaced),
    }
    return replace(base, **{**said, **special})


def _cases(base: Section, over: Section) -> dict[str, Section]:
    """A list of cases that is stated anew with ``by:`` holds those in it, in its order; else they add up."""
    merged = {c: overlay(base.cases[c], s) if c in base.cases else s for c, s in over.cases.items()}
    if over.by is not None and (over.cases or not over.by):
        return merged
    gone = over.nothing & base.cases.keys()
    return {c: s for c, s in {**base.cases, **merged}.items() if c not in gone}


def _kinds(base: Section, over: Section) -> dict[str, Mapping[str, Section]]:
    """The same for kinds of layers and ``each:``."""
    merged: dict[str, Mapping[str, Section]] = {}
    for kind, sections in over.kinds.items():
        old = base.kinds.get(kind, {})
        merged[kind] = {**old, **{k: overlay(old[k], s) if k in old else s for k, s in sections.items()}}
    if over.each is not None and (over.kinds or not over.each):
        return merged
    gone = over.nothing & base.kinds.keys()
    return {kind: sections for kind, sections in {**base.kinds, **merged}.items() if kind not in gone}


def _laid_over(base: tuple[CheckEntry, ...], over: tuple[CheckEntry, ...]) -> tuple[CheckEntry, ...]:
    """A check takes the place of the inherited one with the same expression; one without a message removes it."""
    texts = {check.expression.text for check in over}
    return (*(c for c in base if c.expression.text not in texts), *(c for c in over if c.message))


def _touches(old: Line, new: Line) -> bool:
    if isinstance(old, TensorEntry) and isinstance(new, TensorEntry):
        same_types = old.types is None or new.types is None or bool(set(old.types) & set(new.types))
        return str(old.theirs) == str(new.theirs) or (bool(set(old.ours) & set(new.ours)) and same_types)
    if isinstance(old, TensorEntry) or isinstance(new, TensorEntry):
        return False
    same_left = isinstance(old, Entry) and isinstance(new, Entry) and old.theirs == new.theirs
    return same_left or (old.ours is not None and old.ours == new.ours)
