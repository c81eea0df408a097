"""The rules of an object: each reads, writes, says which keys and names it is about, and checks itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from crosswalk.compiler.layout.model import MISSING, Field, Layout
from crosswalk.compiler.layout.scope import Scope, simple
from crosswalk.compiler.layout.values import misfit, widened
from crosswalk.compiler.mapping.model import CheckEntry, Entry, EnumRow, Fact
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, listed, shown
from crosswalk.runtime.records import Record, replace

from .fields import below, is_default, object_at, scope_at, shown_native
from .keys import Names, fill
from .literals import literal_problem, unfit
from .sides import Computed, Condition, Deferred, Reading, Writing


class _Rule(Record, frozen=True):
    """What a rule does that says nothing else: nothing."""

    def places(self) -> tuple[KeyPath, ...]:
        """The hf places that the rule speaks of."""
        return ()

    def over_theirs(self) -> tuple[Any, ...]:
        """Its literals and expressions over keys of the object that its first place is in."""
        return ()

    def over_ours(self) -> Expression | None:
        """Its expression over native fields."""
        return None

    def read(self, at: Reading) -> None:
        """Give native fields their values. Raises ``CrosswalkError``, without a position where that is the rule's."""

    def write(self, at: Writing) -> None:
        """Write hf places; what does not fit is among the problems of the draft."""

    def check(self, layout: Layout) -> Iterator[Diagnostic]:
        """What is wrong with it in every config."""
        return iter(())


class _Written(_Rule, frozen=True):
    """A rule that a line of a mapping says; what the line's words mean is in the rule alone."""

    line: Entry | Fact | CheckEntry

    @property
    def position(self) -> Position:
        return self.line.position


class FieldRule(_Written, frozen=True):
    """``theirs`` holds what ``ours`` holds, through ``table`` if there is one."""

    line: Entry
    theirs: KeyPath
    ours: KeyPath
    field: Field
    table: tuple[EnumRow, ...] | None

    def places(self) -> tuple[KeyPath, ...]:
        if not self.line.alias:
            return (self.theirs,)
        above = self.theirs[: -len(self.line.theirs)]
        return (self.theirs, *((*above, *alias) for alias in self.line.alias))

    def over_theirs(self) -> tuple[Any, ...]:
        return (self.line.default, self.line.read, self.line.write)

    @property
    def holds_null(self) -> bool:
        """Whether null is a value of the key, and not as if it were absent."""
        return (self.field.nullable and not self.line.required) or self.field.of == "any"

    def arithmetic(self) -> tuple[Expression, ...]:
        """The expressions in which ``value`` is that of the key, or of the field."""
        return tuple(expression for expression in (self.line.read, self.line.write) if expression is not None)

    def read(self, at: Reading) -> None:
        at.set(self.ours, self._value(at), self.position)

    def _value(self, at: Reading) -> Any:
        value = self._stated(at)
        if value is MISSING or (value is None and not self.holds_null):
            default = self.line.otherwise if at.otherwise and self.line.otherwise is not MISSING else self.line.default
            found = "absent" if value is MISSING else "null"
            value = at.names.evaluate(default, self.theirs[:-1])
            if value is MISSING:
                raise fail("config/missing-key", f"`{at.key(self.theirs)}` is required, it is {found}")
        if self.line.read is not None:
            value = at.names.evaluate(self.line.read, self.theirs[:-1], value=value)
        if self.table is not None and value is not None:
            return self._translated(at, self.table, value)
        value = widened(self.field, value)
        if (wanted := misfit(self.field, value)) is not None:
            raise fail("config/type", f"`{at.key(self.theirs)}` must be {wanted}, it is {shown(value)}")
        return value

    def translated(self, value: Any) -> Any:
        """An hf value as a native one, where nothing is wrong with it; null for one that the table lacks."""
        if self.table is None or value is None:
            return widened(self.field, value)
        return next((row.ours for row in self.table if same_value(row.theirs, value)), None)

    def _stated(self, at: Reading) -> Any:
        """What the key and its aliases say, which must agree; MISSING if they say nothing."""
        present = [(place, at.get(place)) for place in self.places()]
        present = [
            (place, value)
            for place, value in present
            if value is not MISSING and not any(same_value(value, unset) for unset in self.line.unset)
        ]
        for place, value in present[1:]:
            if not same_value(value, present[0][1]):
                raise fail(
                    "config/conflict",
                    f"`{at.key(present[0][0])}` is {shown(present[0][1])}, and `{at.key(place)}`, which means the same,"
                    f" is {shown(value)}",
                )
        return present[0][1] if present else MISSING

    def _translated(self, at: Reading, table: Iterable[EnumRow], value: Any) -> Any:
        row = next((row for row in table if same_value(row.theirs, value)), None)
        if row is None:
            known = listed(row.theirs for row in table)
            raise fail("config/choice", f"`{at.key(self.theirs)}` must be one of {known}; it is {shown(value)}")
        if row.lossy:
            reason = f"`{at.key(self.theirs)}` is {shown(value)}: {row.lossy}"
            if not at.allow_lossy:
                hint = "allow it with --allow-lossy (allow_lossy=True), or train with another value"
                raise fail("config/lossy", reason, hint=hint)
            at.found.lossy.append(reason)
        return row.ours

    def write(self, at: Writing) -> None:
        raw = below(at.scope, self.ours, raw=True)
        value = simple(below(at.scope, self.ours))
        if self.table is not None and value is not None:
            row = next((r for r in self.table if same_value(r.ours, value) and (at.allow_lossy or not r.lossy)), None)
            if row is None:
                known = listed(row.ours for row in self.table)
                message = f"`{at.where(self.ours)}` must be one of {known}; it is {shown(value)}"
                at.error("export/choice", self.ours, message, self.position)
                return
            value, raw = row.theirs, row.theirs if raw is not None else None
            if row.lossy:
                at.out.lossy.append(f"`{'.'.join(fill(self.theirs, at.holes))}` is {shown(value)}: {row.lossy}")
        if self.line.required and value is None:
            message = f"`{at.where(self.ours)}` must not be null here"
            at.error("export/required", self.ours, message, self.position)
        elif self.line.omit is not MISSING and same_value(raw, self.line.omit):
            at.put(self, self.theirs, MISSING)
        elif self.line.write is not None or self.line.read is not None:
            for place in self.places():
                at.out.computed.append(Computed(fill(place, at.holes), self, self.line.write, at.holes, value))
        else:
            for place in self.places():
                at.put(self, place, value)

    def check(self, layout: Layout) -> Iterator[Diagnostic]:
        if self.line.read is not None:
            return
        for word, value in (("default", self.line.default), ("omit", self.line.omit)):
            if value is MISSING or isinstance(value, Expression) or (word == "default" and value is self.line.omit):
                continue
            wanted = unfit(value, self.field, layout)
            if self.table is not None and value is not None:
                known = [row.theirs for row in self.table]
                wanted = None if value in known else f"one of {listed(known)}"
            if wanted:
                what = f"the `{word}` of `{'.'.join(self.theirs)}`"
                yield literal_problem(what, wanted, value, self.field, self.position)


