"""Checks of the dialects of a compiled mapping, and of the keys that single layers may override."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from crosswalk.compiler.mapping.model import Relocation
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import Diagnostic

from .tree import CompiledMapping, Layers, nodes_of


def check_dialects(mapping: CompiledMapping) -> Iterator[Diagnostic]:
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
