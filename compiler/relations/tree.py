"""The compiled mapping: a tree of relations between a Hugging Face config and a native one. Nothing has a direction.

``theirs`` paths start at the outermost object of the mapping (config.json, or the object of a part); ``ours`` paths at
the *anchor*: the root config, or the config of a layer or of an entry of a dict. A path segment in braces is a hole:
``{mixers}`` is the key of the entry of the dict ``mixers`` that the anchor is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from crosswalk.compiler.layout.model import ConfigType, Layout
from crosswalk.compiler.mapping.model import MappingFile, PartLine, Section
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, listed, shown
from crosswalk.runtime.records import Record, field

from .keys import Defaults, Names
from .rules import Rule, TheirsFact
from .tensor_rules import TensorRules


class Struct(Record, frozen=True):
    """An object of a fixed type: its rules, those of its tensors, and what is below it. ``typed``: its type is stated
    by a native fact."""

    type: ConfigType
    ours: KeyPath
    theirs: KeyPath
    section: Section
    rules: tuple[Rule, ...]
    tensors: TensorRules
    children: tuple[Node, ...]
    typed: bool

    @property
    def position(self) -> Position:
        """Where the section begins."""
        return self.section.position


class Case(Record, frozen=True):
    """A node for one value of the key that tells cases apart."""

    value: Any
    node: Struct | CaseNode


class Refusal(Record, frozen=True):
    """A case that cannot be converted: the hf value, the native type, and why."""

    value: Any
    type: str
    why: str


class CaseNode(Record, frozen=True):
    """One of several nodes for the object at ``ours``, told apart by the hf key ``key``."""

    key: KeyPath
    default: Any
    ours: KeyPath
    cases: tuple[Case, ...]
    position: Position
    refused: tuple[Refusal, ...] = ()

    @property
    def type(self) -> ConfigType:
        """The type of the object, where all cases have the same."""
        return self.cases[0].node.type


class Nullable(Record, frozen=True):
    """The object at ``ours`` may be null, as may the one at ``theirs``; ``default`` is meant when the key is absent."""

    ours: KeyPath
    theirs: KeyPath
    nullable: bool
    default: Any
    node: Node
    position: Position


class LayerKind(Record, frozen=True):
    """What a layer of this kind is; ``name`` (a text, a number, true or false) stands in the list of kinds. A count
    alone has one kind without a name."""

    name: Any
    node: Node

    def __str__(self) -> str:
        return str(self.name).lower() if isinstance(self.name, bool) else str(self.name)


class Layers(Record, frozen=True):
    """A list of layers. ``each`` lists their kinds, or is an expression that gives the kind of ``layer`` (None: all
    alike); ``overrides`` what differs in single layers, or with ``overridable`` between kinds, in these keys alone."""

    ours: KeyPath
    theirs: KeyPath
    count: KeyPath
    each: KeyPath | Expression | None
    each_default: Any
    repeats: bool
    kinds: tuple[LayerKind, ...]
    overrides: KeyPath | None
    rules: tuple[Rule, ...]
    position: Position
    overridable: frozenset[str] | None = None

    @property
    def key(self) -> KeyPath | None:
        """The key that lists the kinds, if one does."""
        return self.each if isinstance(self.each, tuple) else None

    def listed(self, names: Names, count: int) -> Any:
        """The kinds of the layers as hf says, which may be nonsense. Raises ``CrosswalkError``."""
        if isinstance(self.each, Expression):
            return [names.evaluate(self.each, self.theirs, layer=index) for index in range(count)]
        assert self.each is not None
        return names.lookup(("root", *self.each), ())

    def kind(self, name: Any) -> LayerKind | None:
        """The kind of a name, which is told apart by its JSON type too."""
        return next((kind for kind in self.kinds if same_value(kind.name, name)), None)


class Entries(Record, frozen=True):
    """A dict of configs, entry by entry under the same keys; the anchor of ``node`` is the entry."""

    ours: KeyPath
    theirs: KeyPath
    node: Node
    position: Position


class PartNode(Record, frozen=True):
    """An object with a mapping of its own; of several, ``model_type`` tells which. ``beside`` holds what the enclosing
    mapping says of its inside."""

    part: PartLine
    ours: KeyPath
    mappings: tuple[CompiledMapping, ...]
    beside: Struct


OneOf = Struct | CaseNode
Node = Struct | CaseNode | Nullable | Layers | Entries | PartNode


class CompiledMapping(Record, frozen=True, dict=True):
    """A mapping checked against its layout. ``header`` are the facts of config.json itself, which a part does not have;
    ``defaults`` the values meant by absent keys, for expressions; ``claims`` every path that some rule speaks of;
    ``spelled`` makes the mapping for each dialect that has sections."""

    source: MappingFile
    layout: Layout
    root: OneOf
    header: tuple[TheirsFact, ...]
    defaults: Defaults
    claims: frozenset[KeyPath]
    spelled: Mapping[str, Callable[[], CompiledMapping]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the format."""
        return self.source.name

    @functools.cached_property
    def rules_at(self) -> Mapping[KeyPath, Sequence[Rule]]:
        """The rules that speak of each hf path, holes included."""
        result: dict[KeyPath, list[Rule]] = {}
        for rule in rules_of(self.root):
            for place in dict.fromkeys(rule.places()):
                result.setdefault(place, []).append(rule)
        return result

    def in_dialect(self, name: str | None) -> CompiledMapping:
        """The mapping as it is where the files hold tensors as the dialect ``name`` has them; itself for any other."""
        return self if name is None or name not in self.spelled else self.spelled[name]()


