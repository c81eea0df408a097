"""Switches of the class that bring in tensors: a draft has to have them where the switch is the other way too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crosswalk.compiler.relations.rules import FieldRule
from crosswalk.compiler.relations.tree import rules_of
from crosswalk.proving.values import changed
from crosswalk.runtime.errors import CrosswalkError, shown

from .classes import Known
from .draft import Draft
from .fit import Fit, Fitting
from .keys import stated_alike


def follow_switches(fitting: Fitting, draft: Draft, fit: Fit, known: Known) -> tuple[Draft, Fit]:
    """Turn each switch that changes the tensors of the class: where the draft then has others, relate the switch to its
    field in further sections, or refuse it and ask."""
    if fit.bound is None:
        return draft, fit
    base = known.subject.base
    for key, value in base.items():
        if not isinstance(value, bool) or fitting.config.get(key) is not value:
            continue
        turned = changed(base, (key,), not value)
        other = _fitting(fitting, turned, known)
        if other is None or _fits(other, draft):
            continue
        candidates = ((one, fitting.of(one)) for one in _related(draft, fit, key, bool(value)))
        good = [(one, found) for one, found in candidates if found.cost <= fit.cost and _fits(other, one)]
        if good:
            draft, fit = good[0]
            continue
        left = other.of(draft)
        named = next(iter((*left.extra, *left.missing)), None)
        which = f"such as `{named}`" if named else "and the draft does not compile for them"
        note = f"? `{key}`: where it is {shown(not value)} the class has other tensors, {which}; relate it to fields"
        draft = draft.copy()
        draft.put("base_model", "config", key, {"only": value}, f"{note}, or leave it, so that it is refused")
        fit = fitting.of(draft)
    return draft, fit


def _fitting(fitting: Fitting, config: dict[str, Any], known: Known) -> Fitting | None:
    """The checkpoint of another config; None if the class refuses it, or has the same tensors for it."""
    subject = known.subject
    here, there = subject.behaviour(subject.base), subject.behaviour(config)
    if here is None or there is None or here.shapes == there.shapes:
        return None
    try:
        shapes = {name: tuple(t.shape) for name, t in subject.saved(subject.model(config)).items()}
    except CrosswalkError:
        return None
    return fitting.other(config, shapes)


def _fits(fitting: Fitting, draft: Draft) -> bool:
    """Whether a draft has the tensors of a checkpoint, or refuses it."""
    fit = fitting.of(draft)
    return fit.compiled is not None and (fit.bound is None or bool(fit.unknown) or not (fit.missing or fit.extra))


def _related(draft: Draft, fit: Fit, key: str, value: bool) -> Iterator[Draft]:
    """Drafts that relate a key to the fields that it has somewhere, in all sections that state them, or in one."""
    assert fit.compiled is not None
    rules = [rule for rule in rules_of(fit.compiled.root) if isinstance(rule, FieldRule) and rule.theirs == (key,)]
    places = [
        place for name in dict.fromkeys(rule.ours[-1] for rule in rules) for place in stated_alike(fit, name, value)
    ]
    for chosen in ([places] if places[1:] else []) + [[place] for place in places]:
        one = draft.copy()
        for section, name in chosen:
            one.sections.get(section, {}).get("sets", {}).pop(name, None)
            one.put(section, "config", key, name, "as elsewhere")
        yield one
