"""Print plans, formats and coverage as tables."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosswalk.compiler.config.dialects import choose_dialects
from crosswalk.compiler.mapping.model import Line, MappingFile, Section
from crosswalk.compiler.relations.tree import (
    Carried,
    CompiledMapping,
    FieldRule,
    OursFact,
    Rule,
    Struct,
    TheirsFact,
    Unused,
    nodes_of,
    rules_of,
)
from crosswalk.jobs.formats import catalog, format_named
from crosswalk.jobs.prepare import Prepared
from crosswalk.jobs.report import Report
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.regions import Region

from .render import visible
from .report import bytes_text, show_report


class _Plain(Console):
    """Text is printed as it is: names out of a checkpoint are no markup, and no commands to the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})


def console() -> Console:
    """Width follows the terminal; without one there is no limit, so that no name is cut in two in a log."""
    plain = _Plain()
    return plain if plain.is_terminal else _Plain(width=10_000, highlight=False)


def table(*columns: str, title: str | None = None) -> Table:
    result = Table(box=SIMPLE_HEAD, title=title, title_style="bold", title_justify="left", pad_edge=False)
    for column in columns:
        result.add_column(column, overflow="fold")
    return result


def show_plan(prepared: Prepared, workers: int | None) -> None:
    """Costs and verdict, then every rule with the tensors that it relates, layers folded."""
    from crosswalk.runtime.files.workers import peak_memory

    show_report(Report.of(prepared))
    threads = workers or min(4, os.cpu_count() or 1)
    out = console()
    out.print(f"peak memory: {bytes_text(peak_memory(threads))} with {threads} workers, whatever the model\n")
    plan = prepared.plan
    by_rule: dict[int, dict[str, set[str]]] = {}
    sizes: dict[int, int] = {}
    for copy in plan.copies:
        names = by_rule.setdefault(copy.rule, {"from": set(), "to": set()})
        names["from"].add(plan.sources[copy.source].name)
        names["to"].add(plan.targets[copy.target].name)
        sizes[copy.rule] = sizes.get(copy.rule, 0) + copy.elements * size_of(plan.sources[copy.source].dtype)
    rows = table("from", "to", "bytes", "rule", "line")
    for index, names in sorted(by_rule.items()):
        rule = plan.rules[index]
        rows.add_row(
            _folded(names["from"]), _folded(names["to"]), bytes_text(sizes[index]), f"{rule.mapping}: {rule.text}",
            _short(rule.position),
        )  # fmt: skip
    for how, regions, tensors in (("padded", plan.padded, plan.targets), ("truncated", plan.truncated, plan.sources)):
        for region in regions:
            spec, rule = tensors[region.tensor], plan.rules[region.rule]
            ends = ("zeros", spec.name) if how == "padded" else (spec.name, "left out")
            size = bytes_text(region.elements * size_of(spec.dtype))
            rows.add_row(*ends, size, f"{rule.mapping}: {rule.text}", _short(rule.position))
    exempt: dict[str, set[str]] = {}
    for exemption in plan.exemptions:
        what = f"equal to {exemption.of}" if exemption.of else exemption.reason
        exempt.setdefault(f"{exemption.kind}: {what}", set()).add(exemption.tensor)
    for what, names_of in exempt.items():
        rows.add_row(_folded(names_of), "", "", what, "")
    out.print(rows)


def show_explanation(prepared: Prepared, tensor: str) -> None:
    """The copies of one tensor: extents and strides on both ends, and the line of the mapping."""
    found = prepared.plan.explain(tensor)
    out = console()
    for end in ("target", "source"):
        spec = next((item[end] for item in found if item[end] and item[end].name == tensor), None)
        if spec is not None:
            out.print(f"{spec.name}  {list(spec.shape)}  {spec.dtype}  ({end})")
            break
    rows = table("source", "shape", "target", "extents", "source at", "target at", "rule", "line")
    for item in found:
        source, target, copy, rule = item["source"], item["target"], item["copy"], item["rule"]
        if isinstance(copy, Region):
            place = f"{copy.offset} + {list(copy.strides)}"
            source_at, target_at = (place, "") if source else ("", place)
        else:
            source_at = f"{copy.source_offset} + {list(copy.source_strides)}"
            target_at = f"{copy.target_offset} + {list(copy.target_strides)}"
        rows.add_row(
            source.name if source else "zeros",
            str(list(source.shape)) if source else "",
            target.name if target else "left out",
            str(list(copy.extents)),
            source_at,
            target_at,
            f"{rule.mapping}: {rule.text}" if rule else "",
            _short(rule.position) if rule else "",
        )
    for exemption in prepared.plan.exemptions:
        if tensor in (exemption.tensor, exemption.of):
            out.print(f"{exemption.tensor} is {exemption.kind}: {exemption.of or exemption.reason}")
    for name in dict.fromkeys(item["source"].name for item in found if item["source"]):
        encoding = prepared.plan.encoding_of.get(name)
        if encoding is not None:
            stored = " and ".join(f"{part.name} ({part.dtype} {list(part.shape)})" for part in encoding.stored)
            out.print(f"{name} is stored as {stored}")
    out.print(rows)


