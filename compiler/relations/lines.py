"""From one line of a section to the rule that it is: nothing here knows what is below the object of the section."""

from __future__ import annotations

import difflib
from typing import Any

from crosswalk.compiler.layout.model import ConfigType, Field, Layout
from crosswalk.compiler.mapping.model import Entry, Fact, MappingFile, Section
from crosswalk.compiler.mapping.parse import ENTRY_WORDS
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.text.positioned import describe, did_you_mean
from crosswalk.runtime.errors import fail
from crosswalk.runtime.records import Record, replace

from .rules import Carried, CheckRule, FieldRule, OursFact, Rule, TheirsFact
from .tree import OneOf, Struct, claimed_paths


class Claim(Record, frozen=True):
    """A line that speaks of ``ours`` below the current object. ``theirs`` is where the object of its section is."""

    ours: KeyPath
    line: Entry | Fact
    theirs: KeyPath
    scope: KeyPath


def _header_rules(mapping: MappingFile, root: OneOf) -> list[Rule]:
    """What the header says of every object with this mapping, a part included. What a section says of a key, or of one
    below it, comes before."""
    claimed = {path[:length] for path in claimed_paths(root) for length in range(1, len(path) + 1)}
    rules: list[Rule] = [Carried(entry, entry.theirs) for entry in mapping.keeps if entry.theirs not in claimed]
    if mapping.model_type:
        rules.append(header_fact(mapping, "model_type", "model_type", mapping.model_types))
    return rules


def with_header(mapping: MappingFile, root: OneOf) -> OneOf:
    """The tree of a mapping with the rules of its header, in each case of the root."""
    return _with_rules(root, tuple(_header_rules(mapping, root)))


def _with_rules(node: OneOf, rules: tuple[Rule, ...]) -> OneOf:
    if isinstance(node, Struct):
        return replace(node, rules=(*node.rules, *rules))
    return replace(node, cases=tuple(replace(case, node=_with_rules(case.node, rules)) for case in node.cases))


def header_fact(mapping: MappingFile, key: str, word: str, values: tuple[Any, ...]) -> TheirsFact:
    """That ``word`` of the header is the key ``key`` of config.json."""
    why = "another value is another format (--format)"
    return TheirsFact(Entry((key,), "const", mapping.place(word), values=values, why=why), (key,))


def theirs_rule(line: Entry, theirs: KeyPath) -> Rule:
    """The rule of a key that no field holds."""
    at = (*theirs, *line.theirs)
    return TheirsFact(line, at) if line.kind in ("const", "only") else Carried(line, at)


def check_rules(section: Section, ours: KeyPath, theirs: KeyPath) -> list[Rule]:
    """The rules of ``checks`` of a section, about the objects at two paths."""
    return [CheckRule(line, ours, theirs) for line in section.checks]


def value_rule(mapping: MappingFile, claim: Claim, declared: Field, ours: KeyPath) -> Rule:
    """The rule of a field that is no config."""
    line = claim.line
    if isinstance(line, Fact):
        return OursFact(line, ours, declared, claim.scope)
    table = mapping.enums.get(declared.of) if declared.kind == "enum" else None
    return FieldRule(line, (*claim.theirs, *line.theirs), ours, declared, table or None)


def only_type(layout: Layout, declared: Field) -> ConfigType | None:
    """The type that a config in this field has; None if there is a choice."""
    return None if declared.of in layout.families else layout.type_of(declared.of)


def named_type(layout: Layout, declared: Field, fact: Fact) -> ConfigType:
    """The type that a line of ``sets:`` names. Raises ``CrosswalkError`` if it names none."""
    family = layout.families.get(declared.of)
    only = layout.type_of(declared.of)
    types = family.types if family else {declared.of: only} if only else {}
    if isinstance(fact.value, str) and fact.value in types:
        return types[fact.value]
    found = "the value of an expression" if isinstance(fact.value, Expression) else describe(fact.value)
    raise fail(
        "mapping/no-such-type",
        f"`{'.'.join(fact.ours)}` cannot be {found}: it is {'one of ' if family else ''}{', '.join(types)}",
        fact.value_at or fact.position,
        did_you_mean(str(fact.value), types) if family else "set the fields below it",
    )


def misspelt_word(line: Entry | Fact) -> str | None:
    """A hint for ``{defualt: x}``: a map without any word of an entry nests keys."""
    last = line.theirs[-1] if isinstance(line, Entry) else ""
    near = difflib.get_close_matches(last, ENTRY_WORDS, 1, 0.8)
    return f"`{last}` is read as a key: did you mean the word `{near[0]}`?" if near else None


def fill_kind(section: Section, kind: str) -> Section:
    """The section with the hole ``{kind}`` in its keys filled in."""

    def fill(path: KeyPath) -> KeyPath:
        return tuple(kind if part == "{kind}" else part for part in path)

    return replace(section, config=tuple(replace(e, theirs=fill(e.theirs)) for e in section.config))
