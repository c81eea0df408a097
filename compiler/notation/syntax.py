"""From the text of an expression to its syntax tree, as plain data that JSON can hold.

jinja2 parses (in its sandboxed environment); every node must be in ``_CONVERTERS``. A tree is a list: what it is, then
its parts. ``["name", "a", "b"]`` is ``a.b``; :mod:`.expressions` says what each tree means and checks it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

from .operators import ALLOWED, MAX_DEPTH, MAX_LENGTH, ExpressionProblem

_ENVIRONMENT = SandboxedEnvironment()


def parse(text: str) -> list[Any]:
    """The tree of ``text``. Raises ``ExpressionProblem`` for anything that is not in the language."""
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
    return _convert(tree, 1)


def _convert(node: nodes.Node, depth: int) -> list[Any]:
    converter = _CONVERTERS.get(type(node))
    if converter is None:
        kind = type(node).__name__
        raise ExpressionProblem(f"{_REFUSED.get(kind, f'{kind.lower()} expressions')} are not allowed", ALLOWED)
    if depth > MAX_DEPTH:
        raise ExpressionProblem(f"nested more than {MAX_DEPTH} levels deep")
    return converter(node, depth)


_REFUSED = {
    "Filter": "filters (`|`)",
    "Test": "tests (`is`)",
    "Concat": "`~` operators",
    "Slice": "slices outside of `name[...]`",
}


def _constant(node: Any, depth: int) -> list[Any]:
    return ["const", node.value]


def _path(node: Any, depth: int) -> list[Any]:
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
        return ["const", None]
    return ["name", current.name, *reversed(parts)]


def _unary(symbol: str) -> Callable[[Any, int], list[Any]]:
    return lambda node, depth: [symbol, _convert(node.node, depth + 1)]


def _binary(symbol: str) -> Callable[[Any, int], list[Any]]:
    def convert(node: Any, depth: int) -> list[Any]:
        if symbol == "**" and isinstance(node.left, nodes.Pow | nodes.Neg | nodes.Pos):
            # jinja2 reads -a ** b as (-a) ** b and a ** b ** c from the left; a reader expects the opposite.
            raise ExpressionProblem(
                "the base of `**` cannot be a sign or another power; write 0 - a ** b, or a ** (b * c)"
            )
        return [symbol, _convert(node.left, depth + 1), _convert(node.right, depth + 1)]

    return convert


def _conditional(node: Any, depth: int) -> list[Any]:
    if node.expr2 is None:
        raise ExpressionProblem("`a if b` needs an `else`")
    return ["if", *(_convert(part, depth + 1) for part in (node.test, node.expr1, node.expr2))]


def _comparison(node: Any, depth: int) -> list[Any]:
    rest = [[operand.op, _convert(operand.expr, depth + 1)] for operand in node.ops]
    return ["compare", _convert(node.expr, depth + 1), *rest]


def _sequence(node: Any, depth: int) -> list[Any]:
    return ["list", *(_convert(item, depth + 1) for item in node.items)]


def _dictionary(node: Any, depth: int) -> list[Any]:
    return ["dict", *([_convert(pair.key, depth + 1), _convert(pair.value, depth + 1)] for pair in node.items)]


def _index(node: Any, depth: int) -> list[Any]:
    container = _convert(node.node, depth + 1)
    if isinstance(node.arg, nodes.Slice):
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return ["[:]", container, *(None if part is None else _convert(part, depth + 1) for part in bounds)]
    return ["[]", container, _convert(node.arg, depth + 1)]


def _call(node: Any, depth: int) -> list[Any]:
    if not isinstance(node.node, nodes.Name):
        raise ExpressionProblem("only named functions can be called", ALLOWED)
    name = node.node.name
    if node.kwargs or node.dyn_args is not None or node.dyn_kwargs is not None:
        raise ExpressionProblem(f"`{name}` takes positional arguments only")
    return ["call", name, *(_convert(argument, depth + 1) for argument in node.args)]


# The whole syntax: what is not here does not compile.
_CONVERTERS: dict[type[nodes.Node], Callable[[Any, int], list[Any]]] = {
    nodes.Const: _constant,
    nodes.Name: _path,
    nodes.Getattr: _path,
    nodes.Pos: _unary("pos"),
    nodes.Neg: _unary("neg"),
    nodes.Add: _binary("+"),
    nodes.Sub: _binary("-"),
    nodes.Mul: _binary("*"),
    nodes.Div: _binary("/"),
    nodes.FloorDiv: _binary("//"),
    nodes.Mod: _binary("%"),
    nodes.Pow: _binary("**"),
    nodes.Not: _unary("not"),
    nodes.And: _binary("and"),
    nodes.Or: _binary("or"),
    nodes.CondExpr: _conditional,
    nodes.Compare: _comparison,
    nodes.List: _sequence,
    nodes.Tuple: _sequence,
    nodes.Dict: _dictionary,
    nodes.Getitem: _index,
    nodes.Call: _call,
}
