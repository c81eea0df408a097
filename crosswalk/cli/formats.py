"""Print formats: the list of them, a flattened mapping, and what mappings cover."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from crosswalk.compiler.config.dialects import choose_dialects
from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.mapping.model import PLACES, Entry, Fact, Line, MappingFile, Section
from crosswalk.compiler.notation.expressions import Expression
from crosswalk.compiler.relations.rules import Carried, FieldRule, OursFact, Rule, TheirsFact, Unused
from crosswalk.compiler.relations.tree import CompiledMapping, Struct, nodes_of, rules_of
from crosswalk.jobs.formats import DEFAULT_LAYOUT, catalog, format_named
from crosswalk.runtime.errors import shorten
from crosswalk.runtime.records import defaults_of

from .lines import aligned, echo, related, short, width, wrapped

Row = tuple[str, str, str]


def show_formats() -> None:
    """Which class goes onto which layout, and by which format; and each format with its class, a line each."""
    mappings = [catalog().mapping(name) for name in catalog().formats()]
    layouts = sorted({str(mapping.layout) for mapping in mappings}, key=lambda name: (name != DEFAULT_LAYOUT, name))
    places: dict[str, dict[str, list[str]]] = {}
    details = dict[tuple[str, ...], None]()
    for mapping in mappings:
        name, code = mapping.name.removeprefix(f"{mapping.layout}_"), "its own" if mapping.files else "transformers"
        architecture = mapping.architecture or name
        places.setdefault(architecture, {}).setdefault(str(mapping.layout), []).append(name)
        details[name, mapping.model_type or "", mapping.architecture or "", code] = None
    matrix = [
        (architecture, *(", ".join(found.get(layout, ["-"])) for layout in layouts))
        for architecture, found in sorted(places.items())
    ]
    head = ("format", "model_type", "architecture", "model code")
    echo([*aligned([("layout:", *layouts), *matrix]), "", *aligned([head, *sorted(details)]), ""])


def _dialects(mapping: MappingFile) -> list[str]:
    """The dialects of a format as an option takes them, the newest first."""
    return [name.replace("_", "-") for name in (mapping.newest or "newest", *mapping.dialects)]


def show_format(name: str) -> None:
    """The flattened mapping of a format, as a diff to what it extends: Hugging Face left, native right, and the place
    of each line."""
    compiled = format_named(name)
    mapping = compiled.source
    written = ", ".join(dialect.replace("_", "-") for dialect in choose_dialects(compiled, None))
    echo((
        *wrapped(f"{name}: {' <- '.join((name, *reversed(mapping.ancestors)))}", width(), ""),
        *(() if mapping.config_class is None else (f"class: {mapping.config_class}",)),
        *wrapped(f"model files: {', '.join(mapping.files)}" if mapping.files else "", width(), ""),
        f"dialects: {', '.join(_dialects(mapping))}",
        f"written without a source: {written}",
    ))  # fmt: skip
    rows = [row for section in mapping.sections.values() for row in ("", *_section(section, section.name, 0))]
    lines = iter(related([row for row in rows if not isinstance(row, str)], "->"))
    for row in rows:
        echo(
            (wrapped(row.lstrip(), width(), row[: -len(row.lstrip())]) or [""]) if isinstance(row, str) else next(lines)
        )


def _section(section: Section, title: str, depth: int) -> Iterator[Row | str]:
    """The lines of a section, and of its kinds and cases further in."""
    indent = "    " * depth
    yield f"{indent}{title}" + (f" of {section.of}" if section.of else "")
    for word, value in _words(section):
        yield f"{indent}    {word}: {value}"
    replaced: dict[object, list[Line]] = {}
    for item in section.replaced:
        replaced.setdefault(item.new.position, []).append(item.old)
    lines: tuple[Line, ...] = (*section.config, *section.sets, *section.tensors)
    for line in lines:
        for old in replaced.get(line.position, ()):
            yield _row(old, f"{indent}  - ", _details(old, line))
        before = replaced.get(line.position, [])
        details = _details(line, before[0]) if len(before) == 1 else ""
        yield _row(line, f"{indent}  {'+' if before else ' '} ", details)
    for check in section.checks:
        yield f"{indent}    {check.severity} unless {check.expression.text}  {short(str(check.position))}"
    for name, case in section.cases.items():
        yield from _section(case, f"  case {name}", depth + 1)
    for name, kind in section.kinds.items():
        yield f"{indent}      kind {name}"
        for word, inner in kind.items():
            yield from _section(inner, f"  {word}", depth + 2)


def _words(section: Section) -> Iterator[tuple[str, str]]:
    """What a section says besides its lines."""
    if section.count:
        yield "count", ".".join(section.count)
    if section.each:
        said = f"= {section.each.text}" if isinstance(section.each, Expression) else ".".join(section.each)
        yield "each", said + (", from the start again where it is short" if section.repeats else "")
    if section.kinds:
        yield "kinds", ", ".join(section.kinds)
    if section.overrides:
        yield "overrides", ".".join(section.overrides)
    if section.by:
        default = "" if section.by_default is MISSING else f", {_text(section.by_default)} if absent"
        yield "by", ".".join(section.by) + default
    if section.cases:
        yield "cases", ", ".join(section.cases)
    if section.refused:
        yield "refused", section.refused
    if section.same_names:
        yield "tensors", "of the same names"


def _details(line: Line, other: Line) -> str:
    """What an entry says that another of the same key and field does not, which would look the same."""
    if not (isinstance(line, Entry) and isinstance(other, Entry)) or (line.kind, line.ours) != (other.kind, other.ours):
        return ""
    texts = []
    unsaid = defaults_of(Entry)
    for word in (name for name in Entry.__struct_fields__ if name not in PLACES):
        value = getattr(line, word)
        if value != getattr(other, word) and not (word in unsaid and value is unsaid[word]):
            texts.append(f"{word} {_text(value)}")
    return f" ({shorten(', '.join(texts), _WIDEST)})" if texts else ""


#: Most characters of what is said so.
_WIDEST = 60


def _row(line: Line, mark: str, details: str = "") -> Row:
    where = short(str(line.position))
    if isinstance(line, Fact):
        return mark, f"{'.'.join(line.ours)}: {_text(line.value)}", where
    if not isinstance(line, Entry):
        return f"{mark}{line.theirs}", ", ".join(".".join(path) for path in line.ours) or "not needed", where
    key = ".".join(line.theirs)
    if line.ours is not None:
        return f"{mark}{key}{details}", ".".join(line.ours), where
    values = " or ".join(map(_text, line.values))
    return f"{mark}{key}" + (f": {values}" if values else ""), _ALONE[line.kind], where


#: What becomes of a key that has no field, by kind of line.
_ALONE = {
    "const": "always so",
    "only": "nothing else",
    "keep": "carried along",
    "drop": "no field of its own",
    "mirror": "written, not read",
    "field": "as an expression says",
}


def _text(value: Any) -> str:
    if isinstance(value, Expression):
        return f"= {' '.join(value.text.split())}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def show_coverage(compiled: Iterable[CompiledMapping]) -> None:
    """What each mapping covers of its layout and of its own files."""
    rows: list[tuple[str, ...]] = [
        ("mapping", "layout", "types", "fields", "stated", "at default", "keys", "tensor lines")
    ]
    for mapping in compiled:
        rules = list(rules_of(mapping.root))
        structs = [node for node in nodes_of(mapping.root) if isinstance(node, Struct)]
        numbers = (
            len({struct.type.name for struct in structs}),
            len({rule.field.position for rule in rules if isinstance(rule, FieldRule)}),
            len({rule.position for rule in rules if isinstance(rule, (OursFact, TheirsFact))}),
            len({rule.field.position for rule in rules if isinstance(rule, Unused)}),
            len({key for rule in rules if (key := _spoken_of(rule, mapping)) is not None}),
            sum(len(section.tensors) for section in mapping.source.sections.values()),
        )
        rows.append((mapping.name, mapping.layout.name, *map(str, numbers)))
    echo(aligned(rows))


def _spoken_of(rule: Rule, mapping: CompiledMapping) -> tuple[str, ...] | None:
    """The key of a rule; of one that is carried only where a line of this file says so, not because all have it."""
    own = isinstance(rule, Carried) and rule.position.file == mapping.source.file
    return rule.theirs if isinstance(rule, (FieldRule, TheirsFact)) or (isinstance(rule, Carried) and own) else None