def show_formats() -> None:
    """Every format with its class, dialects and model files, a table for each layout."""
    mappings = [catalog().mapping(name) for name in catalog().formats()]
    for layout in sorted({str(mapping.layout) for mapping in mappings}):
        title = f"layout {layout}"
        rows = table("format", "model_type", "architecture", "config class", "dialects", "model files", title=title)
        for mapping in mappings:
            if mapping.layout == layout:
                rows.add_row(
                    mapping.name,
                    mapping.model_type,
                    mapping.architecture,
                    mapping.config_class,
                    ", ".join(_dialects(mapping)),
                    ", ".join(mapping.files),
                )
        console().print(rows)


def _dialects(mapping: MappingFile) -> list[str]:
    """The dialects of a format as an option takes them, the newest first."""
    return [name.replace("_", "-") for name in (mapping.newest or "newest", *mapping.dialects)]


def show_format(name: str) -> None:
    """The flattened mapping of a format: each line with its origin, and what replaced what."""
    compiled = format_named(name)
    mapping = compiled.source
    out = console()
    out.print(f"{name}: {' <- '.join((name, *reversed(mapping.ancestors)))}")
    written = ", ".join(dialect.replace("_", "-") for dialect in choose_dialects(compiled, None))
    out.print(f"dialects: {', '.join(_dialects(mapping))}; written without a source: {written}\n")
    for section in mapping.sections.values():
        rows = table("line", "at", "replaces", title=section.name)
        replaced: dict[object, list[str]] = {}
        for item in section.replaced:
            replaced.setdefault(item.new.position, []).append(f"{item.old} ({_short(str(item.old.position))})")
        for line in _lines(section):
            rows.add_row(str(line), _short(str(line.position)), "; ".join(replaced.get(line.position, ())))
        out.print(rows)


def show_coverage(compiled: Iterable[CompiledMapping]) -> None:
    """What each mapping covers of its layout and of its own files."""
    rows = table("mapping", "layout", "types", "fields related", "stated", "held at default", "keys", "tensor lines")
    for mapping in compiled:
        rules = list(rules_of(mapping.root))
        types = {struct.type.name for struct in _structs(mapping)}
        rows.add_row(
            mapping.name,
            mapping.layout.name,
            str(len(types)),
            str(len({rule.field.position for rule in rules if isinstance(rule, FieldRule)})),
            str(len({rule.position for rule in rules if isinstance(rule, (OursFact, TheirsFact))})),
            str(len({(rule.field.position) for rule in rules if isinstance(rule, Unused)})),
            str(len({r.theirs for r in rules if isinstance(r, (FieldRule, TheirsFact)) or _is_own(r, mapping)})),
            str(sum(len(section.tensors) for section in mapping.source.sections.values())),
        )
    console().print(rows)


def _is_own(rule: Rule, mapping: CompiledMapping) -> bool:
    """Whether a key is carried by a line of this file, and not because every config has it."""
    return isinstance(rule, Carried) and rule.position.file == mapping.source.file


def _structs(mapping: CompiledMapping) -> list[Struct]:
    return [node for node in nodes_of(mapping.root) if isinstance(node, Struct)]


def _lines(section: Section) -> list[Line]:
    return [*section.config, *section.sets, *section.tensors]


def _folded(names: set[str]) -> str:
    return "\n".join(pattern for pattern, _ in fold(sorted(names)))


def _short(position: str) -> str:
    """``llama.yaml:37:5`` for a long path."""
    file, _, rest = position.partition(":")
    return f"{Path(file).name}:{rest}" if rest else Path(file).name
