"""Expressions of the mapping language: a small, total subset of jinja2's, checked when compiled and evaluated lazily.

:mod:`.syntax` parses, which needs jinja2; every node of the tree must be in ``_BUILDERS``, which turns it into a
closure over a :class:`_Scope`. A catalog keeps the trees, so that its expressions need no parser. There is nothing to
escape from: values are plain data, operators accept only the types they are defined for, and results are bounded.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from crosswalk.runtime.errors import Position, fail, shorten, shown
from crosswalk.runtime.records import Record

from . import operators as ops
from .operators import ALLOWED, COMPARISONS, MAX_DEPTH, MAX_LENGTH, ExpressionProblem

KeyPath = tuple[str, ...]
Tree = list[Any]


class _Scope(Record):
    resolve: Callable[[KeyPath], Any]
    exists: Callable[[KeyPath], bool] | None


Run = Callable[[_Scope], Any]


class Expression(Record, frozen=True, eq=False):
    """A checked expression. ``names`` are the dotted paths it reads, ``tested`` those it asks ``has('a.b')`` about;
    ``tree`` is its syntax."""

    text: str
    position: Position | None
    names: frozenset[KeyPath]
    tested: frozenset[KeyPath]
    _run: Run
    tree: Tree

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and (self.text, self.position) == (other.text, other.position)

    def __hash__(self) -> int:
        return hash((self.text, self.position))

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
        found = Expression(text, position, *_compile(text))
    except ExpressionProblem as problem:
        text = shorten(text, 80)
        raise fail("expression/syntax", f"`{text}`: {problem}", position, problem.hint) from None
    if _asked is not None:
        _asked.add(text)
    return found


#: Text -> tree, of expressions that a catalog has parsed.
_known: dict[str, Tree] = {}
_asked: set[str] | None = None


def learn(trees: Mapping[str, Tree]) -> None:
    """Trees of texts, from a catalog that can be relied on: these texts are not parsed again."""
    _known.update(trees)


def tree_of(text: str) -> Tree:
    """The syntax tree of an expression that compiles."""
    from .syntax import parse

    return parse(text)


@contextmanager
def recording() -> Iterator[set[str]]:
    """The texts of all expressions that are compiled in this block, of those that can be."""
    global _asked
    before, _asked = _asked, set()
    try:
        yield _asked
    finally:
        _asked = before


@lru_cache(maxsize=4096)
def _compile(text: str) -> tuple[frozenset[KeyPath], frozenset[KeyPath], Run, Tree]:
    if text in _known:
        try:
            return _built(_known[text])
        except ExpressionProblem:
            del _known[text]  # no tree of the language: the text has one
    from .syntax import parse

    return _built(parse(text))


def _built(tree: Tree) -> tuple[frozenset[KeyPath], frozenset[KeyPath], Run, Tree]:
    compiler = _Compiler()
    run = compiler.build(tree)
    return frozenset(compiler.names), frozenset(compiler.tested), run, tree


class _Compiler:
    """Collects names and keeps the depth while builders call :meth:`build` for their children."""

    def __init__(self) -> None:
        self.names: set[KeyPath] = set()
        self.tested: set[KeyPath] = set()
        self.depth = 0

    def build(self, tree: Any) -> Run:
        if not isinstance(tree, list) or not tree or not isinstance(tree[0], str) or tree[0] not in _BUILDERS:
            raise ExpressionProblem(f"{shown(tree)} is no expression", ALLOWED)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionProblem(f"nested more than {MAX_DEPTH} levels deep")
        run = _BUILDERS[tree[0]](self, tree[1:])
        self.depth -= 1
        return run

    def each(self, parts: list[Any], count: int | None = None) -> list[Run]:
        """Build every part; there must be ``count`` of them."""
        if count is not None and len(parts) != count:
            raise ExpressionProblem(f"{len(parts)} parts where there must be {count}")
        return [self.build(part) for part in parts]


def _constant(compiler: _Compiler, parts: list[Any]) -> Run:
    if len(parts) != 1 or not isinstance(parts[0], bool | int | float | str | None):
        raise ExpressionProblem(f"{shown(parts)} is no constant")
    value = parts[0]
    if isinstance(value, str) and len(value) > MAX_LENGTH:
        raise ExpressionProblem(f"longer than {MAX_LENGTH} characters")
    if isinstance(value, int | float) and not isinstance(value, bool):
        ops.number(value)
    return lambda scope: value


def _name(compiler: _Compiler, parts: list[Any]) -> Run:
    if not parts or not all(isinstance(part, str) and part for part in parts):
        raise ExpressionProblem(f"{shown(parts)} is no name")
    path = tuple(parts)
    for part in path:
        if part.startswith("__"):
            raise ExpressionProblem(f"the name `{part}` is not allowed")
    compiler.names.add(path)
    return lambda scope: scope.resolve(path)


def _unary(symbol: str, function: Callable[[Any], Any]) -> Callable[[_Compiler, list[Any]], Run]:
    def build(compiler: _Compiler, parts: list[Any]) -> Run:
        (operand,) = compiler.each(parts, 1)
        return lambda scope: _apply(symbol, function, operand(scope))

    return build


def _binary(symbol: str, function: Callable[[Any, Any], Any]) -> Callable[[_Compiler, list[Any]], Run]:
    def build(compiler: _Compiler, parts: list[Any]) -> Run:
        left, right = compiler.each(parts, 2)
        return lambda scope: _apply(symbol, function, left(scope), right(scope))

    return build


def _not(compiler: _Compiler, parts: list[Any]) -> Run:
    (operand,) = compiler.each(parts, 1)
    return lambda scope: not operand(scope)


def _and(compiler: _Compiler, parts: list[Any]) -> Run:
    left, right = compiler.each(parts, 2)
    return lambda scope: left(scope) and right(scope)


def _or(compiler: _Compiler, parts: list[Any]) -> Run:
    left, right = compiler.each(parts, 2)
    return lambda scope: left(scope) or right(scope)


def _conditional(compiler: _Compiler, parts: list[Any]) -> Run:
    test, then, otherwise = compiler.each(parts, 3)
    return lambda scope: then(scope) if test(scope) else otherwise(scope)


def _comparison(compiler: _Compiler, parts: list[Any]) -> Run:
    (start,) = compiler.each(parts[:1], 1)
    rest = []
    for operand in parts[1:]:
        if not isinstance(operand, list) or len(operand) != 2 or operand[0] not in (*COMPARISONS,):
            raise ExpressionProblem(f"{shown(operand)} is no comparison")
        rest.append((*COMPARISONS[operand[0]], compiler.build(operand[1])))

    def run(scope: _Scope) -> bool:
        left = start(scope)
        for symbol, function, operand in rest:
            right = operand(scope)
            if not _apply(symbol, function, left, right):
                return False
            left = right
        return True

    return run


def _sequence(compiler: _Compiler, parts: list[Any]) -> Run:
    items = compiler.each(parts)
    return lambda scope: ops.bounded([item(scope) for item in items])


def _dictionary(compiler: _Compiler, parts: list[Any]) -> Run:
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in parts):
        raise ExpressionProblem(f"{shown(parts)} is no dict")
    pairs = [(compiler.build(key), compiler.build(value)) for key, value in parts]

    def run(scope: _Scope) -> Any:
        result: dict[str, Any] = {}
        for key_of, value_of in pairs:
            key = key_of(scope)
            if not isinstance(key, str) or key in result:
                raise ExpressionProblem(f"keys of a dict must be text and differ, found {shown(key)}")
            result[key] = value_of(scope)
        return ops.bounded(result)

    return run


def _index(compiler: _Compiler, parts: list[Any]) -> Run:
    container, key = compiler.each(parts, 2)
    return lambda scope: _apply("[]", ops.item, container(scope), key(scope))


def _slice(compiler: _Compiler, parts: list[Any]) -> Run:
    if len(parts) != 4:
        raise ExpressionProblem(f"{shown(parts)} is no slice")
    container = compiler.build(parts[0])
    bounds = [None if part is None else compiler.build(part) for part in parts[1:]]
    return lambda scope: _apply("[:]", ops.slice_list, container(scope), *[bound and bound(scope) for bound in bounds])


def _call(compiler: _Compiler, parts: list[Any]) -> Run:
    name = parts[0] if parts and isinstance(parts[0], str) else None
    if name not in _FUNCTIONS:
        raise ExpressionProblem(f"there is no function `{name}`", ALLOWED)
    least, most, function = _FUNCTIONS[name]
    count = len(parts) - 1
    if not least <= count <= most:
        wanted = str(least) if least == most else f"{least} or more"
        raise ExpressionProblem(f"`{name}` takes {wanted} argument{'s' * (wanted != '1')}, not {count}")
    if name == "has":
        return _has(compiler, parts[1])
    arguments = compiler.each(parts[1:])
    return lambda scope: _apply(name, function, *[argument(scope) for argument in arguments])


def _has(compiler: _Compiler, argument: Any) -> Run:
    text = argument[1] if isinstance(argument, list) and argument[:1] == ["const"] and len(argument) == 2 else None
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
        raise ExpressionProblem(f"{problem} (`{symbol}` of {', '.join(map(shown, values))})") from None
    except (ArithmeticError, ValueError, TypeError, LookupError, RecursionError) as error:
        reason = "division by zero" if isinstance(error, ZeroDivisionError) else str(error) or type(error).__name__
        raise ExpressionProblem(f"{reason} (`{symbol}` of {', '.join(map(shown, values))})") from None


# name -> least and most arguments, function
_FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "ceil_div": (2, 2, ops.ceil_div),
    "log": (1, 1, ops.logarithm),
    "exp": (1, 1, ops.exponential),
    "round": (1, 1, ops.rounded),
    "indices": (2, 2, ops.indices),
    "flags": (2, 2, ops.flags),
    "is_list": (1, 1, ops.is_list),
    "min": (1, 99, ops.extreme(min)),
    "max": (1, 99, ops.extreme(max)),
    "len": (1, 1, ops.length),
    "find": (3, 3, ops.find),
    "first": (1, 1, ops.first),
    "has": (1, 1, bool),
}

# The whole language: what is not here does not compile.
_BUILDERS: dict[str, Callable[[_Compiler, list[Any]], Run]] = {
    "const": _constant,
    "name": _name,
    "pos": _unary("+", ops.number),
    "neg": _unary("-", lambda a: -ops.number(a)),
    "+": _binary("+", ops.add),
    "-": _binary("-", ops.arithmetic(operator.sub)),
    "*": _binary("*", ops.multiply),
    "/": _binary("/", ops.divide),
    "//": _binary("//", ops.arithmetic(operator.floordiv)),
    "%": _binary("%", ops.arithmetic(operator.mod)),
    "**": _binary("**", ops.power),
    "not": _not,
    "and": _and,
    "or": _or,
    "if": _conditional,
    "compare": _comparison,
    "list": _sequence,
    "dict": _dictionary,
    "[]": _index,
    "[:]": _slice,
    "call": _call,
}
