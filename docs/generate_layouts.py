"""Write docs/layouts/*.md: what each type and field of a layout computes, from the docstrings of the reference.

``python docs/generate_layouts.py`` writes it; with ``--check`` it fails if the file is not up to date.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import write_or_check

from crosswalk.compiler.layout.model import MISSING, ConfigType, Field
from crosswalk.jobs.formats import catalog
from crosswalk.reference.formulas import FORMULAS, SILENT_FIELDS, SILENT_TYPES
from crosswalk.reference.mixers.delta import delta_rule
from crosswalk.reference.mlps.moe import ROUTINGS
from crosswalk.reference.parts.activations import ACTIVATIONS

HERE = Path(__file__).parent / "layouts"
LAYOUT = "fast_llm"
INTRODUCTION = """\
<!-- Written by docs/generate_layouts.py from the layout and the docstrings of reference/: edit those. -->
# What a model of the layout fast_llm computes

A native config and its parameters are a model; this page says which, one formula for each type and field. It is made
from the docstrings of `reference/`, the forward pass in plain torch that they describe, and from the layout
(`mappings/layouts/fast_llm.yaml`): what is written here is what is run, and it is tested against the original trainer
and against the classes of transformers. `crosswalk compare` runs it on a checkpoint.
`tests/with_fast_llm/check.py` lets the trainer itself load checkpoints that Crosswalk wrote, and native models with any
field changed: in 270 of them, no logits differed by more than 1e-5 of their size.

Capital letters are parameters or numbers; a linear map W has the weight (out, in) unless it says otherwise. `x[t]` is
the element t of a sequence. Fields of `training` are not here: they do not change what a stored model computes."""


@dataclass(frozen=True, slots=True)
class Formula:
    """What a docstring says: a summary, the formula, and what each field does."""

    summary: str
    formula: str
    fields: Mapping[str, str]


def formula_of(function: Callable[..., Any]) -> Formula:
    """The parts of a docstring: its first paragraph, what is indented, and the list of fields. What comes after is for
    callers of the function."""
    text = inspect.getdoc(function) or ""
    paragraphs = re.split(r"\n\s*\n", text)
    formula = [paragraph for paragraph in paragraphs if paragraph.startswith("    ")]
    bullets = next((paragraph for paragraph in paragraphs if paragraph.startswith("* ")), "")
    fields = dict(re.findall(r"^\* `(\w+)`: (.*?)(?=\n\* |\Z)", bullets, flags=re.DOTALL | re.MULTILINE))
    return Formula(
        _line(paragraphs[0]).replace("``", "`"),
        inspect.cleandoc("\n".join(formula)),
        {name: _line(what) for name, what in fields.items()},
    )


def sections() -> Iterator[tuple[str, ConfigType, Callable[..., Any]]]:
    """Title, type and function of every section, in reading order."""
    layout = catalog().layout(LAYOUT)
    for name, functions in FORMULAS.items():
        if isinstance(functions, Mapping):
            for each, function in functions.items():
                default = ", the default" if each == layout.families[name].default else ""
                yield f"{name}: {each}{default}", layout.families[name].types[each], function
        else:
            yield name, layout.types[name], functions


def render() -> str:
    """The whole document."""
    lines = [INTRODUCTION]
    described: dict[Callable[..., Any], ConfigType] = {}
    for title, kind, function in sections():
        base = described.setdefault(function, kind)
        lines += ["", f"## {title}", "", *_section(kind, formula_of(function), base)]
        if kind.name == "kda":
            lines += ["", "## The gated delta rule", "", *_text(formula_of(delta_rule))]
    lines += ["", "## Activations", "", "| name | value |", "|---|---|"]
    lines += [f"| `{name}` | `{text}` |" for name, (text, _) in ACTIVATIONS.items()]
    lines += ["", "## Routing", "", "r are the logits of the router; E are the chosen experts and s their scores.", ""]
    lines += ["| name | value |", "|---|---|"]
    lines += [f"| `{name}` | {formula_of(function).summary} |" for name, function in ROUTINGS.items()]
    lines += ["", "## What computes nothing", "", "| type | field | why |", "|---|---|---|"]
    lines += [f"| `{name}` | | {why} |" for name, why in SILENT_TYPES.items()]
    lines += [f"| `{name}` | `{field}` | {why} |" for (name, field), why in SILENT_FIELDS.items()]
    return "\n".join(lines) + "\n"


def _section(kind: ConfigType, formula: Formula, base: ConfigType) -> list[str]:
    """A section; of a type that the function of another one holds for, what it has more than that."""
    more = base is not kind
    lines = [f"As `{base.name}`, and:"] if more else _text(formula)
    if kind.parameters and not more:
        lines += ["", "| parameter | axes | if |", "|---|---|---|"]
        for parameter in kind.parameters:
            condition = f"`{parameter.condition.text}`" if parameter.condition else ""
            axes = f"`{parameter.pattern}`".replace("|", "\\|")
            lines.append(f"| `{parameter.name}` | {axes} | {condition} |")
    fields = [
        field
        for field in kind.fields.values()
        if field.group != "training" and not (more and field.name in base.fields)
    ]
    if fields:
        lines += ["", "| field | type | default | what it does |", "|---|---|---|---|"]
        for field in fields:
            what = formula.fields.get(field.name) or SILENT_FIELDS[kind.name, field.name]
            lines.append(f"| `{field.name}` | {_type(field)} | {_default(field)} | {what} |")
    return lines


def _text(formula: Formula) -> list[str]:
    return [formula.summary, "", "```", formula.formula, "```"]


def _line(text: str) -> str:
    return " ".join(text.split())


def _type(field: Field) -> str:
    name = f"{field.kind} of {field.of}" if field.kind in ("dict", "list") and field.of != field.kind else field.of
    bound = f" {field.bound[0]} {field.bound[1]:g}" if field.bound else ""
    return f"{name}{bound}{' or null' if field.nullable else ''}"


def _default(field: Field) -> str:
    if field.default is MISSING:
        return ""
    if field.is_config and field.default is not None:
        return ""
    return json.dumps(field.default)


if __name__ == "__main__":
    sys.exit(write_or_check(HERE / f"{LAYOUT}.md", render(), sys.argv[1:]))