class TheirsFact(_Written, frozen=True):
    """``theirs`` has one of the values of the line; the first of a ``const`` is written."""

    line: Entry
    theirs: KeyPath

    def places(self) -> tuple[KeyPath, ...]:
        return (self.theirs,)

    def over_theirs(self) -> tuple[Any, ...]:
        return (self.line.default, *self.line.values)

    def read(self, at: Reading) -> None:
        value = at.get(self.theirs)
        if value is MISSING:
            value = self.line.default
        if value is MISSING:
            return
        allowed = [at.names.evaluate(v, self.theirs[:-1]) for v in self.line.values]
        if any(same_value(value, v) for v in allowed):
            return
        if self.line.lossy is not None and not at.because:
            reason = f"`{at.key(self.theirs)}` is {shown(value)}: {self.line.lossy}"
            if not at.allow_lossy:
                hint = f"allow it with --allow-lossy (allow_lossy=True), or say {shown(allowed[0])}"
                raise fail("config/lossy", reason, hint=hint)
            at.found.lossy.append(reason)
            return
        wanted = " or ".join(map(shown, allowed))
        message = f"`{at.key(self.theirs)}` must be {wanted} to be converted, it is {shown(value)}"
        message += f": that class has {at.because}" if at.because else ""
        hint = self.line.why or "the trainer has nothing that would hold it"
        raise fail("config/unsupported", message, None, hint)

    def write(self, at: Writing) -> None:
        if self.line.kind == "const":
            at.put(self, self.theirs, self.line.values[0])


class Carried(_Written, frozen=True):
    """``theirs`` means nothing to the trainer. Restored on export if ``kept``, at all values or at those of the line;
    else dropped, because it says nothing new, or recomputed by ``write``. ``default`` is what expressions see."""

    line: Entry
    theirs: KeyPath

    @property
    def kept(self) -> bool:
        """Whether the line asks for it to be restored on export."""
        return self.line.kind == "keep"

    def places(self) -> tuple[KeyPath, ...]:
        return (self.theirs,)

    def over_theirs(self) -> tuple[Any, ...]:
        return (self.line.default, self.line.write)

    def write(self, at: Writing) -> None:
        if self.line.write is not None:
            at.put(self, self.theirs, self.line.write)


