"""How a model stores its parameters: fields of ``training`` can decide it, and a live model shows which of them it has.

A checkpoint says nothing about such fields (queries, keys and values in one parameter or in three). Names and shapes of
the model's parameters do: the config is changed, one field at a time, as long as it fits them better.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from crosswalk.compiler.notation.axes import ParameterPattern, resolve
from crosswalk.compiler.notation.expressions import Expression, KeyPath, compile_expression
from crosswalk.compiler.notation.templates import join
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError

from .cells import native_shape
from .model import ConfigType, Field, Layout
from .modules import AxisSizes, parameters, walk
from .scope import Scope, normalize

#: Parameters by name; None where nothing is known of one but its name.
Shapes = Mapping[str, "tuple[int, ...] | None"]


class StoredChoice(NamedTuple):
    """A field that decides how parameters are stored, and the values that it can have."""

    path: KeyPath
    values: Sequence[Any]


def fitting(
    layout: Layout, kind: ConfigType, config: Mapping[str, Any], found: Shapes, part: bool = False
) -> dict[str, Any]:
    """The config with those values of ``training`` fields whose parameters are the ``found`` ones, or as near to them
    as there are; ``config`` itself if no other is nearer. ``part``: there may be parameters that are not found."""
    best = dict(config)
    if not any(choices(Scope(layout, kind, best))):
        return best
    distance = functools.partial(_distance, layout, kind, found, part)
    least = distance(best)
    better = True
    while better and any(least):
        better = False
        # The best of all steps: what names a norm otherwise may bring more names of experts nearer than it takes away.
        for changed in list(variants(layout, kind, best)):
            if (now := distance(changed)) < least:
                best, least, better = changed, now, True
    return best


def variants(layout: Layout, kind: ConfigType, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The configs that differ from a complete one in one of the fields that decide how parameters are stored, or in
    that field of all kinds of layers."""
    found = list(choices(Scope(layout, kind, config)))
    steps = [([choice.path], value) for choice in found for value in choice.values]
    for first in {choice.path[-1]: choice for choice in found}.values():
        paths = [choice.path for choice in found if choice.path[-1] == first.path[-1]]
        steps += [(paths, value) for value in first.values if len(paths) > 1]
    for paths, value in steps:
        changed = _changed(layout, kind, config, paths, value)
        if changed is not None and not same_value(changed, config):
            yield changed


