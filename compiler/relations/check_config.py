"""Checks of a compiled mapping before there is a config: values, names in expressions, circles, dialects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from crosswalk.compiler.layout.model import ConfigType, Layout
from crosswalk.compiler.layout.modules import types_in
from crosswalk.compiler.mapping.model import Entry, Relocation
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import Diagnostic, Position

from .inverse import check_inverses
from .rules import Carried, CheckRule, FieldRule, OursFact, Rule
from .tree import (
    CaseNode,
    CompiledMapping,
    Entries,
    Layers,
    Node,
    Nullable,
    OneOf,
    PartNode,
    Struct,
    nodes_of,
    rules_of,
)


def check_config(mapping: CompiledMapping, inverses: bool = True) -> list[Diagnostic]:
    """Every problem of the config side that can be found without a config; parts are checked on their own.
    ``inverses``: whether `read` and `write` undo each other is one of them."""
    named = [*_check_keys(mapping)]
    return [
        *_check_enums(mapping),
        *_check_values(mapping),
        *(named or (check_inverses(mapping) if inverses else ())),
        *_check_fields(mapping),
        *_check_cuts(mapping),
        *_check_circles(mapping),
        *_check_dialects(mapping),
        *_check_derived_files(mapping),
        *_check_class_defaults(mapping),
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
        yield from rule.check(mapping.layout)


# ---- names in expressions -----------------------------------------------------------------------------------------


def _check_keys(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Every name in an expression over the hf side is a key that some rule speaks of."""
    known = {path[:n] for path in mapping.claims for n in range(1, len(path) + 1)}
    replaced = {
        (*node.theirs, *pair.old.theirs): pair
        for node in nodes_of(mapping.root)
        if isinstance(node, Struct)
        for pair in node.section.replaced
        if isinstance(pair.old, Entry)
    }
    for expression, at, position, special in _over_theirs(mapping.root):
        for name in sorted(expression.names):
            path = name[1:] if name[0] == "root" else (*at, *name)
            if path in known or name in special:
                continue
            hint = did_you_mean(name[-1], {key[-1] for key in known})
            if path in replaced:
                pair = replaced[path]
                hint = f"`{pair.old}` was replaced by `{pair.new}` ({pair.new.position})"
            message = f"`{expression.text}`: no rule speaks of a key `{'.'.join(path)}`"
            yield Diagnostic("mapping/no-such-name", message, expression.position or position, hint)


def _over_theirs(root: OneOf) -> Iterator[tuple[Expression, KeyPath, Position, tuple[KeyPath, ...]]]:
    """The expressions over keys, each with the object whose keys its names are, and those that are no keys."""
    for node in nodes_of(root):
        if isinstance(node, Layers) and isinstance(node.each, Expression):
            yield node.each, node.theirs, node.position, (("layer",),)
        if isinstance(node, Layers) and isinstance(node.each_default, Expression):
            yield node.each_default, node.theirs, node.position, ()
        for rule in node.rules if isinstance(node, (Struct, Layers)) else ():
            arithmetic = rule.arithmetic() if isinstance(rule, FieldRule) else ()
            written = rule.line.write if isinstance(rule, Carried) and isinstance(node, Layers) else None
            for value in rule.over_theirs():
                if isinstance(value, Expression):
                    special = (("value",),) if value in arithmetic else (("kinds",),) if value is written else ()
                    yield value, rule.places()[0][:-1], rule.position, special


