"""Lay sections over types: for every field of an object, find the rule that speaks of it, or what silence means.

What a field of a config type holds (one of several types, layers, a part) is in :mod:`.branches`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping

from crosswalk.compiler.layout.model import MISSING, Field, Layout, Type
from crosswalk.compiler.mapping.model import Entry, Fact, MappingFile, Section
from crosswalk.compiler.mapping.overlay import overlay
from crosswalk.compiler.mapping.parse import ENTRY_WORDS
from crosswalk.compiler.notation.expressions import Expression
from crosswalk.compiler.text.positioned import describe, did_you_mean
from crosswalk.runtime.errors import Diagnostic, Position, fail

from .branches import family_choice, layers, part_node, struct_choice
from .tree import (
    OTHER_FORMAT,
    Carried,
    CheckRule,
    CompiledMapping,
    Entries,
    FieldRule,
    Node,
    Optional,
    OursFact,
    Path,
    Rule,
    Struct,
    TheirsFact,
    Unused,
    claimed_paths,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A line that speaks of ``ours`` below the current object. ``theirs`` is where the object of its section is."""

    ours: Path
    line: Entry | Fact
    theirs: Path
    scope: Path


class Expander:
    """Walks types and sections side by side; ``problems`` collects what is wrong, ``reached`` the sections in use."""

    def __init__(self, mapping: MappingFile, layout: Layout, load: Callable[[str, Position], CompiledMapping]) -> None:
        self.mapping, self.layout, self.load = mapping, layout, load
        self.problems: list[Diagnostic] = []
        self.reached: set[str] = set()
        self.guessed: set[tuple[str, str]] = set()

    def error(self, code: str, message: str, position: Position, hint: str | None = None) -> None:
        self.problems.append(Diagnostic(code, message, position, hint))

    def root(self) -> Struct:
        """The tree of the mapping, as far as it can be built."""
        mapping, layout = self.mapping, self.layout
        name = mapping.root or layout.root
        kind = layout.types.get(name)
        if kind is None:
            hint = did_you_mean(name, layout.types) or f"its types are {', '.join(layout.types)}"
            message = f"layout `{layout.name}` has no type `{name}`"
            raise fail("mapping/no-such-type", message, mapping.place("root"), hint)
        for what in (*mapping.elsewhere, *(part.ours[0] for part in mapping.parts if part.ours)):
            if what not in kind.fields:
                at = next((part.is_at for part in mapping.parts if part.ours == (what,)), mapping.place("elsewhere"))
                self.no_such_field(kind, what, at)
        section = self.section_or_empty(kind, mapping.sections, mapping.position)
        root = self.struct(kind, section, (), (), (), mapping.sections)
        self.check_reached()
        return dataclasses.replace(root, rules=(*root.rules, *_header(mapping, root)))

    def no_such_field(self, kind: Type, name: str, position: Position, hint: str | None = None) -> None:
        near = difflib.get_close_matches(name, kind.fields, 1)
        if near:
            self.guessed.add((kind.name, near[0]))
            hint = f"did you mean `{near[0]}`? ({kind.fields[near[0]].position})"
        message = f"type `{kind}` has no field `{name}`"
        self.error("mapping/no-such-field", message, position, hint or f"its fields are {', '.join(kind.fields)}")

    # ---- sections -------------------------------------------------------------------------------------------------

    def section(self, kind: Type, sections: Mapping[str, Section]) -> Section | None:
        """The section of a type, laid over those of its bases; None if it has none of its own."""
        if kind.name not in sections or (kind.family and self.layout.type_of(kind.name) is not kind):
            return None
        self.reached.add(kind.name)
        result = sections[kind.name]
        for base in reversed(kind.bases):
            if base in sections:
                self.reached.add(base)
                result = overlay(sections[base], result)
        return dataclasses.replace(result, name=kind.name)

    def section_or_empty(self, kind: Type, sections: Mapping[str, Section], position: Position) -> Section:
        """The section of a type; if there is none, an empty one at what leads to the type."""
        return self.section(kind, sections) or Section(kind.name, position)

    # ---- objects --------------------------------------------------------------------------------------------------

    def struct(
        self,
        kind: Type,
        section: Section,
        ours: Path,
        theirs: Path,
        outer: tuple[Claim, ...],
        sections: Mapping[str, Section],
        typed: bool = False,
    ) -> Struct:
        """The node of an object of type ``kind``; ``outer`` are claims that enclosing sections make on its inside."""
        rules: list[Rule] = []
        lines: tuple[Entry | Fact, ...] = (*section.config, *section.sets)
        own = [Claim(line.ours, line, theirs, ours) for line in lines if line.ours]
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
            whole = part_node(self, parts[()], kind)
            children.append(whole)
            covered = {name for mapping in whole.mappings for name in mapping.root.type.fields}
        by_field: dict[str, list[Claim]] = {}
        for claim in claims:
            if claim.ours[0] not in kind.fields:
                self.no_such_field(kind, claim.ours[0], claim.line.right, _misspelt_word(claim.line))
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
                part, of = parts[(name,)], self.only_type(declared)
                if of is None:
                    message = f"`{name}` cannot be a part: it is {declared.of}, and a part is an object of one type"
                    self.error("mapping/part-type", message, part.is_at)
                else:
                    children.append(part_node(self, part, of, theirs, tuple(below), sections))
            elif below or (kind.name, name) not in self.guessed:
                self.field(declared, (*ours, name), theirs, below, section, sections, rules, children)
        return Struct(kind, ours, theirs, section, tuple(rules), tuple(children), typed, section.position)

    def theirs_rule(self, line: Entry, theirs: Path) -> Rule:
        at = (*theirs, *line.theirs)
        if line.kind in ("const", "only"):
            return TheirsFact(at, line.values, line.kind == "const", line.default, line.position, line.why)
        return Carried(at, line.kind == "keep", line.default, line.write, line.position)

    def field(
        self,
        declared: Field,
        ours: Path,
        theirs: Path,
        claims: list[Claim],
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
                    claim.line.right,
                )
            elif exact:
                rules.append(self.value_rule(exact[0], declared, ours))
            else:
                self.silent(declared, ours, section, rules)
            return
        if exact and isinstance(exact[0].line, Entry):
            entry = exact[0].line
            at = (*exact[0].theirs, *entry.theirs)
            node = self.target(declared, ours, at, deeper, sections, entry)
            if node is not None:
                children.append(Optional(ours, at, declared.nullable, entry.default, node, entry.position))
        elif exact:
            fact = exact[0].line
            assert isinstance(fact, Fact)
            if fact.value is None and declared.nullable:
                rules.append(OursFact(ours, None, declared, exact[0].scope, fact.position))
                return
            kind = self.named_type(declared, fact)
            if kind is not None:
                own = self.section_or_empty(kind, sections, (deeper[0].line if deeper else fact).position)
                children.append(self.struct(kind, own, ours, theirs, deeper, sections, typed=True))
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
                own = Section(kind.name, deeper[0].line.position)
                children.append(self.struct(kind, own, ours, theirs, deeper, sections))
        else:
            self.silent(declared, ours, section, rules)

    def silent(self, declared: Field, ours: Path, section: Section, rules: list[Rule]) -> None:
        if declared.group == "features" or (declared.group == "fields" and declared.nullable and declared.is_config):
            rules.append(Unused(ours, declared, section.position))
        elif declared.group == "fields":
            where = f"section `{section.name}`" if section.name in self.mapping.sections else f"no `{section.name}:`"
            self.error(
                "mapping/unclaimed-field",
                f"nothing says where `{'.'.join(ours)}` comes from ({where})",
                section.position,
                f"relate it to a key, or state it: `sets: {{{ours[-1]}: ...}}` ({declared.position})",
            )

    def value_rule(self, claim: Claim, declared: Field, ours: Path) -> Rule:
        line = claim.line
        if isinstance(line, Fact):
            return OursFact(ours, line.value, declared, claim.scope, line.position, line.value_at)
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
            line.otherwise,
        )

    # ---- what a field of a config type holds ------------------------------------------------------------------------

    def only_type(self, declared: Field) -> Type | None:
        return None if declared.of in self.layout.families else self.layout.type_of(declared.of)

    def named_type(self, declared: Field, fact: Fact) -> Type | None:
        family = self.layout.families.get(declared.of)
        types = family.types if family else {declared.of: self.layout.type_of(declared.of)}
        if isinstance(fact.value, str) and fact.value in types:
            return types[fact.value]
        found = "the value of an expression" if isinstance(fact.value, Expression) else describe(fact.value)
        self.error(
            "mapping/no-such-type",
            f"`{'.'.join(fact.ours)}` cannot be {found}: it is {'one of ' if family else ''}{', '.join(types)}",
            fact.value_at or fact.position,
            did_you_mean(str(fact.value), types) if family else "set the fields below it",
        )
        return None

    def target(
        self,
        declared: Field,
        ours: Path,
        theirs: Path,
        deeper: tuple[Claim, ...],
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
            hole = "{" + declared.name + "}"
            inner = self.value(declared.of, (), (*theirs, hole), (), sections, entry.cases, entry.position)
            return None if inner is None else Entries(ours, theirs, inner, entry.position)
        position = entry.position if entry else enclosing.position if enclosing else self.mapping.position
        return self.value(declared.of, ours, theirs, deeper, sections, entry.cases if entry else None, position)

    def value(
        self,
        of: str,
        ours: Path,
        theirs: Path,
        outer: tuple[Claim, ...],
        sections: Mapping[str, Section],
        only: tuple[str, ...] | None,
        position: Position,
    ) -> Node | None:
        if of not in self.layout.families:
            kind = self.layout.type_of(of)
            assert kind is not None
            section = self.section_or_empty(kind, sections, outer[0].line.position if outer else position)
            if section.by is not None:
                return struct_choice(self, kind, section, ours, theirs, outer, sections)
            return self.struct(kind, section, ours, theirs, outer, sections)
        family = self.layout.families[of]
        if of not in sections:
            words = "`count:`, or with `by:` and `cases:`" if family.sequence else "`by:` and `cases:`"
            hint = f"add a section `{of}:` with {words}"
            if not family.sequence:
                hint += f", or `{ours[-1] if ours else of}: TYPE` under `sets:`"
            message = f"`{'.'.join(ours)}` is one of {', '.join(family.types)}: nothing says which"
            self.error("mapping/which-type", message, position, hint)
            return None
        self.reached.add(of)
        section = sections[of]
        if family.sequence and section.by is None:
            return layers(self, section, family, ours, theirs, sections)
        return family_choice(self, section, family, ours, theirs, outer, sections, only, position)

    # ---- what is never used -----------------------------------------------------------------------------------------

    def check_reached(self) -> None:
        """Sections of this file that nothing reaches are typos or left-overs."""
        for name, section in self.mapping.sections.items():
            if section.position.file == self.mapping.file:
                self.check_section(name, section)

    def check_section(self, name: str, section: Section) -> None:
        known = {*self.layout.families, *(kind.name for kind in self.layout.all_types())}
        if name not in known:
            message = f"section `{name}`: layout `{self.layout.name}` has no type or family of that name"
            self.error("mapping/no-such-type", message, section.position, did_you_mean(name, known))
        elif name not in self.reached and not self.mapping.abstract and not self.problems:
            message = f"section `{name}` is never used: no rule leads to a config of that type"
            self.error("mapping/unreachable", message, section.position)


def _header(mapping: MappingFile, root: Struct) -> list[Rule]:
    """What the header says of every object with this mapping, a part included. What a section says of a key, or of one
    below it, comes before."""
    claimed = {path[:length] for path in claimed_paths(root) for length in range(1, len(path) + 1)}
    rules: list[Rule] = [
        Carried(entry.theirs, True, entry.default, None, entry.position, entry.values, entry.why or "")
        for entry in mapping.keeps
        if entry.theirs not in claimed
    ]
    if mapping.model_type:
        at = mapping.place("model_type")
        rules.append(TheirsFact(("model_type",), mapping.model_types, True, MISSING, at, OTHER_FORMAT))
    return rules


def _misspelt_word(line: Entry | Fact) -> str | None:
    """A hint for ``{defualt: x}``: a map without any word of an entry nests keys."""
    last = line.theirs[-1] if isinstance(line, Entry) else ""
    near = difflib.get_close_matches(last, ENTRY_WORDS, 1, 0.8)
    return f"`{last}` is read as a key: did you mean the word `{near[0]}`?" if near else None
