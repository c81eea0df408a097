"""Hf keys that follow from others: evaluated when all others are there, each after those that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.relations.inverse import solve
from crosswalk.compiler.relations.keys import Names, fill, get, placed, put
from crosswalk.compiler.relations.rules import Carried, FieldRule, at_rule
from crosswalk.compiler.relations.sides import Computed
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, shown

from .exported import Attempt


def finish_computed(
    mapping: CompiledMapping, config: dict[str, Any], out: Attempt, before: Mapping[str, Any], keep: bool
) -> None:
    """Add the computed keys of an attempt to ``config``. ``before`` is the object of the origin in its newest form: a
    value that is still read as the field is the one written; with ``keep``, so is one that only other keys depend on,
    which stays absent if it was.
    """
    waiting = list(out.computed)
    done: dict[KeyPath, Any] = {}
    while waiting:
        ready = _ready(waiting, _named) or _ready(waiting, _written_from) or waiting[:1]
        waiting = [one for one in waiting if not any(one is other for other in ready)]
        for one in ready:
            try:
                value = _value(mapping, config, one, get(before, one.place), keep)
            except CrosswalkError as error:
                out.problems += at_rule(error, one.rule.position)
                continue
            if not same_value(done.setdefault(one.place, value), value):
                message = f"`{'.'.join(one.place)}` would be both {shown(done[one.place])} and {shown(value)}"
                hint = "the format has one place for what the trainer has several of: make these equal"
                out.problems.append(Diagnostic("export/conflict", message, None, hint, rule=one.rule.position))
            if value is not MISSING:
                put(config, one.place, value)
    if not out.problems:
        _settle(mapping, config, out, before)


def kept_otherwise(config: Mapping[str, Any], out: Attempt, before: Mapping[str, Any]) -> bool:
    """Whether the origin has another value of a computed key that no field holds."""
    return bool(before) and any(
        isinstance(one.rule, Carried) and not same_value(get(before, one.place), get(config, one.place))
        for one in out.computed
    )


def _settle(mapping: CompiledMapping, config: dict[str, Any], out: Attempt, before: Mapping[str, Any]) -> None:
    """Now that all keys are there: what is read as the field, or a problem."""
    for one in out.computed:
        if not isinstance(one.rule, FieldRule):
            continue
        found = get(config, one.place)
        try:
            answer = _solved(mapping, config, one, found, get(before, one.place))
        except CrosswalkError as error:
            out.problems += at_rule(error, one.rule.position)
            continue
        if answer is MISSING:
            message = f"`{'.'.join(one.place)}` = {shown(found)} would not be read as {shown(one.value)}"
            out.problems.append(Diagnostic("export/inverse", message, rule=one.rule.position))
        else:
            put(config, one.place, answer)


def _ready(waiting: list[Computed], needs: Callable[[Computed], set[KeyPath]]) -> list[Computed]:
    """Those that need nothing that still waits."""
    places = {one.place for one in waiting}
    return [one for one in waiting if not needs(one) & (places - {one.place})]


def _named(computed: Computed) -> set[KeyPath]:
    """The places that ``read`` and ``write`` of a computed key name."""
    rule = computed.rule
    return _places(computed, rule.arithmetic() if isinstance(rule, FieldRule) else ()) | _written_from(computed)


def _written_from(computed: Computed) -> set[KeyPath]:
    """The places that ``write`` names."""
    return _places(computed, () if computed.expression is None else (computed.expression,))


def _places(computed: Computed, expressions: Iterable[Expression]) -> set[KeyPath]:
    names = {name for expression in expressions for name in expression.names}
    paths = {name[1:] if name[0] == "root" else (*computed.at, *name) for name in names}
    return {fill(path, computed.holes) for path in paths}


def _value(mapping: CompiledMapping, config: Mapping[str, Any], one: Computed, before: Any, keep: bool) -> Any:
    names = Names(config, mapping.defaults, one.holes)
    if keep and isinstance(one.rule, Carried):
        return before
    if not isinstance(one.rule, FieldRule):
        return names.evaluate(one.expression, one.at, **one.special)
    found = one.value if one.expression is None else names.evaluate(one.expression, one.at, value=one.value)
    answer = _solved(mapping, config, one, found, before)
    return found if answer is MISSING else answer


def _solved(mapping: CompiledMapping, config: Mapping[str, Any], one: Computed, found: Any, before: Any) -> Any:
    """The hf value near ``found`` that is read as the field; MISSING if there is none."""
    rule: FieldRule = one.rule

    def read(candidate: Any) -> Any:
        names = Names(placed(config, one.place, candidate), mapping.defaults, one.holes)
        seen = candidate if rule.line.read is None else names.evaluate(rule.line.read, one.at, value=candidate)
        return rule.translated(seen)

    answer = solve(rule, rule.translated(one.value), found, None if before is MISSING else before, read)
    return MISSING if answer is None else answer[0]
