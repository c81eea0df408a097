"""The keys that no line of the nearest mapping speaks of: a field of like name, nothing at all, or a question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crosswalk.compiler.layout.model import ConfigType, Field
from crosswalk.compiler.layout.values import misfit
from crosswalk.compiler.relations.rules import FieldRule
from crosswalk.compiler.relations.tree import Struct, nodes_of
from crosswalk.proving.findings import shown

from .classes import Known
from .draft import Draft
from .fit import Fit, Fitting
from .search import likeness

#: How like the names of a key and a field must be; and where the draft states the field at the value of the key.
_LIKE, _LIKE_STATED = 0.5, 0.3


def relate_keys(fitting: Fitting, draft: Draft, fit: Fit, known: Known | None) -> tuple[Draft, Fit]:
    """Relate the keys that are left to fields of like names, the likest first; keep those that mean nothing to the
    class, and ask about the rest."""
    while (best := max(_pairs(fitting, draft, fit), default=None)) is not None:
        _, key, section, name = best
        changed = draft.copy()
        for kind, other in [(section, name), *_stated_alike(draft, name, fitting.config[key])]:
            changed.sections.get(kind, {}).get("sets", {}).pop(other, None)
            changed.put(kind, "config", key, other, "by its name")
        found = fitting.of(changed)
        if found.bound is None or key in found.unknown or found.cost > fit.cost:
            break
        draft, fit = changed, found
    draft = draft.copy()
    for key in dict.fromkeys(fit.unknown):
        value = fitting.config[key]
        if known is not None and not known.matters(key):
            draft.keeps.append(key)
        elif value is not None and not isinstance(value, dict):
            question = "the class computes something else at other values" if known else "what does it change"
            note = f"? `{key}`: {question}; relate it to a field, or leave it, so that they are refused"
            draft.put("base_model", "config", key, _fixed(key, value, known), note)
    return draft, fitting.of(draft)


def _fixed(key: str, value: Any, known: Known | None) -> dict[str, Any]:
    """The line that refuses other values; it is written where the class would take another."""
    taken = known.defaults([key]) if known else {}
    if key not in taken:
        return {"only": value}
    return {"const": value} if taken[key] == value else {"const": value, "default": taken[key]}


def _stated_alike(draft: Draft, name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Other sections that state the same field at the same value: the key speaks for them too."""
    for section, parts in draft.sections.items():
        if parts.get("sets", {}).get(name) is value and isinstance(value, bool):
            yield section, name


def _pairs(fitting: Fitting, draft: Draft, fit: Fit) -> Iterator[tuple[float, str, str, str]]:
    """Keys with the fields that they may be: how like they are, the key, the section, and the field."""
    if fit.compiled is None:
        return
    for kind, name, declared in _open_fields(fitting, fit):
        stated = draft.sections.get(kind.name, {}).get("sets", {}).get(name)
        for key in fit.unknown:
            value = fitting.config[key]
            if value is None or misfit(declared, value) or isinstance(value, bool) != (declared.of == "bool"):
                continue
            likest = max(likeness(name, key), likeness(f"{kind.name}.{name}", key))
            if likest >= (_LIKE_STATED if stated is value else _LIKE):
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
                asked = (
                    f"`{key}`: the class takes {shown(value)} where it is absent, and {entry.position} something else"
                )
                draft.open.append(asked)
                continue
            right = {"is": ".".join(entry.ours)} if entry.ours else {}
            draft.put(name, "config", key, {**right, "default": value})
    return draft, fitting.of(draft)
