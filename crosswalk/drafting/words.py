"""The words that shipped mappings have for the trainer's fields and parameters: where a draft looks first."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.mapping.model import Section, TensorEntry
from crosswalk.compiler.notation.axes import format_terms
from crosswalk.compiler.notation.expressions import Expression
from crosswalk.runtime.records import Record, field

Place = tuple[str, str]


class Words(Record):
    """``keys``: (section, field) -> hf keys; ``facts``: (section, field, value) that a format states; ``names``:
    (section, parameter) -> names of tensors; ``orders``: sections with their lines that say in which order axes are."""

    keys: dict[Place, list[str]] = field(default_factory=dict)
    facts: list[tuple[str, str, Any]] = field(default_factory=list)
    names: dict[Place, list[str]] = field(default_factory=dict)
    orders: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def key_of(self, section: str, field_name: str) -> list[str]:
        """Keys that hold a field in this section, then those in any."""
        others = [key for (_, name), keys in self.keys.items() if name == field_name for key in keys]
        return list(dict.fromkeys((*self.keys.get((section, field_name), ()), *others)))

    def names_of(self, section: str, parameter: str) -> list[str]:
        """Names of a parameter in this section, and those of other sections below its prefixes: an expert holds what an
        MLP does."""
        own = self.names.get((section, parameter), [])
        others = [name for (_, other), names in self.names.items() if other == parameter for name in names]
        prefixes = {name.rpartition(".")[0] for name in own} - {""}
        return list(dict.fromkeys((*own, *others, *(f"{p}.{n.rpartition('.')[2]}" for p in prefixes for n in others))))


def words_of(catalog: Catalog, layout: str, without: Collection[str]) -> Words:
    """The words of every mapping onto a layout, those of the formats ``without`` excepted."""
    words = Words()
    for name in catalog.names():
        mapping = catalog.mapping(name)
        if mapping.layout == layout and name not in without:
            for section in mapping.sections.values():
                for part in _parts(section):
                    _collect(words, section.name, part)
    return words


def _parts(section: Section) -> Iterator[Section]:
    yield section
    for case in section.cases.values():
        yield from _parts(case)


def _collect(words: Words, name: str, section: Section) -> None:
    for entry in section.config:
        if entry.ours is not None and entry.kind == "field":
            _add(words.keys, (name, ".".join(entry.ours)), ".".join(entry.theirs))
    for fact in section.sets:
        found = (name, ".".join(fact.ours), fact.value)
        if isinstance(fact.value, (str, bool)) and not isinstance(fact.value, Expression) and found not in words.facts:
            words.facts.append(found)
    order = {str(line.theirs): _right(line) for line in section.tensors if line.dims is not None and not line.types}
    if order and (name, order) not in words.orders:
        words.orders.append((name, order))
    for line in section.tensors:
        if len(line.ours) == 1 and line.dims is None and line.types is None:
            _add(words.names, (name, ".".join(line.ours[0])), str(line.theirs))


def _right(line: TensorEntry) -> dict[str, Any]:
    native = [".".join(path) for path in line.ours]
    return {"is": native[0] if len(native) == 1 else native, "axes": format_terms(line.dims or ())}


def _add(table: dict[Place, list[str]], place: Place, word: str) -> None:
    found = table.setdefault(place, [])
    if word not in found:
        found.append(word)
