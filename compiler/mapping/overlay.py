"""Lay one section over another: how ``extends``, cases, kinds and derived types change what they inherit.

An entry replaces every inherited entry with the same left side or the same right side, so nothing ever needs to be
deleted. What was replaced is kept for ``crosswalk formats NAME``.
"""

from __future__ import annotations

import dataclasses

from .model import CheckEntry, Entry, Line, Replaced, Section, TensorEntry


def overlay(base: Section, over: Section) -> Section:
    """``over`` laid on ``base``: an entry replaces every inherited entry with the same left or the same right side."""
    replaced = list(base.replaced) + list(over.replaced)

    def keep(old: Line, new: tuple[Line, ...]) -> bool:
        for entry in new:
            if _touches(old, entry):
                replaced.append(Replaced(old, entry))
                return False
        return True

    claims: tuple[Line, ...] = (*over.config, *over.sets)
    merged = {c: overlay(base.cases[c], s) if c in base.cases else s for c, s in over.cases.items()}
    cases = merged if over.by is not None else {**base.cases, **merged}
    kinds = {kind: dict(sections) for kind, sections in base.kinds.items()} if not over.kinds else {}
    kinds |= {kind: dict(sections) for kind, sections in over.kinds.items()}
    return dataclasses.replace(
        base,
        position=over.position,
        config=(*(e for e in base.config if keep(e, claims)), *over.config),
        sets=(*(f for f in base.sets if keep(f, claims)), *over.sets),
        tensors=(*(t for t in base.tensors if keep(t, over.tensors)), *over.tensors),
        same_names=base.same_names or over.same_names,
        has_tensors=base.has_tensors or over.has_tensors,
        checks=_laid_over(base.checks, over.checks),
        by=over.by or base.by,
        by_default=over.by_default if over.by else base.by_default,
        cases=cases,
        of=over.of or base.of,
        count=over.count or base.count,
        each=over.each or base.each,
        repeats=over.repeats if over.each else base.repeats,
        kinds=kinds,
        overrides=over.overrides or base.overrides,
        overridable=over.overridable if over.overrides else base.overridable,
        refused=over.refused,
        transposed=base.transposed if over.transposed is None else over.transposed,
        replaced=tuple(replaced),
    )


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
