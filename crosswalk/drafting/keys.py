"""The keys that no line of the nearest mapping speaks of: a field of like name, nothing at all, or a question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crosswalk.compiler.layout.model import ConfigType, Field
from crosswalk.compiler.layout.values import misfit
from crosswalk.compiler.notation.expressions import Expression
from crosswalk.compiler.relations.rules import FieldRule
from crosswalk.compiler.relations.tree import Struct, nodes_of
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import shown

from .classes import Known
from .draft import Draft
from .fit import Fit, Fitting
from .search import likeness

#: How like the names of a key and a field must be; and where the draft states the field at the value of the key.
_LIKE, _LIKE_STATED = 0.5, 0.3


def relate_keys(fitting: Fitting, draft: Draft, fit: Fit, known: Known | None) -> tuple[Draft, Fit]:
    """Relate the keys that are left to fields of like names, the likest first; keep those that mean nothing to the
    class, and ask about the rest."""
    while (best := max(_pairs(fitting, fit), default=None)) is not None:
        _, key, section, name = best
        changed = draft.copy()
        for kind, other in [(section, name), *stated_alike(fit, name, fitting.config[key])]:
            changed.sections.get(kind, {}).get("sets", {}).pop(other, None)
            changed.put(kind, "config", key, other, "by its name")
        found = fitting.of(changed)
        if found.bound is None or key in found.unknown or found.cost > fit.cost:
            break
        draft, fit = changed, found
    draft = draft.copy()
    for key in dict.fromkeys(fit.unknown):
        value = fitting.config[key]
        if value is None:
            continue  # it is as if it were absent, and any other value is refused
        if known is not None and known.ignores(key):
            draft.keeps.append(key)
        elif not isinstance(value, dict):
            question = "the class computes something else at other values" if known else "what does it change"
            if known is not None and not known.matters(key):
                question = "the class takes no other value that was tried"
            if isinstance(value, list) and len(value) in fitting.counts:
                question += f", perhaps the kind of each layer (`each: {key}`, docs/language.md, 7)"
            note = f"? `{key}`: {question}; relate it to a field, or leave it, so that they are refused"
            draft.put("base_model", "config", key, _fixed(key, value, known), note)
    return draft, fitting.of(draft)


def _fixed(key: str, value: Any, known: Known | None) -> dict[str, Any]:
    """The line that refuses other values; it is written where the class would take another."""
    taken = known.defaults([key]) if known else {}
    if isinstance(value, list):
        return {"only": [value]}  # a list by itself would be one of values
    if key not in taken:
        return {"only": value}
    return {"const": value} if same_value(taken[key], value) else {"const": value, "default": taken[key]}


def stated_alike(fit: Fit, name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Sections that state a field at this value: the key speaks for all of them."""
    assert fit.compiled is not None
    for section in fit.compiled.source.sections.values():
        if isinstance(value, bool) and any(fact.ours == (name,) and fact.value is value for fact in section.sets):
            yield section.name, name


def _pairs(fitting: Fitting, fit: Fit) -> Iterator[tuple[float, str, str, str]]:
    """Keys with the fields that they may be: how like they are, the key, the section, and the field."""
    if fit.compiled is None:
        return
    for kind, name, declared in _open_fields(fitting, fit):
        for key in (*fit.unknown, *filter(fitting.matters, fit.unsaid)):
            value = fitting.config[key]
            if value is None or misfit(declared, value) or isinstance(value, bool) != (declared.of == "bool"):
                continue
            likest = max(likeness(name, key), likeness(f"{kind.name}.{name}", key))
            stated = any(section == kind.name for section, _ in stated_alike(fit, name, value))
            if likest >= (_LIKE_STATED if stated else _LIKE):
                yield likest, key, kind.name, name


def _open_fields(fitting: Fitting, fit: Fit) -> Iterator[tuple[ConfigType, str, Field]]:
    """Fields of types that the draft reaches, but for those that a key of the file holds."""
    assert fit.compiled is not None
    seen: set[tuple[str, str]] = set()
    for node in nodes_of(fit.compiled.root):
        if not isinstance(node, Struct) or not node.section.position.line:
            continue
        held = {r.ours[-1] for r in node.rules if isinstance(r, FieldRule) and r.theirs[0] in fitting.config}
        for name, declared in node.type.fields.items():
            if name not in held and not declared.is_config and (node.type.name, name) not in seen:
                seen.add((node.type.name, name))
                yield node.type, name, declared


def state_defaults(fitting: Fitting, draft: Draft, fit: Fit, known: Known) -> tuple[Draft, Fit]:
    """Write the class's default of every key for which the nearest mapping takes another."""
    assert fit.compiled is not None
    source = fit.compiled.source
    for key, value in known.other_defaults(fit.compiled):
        for name, section in source.sections.items():
            entry = next((e for e in section.config if e.theirs == (key,)), None)
            if entry is None or (entry.ours is None and name != "Sequence"):
                continue
            if entry.read is not None or entry.write is not None or entry.cases:
                at = f"{Path(entry.position.file).name}:{entry.position.line}"
                draft.open.append(
                    f"`{key}`: the class takes {shown(value)} where it is absent, and {at} something else"
                )
                continue
            if value is None:
                draft.open.append(f"`{key}`: which kind is each layer of where it is absent?")
                continue
            right = {"is": ".".join(entry.ours)} if entry.ours else {}
            if isinstance(entry.default, Expression) and known.otherwise_where_null(fit.compiled, key):
                value = f"= {entry.default.text} if has('{key}') else {shown(value)}"
            draft.put(name, "config", key, {**right, "default": value})
    return draft, fitting.of(draft)
