"""Expand the sections of a mapping over the types of its layout: every field of every reachable type gets its rule.

This is where a mapping is proved complete before any config is seen: a field that no rule reaches, a name that does not
exist, a rule that nothing reaches are errors here, all reported at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from crosswalk.compiler.layout.model import MISSING, Layout
from crosswalk.compiler.mapping.model import Dialect, MappingFile
from crosswalk.compiler.mapping.overlay import overlay
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.build import Builder
from crosswalk.compiler.relations.keys import Defaults
from crosswalk.compiler.relations.lines import header_fact
from crosswalk.compiler.relations.rules import Carried, FieldRule, TheirsFact
from crosswalk.compiler.relations.tree import (
    CaseNode,
    CompiledMapping,
    Layers,
    OneOf,
    claimed_paths,
    nodes_of,
    rules_of,
)
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.records import replace

#: The problems of a compiled mapping.
Check = Callable[[CompiledMapping], Sequence[Diagnostic]]


def problems_of(mapping: CompiledMapping, inverses: bool = True) -> list[Diagnostic]:
    """Every problem of a mapping that can be found without a config. ``inverses``: see :func:`check_config`."""
    from crosswalk.compiler.relations.check_config import check_config
    from crosswalk.compiler.tensors.check import check_tensors

    return [*check_config(mapping, inverses), *check_tensors(mapping)]


def expand(
    mapping: MappingFile, layout: Layout, load: Callable[[str, Position], CompiledMapping], check: Check
) -> CompiledMapping:
    """Compile ``mapping`` and ``check`` it against ``layout``. ``load(name, position)`` gives the mappings of parts.

    Raises ``CrosswalkError`` with every problem found, but for those of the sections of dialects: such a variant is
    compiled when it is first asked for.
    """
    compiled = _compiled(mapping, layout, load, check)
    spelled = {
        name: functools.cache(functools.partial(_compiled, _in_dialect(mapping, dialect), layout, load, check))
        for name, dialect in mapping.dialects.items()
        if dialect.sections
    }
    return replace(compiled, spelled=spelled)


def _in_dialect(mapping: MappingFile, dialect: Dialect) -> MappingFile:
    """The mapping with the sections of a dialect laid over its own."""
    laid = {
        kind: overlay(mapping.sections[kind], section) if kind in mapping.sections else section
        for kind, section in dialect.sections.items()
    }
    return replace(mapping, sections={**mapping.sections, **laid})


def _compiled(
    mapping: MappingFile, layout: Layout, load: Callable[[str, Position], CompiledMapping], check: Check
) -> CompiledMapping:
    builder = Builder(mapping, layout, load)
    root = builder.root()
    if builder.sections.problems:
        raise CrosswalkError(_own_first(mapping, builder.sections.problems))
    compiled = CompiledMapping(
        mapping, layout, root, _architecture(mapping), _defaults(root), frozenset(claimed_paths(root))
    )
    problems = check(compiled)
    if problems:
        raise CrosswalkError(_own_first(mapping, problems))
    return compiled


#: Problems of what a file leaves unsaid, which show in what it extends.
_FORGOTTEN = frozenset(
    (
        *("mapping/unclaimed-field", "mapping/unclaimed-parameter", "mapping/which-type", "mapping/no-such-name"),
        *("mapping/layers", "mapping/by"),
    )
)


def _own_first(mapping: MappingFile, problems: Iterable[Diagnostic]) -> list[Diagnostic]:
    """The problems, those of what the file leaves unsaid at the file itself, with the inherited line beside."""
    own, at = mapping.file, mapping.place("extends")
    inherited = {p for p in problems if p.code in _FORGOTTEN and p.position is not None and p.position.file != own}
    return list(dict.fromkeys(replace(p, position=at, rule=p.position) if p in inherited else p for p in problems))


def _architecture(mapping: MappingFile) -> tuple[TheirsFact, ...]:
    """What the header says of config.json itself."""
    facts = []
    if mapping.architecture:
        facts.append(header_fact(mapping, "architectures", "architecture", ([mapping.architecture],)))
    if mapping.auto_map:
        facts.append(header_fact(mapping, "auto_map", "auto_map", (dict(mapping.auto_map),)))
    return tuple(facts)


def _defaults(root: OneOf) -> Defaults:
    """What absent keys mean, for expressions. Null is a value of a key that no field holds, and of one whose field may
    be null; it means absent where it is one of neither, or tells kinds, cases or a number of layers."""
    result: dict[KeyPath, Any] = {}
    for rule in rules_of(root):
        if isinstance(rule, (FieldRule, TheirsFact, Carried)) and rule.line.default is not MISSING:
            result.setdefault(rule.theirs, rule.line.default)
    for node in nodes_of(root):
        if isinstance(node, CaseNode) and node.default is not MISSING:
            result.setdefault(node.key, node.default)
        elif isinstance(node, Layers) and node.key and node.each_default is not MISSING:
            result.setdefault(node.key, node.each_default)
    fields = [rule for rule in rules_of(root) if isinstance(rule, FieldRule)]
    nulls = {place for rule in fields for place in rule.places()}
    nulls -= {place for rule in fields if rule.holds_null for place in rule.places()}
    for node in nodes_of(root):
        if isinstance(node, CaseNode):
            nulls.add(node.key)
        elif isinstance(node, Layers):
            nulls |= {node.count, *([node.key] if node.key else [])}
    return Defaults(result, frozenset(nulls))
