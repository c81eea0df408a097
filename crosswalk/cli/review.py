"""``plan --html``: one page for the review of a mapping, with nothing outside of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from crosswalk.compiler.relations.keys import get
from crosswalk.compiler.relations.rules import FieldRule
from crosswalk.jobs.prepare import Prepared
from crosswalk.jobs.report import Report
from crosswalk.pictures.blocks import Picture, axes_of_natives, picture
from crosswalk.pictures.svg import drawn
from crosswalk.proving.reading import line_of_key
from crosswalk.runtime.errors import Diagnostic, Position

from .configs import Keys, set_by
from .lines import bytes_text, facts_of, short
from .plans import Relation, relations_of

#: Most parameters that are drawn.
_DRAWN = 60
#: What stands in the place of a line where a field is at its default.
_DEFAULT = "default of the layout"


def page(prepared: Prepared, findings: Sequence[Diagnostic] = ()) -> str:
    """The page of a conversion: both configs with the line that relates each field, the tensor relations, drawings of
    the parameters that are not simply renamed, and ``findings`` of ``prove`` beside their lines."""
    from jinja2 import Environment

    template = (resources.files("crosswalk.pictures") / "review.html").read_text(encoding="utf-8")
    relations = relations_of(prepared.plan, prepared.to == "hf", list(prepared.bound.native))
    rows = list(_config_rows(prepared, findings))
    context = {
        "title": f"Crosswalk: {prepared.mapping.source.architecture or prepared.mapping.name}",
        "facts": facts_of(Report.of(prepared)),
        "findings": [_finding(found) for found in findings],
        "config": [row for row in rows if row["text"] != _DEFAULT],
        "defaults": [row for row in rows if row["text"] == _DEFAULT],
        "tensors": [_tensor_row(prepared, relation, findings) for relation in relations],
        "drawings": _drawings(prepared, relations),
    }
    return Environment(autoescape=True, trim_blocks=True).from_string(template).render(context)


def _finding(found: Diagnostic) -> dict[str, str]:
    text = found.message + (f"\nhint: {found.hint}" if found.hint else "")
    place = short(str(found.position)) if found.position else ""
    return {"severity": found.severity, "message": text, "place": place}


def _config_rows(prepared: Prepared, findings: Sequence[Diagnostic]) -> Iterator[dict[str, Any]]:
    config, places = json.loads(prepared.text), set_by(prepared.bound.cases)
    keys = {rule.position: rule.theirs for rule in _field_rules(prepared)}
    shown: set[Keys] = set()
    for path, value in _leaves(prepared.config):
        place = places.get(path)
        key = keys.get(place, ()) if place else ()
        found = get(config, key) if key else None
        shown.add(key)
        yield {
            "key": ".".join(key), "hf": _value(found) if key and _is_there(config, key) else "",
            "field": ".".join(path), "native": _value(value), **_line(place, findings, _DEFAULT),
        }  # fmt: skip
    for path, value in _leaves(config):
        if not any(path[: len(key)] == key for key in shown if key):
            place = line_of_key(prepared.mapping, path)
            known = place if place != prepared.mapping.source.position else None
            yield {
                "key": ".".join(path), "hf": _value(value), "field": "", "native": "",
                **_line(known, findings, "no line speaks of it"),
            }  # fmt: skip


def _field_rules(prepared: Prepared) -> Iterator[FieldRule]:
    for taken in prepared.bound.cases.values():
        for chosen in taken:
            yield from (rule for rule in chosen.struct.rules if isinstance(rule, FieldRule))


def _is_there(config: Mapping[str, Any], path: Keys) -> bool:
    return any(found[: len(path)] == path for found, _ in _leaves(config))


def _leaves(value: Mapping[str, Any], at: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, (*at, key))
        else:
            yield (*at, key), item


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _line(place: Position | None, findings: Sequence[Diagnostic], otherwise: str) -> dict[str, Any]:
    """What a line says, where it is, and what was found there."""
    if place is None:
        return {"text": otherwise, "place": "", "findings": []}
    beside = [_finding(found) for found in findings if found.position == place]
    return {"text": _source_line(place), "place": short(str(place)), "findings": beside}


def _source_line(place: Position) -> str:
    try:
        lines = Path(place.file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return lines[place.line - 1].strip() if 0 < place.line <= len(lines) else ""


def _tensor_row(prepared: Prepared, relation: Relation, findings: Sequence[Diagnostic]) -> dict[str, Any]:
    rules = [prepared.plan.rules[n] for n in sorted({pair.rule for pair in relation.pairs if pair.rule is not None})]
    positions = {rule.position for rule in rules}
    return {
        "hf": relation.hf, "native": relation.native, "size": bytes_text(relation.nbytes) if relation.nbytes else "",
        "lines": [f"{rule.text}  {short(rule.position)}" for rule in rules],
        "findings": [_finding(found) for found in findings if str(found.position) in positions],
    }  # fmt: skip


def _drawings(prepared: Prepared, relations: Sequence[Relation]) -> list[Mapping[str, Any]]:
    """One of each kind of native parameter that is more than a tensor under another name."""
    names = dict.fromkeys(relation.pairs[0].native for relation in relations)
    pictures = [found for name in names if (found := picture(prepared.plan, name)) and not _is_plain(found)][:_DRAWN]
    axes = axes_of_natives(prepared.mapping, prepared.config, [found.tensor.name for found in pictures])
    return [drawn(found, axes.get(found.tensor.name, "")) for found in pictures]


def _is_plain(found: Picture) -> bool:
    return len(found.blocks) == 1 and not found.blocks[0].transposed and not found.scattered
