"""What an attempt to write an object has written so far, layers and the structs that speak for objects included."""

from __future__ import annotations

from typing import Any

from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.keys import Names
from crosswalk.compiler.relations.rules import at_rule
from crosswalk.compiler.relations.sides import ObjectDraft
from crosswalk.compiler.relations.tree import Layers
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.records import field

from .taken import Taking


class Attempt(ObjectDraft):
    """A draft with what differs in single layers (``overrides``), what each kind of layer has (``effective``), and a
    record of what speaks for the native objects. ``otherwise``: the origin has other values of computed keys."""

    overrides: dict[KeyPath, Any] = field(default_factory=dict)
    effective: dict[tuple[str, KeyPath], Any] = field(default_factory=dict)
    record: Taking = field(default_factory=Taking)
    otherwise: bool = False

    def absorb(self, other: Attempt) -> None:
        """Take over what another attempt wrote; a place written twice must have the same value and type."""
        for path, (value, position) in other.values.items():
            self.put(path, value, position)
        self.overrides |= other.overrides
        self.effective |= other.effective
        self.computed += other.computed
        self.checks += other.checks
        self.lossy += other.lossy
        self.record.absorb(other.record)
        self.problems += other.problems
        self.otherwise |= other.otherwise


def differing_kinds(node: Layers, names: Names, kinds: list[Any]) -> list[Diagnostic]:
    """The first layer of which the keys that were written say another kind than it is."""
    try:
        listed = node.listed(names, len(kinds))
    except CrosswalkError as error:
        return at_rule(error, node.position)
    pairs = enumerate(zip(kinds, listed, strict=True))
    wrong = next((found for found in pairs if not same_value(*found[1])), None)
    if wrong is None:
        return []
    index, (kind, said) = wrong
    message = f"layer {index} is `{kind}`, and the keys of this format can only say `{said}` there"
    hint = "the format has no place for these kinds in this order"
    return [Diagnostic("export/kinds", message, None, hint, rule=node.position, path=node.ours)]


def none_fits(
    failed: list[tuple[str, list[Diagnostic]]], path: KeyPath, rule: Position, called: str = ""
) -> list[Diagnostic]:
    """Problems that stand in the way of every candidate for the object at a native path, or the first of each."""
    common = [p for p in failed[0][1] if all(p in problems for _, problems in failed[1:])]
    if common:
        return common
    reasons = "; ".join(f"not `{name}`: {problems[0].message}" for name, problems in failed)
    message = f"`{called or '.'.join(path)}` fits none of what this format has: {reasons}"
    return [Diagnostic("export/none-fits", message, path=path, rule=rule)]
