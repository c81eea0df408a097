"""``read`` and ``write`` of one entry: that they undo each other, and which hf value a native value is.

A number is related by arithmetic that the value goes through on every way: sums, products, powers, reciprocals,
logarithms, and conditions between them. Two such functions that are the same at many drawn points are the same, so
:func:`unproved` tries the pair there. Of a field with few values it tries them all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from crosswalk.compiler.layout.values import misfit, widened
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail, shown

from .rules import Carried, FieldRule, TheirsFact
from .tree import CaseNode, CompiledMapping, Layers, nodes_of, rules_of

#: Within this, relative to their size, floats are the same but for how arithmetic rounds.
ROUNDING = 1e-9
#: What a value may go through, with the parts that it may be in; in the conditions of an `if` it may be anywhere.
_CARRIERS: Mapping[str, Callable[[list[Any]], list[Any]]] = {
    **dict.fromkeys(("+", "-", "*", "/", "**", "neg", "pos"), lambda parts: parts),
    "if": lambda parts: parts[1:],
    "list": lambda parts: parts,
    "[]": lambda parts: parts[:1],
    "call": lambda parts: parts[1:] if parts[0] in ("log", "exp") else [],
}
_DRAWS, _NEEDED = 60, 8
_VALUE: KeyPath = ("value",)


def check_inverses(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Every entry whose ``read`` and ``write`` cannot be shown to undo each other, and every ``each`` of which the keys
    that it names are not written back."""
    for rule in rules_of(mapping.root):
        if isinstance(rule, FieldRule) and (rule.line.read is not None or rule.line.write is not None):
            why = _unproved(mapping, rule)
            if why is not None:
                key = ".".join(rule.theirs)
                message = f"`read` and `write` of `{key}` do not undo each other, or cannot be shown to: {why}"
                yield Diagnostic("mapping/inverse", message, rule.position)

    for node in nodes_of(mapping.root):
        if isinstance(node, Layers) and isinstance(node.each, Expression):
            why = _kinds_lost(mapping, node, node.each)
            if why is not None:
                message = f"`each` and the `write` of the keys that it names do not undo each other: {why}"
                yield Diagnostic("mapping/inverse", message, node.position)


def _kinds_lost(mapping: CompiledMapping, node: Layers, each: Expression) -> str | None:
    """A list of kinds that hf keys can say and that is not written as such; None if there is none."""
    generator, tried, failure = random.Random(0), 0, ""
    rules = {rule.theirs: rule for rule in rules_of(mapping.root) if isinstance(rule, Carried)}
    for count in (1 + number % 8 for number in range(_DRAWS)):
        keys = _DrawnKeys(mapping, node.count, generator)
        keys.known[node.count] = keys.count = count
        try:
            kinds = [keys.evaluate(each, node.theirs, {("layer",): index}) for index in range(count)]
            if any(node.kind(name) is None for name in kinds):
                return f"`{shown(next(name for name in kinds if node.kind(name) is None))}` is none of its kinds"
            written = _DrawnKeys(mapping, node.count, generator)
            written.known = {node.count: count}
            computed = {path: rule.line.write for path, rule in rules.items() if path in keys.known}
            # Those that stay what they are come first: others are made of them.
            for path in sorted(keys.known.keys() - {node.count}, key=lambda path: computed.get(path) is not None):
                rule, expression = rules.get(path), computed.get(path)
                default = rule.line.default if rule is not None else keys.known[path]
                found = written.evaluate(expression, path[:-1], {("kinds",): kinds}) if expression else default
                written.known[path] = written.evaluate(found, path[:-1], {}) if isinstance(found, Expression) else found
            again = [written.evaluate(each, node.theirs, {("layer",): index}) for index in range(count)]
        except CrosswalkError as error:
            failure = error.diagnostics[0].message
            continue
        tried += 1
        if again != kinds:
            said = ", ".join(f"`{'.'.join(path)}` = {shown(value)}" for path, value in sorted(keys.known.items()))
            return f"where {said}, the kinds are {kinds}; what is written of these is read as {again}"
    return None if tried >= _NEEDED else f"no keys could be tried: {failure}"


def solve(rule: FieldRule, value: Any, found: Any, before: Any, read: Callable[[Any], Any]) -> tuple[Any, bool] | None:
    """The hf value that ``read`` turns into ``value``, and whether exactly so; None if there is none near
    ``found``, which is what ``write`` gives. ``before``: what the key was, if that is known."""
    close: list[Any] = []
    for candidate in _candidates(found, rule.line.default, before):
        try:
            again = widened(rule.field, read(candidate))
        except CrosswalkError:
            continue
        if same_value(again, value) and misfit(rule.field, again) is None:
            return candidate, True
        if all(isinstance(one, float) for one in (again, value)) and math.isclose(again, value, rel_tol=ROUNDING):
            close.append(candidate)
    return (close[-1], False) if close else None


