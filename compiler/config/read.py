"""Read a Hugging Face config through a compiled mapping: the import direction of every relation.

One method for each node and rule of :mod:`~crosswalk.compiler.relations.tree`; :mod:`.write` mirrors it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from crosswalk.compiler.layout.differences import same_value
from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.layout.scope import Scope, Unresolved, normalize
from crosswalk.compiler.layout.values import widened
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.fields import scope_at
from crosswalk.compiler.relations.keys import Names, fill, get, layer_index, overlaid, placed, put
from crosswalk.compiler.relations.rules import at_rule
from crosswalk.compiler.relations.sides import Findings, Reading
from crosswalk.compiler.relations.tree import (
    CaseNode,
    CompiledMapping,
    Entries,
    Layers,
    Node,
    Nullable,
    PartNode,
    Rule,
    Struct,
    part_mapping,
)
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position

from .architectures import other_head, right_architecture
from .dialects import read_dialects
from .taken import Chosen, Record, Taken


def import_config(
    mapping: CompiledMapping, config: Mapping[str, Any], allow_lossy: bool = False, otherwise: bool = False
) -> tuple[dict[str, Any], Taken]:
    """The native config, complete and checked, and what was taken on the way. ``otherwise``: absent keys mean what is
    under ``otherwise:`` where a rule has that.

    Raises ``CrosswalkError`` with every problem of the config, each at the rule that it breaks.
    """
    reading = _Read(mapping, allow_lossy, otherwise)
    native: dict[str, Any] = {}
    config, reading.record.notes = right_architecture(mapping.source, config)
    data = reading.prepare(mapping, config)
    view = _View(mapping, data, {})
    for fact in mapping.header:
        reading.rule(fact, view, native, (), other_head(mapping.source, config))
    reading.node(mapping.root, view, native, ())
    reading.finish_facts(native)
    if reading.problems:
        raise CrosswalkError(dict.fromkeys(reading.problems))
    result = normalize(mapping.layout, native, mapping.root.type.name)
    reading.finish_checks(result)
    if reading.problems:
        raise CrosswalkError(dict.fromkeys(reading.problems))
    return result, reading.record.taken(reading.found.lossy)


class _View:
    """The object that rules read: the root of a mapping or part, as seen from one layer or dict entry. ``tensors`` is
    the tensor prefix of the part."""

    def __init__(
        self,
        mapping: CompiledMapping,
        data: Mapping[str, Any],
        holes: Mapping[str, str],
        root: Mapping[str, Any] | None = None,
        tensors: str = "",
    ) -> None:
        self.mapping, self.data, self.holes, self.root, self.tensors = mapping, data, holes, root, tensors
        self.names = Names(data, mapping.defaults, holes, root)


class _Read:
    def __init__(self, mapping: CompiledMapping, allow_lossy: bool, otherwise: bool) -> None:
        self.mapping, self.allow_lossy, self.otherwise = mapping, allow_lossy, otherwise
        self.found, self.record = Findings(), Record()
        self.problems = self.found.problems

    def prepare(self, mapping: CompiledMapping, config: Mapping[str, Any]) -> dict[str, Any]:
        data, notes, problems = read_dialects(mapping, config)
        self.record.notes += notes
        self.problems += problems
        return data

    def error(self, code: str, message: str, position: Position, hint: str | None = None) -> None:
        self.problems.append(Diagnostic(code, message, position, hint))

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def node(self, node: Node, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        match node:
            case Struct():
                self.struct(node, view, out, anchor)
            case CaseNode():
                self.choice(node, view, out, anchor)
            case Nullable():
                self.optional(node, view, out, anchor)
            case Layers():
                self.layers(node, view, out, anchor)
            case Entries():
                self.entries(node, view, out, anchor)
            case PartNode():
                self.part(node, view, out, anchor)

    def struct(self, node: Struct, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        if node.type.registered:
            put(out, (*node.ours, "type"), node.type.registered)
        self.record.add((*anchor, *node.ours), Chosen(node, view.mapping, view.tensors))
        self.body(node, view, out, anchor)

    def body(self, node: Struct, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        for rule in node.rules:
            self.rule(rule, view, out, anchor)
        for child in node.children:
            self.node(child, view, out, anchor)

    def rule(self, rule: Rule, view: _View, out: dict[str, Any], anchor: KeyPath, because: str | None = None) -> None:
        try:
            rule.read(Reading(view.names, out, anchor, self.found, self.allow_lossy, self.otherwise, because))
        except CrosswalkError as error:
            self.problems += at_rule(error, rule.position)

    def choice(self, node: CaseNode, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        path = fill(node.key, view.holes)
        value = get(view.data, path)
        if value is MISSING or (value is None and node.default is not MISSING):
            value = node.default
        for case in node.cases:
            if same_value(case.value, value):
                return self.node(case.node, view, out, anchor)
        known = ", ".join(str(case.value) for case in node.cases)
        key = ".".join(path)
        for refused in node.refused:
            if same_value(refused.value, value):
                return self.error("config/refused", f"`{key}` is {value!r}: {refused.why}", node.position)
        found = f"it is {value!r}" if value is not MISSING else "it is absent"
        return self.error("config/choice", f"`{key}` must be one of {known}; {found}", node.position)

    def optional(self, node: Nullable, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        path = fill(node.theirs, view.holes)
        value = get(view.data, path)
        if value is None and node.nullable:
            return put(out, node.ours, None)
        if value is None or value is MISSING:
            if node.default is None:
                return put(out, node.ours, None)
            value = node.default if node.default is not MISSING else {}
            view = _View(view.mapping, placed(view.data, path, value), view.holes, view.root, view.tensors)
        if not isinstance(value, Mapping):
            return self.error("config/type", f"`{'.'.join(path)}` must be an object, it is {value!r}", node.position)
        return self.node(node.node, view, out, anchor)

    def layers(self, node: Layers, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        try:
            count = view.names.lookup(("root", *node.count), ())
        except CrosswalkError as error:
            self.problems += at_rule(error, node.position)
            return
        for rule in node.rules:
            self.rule(rule, view, out, (*anchor, *node.ours))
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 100_000:
            self.error(
                "config/type", f"`{'.'.join(node.count)}` must be a number of layers, it is {count!r}", node.position
            )
            return
        put(out, (*node.ours, "num_blocks"), count)
        if node.each is None:
            put(out, (*node.ours, "type"), "fixed")
            self.block(node.kinds[0].node, view, out, anchor, (*node.ours, "block"))
            return
        try:
            listed = node.listed(view.names, count)
        except CrosswalkError as error:
            self.problems += at_rule(error, node.position)
            return
        self.listed_layers(node, view, out, anchor, count, listed)

    def listed_layers(
        self, node: Layers, view: _View, out: dict[str, Any], anchor: KeyPath, count: int, listed: Any
    ) -> None:
        key = ".".join(node.key) if node.key else "each"
        if not isinstance(listed, list) or not listed or not all(isinstance(name, (str, int)) for name in listed):
            self.error("config/type", f"`{key}` must be a list of kinds of layers, it is {listed!r}", node.position)
            return
        if len(listed) != count and not (node.repeats and 0 < len(listed) < count):
            self.error("config/length", f"`{key}` has {len(listed)} entries for {count} layers", node.position)
            return
        unknown = sorted({str(name) for name in listed if node.kind(name) is None})
        if unknown:
            known = ", ".join(map(str, node.kinds))
            self.error("config/choice", f"`{key}` has {', '.join(unknown)}; this mapping knows {known}", node.position)
            return
        nodes = {str(kind): kind.node for kind in node.kinds}
        kinds = [str(node.kind(name)) for name in listed]
        overrides = self.overrides(node, view, [kinds[index % len(kinds)] for index in range(count)])
        names: dict[int, str] = {}
        groups: list[tuple[str, Any, str]] = []
        for index in range(count if overrides else len(kinds)):
            kind, override = kinds[index % len(kinds)], overrides.get(index, {})
            found = [n for k, o, n in groups if k == kind and same_value(o, override)]
            if not found:
                taken = sum(k == kind for k, _, _ in groups)
                found = [kind if not taken else f"{kind}_{taken + 1}"]
                groups.append((kind, override, found[0]))
            names[index] = found[0]
        if len(groups) == 1:
            put(out, (*node.ours, "type"), "fixed")
        else:
            put(out, (*node.ours, "type"), "pattern")
            put(out, (*node.ours, "pattern"), [names[index] for index in range(len(names))])
        for kind, override, name in groups:
            seen = overlaid(view.data, node.theirs, override)
            merged = _View(view.mapping, seen, view.holes, view.data, view.tensors)
            where = (*node.ours, "block") if len(groups) == 1 else (*node.ours, "blocks", name)
            self.block(nodes[kind], merged, out, anchor, where)

    def overrides(self, node: Layers, view: _View, kinds: list[str]) -> dict[int, Mapping[str, Any]]:
        """What differs from the object that all layers read, by index."""
        given = get(view.data, node.overrides) if node.overrides else MISSING
        if given is MISSING or given is None:
            return {}
        where, result = ".".join(node.overrides or ()), dict[int, Mapping[str, Any]]()
        if not isinstance(given, Mapping):
            self.error("config/type", f"`{where}` must be an object, it is {given!r}", node.position)
            return {}
        for key, value in given.items():
            index = layer_index(key)
            if index is None or index >= len(kinds) or index in result or not isinstance(value, Mapping):
                wrong = f"`{where}.{key}`: {'named twice' if index in result else 'no such layer, or not an object'}"
                self.error("config/type", wrong, node.position)
            else:
                common = {name: get(view.data, (*node.theirs, name)) for name in value}
                result[index] = {name: item for name, item in value.items() if not same_value(item, common[name])}
        for kind in dict.fromkeys(kinds) if node.overridable is not None else ():
            first, *others = (index for index, other in enumerate(kinds) if other == kind)
            differs = (n for n in others if not same_value(result.get(n, {}), result.get(first, {})))
            for index in itertools.islice(differs, 1):
                message = f"`{where}`: layers {first} and {index} are both `{kind}`, and they differ"
                self.error("config/conflict", message, node.position)
        return {index: value for index, value in result.items() if value}

    def block(self, node: Node, view: _View, out: dict[str, Any], anchor: KeyPath, where: KeyPath) -> None:
        block: dict[str, Any] = {}
        put(out, where, block)
        self.node(node, view, block, (*anchor, *where))

    def entries(self, node: Entries, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        path = fill(node.theirs, view.holes)
        value = get(view.data, path)
        if not isinstance(value, Mapping) or not value:
            self.error(
                "config/type", f"`{'.'.join(path)}` must be an object with entries, it is {value!r}", node.position
            )
            return
        for key in value:
            inner = _View(view.mapping, view.data, {**view.holes, node.ours[-1]: key}, view.root, view.tensors)
            self.block(node.node, inner, out, anchor, (*node.ours, key))

    def part(self, node: PartNode, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        value = get(view.data, node.part.theirs)
        key = ".".join(node.part.theirs)
        if value is None or value is MISSING:
            if node.part.optional:
                put(out, node.ours, None)
            else:
                self.error("config/missing-key", f"`{key}` is required", node.part.position)
            return
        if not isinstance(value, Mapping):
            self.error("config/type", f"`{key}` must be an object, it is {value!r}", node.part.position)
            return
        try:
            mapping = part_mapping(node, value)
        except CrosswalkError as error:
            self.problems += error.diagnostics
            return
        target = get(out, node.ours) if node.ours else out
        if target is MISSING:
            put(out, node.ours, target := {})
        data = self.prepare(mapping, value)
        prefix = ".".join(filter(None, (view.tensors, node.part.tensors)))
        self.node(mapping.root, _View(mapping, data, {}, None, prefix), target, (*anchor, *node.ours))
        self.body(node.beside, view, out, anchor)

    # ---- what waits until all fields are there ----------------------------------------------------------------------

    def finish_facts(self, native: dict[str, Any]) -> None:
        """Values that are computed from other fields, in an order in which each finds its operands."""
        if self.problems:
            return
        waiting = dict(self.found.facts)
        while waiting:
            before = len(waiting)
            for path, later in list(waiting.items()):
                root = Scope(self.mapping.layout, self.mapping.root.type, native, pending=waiting.keys() - {path})
                try:
                    value = scope_at(root, later.at).evaluate(later.value)
                except Unresolved:
                    continue
                except CrosswalkError as error:
                    self.problems += at_rule(error, later.position)
                else:
                    put(native, path, widened(later.field, value))
                del waiting[path]
            if len(waiting) == before:
                for path, later in waiting.items():
                    self.error("mapping/cycle", f"`{'.'.join(path)}` depends on itself", later.position)
                return

    def finish_checks(self, native: dict[str, Any]) -> None:
        root = Scope(self.mapping.layout, self.mapping.root.type, native)
        for check in self.found.checks:
            for problem in check(root):
                if problem.severity == "error":
                    self.problems.append(problem)
                else:
                    self.record.notes.append(problem.message)
