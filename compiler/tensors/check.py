"""Checks of ``tensors:`` before there is a config.

Names on the right are looked up in the types of the layout. The rest is found by lowering the mapping for a config made
up for it: every kind of layer, every case and every entry of a dict that the mapping can reach is in it once, what a
mapping states has its value, conditions over anything else hold, and all axes have some size.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from crosswalk.compiler.config.taken import Chosen
from crosswalk.compiler.layout.model import ConfigType, Field, Layout
from crosswalk.compiler.layout.modules import types_below, types_in
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.mapping.model import TensorEntry
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.notation.templates import Hole
from crosswalk.compiler.relations.keys import put
from crosswalk.compiler.relations.rules import FieldRule, OursFact
from crosswalk.compiler.relations.tree import (
    CaseNode,
    CompiledMapping,
    Entries,
    Layers,
    Node,
    Nullable,
    PartNode,
    Struct,
    nodes_of,
)
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.records import Record, field

from .weights import relate_weights


def check_tensors(mapping: CompiledMapping) -> list[Diagnostic]:
    """Every problem of the tensor side that can be found without a config; parts are checked on their own too."""
    if mapping.source.abstract:
        return []
    problems = [*_check_names(mapping), *_check_claims(mapping)] or [*_check_unheard(mapping)]
    if problems:
        return problems
    if not any(isinstance(node, Struct) and node.section.has_tensors for node in nodes_of(mapping.root)):
        return []  # of configs alone: every tensor has the name that it has in the layout
    found: list[Diagnostic] = []
    for model in _Models(mapping).all():
        scope = Scope(mapping.layout, mapping.root.type, model.config, pending=model.pending, assumes=True)
        try:
            groups = relate_weights(scope, model.chosen).groups
        except CrosswalkError as error:
            found += (problem for problem in error.diagnostics if problem.code != "mapping/one-sided")
            continue
        seen: dict[str, TensorEntry] = {}
        for entry in (entry for group in groups for entry in group.alone):
            line = seen.setdefault(entry.tensor.name, entry.line)
            if line is not entry.line:
                message = f"the tensor `{entry.tensor.name}` is already named at {line.position}"
                found.append(Diagnostic("mapping/name-twice", message, entry.line.position))
    # What is wrong with a weight is wrong with its bias, and with the same line in every layer.
    return list({(p.code, p.position, _BIAS_OR_INDEX.sub("", p.message.split("\n")[0])): p for p in found}.values())


_BIAS_OR_INDEX = re.compile(r"\.(?:bias|weight)\b|\b\d+\b")


# ---- names on the right -------------------------------------------------------------------------------------------


def _check_names(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    layout = mapping.layout
    structs = [node for node in nodes_of(mapping.root) if isinstance(node, Struct)]
    reached = {node.type.name for node in structs}
    decided = {kind.name for node in structs for kind in types_in(layout, node.type.family or "")}
    for node in structs:
        for line in node.section.tensors:
            yield from _check_counts(line, node.type)
            wrong: list[Diagnostic] = []
            for index, path in enumerate(line.ours):
                at = line.ours_at[index] if index < len(line.ours_at) else line.position
                wrong += _check_path(path, node.type, line, at, layout)
                wrong += _check_holes(path, layout, line)
            yield from wrong
            known = {kind.name for kind in layout.all_types()}
            for name in line.types or ():
                at, said = line.ours_at[0], ".".join(line.ours[0])
                possible = {kind.name for _, types in _step(line.ours[0], node.type, layout) for kind in types}
                if name not in known:
                    message = f"there is no type `{name}`"
                    yield Diagnostic("mapping/no-such-type", message, at, did_you_mean(name, known))
                elif name not in possible and not wrong:
                    hint = f"it is one of {', '.join(sorted(possible))}" if possible else "only a module has a type"
                    yield Diagnostic("mapping/no-such-type", f"`{said}` is never a `{name}`", at, hint)
                elif name in decided - reached and at.file == mapping.source.file:
                    hint = "leave the line out, or add the case in which it is one"
                    yield Diagnostic("mapping/unreachable", f"no rule makes `{said}` a `{name}`", at, hint)


def _check_claims(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Two lines of one section that claim one parameter: only the first would be heard."""
    sections = {id(node.section): node.section for node in nodes_of(mapping.root) if isinstance(node, Struct)}
    for section in sections.values():
        claimed: dict[tuple[KeyPath, str | None], TensorEntry] = {}
        for line in section.tensors:
            for path in line.ours:
                for kind in line.types or (None,):
                    first = claimed.setdefault((path, kind), line)
                    if first is not line:
                        key = ".".join(path)
                        message = f"`{line.theirs}` and `{first.theirs}` ({first.position}) both hold `{key}`"
                        yield Diagnostic("mapping/parameter-twice", message, line.position, "keep one of the two")