class OursFact(_Written, frozen=True):
    """``ours`` has the value of the line: set on import, demanded on export unless the field is a ``training`` one.
    An expression is over the names of the object at ``scope``."""

    line: Fact
    ours: KeyPath
    field: Field
    scope: KeyPath

    @property
    def value(self) -> Any:
        """What the field is: a literal, or an expression over other fields."""
        return self.line.value

    def over_ours(self) -> Expression | None:
        return self.value if isinstance(self.value, Expression) else None

    def read(self, at: Reading) -> None:
        if isinstance(self.value, Expression):
            later = Deferred(self.value, (*at.anchor, *self.scope), self.field, self.position)
            at.found.facts[(*at.anchor, *self.ours)] = later
        else:
            at.set(self.ours, widened(self.field, self.value), self.position)

    def write(self, at: Writing) -> None:
        if self.field.group == "training":
            return
        actual = simple(below(at.scope, self.ours))
        expected = self.value
        if isinstance(expected, Expression):
            try:
                expected = object_at(at.scope, self.scope).evaluate(expected)
            except CrosswalkError as error:
                at.out.problems += at_rule(error, self.position, (*at.anchor, *self.ours))
                return
            close = isinstance(actual, float) and isinstance(expected, (int, float))
            fits = abs(actual - expected) <= 1e-9 * abs(expected) if close else same_value(actual, expected)
        elif expected is None and self.field.is_config:
            fits = is_default(at.scope, self.ours, self.field, None)
        else:
            fits = same_value(actual, expected)
        if not fits:
            message = f"`{at.where(self.ours)}` must be {shown(expected)} in this format, it is {shown_native(actual)}"
            at.error("export/fact", self.ours, message, self.position)

    def check(self, layout: Layout) -> Iterator[Diagnostic]:
        if isinstance(self.value, Expression) or self.field.is_config:
            return
        wanted = unfit(self.value, self.field, layout)
        if wanted:
            at = self.line.value_at or self.position
            yield literal_problem(f"`{'.'.join(self.ours)}`", wanted, self.value, self.field, at)


class Unused(_Rule, frozen=True):
    """No rule speaks of the feature at ``ours``: it must be at the value that means "not used"."""

    ours: KeyPath
    field: Field
    position: Position

    def write(self, at: Writing) -> None:
        default = self.field.default if self.field.default is not MISSING else None
        if self.field.kind == "type" and not self.field.nullable:
            default = {}
        if not is_default(at.scope, self.ours, self.field, default):
            found = shown_native(below(at.scope, self.ours))
            message = f"`{at.where(self.ours)}` is {found}: this format has no place for it"
            hint = f"it can be exported only at its default, {shown(default)}"
            at.error("export/unused-feature", self.ours, message, self.position, hint)


class CheckRule(_Written, frozen=True):
    """A condition over fields of the object at ``scope``; names with ``config.`` and ``root_config.`` are keys."""

    line: CheckEntry
    scope: KeyPath
    theirs: KeyPath

    def over_ours(self) -> Expression | None:
        return self.line.expression

    def read(self, at: Reading) -> None:
        path = (*at.anchor, *self.scope)
        keys = (self._key(name) for name in sorted(self.line.expression.names) if name[0] in ("config", "root_config"))
        about = at.written(next(keys, self.theirs))
        at.found.checks.append(lambda root: self._problems(scope_at(root, path), at.names, about))

    def write(self, at: Writing) -> None:
        scope, about = object_at(at.scope, self.scope), (*at.anchor, *self.scope)
        at.out.checks.append(Condition(lambda names: self._problems(scope, names, about), at.holes, {}))

    def _key(self, name: KeyPath) -> KeyPath:
        return (*self.theirs, *name[1:]) if name[0] == "config" else name[1:]

    def _problems(self, scope: Scope, names: Names, about: KeyPath) -> list[Diagnostic]:
        def resolve(name: KeyPath) -> Any:
            if name[0] == "config":
                return names.lookup(name[1:], self.theirs)
            if name[0] == "root_config":
                return names.lookup(("root", *name[1:]), ())
            return scope.resolve(name)

        try:
            holds = self.line.expression.evaluate(resolve)
        except CrosswalkError as error:
            return at_rule(error, self.position, about)
        if holds:
            return []
        message = f"{self.line.message} ({self.line.expression.text})"
        return [Diagnostic("config/check", message, None, None, self.line.severity, about, self.position)]


Rule = FieldRule | TheirsFact | Carried | OursFact | Unused | CheckRule


def at_rule(error: CrosswalkError, rule: Position, path: KeyPath = ()) -> list[Diagnostic]:
    """The problems of an error as those of a config, which breaks the rule: about ``path`` unless they say more."""
    return [replace(p, position=None, rule=p.position or rule, path=p.path or path) for p in error.diagnostics]
