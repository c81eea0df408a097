"""Checks of a compiled mapping before there is a config: values, names in expressions, circles, dialects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from crosswalk.compiler.layout.model import MISSING, Field, Layout, Type
from crosswalk.compiler.mapping.model import Entry
from crosswalk.compiler.notation.expressions import Expression
from crosswalk.compiler.text.positioned import describe, did_you_mean
from crosswalk.runtime.errors import Diagnostic, Position

from .tree import (
    Carried,
    CheckRule,
    Choice,
    CompiledMapping,
    Entries,
    FieldRule,
    Layers,
    Node,
    Optional,
    OursFact,
    PartNode,
    Path,
    Rule,
    Struct,
    TheirsFact,
    nodes_of,
    rules_of,
)


def check_config(mapping: CompiledMapping) -> list[Diagnostic]:
    """Every problem of the config side that can be found without a config; parts are checked on their own."""
    return [
        *_check_enums(mapping),
        *_check_values(mapping),
        *_check_keys(mapping),
        *_check_fields(mapping),
        *_check_circles(mapping),
        *_check_dialects(mapping),
        *_check_derived_files(mapping),
    ]


# ---- literals -----------------------------------------------------------------------------------------------------


def _check_enums(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Tables for enums that the layout does not have; what is inherited may be of use to other layouts."""
    enums = mapping.layout.enums
    for name, rows in mapping.source.enums.items():
        if name not in enums:
            if rows and rows[0].position.file == mapping.source.file:
                hint = did_you_mean(name, enums) or f"its enums are {', '.join(enums)}"
                message = f"layout `{mapping.layout.name}` has no enum `{name}`"
                yield Diagnostic("mapping/no-such-enum", message, rows[0].position, hint)
            continue
        for row in rows:
            if row.ours not in enums[name]:
                hint = did_you_mean(str(row.ours), enums[name]) or f"its values are {', '.join(enums[name])}"
                yield Diagnostic("mapping/literal", f"enum `{name}` has no value `{row.ours}`", row.position, hint)


def _check_values(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    for rule in rules_of(mapping.root):
        if isinstance(rule, OursFact) and not isinstance(rule.value, Expression) and not rule.field.is_config:
            wanted = _unfit(rule.value, rule.field, mapping.layout)
            if wanted:
                yield _misfit(rule.ours, wanted, rule.value, rule.field, rule.value_at or rule.position)
        elif isinstance(rule, FieldRule) and rule.read is None:
            for word, value in (("default", rule.default), ("omit", rule.omit)):
                if value is MISSING or isinstance(value, Expression) or (word == "default" and value is rule.omit):
                    continue
                wanted = _unfit(value, rule.field, mapping.layout)
                if rule.table is not None and value is not None:
                    known = [row.theirs for row in rule.table]
                    wanted = None if value in known else f"one of {', '.join(map(str, known))}"
                if wanted:
                    yield _misfit(rule.theirs, wanted, value, rule.field, rule.position, f"the `{word}` of ")


def _misfit(path: Path, wanted: str, value: Any, field: Field, position: Position, what: str = "") -> Diagnostic:
    message = f"{what}`{'.'.join(path)}` must be {wanted}, not {describe(value)}"
    return Diagnostic("mapping/literal", message, position, f"`{field.name}` is declared at {field.position}")


_SCALARS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "bool": ("true or false", lambda v: isinstance(v, bool)),
    "str": ("text", lambda v: isinstance(v, str)),
    "list": ("a list", lambda v: isinstance(v, list)),
    "dict": ("a mapping", lambda v: isinstance(v, Mapping)),
}


def _unfit(value: Any, field: Field, layout: Layout) -> str | None:
    """What the field must hold, if ``value`` is not that."""
    if value is None and (field.nullable or field.of == "any"):
        return None
    or_null = " or null" if field.nullable else ""
    if field.kind == "enum":
        known = layout.enums[field.of]
        return None if value in known else f"one of {', '.join(known)}{or_null}"
    if field.kind == "list":
        return None if isinstance(value, list) else "a list"
    wanted, fits = _SCALARS.get(field.of, ("", lambda _: True))
    if not fits(value):
        return wanted + or_null
    if field.bound is not None:
        relation, bound = field.bound
        if not (value > bound if relation == ">" else value >= bound):
            return f"{relation} {bound:g}"
    return None


# ---- names in expressions -----------------------------------------------------------------------------------------