def _check_unheard(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Lines that put together what no module has: no config would ask for them."""
    for node in (node for node in nodes_of(mapping.root) if isinstance(node, Struct)):
        heard = {id(line) for line in node.tensors.lines()}
        for line in node.section.tensors:
            if len(line.ours) > 1 and id(line) not in heard:
                message = f"`{line.theirs}` is to hold {' and '.join(map('.'.join, line.ours))}: no module has them all"
                hint = "write a line for each"
                yield Diagnostic("mapping/one-sided", message, line.position, hint)


def _check_path(
    path: KeyPath, kind: ConfigType, line: TensorEntry, at: Position, layout: Layout
) -> Iterator[Diagnostic]:
    owners, done = [kind], 0
    while done < len(path):
        below = [found for owner in owners for found in _step(path[done:], owner, layout)]
        if not below:
            names = " or ".join(f"`{name}`" for name in dict.fromkeys(owner.name for owner in owners))
            known = sorted({name for owner in owners for name in _members(owner)})
            hint = did_you_mean(".".join(path[done:]), known) or f"it has {', '.join(known) or 'none'}"
            message = f"type {names} has no module or parameter `{'.'.join(path[done:])}`"
            yield Diagnostic("mapping/no-such-parameter", message, at, hint)
            return
        length = max(length for length, _ in below)
        owners = [owner for found, types in below if found == length for owner in types]
        done += length


def _step(path: KeyPath, kind: ConfigType, layout: Layout) -> Iterator[tuple[int, list[ConfigType]]]:
    """How many parts of the path name a module or a parameter (group) of the type, and the types of the module."""
    for child in kind.children:
        name = tuple(str(child.name).split("."))
        if path[: len(name)] == name:
            yield len(name), types_below(layout, kind, child)
    for parameter in kind.parameters:
        name = tuple(str(parameter.name).split("."))
        if path and name[: len(path)] == path:
            yield len(path), []


def _members(kind: ConfigType) -> Iterator[str]:
    yield from (str(child.name) for child in kind.children)
    for parameter in kind.parameters:
        yield from (parameter.group, str(parameter.name))


def _check_counts(line: TensorEntry, kind: ConfigType) -> Iterator[Diagnostic]:
    """What a hole goes on counting after is counted by the type of the section."""
    for hole in line.theirs.holes:
        if isinstance(hole, Hole) and isinstance(hole.plus, str) and hole.plus not in kind.holes:
            message = f"`{hole}`: type `{kind}` counts no `{hole.plus}`"
            hint = did_you_mean(hole.plus, kind.holes) or f"it counts {', '.join(kind.holes) or 'nothing'}"
            yield Diagnostic("mapping/hole", message, line.position, hint)


def _check_holes(path: KeyPath, layout: Layout, line: TensorEntry) -> Iterator[Diagnostic]:
    """Holes that count modules are the same on both sides; others are axes, which lowering knows."""
    counted = {hole for kind in layout.all_types() for hole in kind.holes}
    ours = {part[1:-1] for part in path if part.startswith("{")} & counted
    theirs = {getattr(hole, "name", "") for hole in line.theirs.holes}
    for hole in sorted(ours - theirs):
        message = f"`{line.theirs}` has no hole {{{hole}}}, so all of `{'.'.join(path)}` would have one name"
        yield Diagnostic("mapping/hole", message, line.position, f"the hole is written {{{hole}}} on both sides")


# ---- a config made up for the check -------------------------------------------------------------------------------


class _Model(Record):
    """A native object by the paths of its fields: what is known of them, which are not known, and the structs that
    speak for its objects."""

    values: dict[KeyPath, Any] = field(default_factory=dict)
    pending: set[KeyPath] = field(default_factory=set)
    chosen: dict[KeyPath, list[Chosen]] = field(default_factory=dict)

    def add(self, other: _Model, to: KeyPath = (), without: int = 0) -> None:
        """Lay another object into this one: at ``to``, ``without`` the first names of its paths."""
        self.values |= {(*to, *path[without:]): value for path, value in other.values.items()}
        self.pending |= {(*to, *path[without:]) for path in other.pending}
        for path, chosen in other.chosen.items():
            self.chosen.setdefault((*to, *path[without:]), []).extend(chosen)

    @property
    def config(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for path in sorted(self.values, key=len):
            value = self.values[path]
            put(result, path, {} if value == {} else value)  # each config has objects of its own
        return result


class _Models:
    def __init__(self, mapping: CompiledMapping, tensors: str = "") -> None:
        self.mapping, self.layout, self.tensors = mapping, mapping.layout, tensors

    def all(self) -> Iterator[_Model]:
        for model in self.node(self.mapping.root):
            model.values |= {(name,): None for name in self.mapping.source.elsewhere}
            yield model

    def node(self, node: Node) -> list[_Model]:
        """The models of a node; their paths start at its anchor."""
        match node:
            case Struct():
                return self.struct(node)
            case CaseNode():
                if not any(_has_modules(case.node) for case in node.cases):
                    return self.node(node.cases[0].node) if node.cases else [_Model()]
                return [model for case in node.cases for model in self.node(case.node)]
            case Nullable():
                return self.node(node.node)
            case Layers():
                return [_layers([(model, 0) for kind in node.kinds for model in self.node(kind.node)], node.ours)]
            case Entries():
                model = _Model()
                for index, entry in enumerate(self.node(node.node)):
                    model.values[(*node.ours, f"entry_{index}")] = {}
                    model.add(entry, (*node.ours, f"entry_{index}"))
                return [model]
            case PartNode():
                return self.part(node)

    def struct(self, node: Struct) -> list[_Model]:
        base = _Model(chosen={node.ours: [Chosen(node, self.mapping, self.tensors)]})
        if node.type.registered:
            base.values[(*node.ours, "type")] = node.type.registered
        for rule in node.rules:
            if isinstance(rule, OursFact) and not isinstance(rule.value, Expression):
                base.values[rule.ours] = rule.value
            elif isinstance(rule, (OursFact, FieldRule)):
                base.pending.add(rule.ours)
        family = self.layout.families.get(node.type.family or "")
        if family is not None and family.sequence:
            return [self.sequence(node, base)]
        alternatives = [self.node(child) for child in node.children]
        alternatives += [self.free(f, node.ours) for f in node.type.fields.values() if f.group == "training"]
        result = []
        for choice in itertools.product(*filter(None, alternatives)):
            model = _Model()
            for part in (base, *choice):
                model.add(part)
            result.append(model)
        return result

    def free(self, declared: Field, where: KeyPath) -> list[_Model]:
        """A typed choice that is no part of the stored model, but of how it is stored."""
        types = types_in(self.layout, declared.of) if declared.kind == "family" else []
        if not any(kind.parameters or kind.children for kind in types):
            return []
        return [_Model({(*where, declared.name, "type"): kind.name}) for kind in types]

    def sequence(self, node: Struct, base: _Model) -> _Model:
        """A list of layers that is related as an object: all alternatives of its blocks become layers."""
        blocks: list[tuple[_Model, int]] = []
        for child in node.children:
            inner = child.node if isinstance(child, (Entries, Nullable)) else child
            without = 0 if isinstance(child, Entries) else len((*node.ours, "block"))
            blocks += [(model, without) for model in self.node(inner)]
        model = _layers(blocks, node.ours)
        model.chosen = base.chosen | model.chosen
        return model

    def part(self, node: PartNode) -> list[_Model]:
        prefix = ".".join(filter(None, (self.tensors, node.part.tensors)))
        result = []
        for mapping in node.mappings:
            for inside in _Models(mapping, prefix).node(mapping.root):
                for beside in self.struct(node.beside):
                    beside.chosen.pop(node.ours, None)
                    model = _Model({node.ours: {}} if node.ours else {})
                    model.add(inside, node.ours)
                    model.add(beside)
                    result.append(model)
        return result


def _layers(blocks: list[tuple[_Model, int]], ours: KeyPath) -> _Model:
    """A list of layers, one of each block; a block is a model and what to leave out of its paths."""
    model, names = _Model(), [f"block_{index}" for index in range(len(blocks))]
    for name, (block, without) in zip(names, blocks, strict=True):
        model.values[(*ours, "blocks", name)] = {}
        model.add(block, (*ours, "blocks", name), without)
    for key, value in (("type", "pattern"), ("pattern", names), ("num_blocks", len(names))):
        model.values[(*ours, key)] = value
    return model


def _has_modules(node: Node) -> bool:
    return any(
        not isinstance(below, Struct) or below.type.children or below.type.parameters for below in nodes_of(node)
    )
