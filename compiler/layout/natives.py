"""The trainer's parameters for one config: their names and shapes, as the layout alone gives them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.notation.templates import Template, join
from crosswalk.runtime.records import Record, replace

from .cells import Box, native_shape, outside
from .limit import WITHOUT_FILES, Limit
from .model import ConfigType, Layout
from .modules import AxisSizes, alike, instances, number_of_names, parameters
from .scope import Scope, normalize


class Native(Record, frozen=True):
    """A parameter of the trainer; ``tied_to`` is the one that has the storage. ``padding``: the elements that hf
    does not have, as disjoint boxes."""

    name: str
    shape: tuple[int, ...]
    tied_to: str | None = None
    padding: tuple[Box, ...] = ()


def natives_of(
    root: Scope, lengths: Mapping[str, int] = MappingProxyType({}), limit: Limit = WITHOUT_FILES
) -> dict[str, Native]:
    """Every parameter by its name; axes in ``lengths`` are that long on the other side. Raises ``CrosswalkError``
    before there is anything of them if they are more than the limit."""
    _count(root, Template.parse(""), limit)
    found = {native.name: native for native in _natives(root, lengths)}
    ties = {tie.parameter: tie.same_as for tie in root.kind.ties if root.holds(tie.condition)}
    for name, native in found.items():
        owner = ties.get(native.tied_to or name, native.tied_to)
        if owner is not None:
            found[name] = Native(name, native.shape, owner)
    return found


def ties_of(root: Scope, limit: Limit = WITHOUT_FILES) -> dict[str, str]:
    """Parameters that are stored as another one -> that one. Raises ``CrosswalkError`` beyond the limit."""
    found = natives_of(root, limit=limit)
    return {name: native.tied_to for name, native in found.items() if native.tied_to is not None}


def copies_in(
    layout: Layout, kind: ConfigType, config: Mapping[str, Any], names: Container[str], limit: Limit = WITHOUT_FILES
) -> dict[str, str]:
    """Those of ``names`` that a config ties to another of them -> that one. Raises ``CrosswalkError`` for what is wrong
    with the config, and beyond the limit."""
    ties = ties_of(Scope(layout, kind, normalize(layout, config, kind.name)), limit)
    return {name: of for name, of in ties.items() if name in names and of in names}


def _natives(scope: Scope, lengths: Mapping[str, int]) -> Iterator[Native]:
    for child in scope.kind.children:
        known: dict[KeyPath, list[Native]] = {}
        for values, inner in instances(scope, child):
            if inner.path not in known:
                known[inner.path] = list(_natives(inner, lengths))
            prefix = child.name.render(values)
            yield from (replace(native, name=f"{prefix}.{native.name}") for native in known[inner.path])
    sizes = AxisSizes(scope)
    shorter = AxisSizes(scope, lengths) if lengths else sizes
    for present in parameters(scope):
        padding = tuple(outside(present.pattern.dims, sizes, shorter)) if lengths else ()
        shape = native_shape(present.pattern, sizes)
        yield from (Native(str(name), shape, present.parameter.same_as, padding) for name in present.names(sizes))


def _count(scope: Scope, name: Template, limit: Limit) -> int:
    """The parameters of a module called ``name`` and of all below it, without a look at each of equal ones."""
    total = 0
    for parameter in scope.kind.parameters:
        if parameter.condition is None or scope.holds(parameter.condition):
            number = number_of_names(scope, parameter)
            total += number
            limit.check(total, number, str(join(name, parameter.name)))
    for child in scope.kind.children:
        below = join(name, child.name)
        for number, inner in alike(scope, child):
            total += number * _count(inner, below, limit)
            limit.check(total, number, str(below))
    return total
