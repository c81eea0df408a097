"""Which structs of a mapping speak for the objects of a native config: reading and writing record what they took."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from crosswalk.compiler.layout.model import Field
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.keys import placed
from crosswalk.compiler.relations.rules import FieldRule
from crosswalk.compiler.relations.tree import CompiledMapping, Node, PartNode, Struct, nodes_of, rules_of
from crosswalk.runtime.records import Record, field


class Chosen(Record, frozen=True):
    """The struct that speaks for a native object; ``tensors`` is the tensor prefix of the part that it is in."""

    struct: Struct
    mapping: CompiledMapping
    tensors: str


#: The objects of a native config by path, each with what speaks for it, in the order of the tree.
Cases = Mapping[KeyPath, Sequence[Chosen]]


class Taken(Record, frozen=True):
    """What reading or writing a config decided on the way: the ``cases`` it took, ``notes`` on what a user should know
    though nothing is wrong, and what is ``lossy``, each with the reason."""

    cases: Cases
    notes: tuple[str, ...] = ()
    lossy: tuple[str, ...] = ()


class Taking(Record):
    """:class:`Taken` while it is made."""

    cases: dict[KeyPath, list[Chosen]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, path: KeyPath, chosen: Chosen) -> None:
        """Note what was taken for the object at a native path."""
        self.cases.setdefault(path, []).append(chosen)

    def absorb(self, other: Taking, anchor: KeyPath = ()) -> None:
        """Take over what another record holds of what is below ``anchor``."""
        for path, chosen in other.cases.items():
            self.cases.setdefault((*anchor, *path), []).extend(chosen)
        self.notes += other.notes

    def taken(self, lossy: Iterable[str]) -> Taken:
        """What was taken, once all of it is known; each note once."""
        return Taken(self.cases, tuple(dict.fromkeys(self.notes)), tuple(dict.fromkeys(lossy)))


def holds_taken(node: Node, chosen: Sequence[Chosen]) -> bool:
    """Whether one of the structs of a node is among those taken."""
    return any(below is taken.struct for below in nodes_of(node) for taken in chosen)


def related_training(mapping: CompiledMapping) -> list[Field]:
    """The fields of ``training`` that config.json has a place for."""
    own = [r.field for r in rules_of(mapping.root) if isinstance(r, FieldRule) and r.field.group == "training"]
    parts = (part for node in nodes_of(mapping.root) if isinstance(node, PartNode) for part in node.mappings)
    return own + [declared for part in parts for declared in related_training(part)]


def follow(cases: Cases, source: Scope, target: Scope) -> tuple[dict[str, Any], dict[KeyPath, Sequence[Chosen]]]:
    """The cases of the config ``source`` for ``target``, which is the same model with its layers perhaps listed
    otherwise: the config of it, and its cases. A block that stands for layers of several cases becomes several."""
    result: dict[KeyPath, Sequence[Chosen]] = {}
    return _follow(cases, source, target, (), result), result


def _follow(
    cases: Cases, source: Scope, target: Scope, at: KeyPath, result: dict[KeyPath, Sequence[Chosen]]
) -> dict[str, Any]:
    if source.path in cases:
        result[at] = cases[source.path]
    config = dict(target.config)
    for name, declared in target.kind.fields.items():
        if name not in source.kind.fields or target.raw(name) is None or source.raw(name) is None:
            continue
        family = target.layout.families.get(declared.of)
        if declared.kind == "dict":
            entries = {key: target.entry(name, key) for key in target.raw(name) if key in source.raw(name)}
            inner = {k: _follow(cases, source.entry(name, k), e, (*at, name, k), result) for k, e in entries.items()}
            config[name] = {**target.raw(name), **inner}
        elif family is not None and family.sequence:
            config[name] = _follow_layers(cases, source, target, (*at, name), result)
        elif declared.is_config:
            config[name] = _follow(cases, source.sub(name), target.sub(name), (*at, name), result)
    return config


def _follow_layers(
    cases: Cases, source: Scope, target: Scope, at: KeyPath, result: dict[KeyPath, Sequence[Chosen]]
) -> dict[str, Any]:
    name = at[-1]
    config = dict(target.sub(name).config)
    listed = source.sub(name)
    if listed.path in cases and listed.kind == target.sub(name).kind:
        result[at] = cases[listed.path]
    layers = list(zip(target.blocks(name), source.blocks(name), strict=True))
    pairs = {(path, other): (block, known) for (path, block), (other, known) in layers}
    if len(pairs) == len({path for path, _ in pairs}):
        for (path, _), (block, known) in pairs.items():
            inner = _follow(cases, known, block, (*at, *path[1:]), result)
            config = placed(config, path[1:], inner)
        return config
    names: dict[tuple[KeyPath, KeyPath], str] = {}
    for path, other in pairs:
        names[path, other] = next(n for n in _numbered(path[-1]) if n not in names.values())
    blocks = {
        names[pair]: _follow(cases, known, block, (*at, "blocks", names[pair]), result)
        for pair, (block, known) in pairs.items()
    }
    pattern = [names[path, other] for (path, _), (other, _) in layers]
    kept = {key: value for key, value in config.items() if key not in ("type", "block", "blocks", "pattern")}
    return {"type": "pattern", **kept, "blocks": blocks, "pattern": pattern}


def _numbered(name: str) -> Iterator[str]:
    """The name, and then the name with a number."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))
