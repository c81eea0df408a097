"""Lay sections over types: for every field of an object, find the rule that speaks of it, or what silence means.

Recursion over the types of the layout. What one line says is in :mod:`.lines`, which section counts in
:mod:`.sections`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from crosswalk.compiler.layout.model import MISSING, ConfigType, Family, Field, Layout
from crosswalk.compiler.mapping.model import Entry, Fact, MappingFile, PartLine, Section
from crosswalk.compiler.mapping.overlay import overlay
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.compiler.text.scalars import scalar_of
from crosswalk.runtime.errors import CrosswalkError, Position
from crosswalk.runtime.records import Record, replace

from .lines import (
    Claim,
    check_rules,
    fill_kind,
    misspelt_word,
    named_type,
    only_type,
    theirs_rule,
    value_rule,
    with_header,
)
from .rules import OursFact, Rule, Unused
from .sections import Sections
from .tensor_rules import section_tensors
from .tree import Case, CaseNode, CompiledMapping, Entries, LayerKind, Layers, Node, Nullable, PartNode, Refusal, Struct


class _Place(Record, frozen=True):
    """Where an object is on both sides, which sections hold there, and what enclosing sections say of its inside.
    ``typed``: its type is stated by a native fact."""

    ours: KeyPath
    theirs: KeyPath
    sections: Mapping[str, Section]
    claims: tuple[Claim, ...] = ()
    typed: bool = False


class Builder:
    """Walks types and sections side by side. ``load(name, position)`` gives the mappings of parts."""

    def __init__(self, mapping: MappingFile, layout: Layout, load: Callable[[str, Position], CompiledMapping]) -> None:
        self.mapping, self.layout, self.load = mapping, layout, load
        self.sections = Sections(mapping, layout)
        self.error = self.sections.error

    def root(self) -> Struct | CaseNode:
        """The tree of the mapping, as far as it can be built."""
        mapping = self.mapping
        kind = self.sections.root_type()
        section = self.sections.of_type_or_empty(kind, mapping.sections, mapping.position)
        root = self.object(kind, section, _Place((), (), mapping.sections))
        self.sections.check_reached()
        return with_header(mapping, root)

    # ---- objects --------------------------------------------------------------------------------------------------

    def object(self, kind: ConfigType, section: Section, place: _Place) -> Struct | CaseNode:
        """The node of an object of type ``kind``: one of the cases of its section, if that has some."""
        if bool(section.by) != bool(section.cases):
            missing = "cases" if section.by else "by"
            message = f"section `{section.name}` needs `by:` and `cases:`, there is no `{missing}:`"
            self.error("mapping/by", message, section.position)
        if not section.by or not section.cases:
            return self.struct(kind, section, place)
        plain = replace(section, by=None, cases={})
        cases = tuple(
            Case(scalar_of(value, case.position), self.object(kind, overlay(plain, case), place))
            for value, case in section.cases.items()
        )
        return CaseNode((*place.theirs, *section.by), section.by_default, place.ours, cases, section.position)

    def struct(self, kind: ConfigType, section: Section, place: _Place) -> Struct:
        """The node of an object: the rules of its section, and a node for each field that is an object."""
        ours, theirs = place.ours, place.theirs
        lines: tuple[Entry | Fact, ...] = (*section.config, *section.sets)
        own = [Claim(line.ours, line, theirs, ours) for line in lines if line.ours]
        taken = {claim.ours for claim in place.claims}
        claims = (*place.claims, *(claim for claim in own if claim.ours not in taken))
        rules = [theirs_rule(line, theirs) for line in section.config if line.ours is None]
        rules += check_rules(section, ours, theirs)
        children: list[Node] = []
        by_field: dict[str, list[Claim]] = {}
        for claim in claims:
            if claim.ours[0] in kind.fields:
                by_field.setdefault(claim.ours[0], []).append(replace(claim, ours=claim.ours[1:]))
            else:
                self.sections.no_such_field(kind, claim.ours[0], claim.line.right, misspelt_word(claim.line))
        covered = self.whole(kind, place, children) if not ours else set()
        for name, declared in kind.fields.items():
            inside = replace(place, ours=(*ours, name), claims=tuple(by_field.get(name, ())), typed=False)
            if not ours and self.apart(declared, covered, inside, children):
                continue
            if inside.claims or (kind.name, name) not in self.sections.guessed:
                self.field(declared, inside, section, rules, children)
        tensors = section_tensors(self.layout, kind, section)
        return Struct(kind, ours, theirs, section, tuple(rules), tensors, tuple(children), place.typed)

    # ---- parts ------------------------------------------------------------------------------------------------------

    def whole(self, kind: ConfigType, place: _Place, children: list[Node]) -> set[str]:
        """The part that is the outermost object itself; the names of its fields."""
        part = next((part for part in self.mapping.parts if not part.ours), None)
        if part is None:
            return set()
        node = self.part(part, kind, replace(place, claims=()))
        children.append(node)
        return {name for mapping in node.mappings for name in mapping.root.type.fields}

    def apart(self, declared: Field, covered: set[str], place: _Place, children: list[Node]) -> bool:
        """Whether a field of the outermost object is said elsewhere, is in the part ``covered``, or is a part."""
        (name,) = place.ours
        if name in self.mapping.elsewhere:
            return True
        if name in covered:
            for claim in place.claims:
                self.error("mapping/claimed-twice", f"`{name}` belongs to a part", claim.line.position)
            return True
        part = next((part for part in self.mapping.parts if part.ours == (name,)), None)
        if part is None:
            return False
        of = only_type(self.layout, declared)
        if of is None:
            message = f"`{name}` cannot be a part: it is {declared.of}, and a part is an object of one type"
            self.error("mapping/part-type", message, part.is_at)
        else:
            children.append(self.part(part, of, replace(place, ours=())))
        return True

    def part(self, part: PartLine, kind: ConfigType, place: _Place) -> PartNode:
        """An object with mappings of its own. What these leave to the enclosing one (``elsewhere``) stands beside."""
        mappings = tuple(self.load(name, part.with_at) for name in part.mappings)
        elsewhere = {name for mapping in mappings for name in mapping.source.elsewhere}
        rules: list[Rule] = []
        children: list[Node] = []
        section = Section(kind.name, part.position)
        for mapping in mappings:
            if mapping.root.type.name not in (kind.name, *kind.bases):
                message = f"mapping `{mapping.name}` is of type `{mapping.root.type}`, the part is of type `{kind}`"
                self.error("mapping/part-type", message, part.with_at)
        for name in sorted({claim.ours[0] for claim in place.claims} | elsewhere):
            below = tuple(replace(c, ours=c.ours[1:]) for c in place.claims if c.ours[0] == name)
            if name in elsewhere and name in kind.fields:
                inside = replace(place, ours=(*part.ours, name), claims=below)
                self.field(kind.fields[name], inside, section, rules, children)
            else:
                self.error(
                    "mapping/claimed-twice",
                    f"`{'.'.join((*part.ours, name))}` belongs to the part `{'.'.join(part.theirs)}`",
                    next(c.line.position for c in place.claims if c.ours[0] == name),
                    f"say `elsewhere: [{name}]` in {' and '.join(part.mappings)}",
                )
        none = section_tensors(self.layout, kind, section)
        beside = Struct(kind, part.ours, place.theirs, section, tuple(rules), none, tuple(children), typed=False)
        return PartNode(part, part.ours, mappings, beside)

    # ---- fields -----------------------------------------------------------------------------------------------------

    def field(self, declared: Field, place: _Place, section: Section, rules: list[Rule], children: list[Node]) -> None:
        """Find the rule of one field among the claims on it, or what its silence means."""
        exact = [claim for claim in place.claims if not claim.ours]
        if len(exact) > 1:
            self.error(
                "mapping/claimed-twice",
                f"`{'.'.join(place.ours)}` is claimed twice, here and at {exact[0].line.position}",
                exact[1].line.position,
            )
        claim = exact[0] if exact else None
        deeper = tuple(claim for claim in place.claims if claim.ours)
        if declared.is_config or declared.kind == "dict":
            self.config_field(declared, claim, replace(place, claims=deeper), section, rules, children)
        elif deeper:
            message = f"`{place.ours[-1]}` is no object: it has no field `{deeper[0].ours[0]}`"
            self.error("mapping/no-such-field", message, deeper[0].line.right)
        elif claim is not None:
            rules.append(value_rule(self.mapping, claim, declared, place.ours))
        else:
            self.silent(declared, place.ours, section, rules)

    def config_field(
        self,
        declared: Field,
        claim: Claim | None,
        place: _Place,
        section: Section,
        rules: list[Rule],
        children: list[Node],
    ) -> None:
        """A field that holds a config, or a dict of configs."""
        node: Node | None = None
        line = claim.line if claim else None
        if claim is not None and isinstance(line, Entry):
            at = (*claim.theirs, *line.theirs)
            node = self.target(declared, replace(place, theirs=at), line, section)
            node = node and Nullable(place.ours, at, declared.nullable, line.default, node, line.position)
        elif claim is not None and isinstance(line, Fact):
            if line.value is None and declared.nullable:
                rules.append(OursFact(line, place.ours, declared, claim.scope))
                return
            try:
                kind = named_type(self.layout, declared, line)
            except CrosswalkError as error:
                self.sections.problems += error.diagnostics
                return
            node = self.of_type(kind, replace(place, typed=True), line.position)
        elif declared.group == "fields" and not declared.nullable:
            node = self.target(declared, place, None, section)
        elif place.claims:
            only = only_type(self.layout, declared)
            if only is None:
                self.error(
                    "mapping/which-type",
                    f"`{'.'.join(place.ours)}` may be of several types: say which",
                    place.claims[0].line.position,
                    f"add `{place.ours[-1]}: TYPE` under `sets:`",
                )
            else:
                node = self.of_type(only, place, section.position)
        else:
            self.silent(declared, place.ours, section, rules)
        if node is not None:
            children.append(node)

    def silent(self, declared: Field, ours: KeyPath, section: Section, rules: list[Rule]) -> None:
        """What it means that no line speaks of a field: that it is unused, a problem, or nothing."""
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

    # ---- what a field of a config type holds ------------------------------------------------------------------------

    def target(self, declared: Field, place: _Place, entry: Entry | None, section: Section) -> Node | None:
        """The node for the sub-config of a field, related to the object at ``place``."""
        only, position = (entry.cases, entry.position) if entry else (None, section.position)
        if declared.kind != "dict":
            return self.value(declared.of, place, only, position)
        if entry is None:
            self.silent(declared, place.ours, section, [])
            return None
        inside = _Place((), (*place.theirs, "{" + declared.name + "}"), place.sections)
        inner = self.value(declared.of, inside, only, position)
        return None if inner is None else Entries(place.ours, place.theirs, inner, position)

    def of_type(self, kind: ConfigType, place: _Place, position: Position) -> Struct | CaseNode:
        """An object of a type, by the section of that type; ``position`` is what leads to it."""
        at = place.claims[0].line.position if place.claims else position
        return self.object(kind, self.sections.of_type_or_empty(kind, place.sections, at), place)

    def value(self, of: str, place: _Place, only: tuple[str, ...] | None, position: Position) -> Node | None:
        """An object of a type or of a family."""
        family = self.layout.families.get(of)
        if family is None:
            kind = self.layout.type_of(of)
            assert kind is not None
            return self.of_type(kind, place, position)
        section = self.sections.of_family(of, place.sections)
        if section is None:
            words = "`count:`, or with `by:` and `cases:`" if family.sequence else "`by:` and `cases:`"
            hint = f"add a section `{of}:` with {words}"
            if not family.sequence:
                hint += f", or `{place.ours[-1] if place.ours else of}: TYPE` under `sets:`"
            message = f"`{'.'.join(place.ours)}` is one of {', '.join(family.types)}: nothing says which"
            self.error("mapping/which-type", message, position, hint)
            return None
        if family.sequence and not section.by:
            return self.layers(section, family, place)
        return self.family_choice(section, family, place, only, position)

    def family_choice(
        self, section: Section, family: Family, place: _Place, only: tuple[str, ...] | None, position: Position
    ) -> CaseNode | None:
        """The node of an object of which a key says the type; None after noting why there can be none."""
        if not section.by or not section.cases:
            missing = "cases" if section.by else "by"
            message = f"section `{section.name}` needs `by:` and `cases:`, there is no `{missing}:`"
            self.error("mapping/by", message, section.position)
            return None
        for at in (*(line.position for line in section.config), *(check.position for check in section.checks)):
            message = f"section `{section.name}` is about several types"
            self.error("mapping/unused", message, at, "say this in a case, or in the section of a type")
        for value in only or ():
            if value not in section.cases:
                hint = did_you_mean(value, section.cases) or f"its cases are {', '.join(section.cases)}"
                self.error("mapping/no-such-case", f"section `{section.name}` has no case `{value}`", position, hint)
        cases = []
        refused = []
        for value, case in section.cases.items():
            if only is not None and value not in only:
                continue
            if case.refused is not None:
                refused.append(Refusal(scalar_of(value, case.position), case.of or value, case.refused))
            elif node := self.case(value, case, family, place):
                cases.append(Case(scalar_of(value, case.position), node))
        key = (*place.theirs, *section.by)
        return CaseNode(key, section.by_default, place.ours, tuple(cases), section.position, tuple(refused))

    def case(self, value: str, case: Section, family: Family, place: _Place) -> Struct | CaseNode | None:
        """One type of a family, by its section with the case laid over."""
        name = case.of or value
        kind = family.types.get(name)
        if kind is None:
            self.error(
                "mapping/no-such-type",
                f"case `{value}`: family `{family.name}` has no type `{name}`, it has {', '.join(family.types)}",
                case.position,
                did_you_mean(name, family.types) or "name the type with `of:`",
            )
            return None
        own = self.sections.of_type(kind, place.sections)
        merged = overlay(own, case) if own is not None else case
        return self.object(kind, replace(merged, name=name), place)

    def layers(self, section: Section, family: Family, place: _Place) -> Layers | None:
        """A list of layers that is told by a number, and perhaps by a list of kinds."""
        wrong = ""
        if section.count is None:
            wrong = "says nothing of how many layers there are: add `count:`, or `by:` and `cases:`"
        elif section.each and not section.kinds:
            wrong = "lists the kinds of the layers (`each:`): say under `kinds:` what they are"
        elif section.kinds and not section.each:
            wrong = "has kinds of layers: say under `each:` which key lists them"
        listed = next((e.default for e in section.config if e.theirs == section.each), MISSING)
        if wrong or section.count is None:
            self.error("mapping/layers", f"section `{section.name}` {wrong}", section.position)
            return None
        for line in section.config:
            if line.ours is not None:
                message = f"`{'.'.join(line.ours)}`: the fields of `{family.name}` follow from the list of layers"
                self.error("mapping/unused", message, line.right, "say it in the section of a type")
        theirs = place.theirs
        own = [line for line in section.config if line.ours is None and line.theirs != section.each]
        return Layers(
            place.ours,
            theirs,
            (*theirs, *section.count),
            (*theirs, *section.each) if isinstance(section.each, tuple) and section.each else section.each or None,
            listed,
            section.repeats,
            tuple(self.kinds(section, family, place)),
            (*theirs, *section.overrides) if section.overrides else None,
            (*(theirs_rule(line, theirs) for line in own), *check_rules(section, (), theirs)),
            section.position,
            section.overridable,
        )

    def kinds(self, section: Section, family: Family, place: _Place) -> list[LayerKind]:
        """What the layers of each kind are: the sections of a kind are laid over those of the file."""
        block = next(f.of for t in family.types.values() for f in t.fields.values() if f.name == "block")
        kinds = []
        listed: Mapping[str | None, Mapping[str, Section]] = dict(section.kinds.items()) or {None: {}}
        for name, overlays in listed.items():
            around = place.sections
            merged = {**around, **{k: overlay(around[k], o) if k in around else o for k, o in overlays.items()}}
            if name is not None:
                merged = {key: fill_kind(value, name) for key, value in merged.items()}
            before, self.sections.reached = self.sections.reached, set()
            node = self.value(block, _Place((), place.theirs, merged), None, section.position)
            for key, over in overlays.items():
                self.sections.check_section(key, over)
            self.sections.reached |= before
            if node is not None:
                kinds.append(LayerKind(None if name is None else scalar_of(name, section.position), node))
        return kinds
