"""The sections of a mapping by type, which of them are in use, and the problems found on the way."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from crosswalk.compiler.layout.model import ConfigType, Layout
from crosswalk.compiler.mapping.model import MappingFile, Section
from crosswalk.compiler.mapping.overlay import overlay
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import Diagnostic, Position, fail
from crosswalk.runtime.records import replace


class Sections:
    """``problems`` collects what is wrong, ``reached`` the names of the sections in use, ``guessed`` the fields that
    misspelt ones probably mean, with their types."""

    def __init__(self, mapping: MappingFile, layout: Layout) -> None:
        self.mapping, self.layout = mapping, layout
        self.problems: list[Diagnostic] = []
        self.reached: set[str] = set()
        self.guessed: set[tuple[str, str]] = set()

    def error(self, code: str, message: str, position: Position, hint: str | None = None) -> None:
        """Note a problem at a position of the mapping."""
        self.problems.append(Diagnostic(code, message, position, hint))

    def no_such_field(self, kind: ConfigType, name: str, position: Position, hint: str | None = None) -> None:
        """Note that a type has no field of that name, with the nearest that it has."""
        near = difflib.get_close_matches(name, kind.fields, 1)
        if near:
            self.guessed.add((kind.name, near[0]))
            hint = f"did you mean `{near[0]}`? ({kind.fields[near[0]].position})"
        message = f"type `{kind}` has no field `{name}`"
        self.error("mapping/no-such-field", message, position, hint or f"its fields are {', '.join(kind.fields)}")

    def root_type(self) -> ConfigType:
        """The type of a whole config, whose fields the header may name. Raises ``CrosswalkError`` if there is none."""
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
        return kind

    def of_type(self, kind: ConfigType, sections: Mapping[str, Section]) -> Section | None:
        """The section of a type, laid over those of its bases; None if it has none of its own."""
        if kind.name not in sections or (kind.family and self.layout.type_of(kind.name) is not kind):
            return None
        self.reached.add(kind.name)
        result = sections[kind.name]
        for base in reversed(kind.bases):
            if base in sections:
                self.reached.add(base)
                result = overlay(sections[base], result)
        return replace(result, name=kind.name)

    def of_type_or_empty(self, kind: ConfigType, sections: Mapping[str, Section], position: Position) -> Section:
        """The section of a type; if there is none, an empty one at what leads to the type."""
        return self.of_type(kind, sections) or Section(kind.name, position)

    def of_family(self, name: str, sections: Mapping[str, Section]) -> Section | None:
        """The section of a family of types."""
        if name not in sections:
            return None
        self.reached.add(name)
        return sections[name]

    def check_reached(self) -> None:
        """Sections of this file that nothing reaches are typos or left-overs."""
        for name, section in self.mapping.sections.items():
            if section.position.file == self.mapping.file:
                self.check_section(name, section)

    def check_section(self, name: str, section: Section) -> None:
        """Note a section of what the layout does not have, or that no rule leads to."""
        known = {*self.layout.families, *(kind.name for kind in self.layout.all_types())}
        if name not in known:
            message = f"section `{name}`: layout `{self.layout.name}` has no type or family of that name"
            self.error("mapping/no-such-type", message, section.position, did_you_mean(name, known))
        elif name not in self.reached and not self.mapping.abstract and not self.problems:
            message = f"section `{name}` is never used: no rule leads to a config of that type"
            self.error("mapping/unreachable", message, section.position)
