"""Expand the sections of a mapping over the types of its layout: every field of every reachable type gets its rule.

This is where a mapping is proved complete before any config is seen: a field that no rule reaches, a name that does not
exist, a rule that nothing reaches are errors here, all reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position

from .documents import scalar_of
from .expressions import Expression
from .layout import MISSING, Family, Field, Layout, Type
from .mapping import Entry, Fact, MappingFile, Part, Section, overlay
from .relations import (
    Carried,
    Case,
    CheckRule,
    Choice,
    CompiledMapping,
    Entries,
    FieldRule,
    Kind,
    Layers,
    Node,
    Optional,
    OursFact,
    PartNode,
    Path,
    Rule,
    Struct,
    TheirsFact,
    Unused,
    nodes_of,
    rules_of,
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Claim:
    """A line of a section that speaks of ``ours`` below the current object. ``theirs`` is where the line's object is."""

    ours: Path
    line: Entry | Fact
    theirs: Path
    scope: Path


def expand(mapping: MappingFile, layout: Layout, load: Callable[[str, Position], CompiledMapping]) -> CompiledMapping:
    """Check ``mapping`` against ``layout`` and compile it. ``load(name, position)`` gives the mappings of parts.

    Raises ``CrosswalkError`` with every problem found.
    """
    expander = _Expander(mapping, layout, load)
    kind = layout.types[mapping.root or layout.root]
    root = expander.struct(kind, expander.section(kind, mapping.sections), (), (), (), mapping.sections)
    root = dataclasses.replace(root, rules=(*root.rules, *_header(mapping)))
    expander.check_reached()
    if not expander.problems:
        expander.check_names(root)
    if expander.problems:
        raise CrosswalkError(dict.fromkeys(expander.problems))
    return CompiledMapping(mapping, layout, root, _architecture(mapping), _defaults(root), frozenset(_claims(root)))


def _header(mapping: MappingFile) -> list[Rule]:
    """What the header says of every object with this mapping, a part included."""
    rules: list[Rule] = [Carried(e.theirs, True, e.default, None, e.position) for e in mapping.keeps]
    if mapping.model_type:
        rules.append(TheirsFact(("model_type",), (mapping.model_type,), True, MISSING, mapping.position))
    return rules


def _architecture(mapping: MappingFile) -> tuple[TheirsFact, ...]:
    """What the header says of config.json itself."""
    facts = []
    if mapping.architecture:
        facts.append(TheirsFact(("architectures",), ([mapping.architecture],), True, MISSING, mapping.position))
    if mapping.auto_map:
        facts.append(TheirsFact(("auto_map",), (dict(mapping.auto_map),), True, MISSING, mapping.position))
    return tuple(facts)


