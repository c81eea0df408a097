"""The compiled mapping: a tree of relations between a Hugging Face config and a native one. Nothing has a direction.

``theirs`` paths start at the outermost object of the mapping (config.json, or the object of a part); ``ours`` paths at
the *anchor*: the root config, or the config of a layer or of an entry of a dict. A path segment in braces is a hole:
``{mixers}`` is the key of the entry of the dict ``mixers`` that the anchor is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from crosswalk.compiler.layout.model import Field, Layout, Type
from crosswalk.compiler.mapping.model import EnumRow, MappingFile, Part, Section
from crosswalk.compiler.notation.expressions import Expression
from crosswalk.runtime.errors import Position, fail

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FieldRule:
    """``theirs`` holds what ``ours`` holds, through ``table`` if there is one; ``required``: never null."""

    theirs: Path
    ours: Path
    field: Field
    position: Position
    default: Any
    omit: Any
    unset: tuple[Any, ...]
    alias: tuple[Path, ...]
    read: Expression | None
    write: Expression | None
    table: tuple[EnumRow, ...] | None
    required: bool
    otherwise: Any


#: Why a fact of the header does not hold.
OTHER_FORMAT = "another value is another format (--format)"


@dataclass(frozen=True, slots=True)
class TheirsFact:
    """``theirs`` has one of ``values``; the first is written if ``written``. ``why``: why not another."""

    theirs: Path
    values: tuple[Any, ...]
    written: bool
    default: Any
    position: Position
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """``theirs`` means nothing to the trainer. ``kept``: restored on export; else dropped, because it says nothing new.
    ``default`` is what expressions see when it is absent; ``write`` recomputes it on export. ``only``: the values at
    which it means nothing, if not all; any other asks for ``feature``."""

    theirs: Path
    kept: bool
    default: Any
    write: Expression | None
    position: Position
    only: tuple[Any, ...] = ()
    feature: str = ""


@dataclass(frozen=True, slots=True)
class OursFact:
    """``ours`` has ``value``: set on import, demanded on export unless the field is a ``training`` one. An expression
    is over the names of the object at ``scope``."""

    ours: Path
    value: Any
    field: Field
    scope: Path
    position: Position
    value_at: Position | None = None


@dataclass(frozen=True, slots=True)
class Unused:
    """No rule speaks of the feature at ``ours``: it must be at the value that means "not used"."""

    ours: Path
    field: Field
    position: Position


@dataclass(frozen=True, slots=True)
class CheckRule:
    expression: Expression
    message: str
    severity: str
    scope: Path
    theirs: Path
    position: Position


Rule = FieldRule | TheirsFact | Carried | OursFact | Unused | CheckRule


@dataclass(frozen=True, slots=True)
class Struct:
    """An object of a fixed type: its rules and what is below it. ``typed``: its type is stated by a fact of ours."""

    type: Type
    ours: Path
    theirs: Path
    section: Section
    rules: tuple[Rule, ...]
    children: tuple[Node, ...]
    typed: bool
    position: Position


@dataclass(frozen=True, slots=True)
class Case:
    value: Any
    node: Node


@dataclass(frozen=True, slots=True)
class Refusal:
    """A case that cannot be converted: the value of theirs, the type of ours, and why."""

    value: Any
    type: str
    why: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several nodes for the object at ``ours``, told apart by the key ``key`` of theirs."""

    key: Path
    default: Any
    ours: Path
    cases: tuple[Case, ...]
    position: Position
    refused: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Optional:
    """The object at ``ours`` may be null, as may the one at ``theirs``; ``default`` is meant when theirs is absent."""

    ours: Path
    theirs: Path
    nullable: bool
    default: Any
    node: Node
    position: Position


@dataclass(frozen=True, slots=True)
class Kind:
    """What a layer of this kind is; ``name`` stands in the list of kinds. A count alone has one kind without a name."""

    name: str | None
    node: Node


@dataclass(frozen=True, slots=True)
class Layers:
    """A list of layers. ``each`` lists their kinds (None: all alike); ``overrides`` what differs in single layers, or
    with ``overridable`` between kinds, in these keys alone."""

    ours: Path
    theirs: Path
    count: Path
    each: Path | None
    each_default: Any
    repeats: bool
    kinds: tuple[Kind, ...]
    overrides: Path | None
    rules: tuple[Rule, ...]
    position: Position
    overridable: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Entries:
    """A dict of configs, entry by entry under the same keys; the anchor of ``node`` is the entry."""

    ours: Path
    theirs: Path
    node: Node
    position: Position


@dataclass(frozen=True, slots=True)
class PartNode:
    """An object with a mapping of its own; of several, ``model_type`` tells which. ``beside`` holds what the enclosing
    mapping says of its inside."""

    part: Part
    ours: Path
    mappings: tuple[CompiledMapping, ...]
    beside: Struct


Node = Struct | Choice | Optional | Layers | Entries | PartNode


@dataclass(frozen=True)
class CompiledMapping:
    """A mapping checked against its layout. ``header`` are the facts of config.json itself, which a part does not have;
    ``defaults`` the values meant by absent keys, for expressions; ``claims`` every path that some rule speaks of."""

    source: MappingFile = field(repr=False)
    layout: Layout = field(repr=False)
    root: Struct = field(repr=False)
    header: tuple[TheirsFact, ...] = field(repr=False)
    defaults: Mapping[Path, Any] = field(repr=False)
    claims: frozenset[Path] = field(repr=False)

    @property
    def name(self) -> str:
        return self.source.name


def nodes_of(node: Node) -> Iterator[Node]:
    """The node and everything below it; the mappings of parts are left out."""
    yield node
    match node:
        case Struct():
            below = node.children
        case Choice():
            below = tuple(case.node for case in node.cases)
        case Layers():
            below = tuple(kind.node for kind in node.kinds)
        case Optional() | Entries():
            below = (node.node,)
        case PartNode():
            below = (node.beside,)
    for child in below:
        yield from nodes_of(child)


def rules_of(node: Node) -> Iterator[Rule]:
    """Every rule of a tree."""
    for below in nodes_of(node):
        if isinstance(below, (Struct, Layers)):
            yield from below.rules


def claimed_paths(root: Struct) -> set[Path]:
    """Every path of theirs that some rule speaks of, holes included."""
    result: set[Path] = set()
    for rule in rules_of(root):
        if isinstance(rule, (FieldRule, TheirsFact, Carried)):
            result.add(rule.theirs)
        if isinstance(rule, FieldRule):
            result.update(rule.alias)
    for node in nodes_of(root):
        if isinstance(node, Choice):
            result.add(node.key)
        elif isinstance(node, Layers):
            result.add(node.count)
            result |= {node.each} if node.each else set()
    return result


def part_mapping(node: PartNode, value: Mapping[str, Any]) -> CompiledMapping:
    """The mapping of a part that the ``model_type`` in its object names."""
    if len(node.mappings) == 1 and "model_type" not in value:
        return node.mappings[0]
    given = value.get("model_type", node.part.default)
    for mapping in node.mappings:
        if given in mapping.source.model_types or mapping.source.model_type is None:
            return mapping
    known = ", ".join(str(mapping.source.model_type) for mapping in node.mappings)
    key = ".".join((*node.part.theirs, "model_type"))
    raise fail("config/choice", f"`{key}` must be one of {known}; it is {given!r}", node.part.position)
