"""What an export has written so far, and which structs it chose on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.relations.tree import CheckRule
from crosswalk.runtime.errors import Diagnostic, Position

from .keys import same_number
from .taken import Record


@dataclass
class Exported:
    """What one attempt has written: places of theirs, and a record of what speaks for the objects of ours."""

    values: dict[KeyPath, tuple[Any, Position]] = field(default_factory=dict)
    overrides: dict[KeyPath, Any] = field(default_factory=dict)
    effective: dict[tuple[str, KeyPath], Any] = field(default_factory=dict)
    computed: list[tuple[KeyPath, Expression, KeyPath, Mapping[str, str]]] = field(default_factory=list)
    checks: list[tuple[CheckRule, Scope, Mapping[str, str], Mapping[KeyPath, Any]]] = field(default_factory=list)
    record: Record = field(default_factory=Record)
    problems: list[Diagnostic] = field(default_factory=list)

    def absorb(self, other: Exported) -> None:
        """Take over what another attempt wrote; a place written twice must have the same value and type."""
        for path, (value, position) in other.values.items():
            self.put(path, value, position)
        self.overrides |= other.overrides
        self.effective |= other.effective
        self.computed += other.computed
        self.checks += other.checks
        self.record.absorb(other.record)
        self.problems += other.problems

    def put(self, path: KeyPath, value: Any, position: Position) -> None:
        if path in self.values:
            old, at = self.values[path]
            if not same_number(old, value) or (old is MISSING) != (value is MISSING):
                self.problems.append(
                    Diagnostic(
                        "export/conflict",
                        f"`{'.'.join(path)}` would be both {old!r} ({at}) and {value!r}",
                        position,
                        "the format has one place for what the trainer has several of: make these equal",
                    )
                )
        else:
            self.values[path] = (value, position)


def none_fits(failed: list[tuple[str, list[Diagnostic]]], where: str, position: Position) -> list[Diagnostic]:
    """Problems that stand in the way of every candidate, or the first problem of each."""
    common = [p for p in failed[0][1] if all(p in problems for _, problems in failed[1:])]
    if common:
        return common
    reasons = "; ".join(f"not `{name}`: {problems[0].message}" for name, problems in failed)
    return [Diagnostic("export/none-fits", f"`{where}` fits none of what this format has: {reasons}", position)]
