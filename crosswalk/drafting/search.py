"""From a draft that only extends another format to one whose tensors are those of the file: facts, then names."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from typing import Any

from crosswalk.compiler.layout.model import MISSING, Layout
from crosswalk.compiler.relations.tree import Struct, nodes_of

from .draft import Draft
from .fit import Fit, Fitting, fold
from .stacked import KIND, stack_experts
from .words import Words

#: Formats that a draft is begun with.
_NEAREST = 2
_NOWHERE = re.compile(r"nothing says where `([\w.]+)` comes from \((?:section|no) `(\w+):?`\)")
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")


def nearest(fitting: Fitting, header: dict[str, Any], formats: Iterable[str]) -> list[tuple[Draft, Fit]]:
    """Drafts that extend the formats whose tensors, and then keys, are nearest."""
    drafts = [Draft({"extends": name, **header}) for name in formats]
    pairs = [(draft, fitting.of(draft)) for draft in drafts]
    return sorted(pairs, key=lambda pair: (pair[1].compiled is None, pair[1].cost))[:_NEAREST]


def simplest(pairs: Iterable[tuple[Draft, Fit]]) -> tuple[Draft, Fit]:
    """The draft that fits best; of equal ones the one that states least, and extends least."""

    def order(pair: tuple[Draft, Fit]) -> tuple[float, int, int]:
        draft, fit = pair
        stated = sum(len(lines) for parts in draft.sections.values() for lines in parts.values())
        return fit.cost, stated, len(fit.compiled.source.ancestors) if fit.compiled else 0

    return min(pairs, key=order)


def fit_tensors(fitting: Fitting, draft: Draft, fit: Fit, words: Words) -> tuple[Draft, Fit]:
    """State what brings the tensors nearest to those of the file, and name them, until nothing brings them nearer."""
    before = None
    while (fit.missing or fit.extra or fit.problems) and (before is None or fit.cost < before):
        before = fit.cost
        draft, fit = _state_facts(fitting, draft, fit, words)
        draft, fit = name_tensors(fitting, draft, fit)
    return draft, fit


def _state_facts(fitting: Fitting, draft: Draft, fit: Fit, words: Words) -> tuple[Draft, Fit]:
    """Try every fact, then state those that help, the best first, as long as they do."""
    gains = {fact: fit.cost - stated(fitting, draft, words, *fact)[1].cost for fact in facts_of(fit, words)}
    for fact in sorted((fact for fact, gain in gains.items() if gain > 0), key=lambda fact: -gains[fact]):
        changed, found = stated(fitting, draft, words, *fact)
        if found.cost < fit.cost:
            draft, fit = changed, found
    return draft, fit


def facts_of(fit: Fit, words: Words) -> Iterator[tuple[str, str, Any]]:
    """What shipped mappings state of types that this one reaches, and the other values that may stand there."""
    if fit.compiled is None:
        return
    layout = fit.compiled.layout
    reached = {node.type.name for node in nodes_of(fit.compiled.root) if isinstance(node, Struct)}
    usual = {value for _, _, value in words.facts}
    facts: dict[tuple[str, str, Any], None] = {}
    for section, name, value in words.facts:
        if section in reached:
            for other in (value, *_others(layout, value, usual)):
                facts[section, name, other] = None
    yield from facts


def _others(layout: Layout, value: Any, usual: Container[Any]) -> Iterator[Any]:
    if isinstance(value, bool):
        yield not value
    for family in layout.families.values():
        if value in family.types and not family.sequence:
            yield from (n for n in family.types if n != value and (n in usual or n == family.default))


def stated(fitting: Fitting, draft: Draft, words: Words, section: str, name: str, value: Any) -> tuple[Draft, Fit]:
    """A draft with one fact more, and with what the type that it brings in needs."""
    changed = draft.copy()
    changed.put(section, "sets", name, value)
    layout = fitting.catalog.layout(fitting.layout)
    kinds = {kind.name for kind in layout.all_types()}
    if isinstance(value, str) and value in kinds and value not in changed.sections:
        _bring_in(fitting, changed, words, value)
    fit = fitting.of(changed)
    for _ in range(3):
        if fit.bound is not None or not _answer(fitting, changed, words, fit):
            break
        fit = fitting.of(changed)
    return changed, fit


def _bring_in(fitting: Fitting, draft: Draft, words: Words, kind: str) -> None:
    """The names of a type that no line of the nearest mapping speaks of: those that fit the file best."""
    for section, parameter in words.names:
        if section == kind:
            name = max(words.names_of(kind, parameter), key=lambda name: (_hits(fitting, name), name.count(".")))
            if _hits(fitting, name):
                draft.put(kind, "tensors", name, parameter)
    if kind == KIND and not draft.sections.get(kind, {}).get("tensors"):
        stack_experts(fitting, draft)
    for section, field_name in words.keys:
        if section == kind:
            key = next((key for key in words.keys[section, field_name] if key in fitting.config), None)
            if key is not None:
                draft.put(kind, "config", key, field_name)


def _hits(fitting: Fitting, name: str) -> int:
    """How many tensors of the file have a name like this one in them."""
    texts = {fold(text) for text in expanded(name)}
    return sum(1 for text in texts if any(f".{text}." in f".{found}." for found in fitting.shapes))


def expanded(name: str) -> list[str]:
    """The names of a template, with ``#`` for what is counted."""
    found = _CHOICE.search(name)
    if found is None:
        return [re.sub(r"\{[^{}]*\}", "#", name)]
    options = [option.partition("=")[0] for option in found[1].split("|")]
    return [text for o in options for text in expanded(name[: found.start()] + o + name[found.end() :])]