def _candidates(found: Any, like: Any, before: Any) -> Iterator[Any]:
    """The hf values that ``found`` may stand for, since arithmetic rounds: ``before``, whole numbers where
    ``like`` is one, the shortest decimals, and ``found`` itself."""
    if before is not None:
        yield before
    if isinstance(found, float) and math.isfinite(found):
        if isinstance(like, int) and not isinstance(like, bool) and abs(found) < 2**53:
            yield round(found)
        yield from dict.fromkeys(float(f"{found:.{digits}g}") for digits in range(1, 18))
        yield from (math.nextafter(found, math.inf), math.nextafter(found, -math.inf))
    yield found


def _unproved(mapping: CompiledMapping, rule: FieldRule) -> str | None:
    """Why ``read`` and ``write`` of a rule cannot be shown to undo each other; None if they do."""
    generator = random.Random(0)
    values = _values(rule, generator)
    if values is None:
        return f"nothing is known of what a {rule.field.of} may be"
    finite = rule.table is not None or rule.field.of == "bool"
    for word, expression in (("read", rule.line.read), ("write", rule.line.write)):
        if expression is not None and not finite and (wrong := _unknown_way(expression.tree)):
            return f"the value goes through `{wrong}` in `{word}`, which has no inverse"
    tried, failure, at = 0, "", rule.theirs[:-1]
    both = (rule.line.read, rule.line.write)
    for value in values:
        keys = _DrawnKeys(mapping, rule.theirs, generator)
        try:
            value, found = _written(rule, keys, value)
            _read(rule, keys, found)  # where that has no value at all, the point says nothing
            answer = solve(rule, rule.translated(value), found, None, partial(_read, rule, keys))
            where = keys.values(both, at)
        except CrosswalkError as error:
            failure = error.diagnostics[0].message
            continue
        tried += 1
        where = f" (where {where})" if where else ""
        if answer is None:
            return f"{shown(value)} would be written as {shown(found)}, which is not read as that{where}"
        if not answer[1] and not rule.line.rounded:
            return f"{shown(value)} comes back within rounding alone{where}; say `rounded: true`"
    if tried < (2 if finite else _NEEDED):
        return f"no value could be tried: {failure}"
    return None


def _written(rule: FieldRule, keys: _DrawnKeys, value: Any) -> tuple[Any, Any]:
    """A native value, and what is written for it. Where there is nothing (a number that is no multiple), such a config
    is refused on export, and the value that is read from this one is tried in its place."""
    at = rule.theirs[:-1]
    try:
        return value, keys.evaluate(rule.line.write, at, {_VALUE: value})
    except CrosswalkError:
        if rule.table is not None or rule.line.read is None:
            raise
        value = _read(rule, keys, value)
        return value, keys.evaluate(rule.line.write, at, {_VALUE: value})


def _read(rule: FieldRule, keys: _DrawnKeys, given: Any) -> Any:
    keys.known[rule.theirs] = given
    return rule.translated(keys.evaluate(rule.line.read, rule.theirs[:-1], {_VALUE: given}))


def _unknown_way(tree: Sequence[Any]) -> str | None:
    """The first operation that the value goes through and that is no arithmetic; None if there is none."""
    head, parts = tree[0], list(tree[1:])
    if not _mentions(tree) or tree == ["name", "value"]:
        return None
    inner = _CARRIERS[head](parts) if head in _CARRIERS else []
    if not inner:
        return str(parts[0] if head == "call" else head)
    return next((found for part in inner if (found := _unknown_way(part))), None)


def _mentions(tree: Any) -> bool:
    return isinstance(tree, list) and (tree == ["name", "value"] or any(map(_mentions, tree)))


def _values(rule: FieldRule, generator: random.Random) -> list[Any] | None:
    """Values of the field as hf holds them: all, or many. None where they are of a kind that cannot be drawn."""
    nulls = [None] * 8 if rule.field.nullable and not rule.line.required else []
    if rule.table is not None:
        return nulls + list(dict.fromkeys(row.theirs for row in rule.table if not row.lossy)) * 4
    if rule.field.of == "bool":
        return nulls + [True, False] * 8
    if rule.field.kind == "list" or rule.field.of not in ("int", "float"):
        return None
    draw = _drawn_int if rule.field.of == "int" else _drawn_float
    drawn = (draw(generator) * (1 if number % 4 else -1) for number in range(_DRAWS))  # misfits are left out
    return nulls + [number for number in drawn if misfit(rule.field, number) is None]


# ---- keys at a drawn point ---------------------------------------------------------------------------------------


