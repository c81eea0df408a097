"""Nodes with a choice in them: one of several types, a list of layers, a part with a mapping of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from crosswalk.compiler.layout.model import MISSING, Family, Type
from crosswalk.compiler.mapping.model import Part, Section
from crosswalk.compiler.mapping.overlay import overlay
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.compiler.text.scalars import scalar_of
from crosswalk.runtime.errors import Position

from .tree import Case, CheckRule, Choice, Kind, Layers, Node, PartNode, Path, Refusal, Rule, Struct

if TYPE_CHECKING:
    from .build import Claim, Expander


def struct_choice(
    expander: Expander,
    kind: Type,
    section: Section,
    ours: Path,
    theirs: Path,
    outer: tuple[Claim, ...],
    sections: Mapping[str, Section],
) -> Choice:
    assert section.by is not None
    plain = dataclasses.replace(section, by=None, cases={})
    cases = tuple(
        Case(
            scalar_of(value, case.position),
            expander.struct(kind, overlay(plain, case), ours, theirs, outer, sections),
        )
        for value, case in section.cases.items()
    )
    return Choice((*theirs, *section.by), section.by_default, ours, cases, section.position)


def family_choice(
    expander: Expander,
    section: Section,
    family: Family,
    ours: Path,
    theirs: Path,
    outer: tuple[Claim, ...],
    sections: Mapping[str, Section],
    only: tuple[str, ...] | None,
    position: Position,
) -> Node | None:
    if section.by is None or not section.cases:
        missing = "cases" if section.by else "by"
        message = f"section `{section.name}` needs `by:` and `cases:`, there is no `{missing}:`"
        expander.error("mapping/by", message, section.position)
        return None
    for at in (*(line.position for line in section.config), *(check.position for check in section.checks)):
        message = f"section `{section.name}` is about several types"
        expander.error("mapping/unused", message, at, "say this in a case, or in the section of a type")
    for value in only or ():
        if value not in section.cases:
            hint = did_you_mean(value, section.cases) or f"its cases are {', '.join(section.cases)}"
            expander.error("mapping/no-such-case", f"section `{section.name}` has no case `{value}`", position, hint)
    cases = []
    refused = []
    for value, case in section.cases.items():
        if only is not None and value not in only:
            continue
        name = case.of or value
        if case.refused is not None:
            refused.append(Refusal(scalar_of(value, case.position), name, case.refused))
            continue
        kind = family.types.get(name)
        if kind is None:
            expander.error(
                "mapping/no-such-type",
                f"case `{value}`: family `{family.name}` has no type `{name}`, it has {', '.join(family.types)}",
                case.position,
                did_you_mean(name, family.types) or "name the type with `of:`",
            )
            continue
        own = expander.section(kind, sections)
        merged = overlay(own, case) if own is not None else case
        merged = dataclasses.replace(merged, name=name)
        cases.append(
            Case(scalar_of(value, case.position), expander.struct(kind, merged, ours, theirs, outer, sections))
        )
    key = (*theirs, *section.by)
    return Choice(key, section.by_default, ours, tuple(cases), section.position, tuple(refused))


def layers(
    expander: Expander, section: Section, family: Family, ours: Path, theirs: Path, sections: Mapping[str, Section]
) -> Layers | None:
    wrong = ""
    if section.count is None:
        wrong = "says nothing of how many layers there are: add `count:`, or `by:` and `cases:`"
    elif section.each is not None and not section.kinds:
        wrong = "lists the kinds of the layers (`each:`): say under `kinds:` what they are"
    elif section.kinds and section.each is None:
        wrong = "has kinds of layers: say under `each:` which key lists them"
    if wrong or section.count is None:
        expander.error("mapping/layers", f"section `{section.name}` {wrong}", section.position)
        return None
    for line in section.config:
        if line.ours is not None:
            message = f"`{'.'.join(line.ours)}`: the fields of `{family.name}` follow from the list of layers"
            expander.error("mapping/unused", message, line.right, "say it in the section of a type")
    block = next(f.of for t in family.types.values() for f in t.fields.values() if f.name == "block")
    default = next((e.default for e in section.config if e.theirs == section.each), MISSING)
    kinds = []
    listed: Mapping[str | None, Mapping[str, Section]] = dict(section.kinds.items()) or {None: {}}
    for name, overlays in listed.items():
        merged = {**sections, **{k: overlay(sections[k], o) if k in sections else o for k, o in overlays.items()}}
        if name is not None:
            merged = {key: _fill_kind(value, name) for key, value in merged.items()}
        before, expander.reached = expander.reached, set()
        node = expander.value(block, (), theirs, (), merged, None, section.position)
        for key, over in overlays.items():
            expander.check_section(key, over)
        expander.reached |= before
        if node is not None:
            kinds.append(Kind(name, node))
    rules: list[Rule] = [
        expander.theirs_rule(line, theirs)
        for line in section.config
        if line.ours is None and line.theirs != section.each
    ]
    return Layers(
        ours,
        theirs,
        (*theirs, *section.count),
        (*theirs, *section.each) if section.each else None,
        default,
        section.repeats,
        tuple(kinds),
        (*theirs, *section.overrides) if section.overrides else None,
        (*rules, *(CheckRule(c.expression, c.message, c.severity, (), theirs, c.position) for c in section.checks)),
        section.position,
        section.overridable,
    )


def part_node(
    expander: Expander,
    part: Part,
    kind: Type,
    theirs: Path = (),
    claims: tuple[Claim, ...] = (),
    sections: Mapping[str, Section] | None = None,
) -> PartNode:
    """An object with mappings of its own. What these leave to the enclosing one (``elsewhere``) stands beside."""
    mappings = tuple(expander.load(name, part.with_at) for name in part.mappings)
    elsewhere = {name for mapping in mappings for name in mapping.source.elsewhere}
    rules: list[Rule] = []
    children: list[Node] = []
    section = Section(kind.name, part.position)
    for mapping in mappings:
        if mapping.root.type.name not in (kind.name, *kind.bases):
            message = f"mapping `{mapping.name}` is of type `{mapping.root.type}`, the part is of type `{kind}`"
            expander.error("mapping/part-type", message, part.with_at)
    for name in sorted({claim.ours[0] for claim in claims} | elsewhere):
        below = [dataclasses.replace(c, ours=c.ours[1:]) for c in claims if c.ours[0] == name]
        if name in elsewhere and name in kind.fields:
            declared = kind.fields[name]
            expander.field(declared, (*part.ours, name), theirs, below, section, sections or {}, rules, children)
        else:
            expander.error(
                "mapping/claimed-twice",
                f"`{'.'.join((*part.ours, name))}` belongs to the part `{'.'.join(part.theirs)}`",
                next(c.line.position for c in claims if c.ours[0] == name),
                f"say `elsewhere: [{name}]` in {' and '.join(part.mappings)}",
            )
    beside = Struct(kind, part.ours, theirs, section, tuple(rules), tuple(children), False, part.position)
    return PartNode(part, part.ours, mappings, beside)


def _fill_kind(section: Section, kind: str) -> Section:
    """The section with the hole ``{kind}`` in its keys filled in."""

    def fill(path: Path) -> Path:
        return tuple(kind if part == "{kind}" else part for part in path)

    return dataclasses.replace(
        section, config=tuple(dataclasses.replace(e, theirs=fill(e.theirs)) for e in section.config)
    )