def _answer(fitting: Fitting, draft: Draft, words: Words, fit: Fit) -> bool:
    """Say where fields come from of which nothing says it: the key that shipped mappings have, or one of like name."""
    answered = False
    for problem in fit.problems:
        found = _NOWHERE.search(problem.message)
        if found is None:
            continue
        path, section = found[1], found[2]
        name = path.rpartition(".")[2]
        keys = [key for key in words.key_of(section, name) if key in fitting.config]
        key = keys[0] if keys else like(name, fitting.config)
        if key is not None:
            draft.put(section, "config", key, name)
        else:
            layout = fitting.catalog.layout(fitting.layout)
            kind = next(kind for kind in layout.all_types() if kind.name == section)
            default = kind.fields[name].default
            value = None if default is MISSING else default
            draft.put(section, "sets", name, value, f"? where does `{name}` of the trainer come from?")
        answered = True
    return answered


def like(name: str, keys: Iterable[str], least: float = 0.5) -> str | None:
    """The key whose words are most like those of a field."""
    best = max(((likeness(name, key), key) for key in keys), default=(0.0, ""))
    return best[1] if best[0] >= least else None


def likeness(one: str, other: str) -> float:
    """How many of the words of two names are the same, of all that they have."""
    here, there = _words(one), _words(other)
    return len(here & there) / max(1, len(here | there))


def _words(name: str) -> set[str]:
    short = {"eps": "epsilon", "biases": "bias", "embeddings": "embedding", "num": "", "use": "", "experts": "expert"}
    found = {short.get(word, word) for word in re.split(r"[._]", name.lower())}
    return found - {""}


def name_tensors(fitting: Fitting, draft: Draft, fit: Fit) -> tuple[Draft, Fit]:
    """Where one tensor of the file has the shape of one that is missing, beside it: it has that name."""
    if fit.bound is None:
        return draft, fit
    lines = {fold(name): line for name, line in fit.bound.lines().items()}
    for missing, shape in fit.missing.items():
        line = lines.get(missing)
        group, _, leaf = missing.rpartition(".")
        around, _, module = group.rpartition(".")
        near = [n for n, s in fit.extra.items() if s == shape and n.rpartition(".")[2] == leaf]
        beside = [name for name in near if name.rpartition(".")[0].rpartition(".")[0] == around] or near
        if line is None or len(beside) != 1 or len(line.ours) != 1 or fit.compiled is None:
            continue
        section = next((n for n, s in fit.compiled.source.sections.items() if line in s.tensors), None)
        if section is None or module not in expanded(str(line.theirs)):
            continue
        changed = draft.copy()
        found = beside[0].rpartition(".")[0].rpartition(".")[2]
        changed.put(section, "tensors", found, ".".join(line.ours[0]))
        better = fitting.of(changed)
        if better.cost < fit.cost:
            return name_tensors(fitting, changed, better)
    return draft, fit
