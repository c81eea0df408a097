"""The tensor lines of a section over the types of the layout: which module or which parameters each of them is about.

They are resolved once, for an object of one type; what a config has of it, how often and in which sizes is left to
:mod:`~crosswalk.compiler.tensors.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from crosswalk.compiler.layout.model import ConfigType, Layout, Parameter
from crosswalk.compiler.layout.modules import counted_hole, types_below
from crosswalk.compiler.mapping.model import CutLine, Section, TensorEntry
from crosswalk.compiler.notation.axes import labels_of
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.runtime.records import Record


class TensorRule(Record, frozen=True):
    """A line about parameters of an object: one of each of ``paths``, or of the groups that these name. ``held``: what
    is added to the paths -> the parameters with that name. ``counted``: the hole in their names that counts them;
    the rule stands for one of each index."""

    line: TensorEntry
    paths: tuple[KeyPath, ...]
    held: Mapping[str, tuple[str, ...]]
    counted: str | None = None

    def at(self, index: int) -> TensorRule:
        """The rule of one index of the hole that is ``counted``."""

        def fill(text: str) -> str:
            return text.replace(f"{{{self.counted}}}", str(index))

        paths = tuple(tuple(map(fill, path)) for path in self.paths)
        return TensorRule(self.line, paths, {fill(end): tuple(map(fill, names)) for end, names in self.held.items()})


class ModuleRules(NamedTuple):
    """What lines say of a module of one type: the one that names it, and what they say of its inside."""

    line: TensorEntry | None
    inside: TensorRules | None


class TensorRules(Record, frozen=True):
    """What lines say of an object of one type: of its ``own`` parameters, and of modules ``below``, by the child of the
    layout and the type that it has. Of a section also: ``ignored`` are tensors that are not needed, ``cuts`` those that
    its lines name parts of; with ``same``, what no line speaks of keeps its name."""

    own: tuple[TensorRule, ...]
    below: Mapping[str, Mapping[str, ModuleRules]]
    ignored: tuple[TensorEntry, ...] = ()
    cuts: tuple[CutLine, ...] = ()
    same: bool = False
    transposed: bool = False

    def lines(self) -> Iterator[TensorEntry]:
        """The lines that there can be a config for, those about modules below included."""
        yield from (rule.line for rule in self.own if any(len(n) == len(rule.paths) for n in rule.held.values()))
        for rules in (rules for types in self.below.values() for rules in types.values()):
            if rules.line is not None:
                yield rules.line
            if rules.inside is not None:
                yield from rules.inside.lines()


class _Said(NamedTuple):
    """A line, what it is about below an object, and the types of the module there of which alone it speaks."""

    line: TensorEntry
    paths: tuple[KeyPath, ...]
    types: tuple[str, ...] | None = None


def section_tensors(layout: Layout, kind: ConfigType, section: Section) -> TensorRules:
    """The tensor lines of a section, about objects of type ``kind``."""
    own, below = _resolved(layout, kind, [_Said(line, line.ours, line.types) for line in section.tensors if line.ours])
    named = {label for line in section.tensors for label in labels_of((*(line.dims or ()), *(line.encoded or ())))}
    return TensorRules(
        own,
        below,
        tuple(line for line in section.tensors if not line.ours),
        tuple(cut for cut in section.cuts.values() if not named.isdisjoint(name for name, _ in cut.parts)),
        section.same_names or not section.has_tensors,
        bool(section.transposed),
    )


def _resolved(
    layout: Layout, kind: ConfigType, said: Sequence[_Said]
) -> tuple[tuple[TensorRule, ...], dict[str, dict[str, ModuleRules]]]:
    below: dict[str, dict[str, ModuleRules]] = {}
    for child in kind.children:
        name = tuple(str(child.name).split("."))
        about = [one for one in said if any(path[: len(name)] == name for path in one.paths)]
        for found in types_below(layout, kind, child) if about else ():
            fitting = [one for one in about if one.types is None or found.name in one.types]
            inside = [
                _Said(one.line, tuple(path[len(name) :] for path in one.paths))
                for one in fitting
                if all(len(path) > len(name) and path[: len(name)] == name for path in one.paths)
            ]
            line = next((one.line for one in fitting if name in one.paths), None)
            if line is not None or inside:
                rules = TensorRules(*_resolved(layout, found, inside)) if inside else None
                below.setdefault(str(child.name), {})[found.name] = ModuleRules(line, rules)
    return tuple(rule for one in said if one.types is None for rule in _own(kind, one)), below


def _own(kind: ConfigType, said: _Said) -> Iterator[TensorRule]:
    """The rules of a line that is about parameters of the object itself."""
    groups = [_leaves(kind, path) for path in said.paths]
    ends = sorted({end for group in groups for end in group})
    named = {end: [group[end] for group in groups if end in group] for end in ends}
    for hole in dict.fromkeys(counted_hole(kind, parameter) for names in named.values() for parameter in names):
        held = {e: tuple(map(_name, names)) for e, names in named.items() if counted_hole(kind, names[0]) == hole}
        yield TensorRule(said.line, said.paths, held, hole)


def _leaves(kind: ConfigType, path: KeyPath) -> dict[str, Parameter]:
    """The parameters that a path names: itself, or as a group all below it, by what is added to its name."""
    name, known = ".".join(path), {_name(parameter): parameter for parameter in kind.parameters}
    if name in known:
        return {"": known[name]}
    return {other[len(name) + 1 :]: known[other] for other in known if other.startswith(name + ".")}


def _name(parameter: Parameter) -> str:
    return str(parameter.name)