def _check_fields(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Every name in an expression over native fields is one or an axis; ``config.`` and ``root_config.`` are keys."""
    layout = mapping.layout
    axes = {name for kind in layout.all_types() for name in (*kind.axes, *kind.takes)}
    roots = [mapping.root.type, *(layout.types[name] for name in layout.roots().values())]
    known = {path[:n] for path in mapping.claims for n in range(1, len(path) + 1)}
    for rule, expression, types in _with_types(mapping.root, {}, layout):
        for name in sorted(expression.names):
            if name[0] in ("config", "root_config") and isinstance(rule, CheckRule):
                wrong = _unknown_key((*rule.theirs, *name[1:]) if name[0] == "config" else name[1:], known)
            elif name[0] == "root":
                wrong = _first_unknown(roots, name[1:], axes, layout)
            else:
                wrong = _first_unknown(types, name, axes, layout)
            if wrong is not None:
                message = f"`{expression.text}`: {wrong[0]}"
                yield Diagnostic("mapping/no-such-name", message, expression.position or rule.position, wrong[1])


def _check_cuts(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Axes that are cut and are none, and names in the sizes of their parts."""
    layout = mapping.layout
    axes = {name for kind in layout.all_types() for name in (*kind.axes, *kind.takes)}
    structs = (node for node in nodes_of(mapping.root) if isinstance(node, Struct))
    for node in structs:
        for line in node.section.cuts.values():
            if line.axis not in axes:
                message = f"`cuts`: the layout has no axis `{line.axis}`"
                yield Diagnostic("mapping/cut", message, line.position, did_you_mean(line.axis, axes))
            elif node.type.name == layout.root and line.axis not in node.type.axes:  # nothing is around it
                message = f"`cuts`: type `{node.type.name}` has no axis `{line.axis}`"
                holders = ", ".join(f"`{kind.name}`" for kind in layout.all_types() if line.axis in kind.axes)
                yield Diagnostic("mapping/cut", message, line.position, f"cut it in the section of {holders}")
            if sum(size is None for _, size in line.parts) > 1:
                message = f"`cuts`: two parts of `{line.axis}` cannot both be what the others leave"
                yield Diagnostic("mapping/cut", message, line.position, "give one of them a size")
            for expression in (size for _, size in line.parts if isinstance(size, Expression)):
                for name in sorted(expression.names):
                    if wrong := _first_unknown([node.type], name, axes, layout):
                        message = f"`{expression.text}`: {wrong[0]}"
                        yield Diagnostic("mapping/no-such-name", message, expression.position, wrong[1])


def _unknown_key(path: KeyPath, known: Iterable[KeyPath]) -> tuple[str, str | None] | None:
    """That no rule speaks of a key, and a hint; None if one does."""
    if path in known:
        return None
    return f"no rule speaks of a key `{'.'.join(path)}`", did_you_mean(path[-1], {key[-1] for key in known})


def _first_unknown(
    types: Iterable[ConfigType], path: KeyPath, axes: Iterable[str], layout: Layout
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
        owners = [kind for field in fields for kind in types_in(layout, field.of)]
        if any(field.kind in ("dict", "list") or field.of in ("dict", "list", "any") for field in fields):
            return None
    return None


def _with_types(
    node: Node, types: Mapping[KeyPath, list[ConfigType]], layout: Layout
) -> Iterator[tuple[Rule, Expression, list[ConfigType]]]:
    """The rules with an expression over native fields, each with the possible types of the object whose fields its
    names are. ``types`` are those of the objects around ``node``, up to the layer or dict entry that it is in."""
    match node:
        case Struct():
            inside = {**types, node.ours: [node.type]}
            yield from _rules_with_types(node.rules, inside)
            for child in node.children:
                yield from _with_types(child, inside, layout)
        case CaseNode():
            for case in node.cases:
                yield from _with_types(case.node, types, layout)
        case Nullable():
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
    rules: Iterable[Rule], types: Mapping[KeyPath, list[ConfigType]]
) -> Iterator[tuple[Rule, Expression, list[ConfigType]]]:
    for rule in rules:
        expression = rule.over_ours()
        if isinstance(rule, (CheckRule, OursFact)) and expression is not None:
            yield rule, expression, types[rule.scope]


# ---- circles ------------------------------------------------------------------------------------------------------


def _check_circles(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    defaults = {
        path: {name[1:] if name[0] == "root" else (*path[:-1], *name) for name in value.names}
        for path, value in mapping.defaults.values.items()
        if isinstance(value, Expression)
    }
    for circle in _circles(defaults):
        value = mapping.defaults.values[circle[0]]
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


def _circle(what: str, circle: list[KeyPath], position: Position | None) -> Diagnostic:
    shown = " -> ".join(f"`{'.'.join(path)}`" for path in (*circle, circle[0]))
    return Diagnostic("mapping/cycle", f"the {what} of `{'.'.join(circle[0])}` depends on itself: {shown}", position)


def _circles(edges: Mapping[KeyPath, Iterable[KeyPath]]) -> Iterator[list[KeyPath]]:
    """One circle for every group of paths that need each other."""
    done: set[KeyPath] = set()
    for start in edges:
        trail: list[KeyPath] = []
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


# ---- dialects ---------------------------------------------------------------------------------------------------


def _check_dialects(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    """Names of dialects, kinds and keys that do not exist."""
    source = mapping.source
    known = ("newest", *filter(None, [source.newest]), *source.dialects)
    for name in source.write_dialects if source.place("write_dialects").file == source.file else ():
        if name not in known:
            hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
            message = f"there is no dialect `{name}` to write"
            yield Diagnostic("mapping/no-such-dialect", message, source.place("write_dialects"), hint)
    for name in (name for firsts in source.versions.values() for name in firsts if name not in known):
        if source.place("versions").file == source.file:
            hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
            message = f"`versions`: there is no dialect `{name}`"
            yield Diagnostic("mapping/no-such-dialect", message, source.place("versions"), hint)
    layers = [node for node in nodes_of(mapping.root) if isinstance(node, Layers)]
    kinds = [str(kind) for node in layers for kind in node.kinds if kind.name is not None]
    keys = {path[:n] for path in mapping.claims for n in range(1, len(path) + 1)}
    for node in layers:
        for key in sorted(node.overridable or ()):
            if (*node.theirs, key) not in keys:
                near = did_you_mean(key, {path[-1] for path in keys})
                message = f"`overrides`: no rule speaks of `{key}`"
                yield Diagnostic("mapping/no-such-key", message, node.position, near)
    for dialect in source.dialects.values():
        for move in dialect.config:
            if move.position.file == source.file:  # an inherited one may be about a key that is of no use here
                yield from _check_move(move, kinds, keys)


def _check_move(move: Relocation, kinds: list[str], keys: Collection[KeyPath]) -> Iterator[Diagnostic]:
    hole = next((index for index, part in enumerate(move.new) if part.startswith("{")), None)
    if hole is not None and move.new[hole][1:-1] not in kinds:
        hint = did_you_mean(move.new[hole][1:-1], kinds) or f"the kinds are {', '.join(kinds) or 'none'}"
        message = f"`{move.new[hole]}` is no kind of layer"
        yield Diagnostic("mapping/no-such-kind", message, move.position, hint)
        return
    if move.when is not None:
        for operand in sorted(move.when.names - set(keys)):
            near = did_you_mean(operand[-1], {key[-1] for key in keys})
            message = f"`when`: no rule speaks of `{'.'.join(operand)}`"
            yield Diagnostic("mapping/no-such-key", message, move.when.position, near)
    path = move.new if hole is None else move.new[hole + 1 :]
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


def _check_class_defaults(mapping: CompiledMapping) -> Iterator[Diagnostic]:
    kept = {rule.theirs[0] for rule in rules_of(mapping.root) if isinstance(rule, Carried) and rule.kept}
    for key in mapping.source.class_defaults.keys() - kept:
        message = f"`{key}` is not kept: what the class takes for it is said where it is related, as `default:`"
        near = did_you_mean(key, kept)
        yield Diagnostic("mapping/no-such-key", message, mapping.source.place("class_defaults"), near)