def nodes_of(node: Node) -> Iterator[Node]:
    """The node and everything below it; the mappings of parts are left out."""
    yield node
    match node:
        case Struct():
            below = node.children
        case CaseNode():
            below = tuple(case.node for case in node.cases)
        case Layers():
            below = tuple(kind.node for kind in node.kinds)
        case Nullable() | Entries():
            below = (node.node,)
        case PartNode():
            below = (node.beside,)
    for child in below:
        yield from nodes_of(child)


def alternatives(node: Node) -> Iterator[Struct]:
    """The structs of which one speaks for the object of a node; none if it is no object."""
    if isinstance(node, Struct):
        yield node
    elif isinstance(node, CaseNode):
        for case in node.cases:
            yield from alternatives(case.node)


def rules_of(node: Node) -> Iterator[Rule]:
    """Every rule of a tree."""
    for below in nodes_of(node):
        if isinstance(below, (Struct, Layers)):
            yield from below.rules


def claimed_paths(root: OneOf) -> set[KeyPath]:
    """Every hf path that some rule speaks of, holes included."""
    result = {place for rule in rules_of(root) for place in rule.places()}
    for node in nodes_of(root):
        if isinstance(node, CaseNode):
            result.add(node.key)
        elif isinstance(node, Layers):
            result |= {node.count, *([node.key] if node.key else [])}
    return result


def part_mapping(node: PartNode, value: Mapping[str, Any]) -> CompiledMapping:
    """The mapping of a part that the ``model_type`` in its object names. Raises ``CrosswalkError`` if it names none."""
    if len(node.mappings) == 1 and "model_type" not in value:
        return node.mappings[0]
    given = value.get("model_type", node.part.default)
    for mapping in node.mappings:
        if given in mapping.source.model_types or mapping.source.model_type is None:
            return mapping
    known = listed(mapping.source.model_type for mapping in node.mappings)
    key = ".".join((*node.part.theirs, "model_type"))
    message = f"`{key}` must be one of {known}; it is {shown(given)}"
    path = (*node.part.theirs, "model_type")
    raise CrosswalkError(Diagnostic("config/choice", message, path=path, rule=node.part.position))
