"""Read a config whose absent keys mean one thing or another: the tensors of the checkpoint tell which."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from crosswalk.compiler.config.dialects import dialect_of_names, rename
from crosswalk.compiler.config.read import import_config
from crosswalk.compiler.config.taken import Taken
from crosswalk.compiler.layout.limit import Limit
from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.relations.tree import CompiledMapping, FieldRule, PartNode, nodes_of, rules_of

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
    own = any(isinstance(rule, FieldRule) and rule.otherwise is not MISSING for rule in rules_of(mapping.root))
    parts = (part for node in nodes_of(mapping.root) if isinstance(node, PartNode) for part in node.mappings)
    return own or any(map(_undecided, parts))


def _fits(mapping: CompiledMapping, native: Mapping[str, Any], taken: Taken, names: Collection[str]) -> bool:
    """Whether the tensors of a native config are exactly those with the given names."""
    bound = bind(mapping, native, taken.cases, limit=Limit.of(names))
    dialect = dialect_of_names(mapping, names)
    found = {rename(name, dialect.tensors) if dialect else name for name in names}
    return bound.theirs.keys() <= found <= {*bound.theirs, *bound.duplicates, *bound.ignored}
