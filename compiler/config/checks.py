"""Evaluate the ``checks:`` of a mapping, over both sides."""

from __future__ import annotations

from typing import Any

from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.relations.tree import CheckRule
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position

from .keys import Names


def run_check(rule: CheckRule, scope: Scope, names: Names) -> list[Diagnostic]:
    """The problems of one ``checks:`` line: over fields of ours; ``config.`` and ``root_config.`` are theirs."""

    def resolve(name: KeyPath) -> Any:
        if name[0] == "config":
            return names.lookup(name[1:], rule.theirs)
        if name[0] == "root_config":
            return names.lookup(("root", *name[1:]), ())
        return scope.resolve(name)

    try:
        holds = rule.expression.evaluate(resolve)
    except CrosswalkError as error:
        return [at_rule(problem, rule.position) for problem in error.diagnostics]
    if holds:
        return []
    return [Diagnostic("config/check", f"{rule.message} ({rule.expression.text})", rule.position, None, rule.severity)]


def at_rule(problem: Diagnostic, position: Position) -> Diagnostic:
    """The problem, at the rule that it is about if it has no position of its own."""
    if problem.position is not None:
        return problem
    return Diagnostic(problem.code, problem.message, position, problem.hint, problem.severity)
