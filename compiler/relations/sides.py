"""What one rule sees of both sides while a config is read or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crosswalk.compiler.layout.model import MISSING, Field
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import Diagnostic, Position, fail, shown
from crosswalk.runtime.records import Record, field

from .keys import Names, fill, get, put


class Findings(Record):
    """What reading a whole config has found so far. ``facts`` and ``checks`` wait until all fields are there: values of
    the object at a path, by the path of the field; and conditions."""

    problems: list[Diagnostic] = field(default_factory=list)
    lossy: list[str] = field(default_factory=list)
    facts: dict[KeyPath, Deferred] = field(default_factory=dict)
    checks: list[Callable[[Scope], list[Diagnostic]]] = field(default_factory=list)


class Deferred(Record, frozen=True):
    """A value that is computed from other native fields, as soon as these are there."""

    value: Expression
    at: KeyPath
    field: Field
    position: Position


class Reading(Record, frozen=True):
    """An hf object to read (``names``), and the native object at ``anchor`` that it becomes (``out``).
    ``otherwise``: absent keys mean what a rule says under that word; ``because``: why facts do not hold here;
    ``written``: an hf path -> where that is in the file."""

    names: Names
    out: dict[str, Any]
    anchor: KeyPath
    found: Findings
    allow_lossy: bool = False
    otherwise: bool = False
    because: str | None = None
    written: Callable[[KeyPath], KeyPath] = tuple

    def get(self, theirs: KeyPath) -> Any:
        """The value at an hf path; MISSING if there is none."""
        return get(self.names.data, fill(theirs, self.names.holes))

    def key(self, theirs: KeyPath) -> str:
        """An hf path as it is shown."""
        return ".".join(fill(theirs, self.names.holes))

    def set(self, ours: KeyPath, value: Any, position: Position) -> None:
        """Give a field its value. Raises ``CrosswalkError`` if it has another one already."""
        old = get(self.out, ours)
        if old is not MISSING and not same_value(old, value):
            raise fail("config/conflict", f"`{'.'.join(ours)}` would be both {shown(old)} and {shown(value)}", position)
        put(self.out, ours, value)


class Computed(Record, frozen=True):
    """An hf value that follows from other keys and from ``value``, that of the field (MISSING: there is none).
    Without an expression it is the value that is read as that of the field. ``special``: names that are no keys."""

    place: KeyPath
    rule: Any
    expression: Expression | None
    holes: Mapping[str, str]
    value: Any = MISSING
    special: Mapping[str, Any] = field(default_factory=dict)

    @property
    def at(self) -> KeyPath:
        """The object whose keys its expressions name."""
        theirs: KeyPath = self.rule.theirs
        return theirs[:-1]


class ObjectDraft(Record):
    """What one attempt to write an object has written: hf places. ``computed`` and ``checks`` wait until all
    keys are there."""

    values: dict[KeyPath, tuple[Any, Position]] = field(default_factory=dict)
    computed: list[Computed] = field(default_factory=list)
    checks: list[Condition] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    lossy: list[str] = field(default_factory=list)

    def put(self, path: KeyPath, value: Any, position: Position) -> None:
        """Write a place; one that is written twice must have the same value and type."""
        if path in self.values:
            old, at = self.values[path]
            if not same_value(old, value) or (old is MISSING) != (value is MISSING):
                self.problems.append(
                    Diagnostic(
                        "export/conflict",
                        f"`{'.'.join(path)}` would be both {shown(old)} ({at}) and {shown(value)}",
                        hint="the format has one place for what the trainer has several of: make these equal",
                        rule=position,
                    )
                )
        else:
            self.values[path] = (value, position)


class Condition(Record, frozen=True):
    """A condition that waits for the hf keys; ``layer`` is what differs in the layer that it is about."""

    run: Callable[[Names], list[Diagnostic]]
    holes: Mapping[str, str]
    layer: Mapping[KeyPath, Any]


class Writing(Record, frozen=True):
    """A native object to write (``scope``, at ``anchor``), and what is written of it (``out``). ``special`` names are
    no keys in its expressions."""

    scope: Scope
    anchor: KeyPath
    holes: Mapping[str, str]
    out: ObjectDraft
    allow_lossy: bool = False
    special: Mapping[str, Any] = field(default_factory=dict)

    def where(self, ours: KeyPath) -> str:
        """A native path as it is shown."""
        return ".".join((*self.anchor, *ours))

    def put(self, rule: Any, theirs: KeyPath, value: Any) -> None:
        """Write an hf place, for a rule; an expression is evaluated when all keys are there."""
        path = fill(theirs, self.holes)
        if isinstance(value, Expression):
            self.out.computed.append(Computed(path, rule, value, self.holes, special=self.special))
        else:
            self.out.put(path, value, rule.position)

    def error(self, code: str, ours: KeyPath, message: str, rule: Position, hint: str | None = None) -> None:
        """Note a problem of the native field ``ours``, below the anchor."""
        self.out.problems.append(Diagnostic(code, message, None, hint, path=(*self.anchor, *ours), rule=rule))
