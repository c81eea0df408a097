"""The modules and parameters that a layout gives one config: names, and what each pattern means there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from crosswalk.compiler.notation.axes import ParameterPattern, resolve
from crosswalk.compiler.notation.expressions import KeyPath, compile_expression
from crosswalk.compiler.notation.templates import Hole, Template, join
from crosswalk.runtime.errors import CrosswalkError

from .cells import AxisTable
from .model import Child, ConfigType, Field, Layout, Parameter
from .named_axes import axes_in_name, axis_size, names
from .scope import Scope


class Present(NamedTuple):
    """A parameter of a module: its name below the module, the one by which mappings know it, its declaration, and its
    pattern without absent branches. ``axes`` are in the names, still as holes: it is one tensor for each of their
    indices."""

    name: Template
    known_as: Template
    parameter: Parameter
    pattern: ParameterPattern
    axes: tuple[str, ...] = ()

    def names(self, sizes: AxisTable) -> Iterator[Template]:
        """The names of its tensors."""
        return names(self.name, self.axes, sizes)


def instances(scope: Scope, child: Child) -> Iterator[tuple[dict[str, object], Scope]]:
    """The modules that a child stands for: the values of its holes, and the config of each, with its axes renamed."""
    for values, found in _configs(scope, child.name, child.config):
        if child.axes:
            found = Scope(
                found.layout, found.kind, found.config, scope, found.path, found.arguments, axis_names=child.axes
            )
        yield values, found


def _configs(scope: Scope, name: Template, config: KeyPath) -> Iterator[tuple[dict[str, object], Scope]]:
    hole = _hole(name)
    if hole is None:
        found = config_of(scope, config)
        if found is not None:
            yield {}, found
        return
    domain = scope.kind.holes[hole]
    declared = _listing(scope, domain)
    if declared is not None and declared.kind == "dict":
        for key in scope.raw(domain):
            yield {hole: key}, scope.entry(domain, key)
    elif declared is not None:
        for index, (_, block) in enumerate(scope.blocks(domain)):
            yield {hole: index}, block
    else:
        found = config_of(scope, config)
        if found is not None:
            for index in range(scope.count(compile_expression(domain, None))):
                yield {hole: index}, found


def _listing(scope: Scope, domain: str) -> Field | None:
    """The field whose entries a hole counts: a sequence or a dict of configs; None if it is counted by a formula."""
    declared = scope.kind.fields.get(domain)
    return declared if declared is not None and (declared.is_config or declared.kind == "dict") else None


def number_counted(scope: Scope, hole: str) -> int | None:
    """How many a hole of the type counts; None if it counts nothing there."""
    domain = scope.kind.holes.get(hole)
    if domain is None:
        return None
    declared = _listing(scope, domain)
    if declared is None:
        return scope.count(compile_expression(domain, None))
    return len(scope.raw(domain)) if declared.kind == "dict" else len(scope.blocks(domain))


def alike(scope: Scope, child: Child) -> Iterator[tuple[int, Scope]]:
    """The modules that a child stands for, as how many there are of each."""
    hole = _hole(child.name)
    domain = None if hole is None else scope.kind.holes[hole]
    if domain is None or _listing(scope, domain) is not None:
        found = {inner.path: inner for _, inner in instances(scope, child)}
        numbers = Counter(inner.path for _, inner in instances(scope, child))
        yield from ((numbers[path], inner) for path, inner in found.items())
        return
    one = config_of(scope, child.config)
    if one is not None:
        yield scope.count(compile_expression(domain, None)), one


def number_of_names(scope: Scope, parameter: Parameter) -> int:
    """How many tensors one declaration makes: one, or one for each value of the holes in its name."""
    sizes = AxisSizes(scope)
    counted = math.prod(axis_size(axis, sizes) for axis in axes_in_name(parameter.name, scope.kind.holes))
    hole = counted_hole(scope.kind, parameter)
    return counted * (1 if hole is None else scope.count(compile_expression(scope.kind.holes[hole], None)))


def counted_hole(kind: ConfigType, parameter: Parameter) -> str | None:
    """The hole in the name of a parameter that is no axis, of which there is at most one."""
    holes = (hole.name for hole in parameter.name.holes if isinstance(hole, Hole))
    return next((name for name in holes if name in kind.holes), None)


def _hole(name: Template) -> str | None:
    """The hole in the name of a module, which has at most one."""
    return next((hole.name for hole in name.holes if isinstance(hole, Hole)), None)


def config_of(scope: Scope, config: KeyPath) -> Scope | None:
    """The config that a child is made from: a path of fields; ``decoder.{last}`` is the last layer."""
    if config[-1] == "{last}":
        blocks = scope.blocks(config[0])
        return blocks[-1][1] if blocks else None
    value: object = scope
    for name in config:
        if not isinstance(value, Scope) or name not in value.kind.fields:  # other types of the family may have it
            return None
        value = value.field(name)
    return value if isinstance(value, Scope) else None


def types_in(layout: Layout, of: str) -> list[ConfigType]:
    """The types that a config can have in a field of a type or a family."""
    if of in layout.families:
        return list(layout.families[of].types.values())
    kind = layout.type_of(of)
    return [] if kind is None else [kind]


def types_below(layout: Layout, kind: ConfigType, child: Child) -> list[ConfigType]:
    """The types that the config of a module below an object of type ``kind`` can have."""
    owners = [kind]
    for name in child.config:
        if name.startswith("{"):  # an entry of what stands before: a layer or an entry of a dict
            blocks = [owner.fields["block"] for owner in owners if "block" in owner.fields]
            owners = [found for block in blocks for found in types_in(layout, block.of)] or owners
        else:
            declared = [owner.fields[name] for owner in owners if name in owner.fields]
            owners = [found for field in declared for found in types_in(layout, field.of)]
    return owners


def parameters(scope: Scope) -> Iterator[Present]:
    """The parameters of one module, without those of the modules below it."""
    for parameter in scope.kind.parameters:
        if parameter.condition is None or scope.holds(parameter.condition):
            pattern = resolve(parameter.pattern, lambda text: scope.holds(compile_expression(text, None)))
            name = next((name for name, holds in parameter.called if scope.holds(holds)), parameter.name)
            axes = axes_in_name(name, scope.kind.holes)
            for values in _values(scope, parameter):
                yield Present(name.render(values), parameter.name.render(values), parameter, pattern, axes)


def _values(scope: Scope, parameter: Parameter) -> Iterator[dict[str, object]]:
    """What the hole in the name of a parameter stands for that is no axis; nothing, once, where there is none."""
    hole = counted_hole(scope.kind, parameter)
    if hole is None:
        yield {}
        return
    for index in range(scope.count(compile_expression(scope.kind.holes[hole], None))):
        yield {hole: index}


def walk(scope: Scope) -> Iterator[tuple[Template, Scope]]:
    """This module and all below it, by name. Layers of one config share the scopes of what is in them."""
    yield Template.parse(""), scope
    for child in scope.kind.children:
        known: dict[KeyPath, list[tuple[Template, Scope]]] = {}
        for values, inner in instances(scope, child):
            if inner.path not in known:
                known[inner.path] = list(walk(inner))
            for below, found in known[inner.path]:
                yield join(child.name.render(values), below), found


class AxisSizes(Mapping[str, "int | tuple[str, ...]"]):
    """The axes in scope of a module, looked up when needed; those of the root that are in ``lengths`` are that long."""

    def __init__(self, scope: Scope, lengths: Mapping[str, int] = MappingProxyType({})) -> None:
        self.scope, self.lengths = scope, lengths
        self.known: dict[str, int | tuple[str, ...]] = {}

    def __getitem__(self, name: str) -> int | tuple[str, ...]:
        if name not in self.known:
            try:
                self.known[name] = self.scope.axis_entry(name.rstrip("'"), self.lengths)
            except CrosswalkError as error:
                if error.diagnostics[0].code != "layout/no-axis":
                    raise
                raise KeyError(name) from None
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        scope: Scope | None = self.scope
        while scope is not None:
            yield from (*scope.axis_names, *scope.kind.axes)
            scope = scope.parent

    def __len__(self) -> int:
        return len(set(iter(self)))
