"""Switches of the class that bring in tensors: a draft has to have them where the switch is the other way too."""

from __future__ import annotations

import itertools
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
from .words import Words

#: Most sections that a switch may be related in.
_PLACES = 4


def follow_switches(fitting: Fitting, draft: Draft, fit: Fit, words: Words, known: Known) -> tuple[Draft, Fit]:
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
        if other is None or _holds(other, draft):
            continue
        candidates = ((one, fitting.of(one)) for one in _related(draft, fit, words, key, bool(value)))
        good = [(one, found) for one, found in candidates if found.cost <= fit.cost and _holds(other, one)]
        if good:
            draft, fit = good[0]
            continue
        left = other.of(draft)
        if left.compiled is not None and (left.bound is None or left.unknown):
            continue  # it is refused
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


def _holds(fitting: Fitting, draft: Draft) -> bool:
    """Whether a draft has the tensors of a checkpoint."""
    fit = fitting.of(draft)
    return fit.bound is not None and not (fit.unknown or fit.missing or fit.extra)


def _related(draft: Draft, fit: Fit, words: Words, key: str, value: bool) -> Iterator[Draft]:
    """Drafts that relate a key, in some sections alone, to the fields that it has somewhere in the draft, or in shipped
    mappings: those of fewest sections first."""
    assert fit.compiled is not None
    rules = [rule for rule in rules_of(fit.compiled.root) if isinstance(rule, FieldRule) and rule.theirs == (key,)]
    names = dict.fromkeys(rule.ours[-1] for rule in rules)
    places = [place for name in names for place in stated_alike(fit, name, value)]
    sections = fit.compiled.source.sections
    places += [(section, name) for section in sections for name in names if key in _config(draft, section)]
    places += [place for place, keys in words.keys.items() if key in keys and place[0] in sections]
    distinct = list(dict.fromkeys(places))[:_PLACES]
    for count in range(1, len(distinct) + 1):
        for chosen in itertools.combinations(distinct, count):
            one = draft.copy()
            for section in sections:
                _config(one, section).pop(key, None)
            for section, name in chosen:
                _put(one, section, key, name)
            yield one


def _config(draft: Draft, section: str) -> dict[str, Any]:
    return draft.sections.get(section, {}).get("config", {})


def _put(draft: Draft, section: str, key: str, name: str) -> None:
    """Relate a key to a field, in the place of what the section says of that."""
    draft.sections.get(section, {}).get("sets", {}).pop(name, None)
    lines = _config(draft, section)
    for other, right in list(lines.items()):
        if name in (right, right.get("is") if isinstance(right, dict) else None):
            del lines[other]
    draft.put(section, "config", key, name, "as elsewhere")
