"""Write a native config through a compiled mapping: the export direction of every relation.

The mirror of :mod:`.read`. Where several nodes could hold an object (cases of one type, kinds of layers, parts), the
remembered one is tried first, and the first that holds it without an error is taken; that decides the tensors too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from crosswalk.compiler.layout.differences import differing
from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.fields import below, object_at
from crosswalk.compiler.relations.keys import Names, fill, get, leaves, put
from crosswalk.compiler.relations.sides import Condition, Writing
from crosswalk.compiler.relations.tree import (
    Case,
    CaseNode,
    CompiledMapping,
    Entries,
    LayerKind,
    Layers,
    Node,
    Nullable,
    PartNode,
    Struct,
    alternatives,
)
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.records import replace

from .computed import finish_computed, kept_otherwise
from .dialects import read_dialects, write_dialects
from .exported import Attempt, differing_kinds, none_fits
from .read import import_config
from .taken import Cases, Chosen, Taken, holds_taken, related_training


def export_config(
    mapping: CompiledMapping,
    native: Mapping[str, Any],
    dialects: Iterable[str] | None = None,
    allow_lossy: bool = False,
    remembered: Cases = MappingProxyType({}),
    before: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, Any], Taken]:
    """config.json of a native config that :func:`~.scope.normalize` has completed, and what was taken on the way. Where
    several cases hold an object, it is the one that is ``remembered`` for its path, or else the first. ``before`` is
    the config.json of the origin: of several values that mean the same, its own is written.

    Raises ``CrosswalkError`` with everything in the config that the format cannot hold.
    """
    asked = tuple(dialects or (mapping.source.newest or "newest",))
    scope = Scope(mapping.layout, mapping.root.type, native)
    config, result = _Write(mapping, asked, allow_lossy, remembered, before).whole(scope, (), "")
    if not result.problems and result.otherwise:
        kept, other = _Write(mapping, asked, allow_lossy, remembered, before, keep=True).whole(scope, (), "")
        if not other.problems and _is_read_as(mapping, kept, scope):
            config, result = kept, other
    for fact in mapping.header:
        put(config, fact.theirs, fact.line.values[0])
    if result.problems:
        raise CrosswalkError(dict.fromkeys(result.problems))
    return config, result.record.taken(result.lossy)


def _is_read_as(mapping: CompiledMapping, config: Mapping[str, Any], native: Scope) -> bool:
    try:
        found, _ = import_config(mapping, config, allow_lossy=True)
    except CrosswalkError:
        return False
    return not any(differing(Scope(mapping.layout, mapping.root.type, found), native, related_training(mapping)))


class _Write:
    def __init__(
        self,
        mapping: CompiledMapping,
        dialects: tuple[str, ...],
        allow_lossy: bool,
        remembered: Cases,
        before: Mapping[str, Any],
        keep: bool = False,
    ) -> None:
        self.mapping, self.dialects, self.allow_lossy, self.remembered = mapping, dialects, allow_lossy, remembered
        self.before, self.keep = read_dialects(mapping, before)[0] if before else before, keep
        self.tensors = ""

    def whole(self, scope: Scope, anchor: KeyPath, tensors: str) -> tuple[dict[str, Any], Attempt]:
        """The object of a mapping (config.json, or a part's) in the dialects asked for."""
        self.tensors = tensors
        out = Attempt()
        self.node(self.mapping.root, scope, anchor, {}, out)
        config = self.config(out)
        if not out.problems:
            self.run_checks(config, out)
        if not out.problems:
            try:
                config = write_dialects(self.mapping, config, self.dialects, out.effective)
            except CrosswalkError as error:
                out.problems += error.diagnostics
        return config, out

    def config(self, out: Attempt) -> dict[str, Any]:
        """The object that an attempt has written, in its newest form."""
        config: dict[str, Any] = {}
        for path, (value, _) in out.values.items():
            if value is not MISSING:
                put(config, path, value)
        for path, value in out.overrides.items():
            put(config, path, value)
        finish_computed(self.mapping, config, out, self.before, self.keep)
        out.otherwise |= kept_otherwise(config, out, self.before)
        return config

    def run_checks(self, config: dict[str, Any], out: Attempt) -> None:
        for check in out.checks:
            seen: dict[str, Any] = copy.deepcopy(config) if check.layer else config
            for path, value in check.layer.items():
                put(seen, path, value)
            for found in check.run(Names(seen, self.mapping.defaults, check.holes, config)):
                if found.severity == "error":
                    out.problems.append(found)
                else:
                    out.record.notes.append(found.message)

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def node(self, node: Node, scope: Scope, anchor: KeyPath, holes: Mapping[str, str], out: Attempt) -> None:
        match node:
            case Struct():
                self.struct(node, scope, anchor, holes, out)
            case CaseNode():
                self.choice(node, scope, anchor, holes, out)
            case Nullable():
                if below(scope, node.ours, raw=True) is None and node.nullable:
                    out.put(fill(node.theirs, holes), None, node.position)
                else:
                    self.node(node.node, scope, anchor, holes, out)
            case Layers():
                self.layers(node, scope, anchor, holes, out)
            case Entries():
                parent = object_at(scope, node.ours[:-1])
                for key in parent.raw(node.ours[-1]):
                    entry = parent.entry(node.ours[-1], key)
                    self.node(node.node, entry, (*anchor, *node.ours, key), {**holes, node.ours[-1]: key}, out)
            case PartNode():
                self.part(node, scope, anchor, holes, out)

    def attempt(self, node: Node, scope: Scope, anchor: KeyPath, holes: Mapping[str, str]) -> Attempt:
        out = Attempt()
        self.node(node, scope, anchor, holes, out)
        return out

    def struct(self, node: Struct, scope: Scope, anchor: KeyPath, holes: Mapping[str, str], out: Attempt) -> None:
        path = (*anchor, *node.ours)
        where = ".".join(path)
        actual = below(scope, node.ours)
        if not isinstance(actual, Scope) or (actual.kind != node.type and node.type.name not in actual.kind.bases):
            found = f"`{actual.kind}`" if isinstance(actual, Scope) else "null"
            self.mistyped(f"`{where}` must be `{node.type}` in this format, it is {found}", path, node.position, out)
            return
        if actual.kind != node.type and node.type.family:
            text = f"`{where}` must be `{node.type}` in this format, it is `{actual.kind}`"
            self.mistyped(text, path, node.position, out)
            return
        out.record.add(path, Chosen(node, self.mapping, self.tensors))
        self.body(node, scope, anchor, holes, out)

    def mistyped(self, message: str, path: KeyPath, rule: Position, out: Attempt) -> None:
        """``path``: of ours."""
        out.problems.append(Diagnostic("export/type", message, path=path, rule=rule))

    def body(self, node: Struct, scope: Scope, anchor: KeyPath, holes: Mapping[str, str], out: Attempt) -> None:
        at = Writing(scope, anchor, holes, out, self.allow_lossy)
        for rule in node.rules:
            rule.write(at)
        for child in node.children:
            self.node(child, scope, anchor, holes, out)

    def choice(self, node: CaseNode, scope: Scope, anchor: KeyPath, holes: Mapping[str, str], out: Attempt) -> None:
        actual = below(scope, node.ours)
        fitting = [
            case
            for case in node.cases
            if isinstance(actual, Scope) and any(struct.type == actual.kind for struct in alternatives(case.node))
        ]
        path = (*anchor, *node.ours)
        where, known = ".".join(path), self.remembered.get(path, ())
        fitting.sort(key=lambda case: not holds_taken(case.node, known))
        if not fitting:
            found = str(actual.kind) if isinstance(actual, Scope) else "null"
            listed = ", ".join(dict.fromkeys(str(struct.type) for struct in alternatives(node)))
            why = next((f": {refused.why}" for refused in node.refused if refused.type == found), "")
            message = f"`{where}` is `{found}`, which this format cannot hold; it can hold {listed}{why}"
            self.mistyped(message, path, node.position, out)
            return
        attempts = [(case, self.attempt(case.node, scope, anchor, holes)) for case in fitting[:1]]
        for case in fitting[1:]:
            if not attempts[-1][1].problems:
                break
            attempts.append((case, self.attempt(case.node, scope, anchor, holes)))
        taken, best = attempts[-1]
        if best.problems and len(attempts) > 1:
            best.problems = none_fits([(str(c.value), a.problems) for c, a in attempts], path, node.position)
        out.absorb(best)
        assert isinstance(taken, Case)
        out.put(fill(node.key, holes), taken.value, node.position)

    def layers(self, node: Layers, scope: Scope, anchor: KeyPath, holes: Mapping[str, str], out: Attempt) -> None:
        layers = object_at(scope, node.ours[:-1]).blocks(node.ours[-1])
        blocks = dict(layers)
        attempts: dict[KeyPath, tuple[LayerKind, Attempt]] = {}
        for path, block in blocks.items():
            attempts[path] = self.fitting_kind(node, block, (*anchor, *node.ours[:-1], *path), holes)
        kinds = [attempts[path][0].name for path, _ in layers]
        at = Writing(object_at(scope, node.ours), anchor, holes, out, self.allow_lossy, {"kinds": kinds})
        for rule in node.rules:
            rule.write(at)
        out.put(node.count, len(layers), node.position)
        if node.key is not None:
            out.put(node.key, kinds, node.position)
        elif node.each is not None:
            out.checks.append(Condition(lambda names: differing_kinds(node, names, kinds), holes, {}))
        order = [kind.name for kind in node.kinds]
        for path in sorted(blocks, key=lambda p: order.index(attempts[p][0].name)):
            kind, attempt = attempts[path]
            indices = [index for index, (other, _) in enumerate(layers) if other == path]
            self.merge_layer(node, kind, attempt, indices, out)
        if node.overrides is not None:
            depth = len(node.overrides)
            width = max((len(path[depth]) for path in out.overrides), default=1)
            out.overrides = {
                (*path[:depth], path[depth].zfill(width), *path[depth + 1 :]): value
                for path, value in out.overrides.items()
            } or {node.overrides: {}}  # an absent key may stand for overrides that the class fills in

    def fitting_kind(
        self, node: Layers, block: Scope, at: KeyPath, holes: Mapping[str, str]
    ) -> tuple[LayerKind, Attempt]:
        failed: list[tuple[str, list[Diagnostic]]] = []
        known = self.remembered.get(at, ())
        for kind in sorted(node.kinds, key=lambda kind: not holds_taken(kind.node, known)):
            attempt = self.attempt(kind.node, block, at, holes)
            if not attempt.problems:
                return kind, attempt
            failed.append((str(kind), attempt.problems))
        if len(failed) > 1:
            attempt.problems = none_fits(failed, at, node.position)
        return kind, attempt

    def merge_layer(self, node: Layers, kind: LayerKind, attempt: Attempt, indices: list[int], out: Attempt) -> None:
        """Lay one block's places beside those of the others; what differs goes to the overrides that may hold it."""
        depth = len(node.theirs)
        overridden: dict[KeyPath, Any] = {}
        for path, (value, position) in list(attempt.values.items()):
            key = (str(kind), path[depth:])
            alike = key not in out.effective or same_value(out.effective[key], value)
            out.effective[key] = value if alike else MISSING
            if node.overridable is not None and not alike:
                message = f"`{'.'.join(path)}` must be the same for all layers that are `{kind}`"
                out.problems.append(Diagnostic("export/conflict", message, rule=position))
            known = out.values.get(path)
            if known is None or node.overrides is None or same_value(known[0], value):
                continue
            if node.overridable is not None and path[depth] not in node.overridable:
                continue
            del attempt.values[path]
            overridden[path] = value
            for index in indices:
                out.overrides[(*node.overrides, str(index), *path[depth:])] = value
        attempt.checks = [replace(check, layer=overridden) for check in attempt.checks]
        out.absorb(attempt)

    def part(self, node: PartNode, scope: Scope, anchor: KeyPath, holes: Mapping[str, str], out: Attempt) -> None:
        actual = below(scope, node.ours)
        if actual is None:
            if node.part.optional:
                out.put(node.part.theirs, None, node.part.position)
            else:
                text = f"`{'.'.join(node.ours)}` must not be null in this format"
                self.mistyped(text, (*anchor, *node.ours), node.part.position, out)
            return
        prefix = ".".join(filter(None, (self.tensors, node.part.tensors)))
        failed: list[tuple[str, list[Diagnostic]]] = []
        known = self.remembered.get((*anchor, *node.ours), ())
        inside = {path[len(anchor) :]: c for path, c in self.remembered.items() if path[: len(anchor)] == anchor}
        old = get(self.before, node.part.theirs)
        before = old if isinstance(old, Mapping) else {}
        for mapping in sorted(node.mappings, key=lambda mapping: not holds_taken(mapping.root, known)):
            inner = Scope(mapping.layout, mapping.root.type, actual.config, None, ())
            writing = _Write(mapping, self.dialects, self.allow_lossy, inside, before, self.keep)
            config, attempt = writing.whole(inner, node.ours, prefix)
            if not attempt.problems:
                break
            failed.append((mapping.name, attempt.problems))
        else:
            out.problems += none_fits(failed, (*anchor, *node.ours), node.part.position, ".".join(node.part.theirs))
            return
        for path, value in leaves(config):
            out.put((*node.part.theirs, *path), value, node.part.position)
        out.record.absorb(attempt.record, anchor)
        out.otherwise |= attempt.otherwise
        self.body(node.beside, scope, anchor, holes, out)