class _Expander:
    def __init__(
        self, mapping: MappingFile, layout: Layout, load: Callable[[str, Position], CompiledMapping]
    ) -> None:
        self.mapping, self.layout, self.load = mapping, layout, load
        self.problems: list[Diagnostic] = []
        self.reached: set[str] = set()
        self.used: set[Position] = set()

    def error(self, code: str, message: str, position: Position, hint: str | None = None) -> None:
        self.problems.append(Diagnostic(code, message, position, hint))

    # ---- sections -------------------------------------------------------------------------------------------------

    def section(self, kind: Type, sections: Mapping[str, Section]) -> Section | None:
        """The section of a type, laid over those of its bases; None if it has none of its own."""
        if kind.name not in sections or (kind.family and self.layout.type_of(kind.name) is not kind):
            return None
        self.reached.add(kind.name)
        result = sections[kind.name]
        for base in reversed(kind.bases):
            if base in sections:
                result = overlay(sections[base], result)
        return result

    def empty(self, position: Position) -> Section:
        return Section("", position)

    # ---- objects --------------------------------------------------------------------------------------------------

    def struct(
        self,
        kind: Type,
        section: Section | None,
        ours: Path,
        theirs: Path,
        outer: tuple[_Claim, ...],
        sections: Mapping[str, Section],
        typed: bool = False,
    ) -> Struct:
        """The node of an object of type ``kind``; ``outer`` are claims that enclosing sections make on its inside."""
        section = section or self.empty(outer[0].line.position if outer else self.mapping.position)
        rules: list[Rule] = []
        own = [_Claim(line.ours, line, theirs, ours) for line in (*section.config, *section.sets) if line.ours]
        taken = {claim.ours for claim in outer}
        claims = (*outer, *(claim for claim in own if claim.ours not in taken))
        for line in section.config:
            if line.ours is None:
                rules.append(self.theirs_rule(line, theirs))
        for check in section.checks:
            rules.append(CheckRule(check.expression, check.message, check.severity, ours, theirs, check.position))
        parts = {part.ours: part for part in self.mapping.parts} if not ours else {}
        children: list[Node] = []
        covered: set[str] = set()
        if () in parts:
            whole = self.part(parts[()], kind)
            children.append(whole)
            covered = {name for mapping in whole.mappings for name in mapping.root.type.fields}
        by_field: dict[str, list[_Claim]] = {}
        for claim in claims:
            if claim.ours[0] not in kind.fields:
                near = difflib.get_close_matches(claim.ours[0], kind.fields, 1)
                at = kind.fields[near[0]].position if near else None
                self.error(
                    "mapping/no-such-field",
                    f"type `{kind}` has no field `{claim.ours[0]}`",
                    claim.line.position,
                    f"did you mean `{near[0]}`? ({at})" if near else f"its fields are {', '.join(kind.fields)}",
                )
                continue
            by_field.setdefault(claim.ours[0], []).append(dataclasses.replace(claim, ours=claim.ours[1:]))
        for name, declared in kind.fields.items():
            below = by_field.get(name, [])
            if not ours and name in self.mapping.elsewhere:
                continue
            if name in covered:
                for claim in below:
                    self.error("mapping/claimed-twice", f"`{name}` belongs to a part", claim.line.position)
            elif (name,) in parts:
                children.append(self.part(parts[(name,)], self.only_type(declared), theirs, tuple(below), sections))
            else:
                self.field(declared, (*ours, name), theirs, below, section, sections, rules, children)
        return Struct(kind, ours, theirs, section, tuple(rules), tuple(children), typed, section.position)

    def theirs_rule(self, line: Entry, theirs: Path) -> Rule:
        at = (*theirs, *line.theirs)
        if line.kind in ("const", "only"):
            return TheirsFact(at, line.values, line.kind == "const", line.default, line.position)
        return Carried(at, line.kind == "keep", line.default, line.write, line.position)

    def field(
        self,
        declared: Field,
        ours: Path,
        theirs: Path,
        claims: list[_Claim],
        section: Section,
        sections: Mapping[str, Section],
        rules: list[Rule],
        children: list[Node],
    ) -> None:
        """Find the rule of one field among the claims on it, or what its silence means."""
        exact = [claim for claim in claims if not claim.ours]
        deeper = tuple(claim for claim in claims if claim.ours)
        if len(exact) > 1:
            self.error(
                "mapping/claimed-twice",
                f"`{'.'.join(ours)}` is claimed twice, here and at {exact[0].line.position}",
                exact[1].line.position,
            )
        if not declared.is_config and declared.kind != "dict":
            if deeper:
                claim = deeper[0]
                self.error(
                    "mapping/no-such-field",
                    f"`{ours[-1]}` is no object: it has no field `{claim.ours[0]}`",
                    claim.line.position,
                )
            elif exact:
                rules.append(self.value_rule(exact[0], declared, ours))
            else:
                self.silent(declared, ours, section, rules)
            return
        if exact and isinstance(exact[0].line, Entry):
            claim = exact[0]
            at = (*claim.theirs, *claim.line.theirs)
            node = self.target(declared, ours, at, deeper, sections, claim.line)
            if node is not None:
                children.append(
                    Optional(ours, at, declared.nullable, claim.line.default, node, claim.line.position)
                )
        elif exact:
            fact = exact[0].line
            assert isinstance(fact, Fact)
            if fact.value is None:
                rules.append(OursFact(ours, None, declared, exact[0].scope, fact.position))
                return
            kind = self.named_type(declared, fact)
            if kind is not None:
                children.append(
                    self.struct(kind, self.section(kind, sections), ours, theirs, deeper, sections, typed=True)
                )
        elif declared.group == "fields" and not declared.nullable:
            node = self.target(declared, ours, theirs, deeper, sections, None, section)
            if node is not None:
                children.append(node)
        elif deeper:
            kind = self.only_type(declared)
            if kind is None:
                self.error(
                    "mapping/which-type",
                    f"`{'.'.join(ours)}` may be of several types: say which",
                    deeper[0].line.position,
                    f"add `{ours[-1]}: TYPE` under `sets:`",
                )
            else:
                children.append(self.struct(kind, None, ours, theirs, deeper, sections))
        else:
            self.silent(declared, ours, section, rules)

    def silent(self, declared: Field, ours: Path, section: Section, rules: list[Rule]) -> None:
        if declared.group == "features" or (declared.group == "fields" and declared.nullable and declared.is_config):
            rules.append(Unused(ours, declared, section.position))
        elif declared.group == "fields":
            self.error(
                "mapping/unclaimed-field",
                f"nothing says where `{'.'.join(ours)}` comes from (section `{section.name}`)",
                section.position,
                f"relate it to a key, or state it: `sets: {{{ours[-1]}: ...}}` ({declared.position})",
            )

    def value_rule(self, claim: _Claim, declared: Field, ours: Path) -> Rule:
        line = claim.line
        if isinstance(line, Fact):
            if not isinstance(line.value, Expression):
                self.literal(declared, line.value, line.position)
            return OursFact(ours, line.value, declared, claim.scope, line.position)
        table = self.mapping.enums.get(declared.of) if declared.kind == "enum" else None
        if declared.kind == "enum" and table is None:
            table = ()
        return FieldRule(
            (*claim.theirs, *line.theirs),
            ours,
            declared,
            line.position,
            line.default,
            line.omit,
            line.unset,
            tuple((*claim.theirs, *alias) for alias in line.alias),
            line.read,
            line.write,
            table or None,
            line.required,
        )

    def literal(self, declared: Field, value: Any, position: Position) -> None:
        fits = {
            "int": isinstance(value, int) and not isinstance(value, bool),
            "float": isinstance(value, (int, float)) and not isinstance(value, bool),
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
        }.get(declared.of, True)
        if declared.kind == "enum":
            fits = value in self.layout.enums[declared.of]
        if not fits and not (value is None and declared.nullable):
            self.error(
                "mapping/literal", f"`{declared.name}` is {declared.of}, not {value!r}", position,
                f"declared at {declared.position}",
            )  # fmt: skip

    # ---- what a field of a config type holds ------------------------------------------------------------------------

    def only_type(self, declared: Field) -> Type | None:
        return None if declared.of in self.layout.families else self.layout.type_of(declared.of)

    def named_type(self, declared: Field, fact: Fact) -> Type | None:
        family = self.layout.families.get(declared.of)
        types = family.types if family else {declared.of: self.layout.type_of(declared.of)}
        if fact.value in types:
            return types[fact.value]
        near = difflib.get_close_matches(str(fact.value), types, 1)
        self.error(
            "mapping/no-such-type",
            f"`{'.'.join(fact.ours)}` cannot be `{fact.value}`: it is one of {', '.join(types)}",
            fact.position,
            f"did you mean `{near[0]}`?" if near else None,
        )
        return None

    def target(
        self,
        declared: Field,
        ours: Path,
        theirs: Path,
        deeper: tuple[_Claim, ...],
        sections: Mapping[str, Section],
        entry: Entry | None,
        enclosing: Section | None = None,
    ) -> Node | None:
        """The node for the sub-config ``declared`` related to the object at ``theirs``."""
        if declared.kind == "dict":
            if entry is None:
                assert enclosing is not None
                self.silent(declared, ours, enclosing, [])
                return None
            inner = self.value(declared.of, (), (*theirs, "{name}"), (), sections, entry.cases, entry.position)
            return None if inner is None else Entries(ours, theirs, inner, entry.position)
        position = entry.position if entry else (enclosing or self.empty(self.mapping.position)).position
        return self.value(declared.of, ours, theirs, deeper, sections, entry.cases if entry else None, position)

    def value(
        self,
        of: str,
        ours: Path,
        theirs: Path,
        outer: tuple[_Claim, ...],
        sections: Mapping[str, Section],
        only: tuple[str, ...] | None,
        position: Position,
    ) -> Node | None:
        if of not in self.layout.families:
            kind = self.layout.type_of(of)
            assert kind is not None
            section = self.section(kind, sections)
            if section is not None and section.by is not None:
                return self.struct_choice(kind, section, ours, theirs, outer, sections)
            return self.struct(kind, section, ours, theirs, outer, sections)
        family = self.layout.families[of]
        if of not in sections:
            if of != family.name or family.default not in family.types:
                return None
            self.error(
                "mapping/which-type",
                f"`{'.'.join(ours)}` is one of {', '.join(family.types)}: nothing says which",
                position,
                f"add a section `{of}:` with `by:` and `cases:`, or `{ours[-1] if ours else of}: TYPE` under `sets:`",
            )
            return None
        self.reached.add(of)
        section = sections[of]
        if section.count is not None:
            return self.layers(section, family, ours, theirs, sections)
        return self.family_choice(section, family, ours, theirs, outer, sections, only)

    def struct_choice(
        self,
        kind: Type,
        section: Section,
        ours: Path,
        theirs: Path,
        outer: tuple[_Claim, ...],
        sections: Mapping[str, Section],
    ) -> Choice:
        assert section.by is not None
        plain = dataclasses.replace(section, by=None, cases={})
        cases = tuple(
            Case(
                scalar_of(value),
                self.struct(kind, overlay(plain, case), ours, theirs, outer, sections),
            )
            for value, case in section.cases.items()
        )
        return Choice((*theirs, *section.by), section.by_default, ours, cases, section.position)

    def family_choice(
        self,
        section: Section,
        family: Family,
        ours: Path,
        theirs: Path,
        outer: tuple[_Claim, ...],
        sections: Mapping[str, Section],
        only: tuple[str, ...] | None,
    ) -> Node | None:
        cases = []
        for value, case in section.cases.items():
            if only is not None and value not in only:
                continue
            name = case.of or value
            kind = family.types.get(name)
            if kind is None:
                self.error(
                    "mapping/no-such-type",
                    f"case `{value}`: family `{family.name}` has no type `{name}`, it has {', '.join(family.types)}",
                    case.position,
                    "name the type with `of:`",
                )
                continue
            own = self.section(kind, sections)
            merged = overlay(own, case) if own is not None else case
            merged = dataclasses.replace(merged, name=name)
            cases.append(Case(scalar_of(value), self.struct(kind, merged, ours, theirs, outer, sections)))
        if section.by is None:
            self.error("mapping/by", f"section `{section.name}` has cases and no `by:`", section.position)
            return None
        return Choice((*theirs, *section.by), section.by_default, ours, tuple(cases), section.position)

    def layers(
        self, section: Section, family: Family, ours: Path, theirs: Path, sections: Mapping[str, Section]
    ) -> Layers | None:
        assert section.count is not None
        block = next(f.of for t in family.types.values() for f in t.fields.values() if f.name == "block")
        default = next((e.default for e in section.config if e.theirs == section.each), MISSING)
        kinds = []
        for name, overlays in (section.kinds or {None: {}}).items():
            merged = dict(sections)
            for key, over in overlays.items():
                merged[key] = overlay(merged[key], over) if key in merged else over
                if self.layout.type_of(key) is None and key not in self.layout.families:
                    self.error("mapping/no-such-type", f"there is no type `{key}`", over.position)
            if name is not None:
                merged = {key: _fill_kind(value, name) for key, value in merged.items()}
            node = self.value(block, (), theirs, (), merged, None, section.position)
            if node is not None:
                kinds.append(Kind(name, node))
        if section.each is not None and not section.kinds:
            self.error("mapping/kinds", "`each:` lists the kinds of the layers: say them in `kinds:`", section.position)
        rules: list[Rule] = [
            self.theirs_rule(line, theirs)
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
        )

    # ---- parts ------------------------------------------------------------------------------------------------------

    def part(
        self,
        part: Part,
        kind: Type | None,
        theirs: Path = (),
        claims: tuple[_Claim, ...] = (),
        sections: Mapping[str, Section] | None = None,
    ) -> PartNode:
        """An object with mappings of its own. What these leave to the enclosing mapping (``elsewhere``) stands beside."""
        mappings = tuple(self.load(name, part.position) for name in part.mappings)
        elsewhere = {name for mapping in mappings for name in mapping.source.elsewhere}
        rules: list[Rule] = []
        children: list[Node] = []
        section = self.empty(part.position)
        assert kind is not None
        for name in sorted({claim.ours[0] for claim in claims} | elsewhere):
            below = [dataclasses.replace(c, ours=c.ours[1:]) for c in claims if c.ours[0] == name]
            if name in elsewhere and name in kind.fields:
                declared = kind.fields[name]
                self.field(declared, (*part.ours, name), theirs, below, section, sections or {}, rules, children)
            else:
                self.error(
                    "mapping/claimed-twice",
                    f"`{'.'.join((*part.ours, name))}` belongs to the part `{'.'.join(part.theirs)}`",
                    next(c.line.position for c in claims if c.ours[0] == name),
                    f"say `elsewhere: [{name}]` in {' and '.join(part.mappings)}",
                )
        beside = Struct(kind, part.ours, theirs, section, tuple(rules), tuple(children), False, part.position)
        return PartNode(part, part.ours, mappings, beside)

    # ---- checks over the whole tree -----------------------------------------------------------------------------------

    def check_reached(self) -> None:
        """Sections of this file that nothing reaches are typos or left-overs."""
        known = {t.name for t in self.layout.all_types()} | set(self.layout.families)
        for name, section in self.mapping.sections.items():
            if section.position.file != self.mapping.file:
                continue
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                self.error(
                    "mapping/no-such-type",
                    f"section `{name}`: layout `{self.layout.name}` has no type or family of that name",
                    section.position,
                    f"did you mean `{near[0]}`?" if near else None,
                )
            elif name not in self.reached and not self.mapping.abstract:
                self.error(
                    "mapping/unreachable",
                    f"section `{name}` is never used: no rule leads to a config of that type",
                    section.position,
                )

    def check_names(self, root: Struct) -> None:
        """Every name in an expression over theirs is a key that some rule claims."""
        claims = _claims(root)
        for rule in rules_of(root):
            expressions: list[tuple[Expression, Path]] = []
            if isinstance(rule, (FieldRule, Carried, TheirsFact)):
                values = (rule.default, *(rule.values if isinstance(rule, TheirsFact) else ()))
                if isinstance(rule, FieldRule):
                    values = (*values, rule.read, rule.write)
                elif isinstance(rule, Carried):
                    values = (*values, rule.write)
                expressions = [(value, rule.theirs[:-1]) for value in values if isinstance(value, Expression)]
            for expression, at in expressions:
                for name in expression.names:
                    path = name[1:] if name[0] == "root" else (*at, *name)
                    if path not in claims and not any(c[: len(path)] == path for c in claims):
                        near = difflib.get_close_matches(name[-1], {c[-1] for c in claims}, 1)
                        self.error(
                            "mapping/no-such-name",
                            f"`{expression.text}`: no rule speaks of a key `{'.'.join(path)}`",
                            expression.position or rule.position,
                            f"did you mean `{near[0]}`?" if near else None,
                        )
        for node in nodes_of(root):
            if isinstance(node, Struct):
                self.check_facts(node)

    def check_facts(self, struct: Struct) -> None:
        axes = {name for t in self.layout.all_types() for name in t.axes}
        for rule in struct.rules:
            if isinstance(rule, OursFact) and isinstance(rule.value, Expression) and rule.scope == struct.ours:
                names, expression = rule.value.names, rule.value
            elif isinstance(rule, CheckRule):
                names, expression = rule.expression.names, rule.expression
            else:
                continue
            for name in names:
                if name[0] in ("root", "config", "root_config"):
                    continue
                if name[0] not in struct.type.fields and name[0] not in axes and name[0] not in struct.type.takes:
                    near = difflib.get_close_matches(name[0], [*struct.type.fields, *axes], 1)
                    self.error(
                        "mapping/no-such-name",
                        f"`{expression.text}`: type `{struct.type}` has no field or axis `{name[0]}`",
                        expression.position or rule.position,
                        f"did you mean `{near[0]}`?" if near else None,
                    )


