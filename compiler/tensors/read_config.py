"""Read a config whose absent keys mean one thing or another: the tensors of the checkpoint tell which."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from typing import Any

from crosswalk.compiler.config.coverage import restore_kept
from crosswalk.compiler.config.dialects import dialect_of_names, rename
from crosswalk.compiler.config.read import import_config
from crosswalk.compiler.config.taken import Cases, Taken
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.layout.differences import differing
from crosswalk.compiler.layout.limit import Limit
from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.layout.scope import Scope, as_stored
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.inverse import ROUNDING
from crosswalk.compiler.relations.rules import FieldRule, OursFact, Rule, Unused
from crosswalk.compiler.relations.tree import CompiledMapping, PartNode, nodes_of, rules_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic

from .bind import bind


def import_with_tensors(
    mapping: CompiledMapping, config: Mapping[str, Any], names: Collection[str], allow_lossy: bool = False
) -> tuple[dict[str, Any], Taken]:
    """Import the config of a checkpoint with tensors of these names, which decide what absent keys mean where a rule
    says ``otherwise:``. If neither meaning fits, it is that of ``default:``."""
    found = import_config(mapping, config, allow_lossy)
    if not _undecided(mapping):
        return found
    other = import_config(mapping, config, allow_lossy, otherwise=True)
    if other[0] == found[0] or _fits(mapping, *found, names) or not _fits(mapping, *other, names):
        return found
    return other


def _undecided(mapping: CompiledMapping) -> bool:
    """Whether some absent keys mean one thing or another."""
    own = any(isinstance(rule, FieldRule) and rule.line.otherwise is not MISSING for rule in rules_of(mapping.root))
    parts = (part for node in nodes_of(mapping.root) if isinstance(node, PartNode) for part in node.mappings)
    return own or any(map(_undecided, parts))


def _fits(mapping: CompiledMapping, native: Mapping[str, Any], taken: Taken, names: Collection[str]) -> bool:
    """Whether the tensors of a native config are exactly those with the given names."""
    bound = bind(mapping, native, taken.cases, limit=Limit.of(names))
    dialect = dialect_of_names(mapping, names)
    found = {rename(name, dialect.tensors) if dialect else name for name in names}
    return bound.hf.keys() <= found <= {*bound.hf, *bound.duplicates, *bound.ignored}


def written_alone(
    mapping: CompiledMapping,
    native: Mapping[str, Any],
    dialects: tuple[str, ...],
    allow_lossy: bool,
    remembered: Cases,
    before: Mapping[str, Any],
    final: Mapping[str, Any],
) -> dict[str, Mapping[str, Any]]:
    """What is written, as its readers see it: the whole of it, and of several dialects each alone."""
    result = {"": final}
    for name in dialects if len(dialects) > 1 else ():
        alone = copy.deepcopy(export_config(mapping, native, (name,), allow_lossy, remembered, before)[0])
        if before:
            restore_kept(mapping, alone, before)
        result[name] = alone
    return result


def check_written(
    mapping: CompiledMapping,
    written: Mapping[str, Mapping[str, Any]],
    native: Mapping[str, Any],
    names: Collection[str] | None,
) -> None:
    """Read what was written for a native config again: by dialect, with the ``names`` of the tensors beside it, if they
    are known. Raises ``CrosswalkError`` (``export/differs``) with every field in which that is another model, the key
    that holds it, and the line that relates the two."""
    layout, kind = mapping.layout, mapping.root.type
    rounded = any(isinstance(rule, FieldRule) and rule.line.rounded for rule in rules_of(mapping.root))
    problems: dict[KeyPath, Diagnostic] = {}
    for dialect, config in written.items():
        where = f"config.json in the dialect `{dialect}`" if dialect else "the config.json that says so"
        if names is None:
            back, _ = import_config(mapping, config, allow_lossy=True)
        else:
            back, _ = import_with_tensors(mapping, config, names, allow_lossy=True)
        here, there = (Scope(layout, kind, as_stored(layout, kind, found)) for found in (native, back))
        for path, is_, read, floats in differing(here, there):
            if floats and rounded and math.isclose(float(is_), float(read), rel_tol=ROUNDING):
                continue
            rule = _rule_of(mapping, path)
            key = f" (key `{'.'.join(rule.theirs)}`)" if isinstance(rule, FieldRule) else ""
            text = f"`{'.'.join(path)}`{key} is {is_}, and {where} would be read as {read}"
            hint = f"mapping `{mapping.name}` ({mapping.source.file}) does not write this field as it reads it"
            at = rule.position if rule is not None else mapping.source.position
            problems.setdefault(path, Diagnostic("export/differs", text, None, hint, path=path, rule=at))
    if problems:
        raise CrosswalkError(problems.values())


def _rule_of(mapping: CompiledMapping, path: KeyPath) -> Rule | None:
    """The rule of the field at a path: that which speaks of most of the end of it."""
    native = [rule for rule in rules_of(mapping.root) if isinstance(rule, (FieldRule, OursFact, Unused))]
    native = [rule for rule in native if path[-len(rule.ours) :] == rule.ours]
    return max(native, key=lambda rule: len(rule.ours), default=None)
