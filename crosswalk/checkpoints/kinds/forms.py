"""Other forms of a config that a trainer has, as its layout says (``forms``): each is a mapping of the config.

Megatron's are flat: fields of a dataclass, arguments of a command line. What a mapping relates is the model; the other
keys of such a form, hundreds, are settings of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from crosswalk.compiler.config.coverage import unknown_keys
from crosswalk.compiler.config.read import import_config
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.layout.differences import differing
from crosswalk.compiler.layout.model import MISSING, Layout
from crosswalk.compiler.layout.scope import Scope, normalize
from crosswalk.compiler.layout.variants import out_of_directory
from crosswalk.compiler.relations.keys import get
from crosswalk.compiler.relations.rules import FieldRule
from crosswalk.compiler.relations.tree import CaseNode, CompiledMapping, Node, Nullable, Struct
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.records import Record, replace

#: Finds a mapping by its name.
Mappings = Callable[[str], CompiledMapping]
_TARGET, _CALL = "_target_", "_call_"


class Form(Record, frozen=True):
    """A config in another form. ``file``: that holds it in a folder; ``state``: its name in what ranks have in common;
    ``document``: with what else stands there."""

    file: str | None
    state: str | None
    document: Mapping[str, Any]


def read_form(layout: Layout, document: Mapping[str, Any], mappings: Mappings) -> dict[str, Any] | None:
    """The config of a document that is in a form of the layout, None for any other. Raises ``CrosswalkError`` with
    everything in it that the layout does not have, each problem at its key."""
    for form in layout.forms:
        found: dict[str, Any] = {}
        places: dict[str, tuple[str, ...]] = {}
        for path in _paths(form):
            inner: Any = document
            for key in path:
                inner = inner.get(key) if isinstance(inner, Mapping) else None
            if isinstance(inner, Mapping):
                found |= inner
                places |= dict.fromkeys(inner, path)
        if form["key"] not in found:
            continue
        mapping = mappings(form["with"])
        config = _filled(mapping, {key: _name(value) for key, value in found.items()})
        problems = [problem for problem in unknown_keys(mapping, config) if problem.code == "config/unsupported"]
        try:
            native, _ = import_config(mapping, config)
        except CrosswalkError as error:
            problems += error.diagnostics
        if problems:
            at = {problem: places.get(problem.path[0], ()) if problem.path else () for problem in problems}
            raise CrosswalkError(replace(problem, path=(*at[problem], *problem.path)) for problem in problems)
        return native
    return None


def write_forms(layout: Layout, config: Mapping[str, Any], mappings: Mappings) -> tuple[list[Form], list[str]]:
    """The forms of a complete config that a folder of the trainer has, and why it lacks others."""
    found, notes = [], []
    for form in layout.forms:
        if "file" not in form and "state" not in form:
            continue
        mapping = mappings(form["with"])
        native = normalize(layout, out_of_directory(layout, config), mapping.root.type.name)
        name = form.get("file") or form["state"]
        try:
            written, _ = export_config(mapping, native)
            again, _ = import_config(mapping, written)
        except CrosswalkError as error:
            notes.append(f"`{name}` is not written, it has no place for this model: {error.diagnostics[0].message}")
            continue
        kind = mapping.root.type
        lost = [".".join(path) for path, *_ in differing(Scope(layout, kind, again), Scope(layout, kind, native))]
        if lost:
            notes.append(f"`{name}` is not written, it has no place for `{lost[0]}` of this model")
            continue
        written |= {key: {_TARGET: written[key], _CALL: False} for key in form.get("objects", ()) if key in written}
        document: Any = written
        for key in reversed(_paths(form)[-1]):
            document = {key: document}
        found.append(Form(form.get("file"), form.get("state"), _merged(document, form.get("beside", {}))))
    return found, notes


def _paths(form: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The places of a document that hold the keys of a form."""
    return [tuple(path.split(".")) for path in form.get("at", ())] or [()]


def _name(value: Any) -> Any:
    """A value; the name of an object of Python where that is what stands there."""
    is_object = isinstance(value, Mapping) and isinstance(value.get(_TARGET), str)
    return value[_TARGET] if is_object and value.get(_CALL) is False else value


def _filled(mapping: CompiledMapping, config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a form, absent ones as their fields are by default."""
    found = dict(config)
    for rule in _rules(mapping.root, config):
        stated = [config.get(place[0], MISSING) for place in rule.places()]
        if any(value is not MISSING and (value is not None or rule.holds_null) for value in stated):
            continue
        value = rule.field.default
        if rule.line.default is MISSING and value is not MISSING:
            named = value is not None and rule.table is not None
            found[rule.theirs[0]] = next(r.theirs for r in rule.table or () if r.ours == value) if named else value
    return found


def _rules(node: Node, config: Mapping[str, Any]) -> Iterator[FieldRule]:
    """The rules of fields that are read from a flat object, by the cases that it has."""
    match node:
        case Struct():
            yield from (rule for rule in node.rules if isinstance(rule, FieldRule))
            for child in node.children:
                yield from _rules(child, config)
        case Nullable():
            yield from _rules(node.node, config)
        case CaseNode():
            value = get(config, node.key)
            value = node.default if value is MISSING or value is None else value
            for case in node.cases:
                if same_value(case.value, value):
                    yield from _rules(case.node, config)


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two documents as one, made of plain dicts; objects that both have are merged."""
    result = dict(one)
    for key, value in other.items():
        result[key] = _merged(result.get(key, {}), value) if isinstance(value, Mapping) else value
    return result
