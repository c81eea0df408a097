"""Read a Hugging Face config through a compiled mapping: the import direction of every relation.

One method for each node and rule of :mod:`~crosswalk.compiler.relations.tree`; :mod:`.write` mirrors it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.layout.scope import Scope, Unresolved, normalize
from crosswalk.compiler.layout.values import widened
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.fields import scope_at
from crosswalk.compiler.relations.keys import Names, fill, get, layer_index, overlaid, placed, put
from crosswalk.compiler.relations.rules import Rule, at_rule
from crosswalk.compiler.relations.sides import Findings, Reading
from crosswalk.compiler.relations.tree import (
    CaseNode,
    CompiledMapping,
    Entries,
    Layers,
    Node,
    Nullable,
    PartNode,
    Struct,
    part_mapping,
)
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, listed, shown
from crosswalk.runtime.records import Record, replace

from .architectures import other_head, right_architecture
from .coverage import as_written
from .dialects import read_dialects
from .taken import Chosen, Taken, Taking

#: Characters of a key of a config that an error shows.
_SHOWN = 100


def import_config(
    mapping: CompiledMapping, config: Mapping[str, Any], allow_lossy: bool = False, otherwise: bool = False
) -> tuple[dict[str, Any], Taken]:
    """The native config, complete and checked, and what was taken on the way. ``otherwise``: absent keys mean what is
    under ``otherwise:`` where a rule has that.

    Raises ``CrosswalkError`` with every problem of the config, each about keys of it and with the rule that it breaks.
    """
    reading = _Read(mapping, allow_lossy, otherwise)
    native: dict[str, Any] = {}
    config, reading.record.notes = right_architecture(mapping.source, config)
    part = _Part(mapping, config)
    view = _View(part, reading.prepare(part))
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


class _Part(Record, frozen=True):
    """The object of a mapping: the whole file, or that of a part, which is ``at`` a path of the file. ``config`` is
    what is written there, in whatever dialect; ``tensors`` the prefix of its tensors."""

    mapping: CompiledMapping
    config: Mapping[str, Any]
    at: KeyPath = ()
    tensors: str = ""

    def written(self, path: KeyPath) -> KeyPath:
        """Where in the file the newest form has a path."""
        return (*self.at, *as_written(self.mapping, self.config, path))


class _View:
    """The object that rules read: that of a mapping or part, as seen from one layer or dict entry."""

    def __init__(
        self,
        part: _Part,
        data: Mapping[str, Any],
        holes: Mapping[str, str] = MappingProxyType({}),
        root: Mapping[str, Any] | None = None,
    ) -> None:
        self.part, self.data, self.holes, self.root = part, data, holes, root
        self.names = Names(data, part.mapping.defaults, holes, root)

    def seeing(self, data: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> _View:
        """The same place with other contents."""
        return _View(self.part, data, self.holes, self.root if root is None else root)

    def written(self, path: KeyPath) -> KeyPath:
        return self.part.written(fill(path, self.holes))


class _Read:
    def __init__(self, mapping: CompiledMapping, allow_lossy: bool, otherwise: bool) -> None:
        self.mapping, self.allow_lossy, self.otherwise = mapping, allow_lossy, otherwise
        self.found, self.record = Findings(), Taking()
        self.problems = self.found.problems

    def prepare(self, part: _Part) -> dict[str, Any]:
        data, notes, problems = read_dialects(part.mapping, part.config)
        self.record.notes += notes
        self.problems += [replace(problem, path=(*part.at, *problem.path)) for problem in problems]
        return data

    def error(self, code: str, message: str, path: KeyPath, rule: Position) -> None:
        """``path``: in the file."""
        self.problems.append(Diagnostic(code, message, path=path, rule=rule))

    def report(self, error: CrosswalkError, view: _View, rule: Position, path: KeyPath = ()) -> None:
        """The problems of an error about ``path``, if they do not say which keys they are about."""
        self.problems += [replace(p, path=view.written(p.path)) for p in at_rule(error, rule, path)]

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
        self.record.add((*anchor, *node.ours), Chosen(node, view.part.mapping, view.part.tensors))
        self.body(node, view, out, anchor)

    def body(self, node: Struct, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        for rule in node.rules:
            self.rule(rule, view, out, anchor)
        for child in node.children:
            self.node(child, view, out, anchor)

    def rule(self, rule: Rule, view: _View, out: dict[str, Any], anchor: KeyPath, because: str | None = None) -> None:
        try:
            rule.read(
                Reading(view.names, out, anchor, self.found, self.allow_lossy, self.otherwise, because, view.written)
            )
        except CrosswalkError as error:
            self.report(error, view, rule.position, next(iter(rule.places()), ()))

    def choice(self, node: CaseNode, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        path = fill(node.key, view.holes)
        value = get(view.data, path)
        if value is MISSING or (value is None and node.default is not MISSING):
            value = node.default
        for case in node.cases:
            if same_value(case.value, value):
                return self.node(case.node, view, out, anchor)
        known = listed(case.value for case in node.cases)
        key = ".".join(path)
        for refused in node.refused:
            if same_value(refused.value, value):
                message = f"`{key}` is {shown(value)}: {refused.why}"
                return self.error("config/refused", message, view.written(path), node.position)
        found = f"it is {shown(value)}" if value is not MISSING else "it is absent"
        message = f"`{key}` must be one of {known}; {found}"
        return self.error("config/choice", message, view.written(path), node.position)

    def optional(self, node: Nullable, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        path = fill(node.theirs, view.holes)
        value = get(view.data, path)
        if value is None and node.nullable:
            return put(out, node.ours, None)
        if value is None or value is MISSING:
            if node.default is None:
                return put(out, node.ours, None)
            value = node.default if node.default is not MISSING else {}
            view = view.seeing(placed(view.data, path, value))
        if not isinstance(value, Mapping):
            message = f"`{'.'.join(path)}` must be an object, it is {shown(value)}"
            return self.error("config/type", message, view.written(path), node.position)
        return self.node(node.node, view, out, anchor)

    def layers(self, node: Layers, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        try:
            count = view.names.lookup(("root", *node.count), ())
        except CrosswalkError as error:
            self.report(error, view, node.position)
            return
        for rule in node.rules:
            self.rule(rule, view, out, (*anchor, *node.ours))
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 100_000:
            message = f"`{'.'.join(node.count)}` must be a number of layers, it is {shown(count)}"
            self.error("config/type", message, view.written(node.count), node.position)
            return
        put(out, (*node.ours, "num_blocks"), count)
        if node.each is None:
            put(out, (*node.ours, "type"), "fixed")
            self.block(node.kinds[0].node, view, out, anchor, (*node.ours, "block"))
            return
        try:
            listed = node.listed(view.names, count)
        except CrosswalkError as error:
            self.report(error, view, node.position)
            return
        self.listed_layers(node, view, out, anchor, count, listed)

    def listed_layers(
        self, node: Layers, view: _View, out: dict[str, Any], anchor: KeyPath, count: int, listed: Any
    ) -> None:
        key, path = ".".join(node.key or node.count), view.written(node.key or node.count)
        if not isinstance(listed, list) or not listed or not all(isinstance(name, (str, int)) for name in listed):
            message = f"`{key}` must be a list of kinds of layers, it is {shown(listed)}"
            self.error("config/type", message, path, node.position)
            return
        if len(listed) != count and not (node.repeats and len(listed) < count):
            message = f"`{key}` has {len(listed)} entries for {count} layers"
            self.error("config/length", message, path, node.position)
            return
        unknown = sorted({str(name) for name in listed if node.kind(name) is None})
        if unknown:
            known = ", ".join(map(str, node.kinds))
            message = f"`{key}` has {', '.join(unknown)}; this mapping knows {known}"
            self.error("config/choice", message, path, node.position)
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
            merged = view.seeing(seen, view.data)
            where = (*node.ours, "block") if len(groups) == 1 else (*node.ours, "blocks", name)
            self.block(nodes[kind], merged, out, anchor, where)

    def overrides(self, node: Layers, view: _View, kinds: list[str]) -> dict[int, Mapping[str, Any]]:
        """What differs from the object that all layers read, by index."""
        given = get(view.data, node.overrides) if node.overrides else MISSING
        if given is MISSING or given is None:
            return {}
        path, result = node.overrides or (), dict[int, Mapping[str, Any]]()
        where = ".".join(path)
        if not isinstance(given, Mapping):
            message = f"`{where}` must be an object, it is {shown(given)}"
            self.error("config/type", message, view.written(path), node.position)
            return {}
        for key, value in given.items():
            index = layer_index(key)
            if index is None or index >= len(kinds) or index in result or not isinstance(value, Mapping):
                named = f"{where}.{key}" if len(key) <= _SHOWN else f"{where}.{key[:_SHOWN]}..."
                wrong = f"`{named}`: {'named twice' if index in result else 'no such layer, or not an object'}"
                self.error("config/type", wrong, view.written((*path, key)), node.position)
            else:
                common = {name: get(view.data, (*node.theirs, name)) for name in value}
                result[index] = {name: item for name, item in value.items() if not same_value(item, common[name])}
        for kind in dict.fromkeys(kinds) if node.overridable is not None else ():
            first, *others = (index for index, other in enumerate(kinds) if other == kind)
            differs = (n for n in others if not same_value(result.get(n, {}), result.get(first, {})))
            for index in itertools.islice(differs, 1):
                message = f"`{where}`: layers {first} and {index} are both `{kind}`, and they differ"
                self.error("config/conflict", message, view.written(path), node.position)
        return {index: value for index, value in result.items() if value}

    def block(self, node: Node, view: _View, out: dict[str, Any], anchor: KeyPath, where: KeyPath) -> None:
        block: dict[str, Any] = {}
        put(out, where, block)
        self.node(node, view, block, (*anchor, *where))

    def entries(self, node: Entries, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        path = fill(node.theirs, view.holes)
        value = get(view.data, path)
        if not isinstance(value, Mapping) or not value:
            message = f"`{'.'.join(path)}` must be an object with entries, it is {shown(value)}"
            self.error("config/type", message, view.written(path), node.position)
            return
        for key in value:
            inner = _View(view.part, view.data, {**view.holes, node.ours[-1]: key}, view.root)
            self.block(node.node, inner, out, anchor, (*node.ours, key))

    def part(self, node: PartNode, view: _View, out: dict[str, Any], anchor: KeyPath) -> None:
        value = get(view.data, node.part.theirs)
        key, path = ".".join(node.part.theirs), view.written(node.part.theirs)
        if value is None or value is MISSING:
            if node.part.optional:
                put(out, node.ours, None)
            else:
                self.error("config/missing-key", f"`{key}` is required", path, node.part.position)
            return
        if not isinstance(value, Mapping):
            self.error("config/type", f"`{key}` must be an object, it is {shown(value)}", path, node.part.position)
            return
        try:
            mapping = part_mapping(node, value)
        except CrosswalkError as error:
            self.report(error, view, node.part.position)
            return
        target = get(out, node.ours) if node.ours else out
        if target is MISSING:
            put(out, node.ours, target := {})
        prefix = ".".join(filter(None, (view.part.tensors, node.part.tensors)))
        inner = _Part(mapping, value, path, prefix)
        self.node(mapping.root, _View(inner, self.prepare(inner)), target, (*anchor, *node.ours))
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
                    self.error("mapping/cycle", f"`{'.'.join(path)}` depends on itself", (), later.position)
                return

    def finish_checks(self, native: dict[str, Any]) -> None:
        root = Scope(self.mapping.layout, self.mapping.root.type, native)
        for check in self.found.checks:
            for problem in check(root):
                if problem.severity == "error":
                    self.problems.append(problem)
                else:
                    self.record.notes.append(problem.message)