def in_directory(layout: Layout, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the values of fields that name parameters as directories of the trainer do."""
    tables = layout.saved or {}
    return {key: tables[key].get(value, value) if key in tables else value for key, value in config.items()}


def out_of_directory(layout: Layout, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the values of these fields as a model has them: what :func:`in_directory` undoes."""
    tables = {key: {there: here for here, there in table.items()} for key, table in (layout.saved or {}).items()}
    return {key: tables[key].get(value, value) if key in tables else value for key, value in config.items()}


def choices(root: Scope) -> Iterator[StoredChoice]:
    """The fields of ``training`` in a config that decide how parameters are stored."""
    decisive = frozenset(_mentioned(root.layout))
    for path, scope in root.walk():
        for name, declared in scope.kind.fields.items():
            if declared.group == "training" and (values := _values(root.layout, declared, decisive)):
                yield StoredChoice((*path, name), values)


def shapes(root: Scope) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter that the config at ``root`` gives rise to, without tied ones."""
    tied = {tie.parameter for tie in root.kind.ties if root.holds(tie.condition)}
    known: dict[Scope, list[tuple[Any, tuple[int, ...]]]] = {}
    result: dict[str, tuple[int, ...]] = {}
    for module, scope in walk(root):
        if scope not in known:
            sizes = AxisSizes(scope)
            known[scope] = [
                (name, native_shape(present.pattern, sizes))
                for present in parameters(scope)
                if present.parameter.same_as is None
                for name in present.names(sizes)
            ]
        result |= {str(join(module, name)): shape for name, shape in known[scope]}
    return {name: shape for name, shape in result.items() if name not in tied}


def idle(layout: Layout, kind: ConfigType, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter that a complete config has not, and a model of the trainer may have all the
    same: zeros, until training changes them."""
    root, result = Scope(layout, kind, config), dict[str, tuple[int, ...]]()
    for name, value in (layout.idle or {}).items():
        fields = [(path, scope.kind.fields.get(name), scope) for path, scope in root.walk()]
        paths = [(*path, name) for path, field, scope in fields if field and scope.raw(name) == field.default]
        changed = _changed(layout, kind, config, paths, value) if paths else None
        result |= shapes(Scope(layout, kind, changed)) if changed is not None else {}
    known = shapes(root) if result else {}
    return {name: shape for name, shape in result.items() if name not in known}


def absent(root: Scope) -> dict[str, str]:
    """Name of every parameter that a module of the config at ``root`` could have and has not -> when it would."""
    result = {}
    for module, scope in walk(root):
        for parameter in scope.kind.parameters:
            condition = parameter.condition
            if condition is not None and not parameter.name.holes and not scope.holds(condition):
                where = ".".join(scope.path)
                result[str(join(module, parameter.name))] = f"`{condition.text}` in `{where}`"
    return result


def described(root: Scope) -> str:
    """The fields that decide how parameters are stored, as they are in a config; empty if there is none."""
    found = []
    for choice in choices(root):
        value: Any = root.config
        for name in choice.path:
            value = value[name]
        shown = value.get("type", value) if isinstance(value, Mapping) else value
        found.append(f"{'.'.join(choice.path)}: {shown}")
    return ", ".join(found)


def _distance(
    layout: Layout, kind: ConfigType, found: Shapes, part: bool, config: Mapping[str, Any]
) -> tuple[int, int]:
    expected = shapes(Scope(layout, kind, config))
    wrong = sum(name not in expected or shape not in (None, expected[name]) for name, shape in found.items())
    missing = sum(name not in found for name in expected)
    return (wrong, missing) if part else (wrong + missing, 0)


def _changed(
    layout: Layout, kind: ConfigType, config: Mapping[str, Any], paths: Iterable[KeyPath], value: Any
) -> dict[str, Any] | None:
    """The config with another value at each path, complete; None if the layout does not allow it there."""
    result = copy.deepcopy(dict(config))
    for path in paths:
        place: Any = result
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = copy.deepcopy(value)
    try:
        return normalize(layout, result, kind.name)
    except CrosswalkError:
        return None


def _values(layout: Layout, declared: Field, decisive: Collection[str]) -> Sequence[Any]:
    """The values that a field can have, if they decide how parameters are stored."""
    family = layout.families.get(declared.of)
    if family is not None and declared.is_config:
        stores = any(kind.parameters or kind.children for kind in family.types.values())
        return [{"type": name} for name in family.types] if stores else ()
    if declared.kind == "type" and declared.nullable:
        inner = layout.type_of(declared.of)
        return [None, {}] if inner is not None and (inner.parameters or inner.children) else ()
    if declared.name not in decisive:
        return ()
    if declared.kind == "enum":
        return layout.enums[declared.of]
    return (False, True) if (declared.kind, declared.of) == ("scalar", "bool") else ()


def _mentioned(layout: Layout) -> Iterator[str]:
    """Names of the fields that conditions, patterns and sizes of parameters speak of."""
    for kind in layout.all_types():
        expressions = [size for size in kind.axes.values() if isinstance(size, Expression)]
        expressions += [tie.condition for tie in kind.ties]
        for parameter in kind.parameters:
            expressions += [compile_expression(text, None) for text in _conditions(parameter.pattern)]
            expressions += [condition for _, condition in parameter.called]
            if parameter.condition is not None:
                expressions.append(parameter.condition)
        yield from (path[-1] for expression in expressions for path in expression.names)


def _conditions(pattern: ParameterPattern) -> list[str]:
    found: list[str] = []

    def holds(text: str) -> bool:
        found.append(text)
        return True

    resolve(pattern, holds)
    return found
