"""Print the native config, with the line of the mapping that relates each field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crosswalk.compiler.config.taken import Cases, Chosen
from crosswalk.compiler.relations.rules import FieldRule, OursFact, Rule
from crosswalk.compiler.relations.tree import CaseNode, Entries, Layers, Node, Nullable, PartNode, Struct
from crosswalk.jobs.prepare import Prepared
from crosswalk.runtime.errors import Position

from .lines import aligned, echo, short

#: Names of fields from the root of a config on.
Keys = tuple[str, ...]


def show_native_config(prepared: Prepared) -> None:
    """The native config as YAML, a field a line, each with the line of the mapping that sets it; ``default`` where no
    line speaks of it."""
    echo(["", "native config"])
    echo(aligned(config_rows(prepared.config, set_by(prepared.bound.cases))))


def config_rows(config: Mapping[str, Any], places: Mapping[Keys, Position]) -> Iterator[tuple[str, str]]:
    """Rows of a field with its value and where it is set."""
    yield from _rows(config, places, (), 1)


def _rows(
    config: Mapping[str, Any], places: Mapping[Keys, Position], at: Keys, depth: int
) -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        path = (*at, name)
        place = places.get(path)
        nested = isinstance(value, Mapping) and value
        text = f"{'  ' * depth}{name}:" + ("" if nested else f" {json.dumps(value, ensure_ascii=False, default=str)}")
        yield text, short(str(place)) if place else "" if nested else "default"
        if nested:
            yield from _rows(value, places, path, depth + 1)


def set_by(cases: Cases) -> dict[Keys, Position]:
    """The line of the mapping that sets each field of a native config, by path."""
    places: dict[Keys, Position] = {}
    for path, taken in cases.items():
        for chosen in taken:
            places |= _of_object(path, chosen)
    return places


def _of_object(path: Keys, chosen: Chosen) -> dict[Keys, Position]:
    anchor = path[: len(path) - len(chosen.struct.ours)]
    places = {(*anchor, *below): position for below, position in _lines(chosen.struct)}
    return {(*path, "type"): chosen.struct.position, **places}


def _lines(struct: Struct) -> Iterator[tuple[Keys, Position]]:
    """What a struct says of fields of its own, below the anchor: by its rules, and by the nodes right below it."""
    yield from _of_rules(struct.rules)
    for child in struct.children:
        yield from _of_node(child)


def _of_rules(rules: Sequence[Rule]) -> Iterator[tuple[Keys, Position]]:
    for rule in rules:
        if isinstance(rule, (FieldRule, OursFact)):
            yield rule.ours, rule.position


def _of_node(node: Node) -> Iterator[tuple[Keys, Position]]:
    match node:
        case Layers():
            yield from _of_rules(node.rules)
            for name in ("type", "num_blocks", *(("pattern",) if node.each is not None else ())):
                yield (*node.ours, name), node.position
        case Nullable() | CaseNode() | Entries():
            yield node.ours, node.position
        case PartNode():
            yield node.ours, node.part.position
            yield from _lines(node.beside)
        case Struct():
            pass
