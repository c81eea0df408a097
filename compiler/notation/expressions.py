"""Expressions of the mapping language: a small, total subset of jinja2's, checked when compiled and evaluated lazily.

jinja2 parses (in its sandboxed environment); every node of the syntax tree must be in ``_BUILDERS``, which turns it
into a closure over a :class:`_Scope`. No jinja2 code runs at evaluation, so there is nothing to escape from: values are
plain data, operators accept only the types they are defined for, and results are bounded.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

from crosswalk.runtime.errors import Position, fail

from . import operators as ops
from .operators import COMPARISONS, ExpressionProblem

MAX_LENGTH = 500
MAX_DEPTH = 30

KeyPath = tuple[str, ...]
_ALLOWED = (
    "allowed are literals, names, + - * / // % **, comparisons, `in`, `and` `or` `not`, `a if b else c`, [lists], "
    "{dicts}, indexing, slices, and ceil_div, log, min, max, len, find, first, has"
)


@dataclass(slots=True)
class _Scope:
    resolve: Callable[[KeyPath], Any]
    exists: Callable[[KeyPath], bool] | None


Run = Callable[[_Scope], Any]


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression. ``names`` are the dotted paths it reads, ``tested`` those it asks ``has('a.b')`` about."""

    text: str
    position: Position | None
    names: frozenset[KeyPath]
    tested: frozenset[KeyPath]
    _run: Run = field(repr=False, compare=False)

    def evaluate(self, resolve: Callable[[KeyPath], Any], exists: Callable[[KeyPath], bool] | None = None) -> Any:
        """The value, as None, bool, int, float, str, list or dict.

        ``resolve(path)`` is called when, and only when, the value of a name is needed; what it raises passes through.
        Raises CrosswalkError for a wrong type, a division by zero, an index out of range, an uneven division, or a
        result out of bounds.
        """
        try:
            return self._run(_Scope(resolve, exists))
        except ExpressionProblem as problem:
            raise fail("expression/value", f"`{self.text}`: {problem}", self.position) from None


def compile_expression(text: str, position: Position | None = None) -> Expression:
    """Check ``text`` (without the leading ``= ``). Raises CrosswalkError at ``position`` for anything not allowed."""
    try:
        return Expression(text, position, *_compile(text))
    except ExpressionProblem as problem:
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise fail("expression/syntax", f"`{shown}`: {problem}", position, problem.hint) from None


