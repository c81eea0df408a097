"""A mapping file as frozen data: sections of entries, enums, dialects and parts, with ``extends`` already resolved.

:mod:`.parse` makes it from documents and :mod:`.overlay` lays one over another. Nothing here knows a layout: names are
resolved when the sections are expanded over the layout's types (:mod:`.expand`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.notation.axes import Term
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.notation.templates import Template
from crosswalk.runtime.errors import Position
from crosswalk.runtime.records import Record, field


class Entry(Record, frozen=True):
    """One line of ``config:``. ``theirs`` is a path of keys below the object that the section is applied to.

    ``kind``: ``field`` relates it to ``ours``; ``const`` and ``only`` state its value; ``keep`` carries it;
    ``drop`` has no counterpart; ``mirror`` is written and never read. ``default`` is the value meant when absent,
    ``otherwise`` the one meant if that does not fit the tensors; ``why`` says why no other value can be converted, or
    of ``keep`` what another value asks for. ``rounded``: ``write`` undoes ``read`` within the rounding of floats.
    ``lossy``: what is lost at other values of ``const``.
    """

    theirs: KeyPath
    kind: str
    position: Position
    ours: KeyPath | None = None
    default: Any = MISSING
    omit: Any = MISSING
    unset: tuple[Any, ...] = ()
    alias: tuple[KeyPath, ...] = ()
    read: Expression | None = None
    write: Expression | None = None
    values: tuple[Any, ...] = ()
    cases: tuple[str, ...] | None = None
    required: bool = False
    ours_at: Position | None = None
    otherwise: Any = MISSING
    why: str | None = None
    rounded: bool = False
    lossy: str | None = None

    @property
    def right(self) -> Position:
        """Where the right side is written."""
        return self.ours_at or self.position

    def __str__(self) -> str:
        key = ".".join(self.theirs)
        return f"{key}: {'.'.join(self.ours)}" if self.ours else f"{key} ({self.kind})"


#: What an entry is and where: its other fields are words, each of which says more of a key and its field.
PLACES = frozenset(("theirs", "kind", "position", "ours", "values", "ours_at"))


class Fact(Record, frozen=True):
    """One line of ``sets:``: ``ours`` has ``value`` (a literal, the name of a type, or an expression)."""

    ours: KeyPath
    value: Any
    position: Position
    value_at: Position | None = None

    @property
    def right(self) -> Position:
        """Where the field is written: on the left, as a fact has only a field."""
        return self.position

    def __str__(self) -> str:
        value = f"= {self.value.text}" if isinstance(self.value, Expression) else self.value
        return f"sets {'.'.join(self.ours)}: {value}"


class TensorEntry(Record, frozen=True):
    """One line of ``tensors:``; ``ours`` is empty for a tensor that may be in the file and is not needed. ``encoded``:
    its dimensions where it is stored encoded, if they are not ``dims`` then."""

    theirs: Template
    ours: tuple[KeyPath, ...]
    types: tuple[str, ...] | None
    dims: tuple[Term, ...] | None
    position: Position
    ours_at: tuple[Position, ...] = ()
    dims_at: Position | None = None
    encoded: tuple[Term, ...] | None = None
    encoded_at: Position | None = None

    def __str__(self) -> str:
        ours = ", ".join(".".join(path) for path in self.ours) or "~"
        return f"{self.theirs}: {ours}"


Line: TypeAlias = Entry | Fact | TensorEntry


class CutLine(Record, frozen=True):
    """One line of ``cuts:``: an axis of the layout as named parts with sizes; None is what the others leave."""

    axis: str
    parts: tuple[tuple[str, Expression | int | None], ...]
    position: Position


class CheckEntry(Record, frozen=True):
    """One line of ``checks``: a condition, and what is said where it does not hold."""

    expression: Expression
    message: str
    severity: str
    position: Position


class ReplacedLine(Record, frozen=True):
    """An inherited line that an overlay replaced."""

    old: Line
    new: Line


class Section(Record, frozen=True):
    """What is true of every object of one type, or which type of a family an object has. ``by`` and ``each`` are None
    where nothing is said, and empty where ``~`` takes the inherited one away; ``each`` may be an expression that gives
    the kind of ``layer``. ``nothing`` are the cases and kinds that are written as ``~``: they take inherited ones away,
    and differ in nothing where there is none."""

    name: str
    position: Position
    config: tuple[Entry, ...] = ()
    sets: tuple[Fact, ...] = ()
    tensors: tuple[TensorEntry, ...] = ()
    same_names: bool = False
    has_tensors: bool = False
    checks: tuple[CheckEntry, ...] = ()
    by: KeyPath | None = None
    by_default: Any = MISSING
    cases: Mapping[str, Section] = field(default_factory=dict)
    of: str | None = None
    count: KeyPath | None = None
    each: KeyPath | Expression | None = None
    repeats: bool = False
    kinds: Mapping[str, Mapping[str, Section]] = field(default_factory=dict)
    overrides: KeyPath | None = None
    overridable: frozenset[str] | None = None
    refused: str | None = None
    transposed: bool | None = None
    cuts: Mapping[str, CutLine] = field(default_factory=dict)
    replaced: tuple[ReplacedLine, ...] = ()
    nothing: frozenset[str] = frozenset()


class Relocation(Record, frozen=True):
    """Where else files keep a thing: ``old`` place, ``new`` place. ``legacy``: read, never written. ``yields``: may
    differ from the new place, which wins. ``unset``: values of the old place that mean it is not there. ``default``:
    meant where a file has neither the old place nor the object of the new. ``when``: the old place counts only then."""

    old: KeyPath
    new: KeyPath
    position: Position
    unset: tuple[Any, ...] = ()
    legacy: bool = False
    yields: bool = False
    default: Any = MISSING
    when: Expression | None = None


class Dialect(Record, frozen=True):
    """Another shape of the same files. ``tensors`` are pairs of prefixes, old and new; ``sections``, by type, hold the
    lines that are laid over those of the file where tensors are named and cut otherwise."""

    name: str
    config: tuple[Relocation, ...] = ()
    tensors: tuple[tuple[str, str], ...] = ()
    sections: Mapping[str, Section] = field(default_factory=dict)

    @property
    def of_names(self) -> bool:
        """Whether it is about the names of tensors alone."""
        return bool(self.tensors or self.sections) and not self.config


class EncodingCase(Record, frozen=True):
    """One way to store a tensor as others: a ``kind`` of ``runtime.plan.encodings``, what else the config may
    say of it, and names: of the ``tensor`` that is meant, of what is stored for it, and of what may stand beside it and
    is not needed. Each has the same hole, ``{name}``."""

    kind: str
    config: tuple[Entry, ...]
    tensor: Template
    payload: Template
    scales: Template
    ignores: tuple[Template, ...]
    position: Position


class Encodings(Record, frozen=True):
    """The object under ``key`` of config.json says how tensors are stored; its key ``by`` tells which case it is."""

    key: str
    by: str
    cases: Mapping[str, EncodingCase]


class EnumRow(Record, frozen=True):
    """One line of an enum: the hf value, the native value, and what is lost where they are not quite the same."""

    theirs: Any
    ours: Any
    lossy: str | None
    position: Position


class PartLine(Record, frozen=True):
    """An object of config.json and a tensor prefix with a mapping of their own."""

    theirs: KeyPath
    ours: KeyPath
    mappings: tuple[str, ...]
    tensors: str
    default: str | None
    optional: bool
    position: Position
    is_at: Position
    with_at: Position


class Tower(Record, frozen=True):
    """Where a model with other towers holds this one: its config under the key ``config``, and its tensors under
    prefixes, each with the one that stands in its place where the tower is alone. ``default``: the ``model_type`` that
    is meant where the config has none."""

    config: KeyPath
    tensors: tuple[tuple[str, str], ...]
    default: str | None = None


class MappingFile(Record, frozen=True):
    """One architecture, or an abstract base of several. ``other_model_types`` are read beside ``model_type``;
    ``unmapped`` says of model types without a mapping what such a model has; ``wrappers`` are put before the name of a
    class in training; ``quantised`` are names of tensors and the tools that store them beside quantised ones."""

    name: str
    file: str
    position: Position
    layout: str | None = None
    root: str | None = None
    architecture: str | None = None
    model_type: str | None = None
    other_model_types: tuple[str, ...] = ()
    config_class: str | None = None
    description: str = ""
    abstract: bool = False
    newest: str | None = None
    files: tuple[str, ...] = ()
    optional_files: tuple[str, ...] = ()
    derived_files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    auto_map: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    write_dialects: tuple[str, ...] = ()
    keeps: tuple[Entry, ...] = ()
    class_defaults: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[str, ...] = ()
    quantised: tuple[tuple[Template, tuple[str, ...]], ...] = ()
    unmapped: Mapping[str, str] = field(default_factory=dict)
    enums: Mapping[str, tuple[EnumRow, ...]] = field(default_factory=dict)
    dialects: Mapping[str, Dialect] = field(default_factory=dict)
    encodings: Mapping[str, Encodings] = field(default_factory=dict)
    sections: Mapping[str, Section] = field(default_factory=dict)
    parts: tuple[PartLine, ...] = ()
    tower_of: Mapping[str, Tower] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    ancestors: tuple[str, ...] = ()
    places: Mapping[str, Position] = field(default_factory=dict)

    @property
    def model_types(self) -> tuple[str, ...]:
        """Every ``model_type`` that is read; the first is written."""
        return (self.model_type, *self.other_model_types) if self.model_type else ()

    def place(self, word: str) -> Position:
        """Where the value of a word of the header is written, in this file or one that it extends."""
        return self.places.get(word, self.position)