def _check_keys(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Every name in an expression over theirs is a key that some rule speaks of."""
    known = {path[:n] for path in mapping.claims for n in range(1, len(path) + 1)}
    replaced = {
        (*node.theirs, *pair.old.theirs): pair
        for node in nodes_of(mapping.root)
        if isinstance(node, Struct)
        for pair in node.section.replaced
        if isinstance(pair.old, Entry)
    }
    for expression, at, position in _over_theirs(mapping.root):
        for name in sorted(expression.names):
            path = name[1:] if name[0] == "root" else (*at, *name)
            if path in known:
                continue
            hint = did_you_mean(name[-1], {key[-1] for key in known})
            if path in replaced:
                pair = replaced[path]
                hint = f"`{pair.old}` was replaced by `{pair.new}` ({pair.new.position})"
            message = f"`{expression.text}`: no rule speaks of a key `{'.'.join(path)}`"
            yield Diagnostic("mapping/no-such-name", message, expression.position or position, hint)


def _over_theirs(root: Struct) -> Iterator[tuple[Expression, Path, Position]]:
    """The expressions over keys, each with the object whose keys its names are."""
    for rule in rules_of(root):
        values: tuple[Any, ...]
        if isinstance(rule, FieldRule):
            values = (rule.default, rule.read, rule.write)
        elif isinstance(rule, TheirsFact):
            values = (rule.default, *rule.values)
        elif isinstance(rule, Carried):
            values = (rule.default, rule.write)
        else:
            continue
        for value in values:
            if isinstance(value, Expression):
                yield value, rule.theirs[:-1], rule.position


def _check_fields(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Every name in an expression over ours is a field or an axis; ``config.`` and ``root_config.`` are keys."""
    layout = mapping.layout
    axes = {name for kind in layout.all_types() for name in (*kind.axes, *kind.takes)}
    roots = [mapping.root.type, *(layout.types[name] for name in layout.roots().values())]
    known = {path[:n] for path in mapping.claims for n in range(1, len(path) + 1)}
    for rule, types in _with_types(mapping.root, {}, layout):
        expression = rule.expression if isinstance(rule, CheckRule) else rule.value
        for name in sorted(expression.names):
            if name[0] in ("config", "root_config") and isinstance(rule, CheckRule):
                path = (*rule.theirs, *name[1:]) if name[0] == "config" else name[1:]
                found = path in known
                message = f"no rule speaks of a key `{'.'.join(path)}`"
                hint = did_you_mean(name[-1], {key[-1] for key in known})
            else:
                rest = name[1:] if name[0] == "root" else name
                owners = roots if name[0] == "root" else types
                wrong = _first_unknown(owners, rest, axes, layout)
                found = wrong is None
                message, hint = wrong or ("", None)
            if not found:
                message = f"`{expression.text}`: {message}"
                yield Diagnostic("mapping/no-such-name", message, expression.position or rule.position, hint)


def _first_unknown(
    types: Iterable[Type], path: Path, axes: Iterable[str], layout: Layout
) -> tuple[str, str | None] | None:
    """What no type has on the way along a path of fields, and a hint; None if the path exists."""
    owners = list(types)
    for index, name in enumerate(path):
        fields = [kind.fields[name] for kind in owners if name in kind.fields]
        if not fields:
            if index == 0 and name in axes:
                return None
            names = " or ".join(f"`{name}`" for name in dict.fromkeys(kind.name for kind in owners))
            candidates = {field for kind in owners for field in kind.fields} | (set(axes) if index == 0 else set())
            what = "field or axis" if index == 0 else "field"
            return f"type {names} has no {what} `{name}`", did_you_mean(name, sorted(candidates))
        owners = [kind for field in fields for kind in types_of(field, layout)]
        if any(field.kind in ("dict", "list") or field.of in ("dict", "list", "any") for field in fields):
            return None
    return None


def types_of(field: Field, layout: Layout) -> list[Type]:
    """The types that a config in this field can have."""
    if field.of in layout.families:
        return list(layout.families[field.of].types.values())
    kind = layout.type_of(field.of)
    return [] if kind is None else [kind]


def _with_types(
    node: Node, types: Mapping[Path, list[Type]], layout: Layout
) -> Iterator[tuple[OursFact | CheckRule, list[Type]]]:
    """The rules with an expression over ours, each with the possible types of the object whose fields its names are.
    ``types`` are those of the objects around ``node``, up to the layer or dict entry that it is in."""
    match node:
        case Struct():
            inside = {**types, node.ours: [node.type]}
            yield from _rules_with_types(node.rules, inside)
            for child in node.children:
                yield from _with_types(child, inside, layout)
        case Choice():
            for case in node.cases:
                yield from _with_types(case.node, types, layout)
        case Optional():
            yield from _with_types(node.node, types, layout)
        case PartNode():
            yield from _with_types(node.beside, types, layout)
        case Entries():
            yield from _with_types(node.node, {}, layout)
        case Layers():
            sequence = [kind for kind in layout.all_types() if kind.family and layout.families[kind.family].sequence]
            yield from _rules_with_types(node.rules, {(): sequence})
            for kind in node.kinds:
                yield from _with_types(kind.node, {}, layout)


def _rules_with_types(
    rules: Iterable[Rule], types: Mapping[Path, list[Type]]
) -> Iterator[tuple[OursFact | CheckRule, list[Type]]]:
    for rule in rules:
        if isinstance(rule, CheckRule) or (isinstance(rule, OursFact) and isinstance(rule.value, Expression)):
            yield rule, types[rule.scope]


# ---- circles ------------------------------------------------------------------------------------------------------


def _check_circles(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    defaults = {
        path: {name[1:] if name[0] == "root" else (*path[:-1], *name) for name in value.names}
        for path, value in mapping.defaults.items()
        if isinstance(value, Expression)
    }
    for circle in _circles(defaults):
        value = mapping.defaults[circle[0]]
        yield _circle("default", circle, value.position)
    for node in nodes_of(mapping.root):
        if not isinstance(node, Struct):
            continue
        facts = {
            rule.ours: rule for rule in node.rules if isinstance(rule, OursFact) and isinstance(rule.value, Expression)
        }
        edges = {ours: {(*rule.scope, *name) for name in rule.value.names} for ours, rule in facts.items()}
        for circle in _circles(edges):
            yield _circle("value", circle, facts[circle[0]].position)


def _circle(what: str, circle: list[Path], position: Position | None) -> Diagnostic:
    shown = " -> ".join(f"`{'.'.join(path)}`" for path in (*circle, circle[0]))
    return Diagnostic("mapping/cycle", f"the {what} of `{'.'.join(circle[0])}` depends on itself: {shown}", position)


def _circles(edges: Mapping[Path, Iterable[Path]]) -> Iterator[list[Path]]:
    """One circle for every group of paths that need each other."""
    done: set[Path] = set()
    for start in edges:
        trail: list[Path] = []
        pending = [(start, 0)]
        while pending:
            path, depth = pending.pop()
            del trail[depth:]
            if path in trail:
                yield trail[trail.index(path) :]
                break
            if path in done:
                continue
            trail.append(path)
            done.add(path)
            pending += [(other, depth + 1) for other in sorted(edges.get(path, ()))]


# ---- dialects -----------------------------------------------------------------------------------------------------


def _check_dialects(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    source = mapping.source
    known = ("newest", *filter(None, [source.newest]), *source.dialects)
    for name in source.write_dialects if source.place("write_dialects").file == source.file else ():
        if name not in known:
            hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
            message = f"there is no dialect `{name}` to write"
            yield Diagnostic("mapping/no-such-dialect", message, source.place("write_dialects"), hint)
    for firsts in source.versions.values():
        for name in firsts if source.place("versions").file == source.file else ():
            if name not in known:
                hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
                message = f"`versions`: there is no dialect `{name}`"
                yield Diagnostic("mapping/no-such-dialect", message, source.place("versions"), hint)
    layers = [node for node in nodes_of(mapping.root) if isinstance(node, Layers)]
    kinds = [str(kind.name) for node in layers for kind in node.kinds if kind.name is not None]
    keys = {path[:n] for path in mapping.claims for n in range(1, len(path) + 1)}
    for node in layers:
        for key in sorted(node.overridable or ()):
            if (*node.theirs, key) not in keys:
                near = did_you_mean(key, {path[-1] for path in keys})
                message = f"`overrides`: no rule speaks of `{key}`"
                yield Diagnostic("mapping/no-such-key", message, node.position, near)
    for dialect in source.dialects.values():
        for move in dialect.config:
            if move.position.file != source.file:
                continue  # an inherited move may be about a key that this mapping has no use for
            hole = next((index for index, part in enumerate(move.new) if part.startswith("{")), None)
            if hole is not None and move.new[hole][1:-1] not in kinds:
                hint = did_you_mean(move.new[hole][1:-1], kinds) or f"the kinds are {', '.join(kinds) or 'none'}"
                message = f"`{move.new[hole]}` is no kind of layer"
                yield Diagnostic("mapping/no-such-kind", message, move.position, hint)
                continue
            path = move.new if hole is None else move.new[hole + 1 :]
            condition = move.when
            for operand in sorted(condition.names) if condition is not None else ():
                if condition is not None and operand not in keys:
                    near = did_you_mean(operand[-1], {key[-1] for key in keys})
                    message = f"`when`: no rule speaks of `{'.'.join(operand)}`"
                    yield Diagnostic("mapping/no-such-key", message, condition.position, near)
            if path not in keys:
                message = f"no rule speaks of the new place `{'.'.join(move.new)}`"
                near = did_you_mean(path[-1], {key[-1] for key in keys})
                yield Diagnostic("mapping/no-such-key", message, move.position, near)


# ---- files beside config.json -------------------------------------------------------------------------------------


def _check_derived_files(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    for name, keys in mapping.source.derived_files.items():
        for key in keys:
            if (key,) not in mapping.claims:
                near = did_you_mean(key, {path[0] for path in mapping.claims})
                message = f"`{name}` is made of `{key}`, of which no rule speaks"
                yield Diagnostic("mapping/no-such-key", message, mapping.source.place("derived_files"), near)