@lru_cache(maxsize=4096)
def _compile(text: str) -> tuple[frozenset[KeyPath], frozenset[KeyPath], Run]:
    if len(text) > MAX_LENGTH:
        raise ExpressionProblem(f"longer than {MAX_LENGTH} characters")
    if "\\" in text:
        raise ExpressionProblem("a backslash is not allowed, not in text either")
    try:
        parser = Parser(_ENVIRONMENT, text, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            raise ExpressionProblem(f"`{parser.stream.current.value}` is left over after a complete expression")
    except TemplateSyntaxError as error:
        message = (error.message or "syntax error").replace("end of template", "end of the expression")
        raise ExpressionProblem(message) from None
    except RecursionError:
        raise ExpressionProblem(f"nested more than {MAX_DEPTH} levels deep") from None
    compiler = _Compiler()
    run = compiler.build(tree)
    return frozenset(compiler.names), frozenset(compiler.tested), run


_ENVIRONMENT = SandboxedEnvironment()


class _Compiler:
    """Collects names and keeps the depth while builders call :meth:`build` for their children."""

    def __init__(self) -> None:
        self.names: set[KeyPath] = set()
        self.tested: set[KeyPath] = set()
        self.depth = 0

    def build(self, node: nodes.Node) -> Run:
        builder = _BUILDERS.get(type(node))
        if builder is None:
            kind = type(node).__name__
            raise ExpressionProblem(f"{_REFUSED.get(kind, f'{kind.lower()} expressions')} are not allowed", _ALLOWED)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionProblem(f"nested more than {MAX_DEPTH} levels deep")
        run = builder(self, node)
        self.depth -= 1
        return run


_REFUSED = {
    "Filter": "filters (`|`)",
    "Test": "tests (`is`)",
    "Concat": "`~` operators",
    "Slice": "slices outside of `name[...]`",
}


def _constant(compiler: _Compiler, node: Any) -> Run:
    value = node.value
    if isinstance(value, int | float) and not isinstance(value, bool):
        ops.number(value)
    return lambda scope: value


def _path(compiler: _Compiler, node: Any) -> Run:
    parts: list[str] = []
    current = node
    while isinstance(current, nodes.Getattr):
        parts.append(current.attr)
        current = current.node
    if not isinstance(current, nodes.Name):
        raise ExpressionProblem(f"`.{parts[-1]}` can only follow a name; write ['{parts[-1]}']")
    if current.name == "null":
        if parts:
            raise ExpressionProblem("null has no attributes")
        return lambda scope: None
    path = (current.name, *reversed(parts))
    for part in path:
        if part.startswith("__"):
            raise ExpressionProblem(f"the name `{part}` is not allowed")
    compiler.names.add(path)
    return lambda scope: scope.resolve(path)


def _unary(symbol: str, function: Callable[[Any], Any]) -> Callable[[_Compiler, Any], Run]:
    def build(compiler: _Compiler, node: Any) -> Run:
        operand = compiler.build(node.node)
        return lambda scope: _apply(symbol, function, operand(scope))

    return build


def _binary(symbol: str, function: Callable[[Any, Any], Any]) -> Callable[[_Compiler, Any], Run]:
    def build(compiler: _Compiler, node: Any) -> Run:
        if symbol == "**" and isinstance(node.left, nodes.Pow | nodes.Neg | nodes.Pos):
            # jinja2 reads -a ** b as (-a) ** b and a ** b ** c from the left; a reader expects the opposite.
            raise ExpressionProblem(
                "the base of `**` cannot be a sign or another power; write 0 - a ** b, or a ** (b * c)"
            )
        left, right = compiler.build(node.left), compiler.build(node.right)
        return lambda scope: _apply(symbol, function, left(scope), right(scope))

    return build


def _not(compiler: _Compiler, node: Any) -> Run:
    operand = compiler.build(node.node)
    return lambda scope: not operand(scope)


def _and(compiler: _Compiler, node: Any) -> Run:
    left, right = compiler.build(node.left), compiler.build(node.right)
    return lambda scope: left(scope) and right(scope)


def _or(compiler: _Compiler, node: Any) -> Run:
    left, right = compiler.build(node.left), compiler.build(node.right)
    return lambda scope: left(scope) or right(scope)


def _conditional(compiler: _Compiler, node: Any) -> Run:
    if node.expr2 is None:
        raise ExpressionProblem("`a if b` needs an `else`")
    test, then, otherwise = compiler.build(node.test), compiler.build(node.expr1), compiler.build(node.expr2)
    return lambda scope: then(scope) if test(scope) else otherwise(scope)


def _comparison(compiler: _Compiler, node: Any) -> Run:
    start = compiler.build(node.expr)
    rest = [(*COMPARISONS[operand.op], compiler.build(operand.expr)) for operand in node.ops]

    def run(scope: _Scope) -> bool:
        left = start(scope)
        for symbol, function, operand in rest:
            right = operand(scope)
            if not _apply(symbol, function, left, right):
                return False
            left = right
        return True

    return run


def _sequence(compiler: _Compiler, node: Any) -> Run:
    items = [compiler.build(item) for item in node.items]
    return lambda scope: ops.bounded([item(scope) for item in items])


def _dictionary(compiler: _Compiler, node: Any) -> Run:
    pairs = [(compiler.build(pair.key), compiler.build(pair.value)) for pair in node.items]

    def run(scope: _Scope) -> Any:
        result: dict[str, Any] = {}
        for key_of, value_of in pairs:
            key = key_of(scope)
            if not isinstance(key, str) or key in result:
                raise ExpressionProblem(f"keys of a dict must be text and differ, found {ops.show(key)}")
            result[key] = value_of(scope)
        return ops.bounded(result)

    return run


def _index(compiler: _Compiler, node: Any) -> Run:
    container = compiler.build(node.node)
    if isinstance(node.arg, nodes.Slice):
        bounds = [
            None if part is None else compiler.build(part) for part in (node.arg.start, node.arg.stop, node.arg.step)
        ]
        return lambda scope: _apply(
            "[:]", ops.slice_list, container(scope), *[bound and bound(scope) for bound in bounds]
        )
    key = compiler.build(node.arg)
    return lambda scope: _apply("[]", ops.item, container(scope), key(scope))


def _call(compiler: _Compiler, node: Any) -> Run:
    name = node.node.name if isinstance(node.node, nodes.Name) else None
    if name not in _FUNCTIONS:
        raise ExpressionProblem(
            f"there is no function `{name}`" if name else "only named functions can be called", _ALLOWED
        )
    if node.kwargs or node.dyn_args is not None or node.dyn_kwargs is not None:
        raise ExpressionProblem(f"`{name}` takes positional arguments only")
    least, most, function = _FUNCTIONS[name]
    if not least <= len(node.args) <= most:
        count = str(least) if least == most else f"{least} or more"
        raise ExpressionProblem(f"`{name}` takes {count} argument{'s' * (count != '1')}, not {len(node.args)}")
    if name == "has":
        return _has(compiler, node.args[0])
    arguments = [compiler.build(argument) for argument in node.args]
    return lambda scope: _apply(name, function, *[argument(scope) for argument in arguments])


def _has(compiler: _Compiler, argument: Any) -> Run:
    text = argument.value if isinstance(argument, nodes.Const) else None
    if not isinstance(text, str) or not all(text.split(".")):
        raise ExpressionProblem("`has` takes a dotted path in quotes, as in has('a.b')")
    path = tuple(text.split("."))
    compiler.tested.add(path)

    def run(scope: _Scope) -> bool:
        if scope.exists is None:
            raise ExpressionProblem("`has` cannot be used here")
        return bool(scope.exists(path))

    return run


def _apply(symbol: str, function: Callable[..., Any], *values: Any) -> Any:
    """``function(*values)``; nothing but :class:`ExpressionProblem` comes out."""
    try:
        return function(*values)
    except ExpressionProblem as problem:
        raise ExpressionProblem(f"{problem} (`{symbol}` of {', '.join(map(ops.show, values))})") from None
    except (ArithmeticError, ValueError, TypeError, LookupError, RecursionError) as error:
        reason = "division by zero" if isinstance(error, ZeroDivisionError) else str(error) or type(error).__name__
        raise ExpressionProblem(f"{reason} (`{symbol}` of {', '.join(map(ops.show, values))})") from None


# name -> least and most arguments, function
_FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "ceil_div": (2, 2, ops.ceil_div),
    "log": (1, 1, ops.logarithm),
    "min": (1, 99, ops.extreme(min)),
    "max": (1, 99, ops.extreme(max)),
    "len": (1, 1, ops.length),
    "find": (3, 3, ops.find),
    "first": (1, 1, ops.first),
    "has": (1, 1, bool),
}

# The whole language: what is not here does not compile.
_BUILDERS: dict[type[nodes.Node], Callable[[_Compiler, Any], Run]] = {
    nodes.Const: _constant,
    nodes.Name: _path,
    nodes.Getattr: _path,
    nodes.Pos: _unary("+", ops.number),
    nodes.Neg: _unary("-", lambda a: -ops.number(a)),
    nodes.Add: _binary("+", ops.add),
    nodes.Sub: _binary("-", ops.arithmetic(operator.sub)),
    nodes.Mul: _binary("*", ops.multiply),
    nodes.Div: _binary("/", ops.divide),
    nodes.FloorDiv: _binary("//", ops.arithmetic(operator.floordiv)),
    nodes.Mod: _binary("%", ops.arithmetic(operator.mod)),
    nodes.Pow: _binary("**", ops.power),
    nodes.Not: _not,
    nodes.And: _and,
    nodes.Or: _or,
    nodes.CondExpr: _conditional,
    nodes.Compare: _comparison,
    nodes.List: _sequence,
    nodes.Tuple: _sequence,
    nodes.Dict: _dictionary,
    nodes.Getitem: _index,
    nodes.Call: _call,
}
