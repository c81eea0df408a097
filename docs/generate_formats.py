"""Write docs/formats.md from the compiled mappings and the notes in docs/formats.yaml.

``python docs/generate_formats.py`` writes it; with ``--check`` it fails if the file is not up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pages import write_or_check

from crosswalk.compiler.config.dialects import choose_dialects
from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.mapping.model import MappingFile, TensorEntry
from crosswalk.compiler.notation.axes import format_terms
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.relations.rules import Carried, CheckRule, FieldRule, OursFact, Rule, TheirsFact, Unused
from crosswalk.compiler.relations.tree import (
    CaseNode,
    CompiledMapping,
    Entries,
    Layers,
    Node,
    Nullable,
    PartNode,
    Struct,
)
from crosswalk.compiler.text.documents import Map, load_document
from crosswalk.jobs.formats import catalog

HERE = Path(__file__).parent
LAYOUT = "fast_llm"
Row = tuple[str, ...]
#: The kinds and cases that a line stands in: what tells them apart, and which one it is.
Where = tuple[tuple[str, str], ...]
#: Rows of one table, each with every place in which it holds.
Table = dict[Row, list[Where]]


def render() -> str:
    """The whole document."""
    notes = load_document(HERE / "formats.yaml")
    found = catalog()
    formats = [name for name in found.formats() if found.mapping(name).layout == LAYOUT]
    parts = sorted({part for name in formats for part in _parts(found.compiled(name))} - set(formats))
    lines = [notes["introduction"].strip(), ""]
    lines += ["| format | `model_type` | architecture | extends |", "|---|---|---|---|"]
    for name in formats:
        mapping = found.mapping(name)
        types = ", ".join(f"`{kind}`" for kind in mapping.model_types)
        lines.append(f"| [{name}](#{name}) | {types} | {mapping.architecture} | {_extends(mapping)} |")
    lines += ["", "## Names", ""]
    for enum, table in found.mapping("huggingface").enums.items():
        rows = "; ".join(f"{_value(r.theirs)}: `{r.ours}`{f' (lossy: {r.lossy})' if r.lossy else ''}" for r in table)
        lines.append(f"**{enum}**, hf and native; of several for one the first is written: {rows}.")
    for name in formats:
        lines += ["", f"## {name}", "", *_format(found.compiled(name), notes["formats"].get(name, Map()))]
    lines += ["", "# Parts", "", notes["parts"].strip()]
    for name in parts:
        lines += ["", f"## {name}", "", *_format(found.compiled(name), Map())]
    lines += [
        "",
        "# Not representable anywhere",
        "",
        notes["nowhere"]["about"].strip(),
        "",
        "| what | why |",
        "|---|---|",
    ]
    for row in notes["nowhere"]["rows"]:
        lines.append(f"| {', '.join(f'`{name}`' for name in row['what'])} | {row['why']} |")
    lines += ["", "# What is refused", "", *_refused(found.mapping("huggingface"), notes["refused"])]
    return "\n".join(lines).rstrip() + "\n"


def _refused(common: MappingFile, notes: Mapping[str, Any]) -> list[str]:
    """What no format has, by key, by model type and by tensor."""
    lines = [notes["about"].strip(), "", "| feature | keys, and where they are harmless |", "|---|---|"]
    keys: dict[str, list[str]] = {}
    for entry in common.keeps:
        if entry.values:
            harmless = " or ".join(map(_value, entry.values))
            keys.setdefault(entry.why or "", []).append(f"`{_dotted(entry.theirs)}` ({harmless})")
    lines += [f"| {feature} | {', '.join(listed)} |" for feature, listed in keys.items()]
    lines += ["", "| `model_type`, or ending of the class | what it has |", "|---|---|"]
    lines += [f"| `{name}` | {what} |" for name, what in common.unmapped.items()]
    lines += ["", notes["files"].strip(), "", "| tensor | made by |", "|---|---|"]
    return lines + [f"| `{name}` | {', '.join(tools)} |" for name, tools in common.quantised]


def _extends(mapping: MappingFile) -> str:
    bases = [name for name in mapping.ancestors if not catalog().mapping(name).abstract]
    return bases[-1] if bases else ""


def _parts(mapping: CompiledMapping) -> set[str]:
    result: set[str] = set()
    for node, _ in _walk(mapping.root, ()):
        if isinstance(node, PartNode):
            for part in node.mappings:
                result |= {part.name} | _parts(part)
    return result


def _format(mapping: CompiledMapping, notes: Mapping[str, Any]) -> list[str]:
    source = mapping.source
    lines = [notes["about"].strip(), ""] if "about" in notes else []
    if source.config_class:
        lines.append(f"Config class: `{source.config_class}`.")
    if source.files:
        lines.append(f"Model files: {', '.join(f'`{name}`' for name in source.files)}.")
    for name, keys in source.derived_files.items():
        listed = ", ".join(f"`{key}`" for key in keys)
        lines.append(f"`{name}` is carried along or taken from `--model-files`; without one it is made of {listed}.")
    for kind, tower in source.tower_of.items() if source.place("tower_of").file == source.file else ():
        prefixes = ", ".join(f"`{old}.*`" for old, _ in tower.tensors)
        lines.append(f"With `--text-only` out of a `{kind}`, from `{'.'.join(tower.config)}` and tensors {prefixes}.")
    lines += _dialects(mapping)
    keys, fields, tensors, silent, checks = _tables(mapping)
    head = ("key of config.json", "field of the trainer", "on import, if absent", "on export", "what must hold")
    lines += _table("Config keys", (*head, "where"), keys)
    lines += _table("What config.json does not say", ("object", "field of the trainer", "value", "where"), fields)
    lines += _table("Tensors", ("object", "tensor", "parameter of the trainer", "axes", "where"), tensors)
    lines += _table("Checks", ("object", "condition", "if it does not hold", "where"), checks)
    if silent:
        lines += ["", "**Refused on export**, unless it is not used:", ""]
        for title, names in silent.items():
            lines.append(f"* {title}: {', '.join(f'`{name}`' for name in dict.fromkeys(names))}")
    if "gains" in notes:
        lines += ["", "**For users of the original converters:**", "", *(f"* {gain}" for gain in notes["gains"])]
    return lines


def _dialects(mapping: CompiledMapping) -> list[str]:
    source = mapping.source
    if not source.dialects:
        return []
    newest = source.newest or "newest"
    written = ", ".join(f"`{name}`" for name in choose_dialects(mapping, None))
    lines = [
        "",
        f"**Dialects.** The tables below are those of `{newest}`; written where no file says otherwise: {written}.",
        "Which one a file is in is found from the file: every old place that it has is read.",
        "",
        "| dialect | old place | place below | how |",
        "|---|---|---|---|",
    ]
    for dialect in source.dialects.values():
        for move in dialect.config:
            how = ["read, never written"] if move.legacy else []
            how += ["the new place counts where they differ"] if move.yields else []
            how += [f"{_value(value)} means that it is not there" for value in move.unset]
            how += [f"absent from both: {_value(move.default)}"] if move.default is not MISSING else []
            how += [f"counts only with `{move.when.text}`"] if move.when else []
            lines.append(f"| `{dialect.name}` | `{_dotted(move.old)}` | `{_dotted(move.new)}` | {'; '.join(how)} |")
        for old, new in dialect.tensors:
            lines.append(f"| `{dialect.name}` | tensors `{old}.*` | `{new}.*` | told apart by the names in the file |")
        for kind, section in dialect.sections.items():
            for line in section.tensors:
                axes = f" `{format_terms(line.dims)}`" if line.dims else ""
                ours = ", ".join(_dotted(path) for path in line.ours)
                how = "in place of those below, told apart by the names in the file"
                old = f"`{kind}`: tensor `{line.theirs}`{axes}".replace("|", "\\|")
                lines.append(f"| `{dialect.name}` | {old} | `{ours}` | {how} |")
    return lines


def _table(title: str, head: Row, rows: Table) -> list[str]:
    if not rows:
        return []
    body = _merged([(*row, _where(places, rows)) for row, places in rows.items()])
    if not any(row[-1] for row in body):
        head, body = head[:-1], [row[:-1] for row in body]
    lines = ["", f"**{title}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in body]


def _where(places: list[Where], rows: Table) -> str:
    """Which kinds and cases a row is limited to; nothing is said of what it holds in all of."""
    every = _choices(place for others in rows.values() for place in others)
    own = _choices(places)
    limited = {key: values for key, values in own.items() if values.keys() != every[key].keys()}
    return "; ".join(f"{key.rsplit('.', 1)[-1]} {' or '.join(values)}" for key, values in limited.items())


def _choices(places: Iterable[Where]) -> dict[str, dict[str, None]]:
    result: dict[str, dict[str, None]] = {}
    for key, value in (pair for place in places for pair in place):
        result.setdefault(key, {})[value] = None
    return result


def _merged(rows: list[Row]) -> list[Row]:
    """Rows that differ in their second column alone as one: a key that several fields share."""
    merged: dict[Row, list[str]] = {}
    for first, second, *others in rows:
        merged.setdefault((first, *others), []).append(second)
    return [
        (first, ", ".join(dict.fromkeys(filter(None, seconds))), *others)
        for (first, *others), seconds in merged.items()
    ]


def _tables(mapping: CompiledMapping) -> tuple[Table, Table, Table, dict[str, list[str]], Table]:
    common = {entry.theirs for entry in catalog().mapping("huggingface").keeps}
    keys, fields, tensors, checks = Table(), Table(), Table(), Table()
    silent: dict[str, list[str]] = {}
    for node, where in _walk(mapping.root, ()):
        for row in _of_node(node):
            _add(keys, row, where)
        title = _title(node)
        for rule in node.rules if isinstance(node, (Struct, Layers)) else ():
            if isinstance(rule, Unused):
                silent.setdefault(title, []).append(_dotted(rule.ours))
            elif isinstance(rule, OursFact):
                _add(fields, (title, f"`{_dotted(rule.ours)}`", _value(rule.value)), where)
            elif isinstance(rule, CheckRule):
                what = rule.line.message if rule.line.severity == "error" else f"a note: {rule.line.message}"
                _add(checks, (title, f"`{rule.line.expression.text}`", what), where)
            elif rule.theirs != ("model_type",) and not (isinstance(rule, Carried) and rule.theirs in common):
                _add(keys, _key(rule), where)
        for row in _of_tensors(node) if isinstance(node, Struct) else ():
            _add(tensors, (title, *row), where)
    return keys, fields, tensors, silent, checks


def _of_node(node: Node) -> Iterator[Row]:
    """What is said of keys by a choice, a sequence of layers or a part."""
    if isinstance(node, CaseNode):
        yield _choice(node)
    elif isinstance(node, Layers):
        yield from _layers(node)
    elif isinstance(node, PartNode):
        names = " or ".join(f"[{part.name}](#{part.name})" for part in node.mappings)
        ours = f"`{_dotted(node.ours)}`" if node.ours else "the model itself"
        prefix = f"tensors `{node.part.tensors}.*`" if node.part.tensors else ""
        absent = "null" if node.part.optional else "error"
        yield f"`{_dotted(node.part.theirs)}`", f"{ours}, as {names}", absent, prefix, ""


def _of_tensors(node: Struct) -> Iterator[Row]:
    yield from map(_tensor, node.section.tensors)
    if node.section.same_names:
        yield "all others", "of the same name", ""
    elif node.section.name and not node.section.has_tensors and node.type.parameters:
        yield "all", "of the same name", ""


def _add(table: Table, row: Row, where: Where) -> None:
    table.setdefault(row, []).append(where)


def _walk(node: Node, where: Where) -> Iterator[tuple[Node, Where]]:
    """Every node, with the kinds and cases that it stands in. Parts have sections of their own."""
    yield node, where
    match node:
        case Struct():
            for child in node.children:
                yield from _walk(child, where)
        case CaseNode():
            for case in node.cases:
                yield from _walk(case.node, (*where, (_dotted(node.key), _value(case.value))))
        case Layers():
            for kind in node.kinds:
                yield from _walk(kind.node, where if kind.name is None else (*where, ("kind", f"`{kind}`")))
        case Nullable() | Entries():
            yield from _walk(node.node, where)
        case PartNode():
            yield from _walk(node.beside, where)


def _title(node: Node) -> str:
    if isinstance(node, Struct):
        return str(node.type.name)
    return "layers" if isinstance(node, Layers) else ""


def _key(rule: Rule) -> Row:
    match rule:
        case FieldRule(line=line):
            absent = "null" if line.default is None else "error" if line.default is MISSING else _value(line.default)
            if line.otherwise is not MISSING:
                absent += f", or {_value(line.otherwise)} if the tensors say so"
            export = "always" if line.omit is MISSING else f"unless {_value(line.omit)}"
            export = _value(line.write) if line.write is not None else export
            hold = ["not null"] if line.required else []
            hold += [f"{_value(value)} is as if absent" for value in line.unset]
            hold += [f"also as `{_dotted(alias)}`" for alias in rule.places()[1:]]
            if rule.table:
                hold.append(f"a name of [{rule.field.of}](#names)")
            return f"`{_dotted(rule.theirs)}`", f"`{_dotted(rule.ours)}`", absent, export, "; ".join(hold)
        case TheirsFact(line=line):
            allowed = " or ".join(_value(value) for value in line.values)
            absent = "allowed" if line.default is MISSING else _value(line.default)
            must = f"must be {allowed}" + (f": {line.why}" if line.why else "")
            return f"`{_dotted(rule.theirs)}`", "", absent, "always" if line.kind == "const" else "never", must
        case Carried(line=line):
            absent = "" if line.default is MISSING else _value(line.default)
            export = _value(line.write) if line.write is not None else "as it was" if rule.kept else "never"
            hold = f"must be {' or '.join(map(_value, line.values))}: no {line.why}" if line.values else "carried along"
            return f"`{_dotted(rule.theirs)}`", "", absent, export, hold if rule.kept else ""
    raise AssertionError(rule)


def _choice(node: CaseNode) -> Row:
    cases = []
    for case in node.cases:
        name = case.node.type.name if isinstance(case.node, Struct) else ""
        cases.append(f"{_value(case.value)}: `{name}`" if name != case.value else _value(case.value))
    refused = [f"not {_value(refused.value)}: {refused.why}" for refused in node.refused]
    absent = "error" if node.default is MISSING else _value(node.default)
    ours = f"type of `{_dotted(node.ours)}`" if node.ours else "type"
    return f"`{_dotted(node.key)}`", ours, absent, "always", "; ".join(["one of " + ", ".join(cases), *refused])


def _layers(node: Layers) -> Iterator[Row]:
    ours = _dotted(node.ours)
    yield f"`{_dotted(node.count)}`", f"`{ours}.num_blocks`", "error", "always", ""
    kinds = ", ".join(f"`{kind}`" for kind in node.kinds)
    if isinstance(node.each, Expression):
        said = f"kind of a layer: {_value(node.each)}"
        yield said, f"`{ours}.pattern`", "", "by the keys that it names", f"one of {kinds}"
    elif node.each is not None:
        hold = f"a list of {kinds}" + ("; a short list starts again" if node.repeats else ", one for each layer")
        absent = "error" if node.each_default is MISSING else _value(node.each_default)
        yield f"`{_dotted(node.each)}`", f"`{ours}.pattern`", absent, "always, in full", hold
    if node.overrides is not None:
        among = sorted(node.overridable or ())
        hold = f"{', '.join(f'`{key}`' for key in among)}, the same for all layers of a kind" if among else ""
        yield f"`{_dotted(node.overrides)}`", "what differs in single layers", "", "always", hold


def _tensor(line: TensorEntry) -> Row:
    ours = ", ".join(f"`{_dotted(path)}`" for path in line.ours) or "not needed, never written"
    types = f" if {' or '.join(line.types)}" if line.types else ""
    axes = format_terms(line.dims) if line.dims else ""
    return f"`{line.theirs}`", ours + types, f"`{axes}`" if axes else ""


def _dotted(path: KeyPath) -> str:
    return ".".join(path)


def _value(value: Any) -> str:
    if isinstance(value, Expression):
        return f"`= {' '.join(value.text.split())}`"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Mapping):
        return "`{" + ", ".join(f"{key}: {_value(item).strip('`')}" for key, item in value.items()) + "}`"
    return f"`{value}`"


if __name__ == "__main__":
    sys.exit(write_or_check(HERE / "formats.md", render(), sys.argv[1:]))