class _DrawnKeys:
    """The keys that the expressions of one entry name, at one drawn point. ``own`` is the path of its key."""

    def __init__(self, mapping: CompiledMapping, own: KeyPath, generator: random.Random) -> None:
        self.mapping, self.own, self.generator = mapping, own, generator
        self.known: dict[KeyPath, Any] = {}
        self.count = 8
        self.active: list[KeyPath] = []

    def evaluate(self, expression: Expression | None, at: KeyPath, special: Mapping[KeyPath, Any]) -> Any:
        """An expression over the keys of the object at ``at`` and ``special`` names; without one, ``value``."""
        if expression is None:
            return special[_VALUE]
        return expression.evaluate(
            lambda name: special[name] if name in special else self.key(_path(name, at)),
            lambda name: self.key(_path(name, at)) is not None,
        )

    def key(self, path: KeyPath) -> Any:
        """The value of a key: drawn once, or what its own ``write`` makes of the others."""
        if path in self.known:
            return self.known[path]
        if path in self.active:
            raise fail("mapping/cycle", f"`{'.'.join(path)}` depends on itself")
        self.active.append(path)
        try:
            found, free = self._drawn(path)
        finally:
            self.active.pop()
        if free:
            self.known[path] = found
        return found

    def values(self, expressions: tuple[Expression | None, ...], at: KeyPath) -> str:
        """The values of the keys that some expressions name."""
        paths = {_path(name, at) for expression in expressions if expression for name in expression.names}
        pairs = [(path, self.key(path)) for path in sorted(paths - {(*at, "value"), self.own})]
        return ", ".join(f"`{'.'.join(path)}` = {shown(value)}" for path, value in pairs)

    def _drawn(self, path: KeyPath) -> tuple[Any, bool]:
        """A value, and whether it is free of the value at hand."""
        rules = self.mapping.rules_at.get(path, ())
        for rule in rules:
            if isinstance(rule, Carried) and rule.line.write is not None and ("kinds",) not in rule.line.write.names:
                free = not rule.line.write.names
                return (self._like(rule.line.default) if free else self.evaluate(rule.line.write, path[:-1], {})), free
        for rule in rules:
            match rule:
                case FieldRule(table=table) if table is not None:
                    return self.generator.choice([row.theirs for row in table]), True
                case FieldRule(field=field) if field.kind != "list" and field.of in _NUMBERS:
                    null = field.nullable and not rule.line.required and self.generator.random() < 0.1
                    drawn = (_NUMBERS[field.of](self.generator) for _ in range(99))
                    return None if null else next((n for n in drawn if misfit(field, n) is None), None), True
                case TheirsFact(line=line) if not isinstance(line.values[0], Expression):
                    return self.generator.choice(line.values), True
                case Carried(line=line) if isinstance(line.default, bool | int | float | list | None):
                    return self._like(line.default), True
        for node in nodes_of(self.mapping.root):
            if isinstance(node, CaseNode) and node.key == path:
                return self.generator.choice([case.value for case in node.cases]), True
            if isinstance(node, Layers) and node.count == path:
                return self.generator.randint(1, 9), True
            if isinstance(node, Layers) and node.key == path:
                names = [kind.name for kind in node.kinds]
                return [self.generator.choice(names) for _ in range(self.generator.randint(1, 9))], True
        raise fail("config/missing-key", f"nothing says what `{'.'.join(path)}` can be")

    def _like(self, default: Any) -> Any:
        """Something of the kind of a default. Numbers in a list are layers, others are small: they count. A list of
        other things has as many, each of its kind, and texts that are in it."""
        if isinstance(default, list):
            if not any(isinstance(item, str | list) for item in default):
                return [index for index in range(self.count) if self.generator.random() < 0.4]
            texts = [item for item in default if isinstance(item, str)]
            return [self.generator.choice(texts) if isinstance(item, str) else self._like(item) for item in default]
        if isinstance(default, bool):
            return self.generator.random() < 0.5
        if isinstance(default, int):
            return self.generator.randint(1, 5)
        return None if default is None else _drawn_float(self.generator)


def _drawn_int(generator: random.Random) -> int:
    """A size or a small number."""
    return generator.choice((generator.randint(1, 9), generator.randint(2, 300)))


def _drawn_float(generator: random.Random) -> float:
    """A number around one, or a large one."""
    return generator.choice((generator.uniform(0.05, 1.0), generator.uniform(1.0, 4.0), generator.uniform(1e2, 1e6)))


_NUMBERS: Mapping[str, Callable[[random.Random], Any]] = {
    "int": _drawn_int,
    "float": _drawn_float,
    "bool": lambda generator: generator.random() < 0.5,
}


def _path(name: KeyPath, at: KeyPath) -> KeyPath:
    return name[1:] if name[0] == "root" else (*at, *name)