def _fill_kind(section: Section, kind: str) -> Section:
    """The section with the hole ``{kind}`` in its keys filled in."""
    def fill(path: Path) -> Path:
        return tuple(kind if part == "{kind}" else part for part in path)

    return dataclasses.replace(
        section, config=tuple(dataclasses.replace(e, theirs=fill(e.theirs)) for e in section.config)
    )


def _claims(root: Struct) -> set[Path]:
    """Every path of theirs that some rule speaks of, holes included."""
    result: set[Path] = set()
    for rule in rules_of(root):
        if isinstance(rule, (FieldRule, TheirsFact, Carried)):
            result.add(rule.theirs)
        if isinstance(rule, FieldRule):
            result.update(rule.alias)
    for node in nodes_of(root):
        if isinstance(node, Choice):
            result.add(node.key)
        elif isinstance(node, Layers):
            result.add(node.count)
            result |= {node.each} if node.each else set()
    return result


def _defaults(root: Struct) -> dict[Path, Any]:
    result: dict[Path, Any] = {}
    for rule in rules_of(root):
        if isinstance(rule, (FieldRule, TheirsFact, Carried)) and rule.default is not MISSING:
            result.setdefault(rule.theirs, rule.default)
    for node in nodes_of(root):
        if isinstance(node, Choice) and node.default is not MISSING:
            result.setdefault(node.key, node.default)
        elif isinstance(node, Layers) and node.each and node.each_default is not MISSING:
            result.setdefault(node.each, node.each_default)
    return result
