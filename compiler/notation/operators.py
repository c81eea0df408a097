"""Operators and functions of expressions, over plain data: strict about types, bounded in size.

Each raises :class:`ExpressionProblem`, or one of Python's arithmetic, lookup and type errors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import shown

MAX_LENGTH = 4000
MAX_DEPTH = 30
MAX_EXPONENT = 64
MAX_ITEMS = 100_000

#: What a refusal names as the language.
ALLOWED = (
    "allowed are literals, names, + - * / // % **, comparisons, `in`, `and` `or` `not`, `a if b else c`, [lists], "
    "{dicts}, indexing, slices, and ceil_div, log, exp, round, min, max, len, find, indices, flags, first, is_list, has"
)


class ExpressionProblem(Exception):
    """A refusal, before it is known where the expression is written."""

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.hint = hint


def number(value: Any) -> Any:
    """The value, if it is a number of a size that is kept exactly. Raises ``ExpressionProblem``, as all functions
    here do."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionProblem(f"expected a number, found {shown(value)}")
    if not (-(2**63) < value < 2**63 if isinstance(value, int) else math.isfinite(value)):
        raise ExpressionProblem("the number is out of range")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ExpressionProblem(f"expected a whole number, found {shown(value)}")
    return int(number(value))


def arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of two numbers that gives a number."""
    return lambda a, b: number(function(number(a), number(b)))


def add(a: Any, b: Any) -> Any:
    """The sum of numbers, or lists one after the other."""
    if isinstance(a, list) and isinstance(b, list):
        _limit(_size(a) + _size(b))
        return [*a, *b]
    return number(number(a) + number(b))


def multiply(a: Any, b: Any) -> Any:
    """The product of numbers, or a list so many times."""
    if isinstance(b, list):
        a, b = b, a
    if isinstance(a, list):
        _limit(_size(a) * _whole(b))
        return list(a) * b
    return number(number(a) * number(b))


def divide(a: Any, b: Any) -> Any:
    """The quotient; of whole numbers only where one is a multiple of the other, and whole then. Raises
    ``ZeroDivisionError`` and ``ExpressionProblem``."""
    if isinstance(number(a), int) and isinstance(number(b), int):
        if b == 0:
            raise ZeroDivisionError
        if a % b:
            raise ExpressionProblem(f"{a} is not a multiple of {b}")
        return a // b
    return number(a / b)


def power(a: Any, b: Any) -> Any:
    """A number to a bounded power. Raises ``ExpressionProblem`` for larger ones."""
    if abs(number(b)) > MAX_EXPONENT:
        raise ExpressionProblem(f"the exponent is beyond {MAX_EXPONENT}")
    result = number(a) ** b
    return number(result)


def _ordered(function: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(a: Any, b: Any) -> bool:
        return function(a, b) if isinstance(a, str) and isinstance(b, str) else function(number(a), number(b))

    return compare


def contained(a: Any, b: Any) -> bool:
    """Whether a list has a value, or an object a key."""
    if isinstance(b, dict):
        return isinstance(a, str) and a in b
    return any(same_value(a, item) for item in _a_list(b))


def _a_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ExpressionProblem(f"expected a list, found {shown(value)}")
    return value


def item(container: Any, key: Any) -> Any:
    """The value under a key of an object, or at an index of a list. Raises ``ExpressionProblem`` if there is none."""
    if isinstance(container, dict):
        if not isinstance(key, str) or key not in container:
            raise ExpressionProblem(f"there is no key {shown(key)}")
        return container[key]
    return _a_list(container)[_whole(key)]


def slice_list(container: Any, start: Any, stop: Any, step: Any) -> Any:
    """A part of a list, as Python slices it."""
    return _a_list(container)[slice(*(None if bound is None else _whole(bound) for bound in (start, stop, step)))]


def extreme(function: Callable[[Iterable[Any]], Any]) -> Callable[..., Any]:
    """``min`` or ``max`` of a list, or of the arguments."""
    return lambda *values: function([number(value) for value in (_a_list(values[0]) if len(values) == 1 else values)])


def length(value: Any) -> int:
    """The number of items of a list or keys of an object."""
    return len(value if isinstance(value, dict) else _a_list(value))


def find(values: Any, value: Any, default: Any) -> Any:
    """The first index of a value in a list, or else ``default``."""
    return next((index for index, item in enumerate(_a_list(values)) if same_value(item, value)), default)


def first(value: Any) -> Any:
    """The first item of a list that is not empty. Raises ``ExpressionProblem`` for an empty one."""
    if not length(value):
        raise ExpressionProblem("it is empty")
    return next(iter(value))


def logarithm(value: Any) -> float:
    """The natural logarithm of a number."""
    return math.log(number(value))


def exponential(value: Any) -> float:
    """e to the power of a number."""
    return math.exp(number(value))


def rounded(value: Any) -> int:
    """The nearest whole number; the even one of two."""
    whole: int = round(number(value))
    return whole


def indices(values: Any, value: Any) -> list[int]:
    """Where a list has a value."""
    return [index for index, item in enumerate(_a_list(values)) if same_value(item, value)]


def flags(values: Any, wanted: Any) -> list[int]:
    """For each item of a list whether it is one of those that are wanted: 1 or 0."""
    return [int(contained(item, _a_list(wanted))) for item in _a_list(values)]


def is_list(value: Any) -> bool:
    """Whether a value is a list."""
    return isinstance(value, list)


def bounded(value: Any) -> Any:
    """The value, if it has no more items than a result may have."""
    _limit(_size(value))
    return value


def _limit(size: int) -> None:
    if size > MAX_ITEMS:
        raise ExpressionProblem(f"the result has more than {MAX_ITEMS} items")


def _size(value: Any) -> int:
    """Items in nested lists and dicts, counted no further than the limit."""
    size, pending = 0, [value]
    while pending and size <= MAX_ITEMS:
        current = pending.pop()
        if isinstance(current, list | dict):
            size += len(current)
            if size <= MAX_ITEMS:
                pending.extend(current.values() if isinstance(current, dict) else current)
    return size


def ceil_div(a: Any, b: Any) -> int:
    """The quotient of two whole numbers, rounded up."""
    return -(-_whole(a) // _whole(b))


COMPARISONS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "eq": ("==", same_value),
    "ne": ("!=", lambda a, b: not same_value(a, b)),
    "lt": ("<", _ordered(operator.lt)),
    "lteq": ("<=", _ordered(operator.le)),
    "gt": (">", _ordered(operator.gt)),
    "gteq": (">=", _ordered(operator.ge)),
    "in": ("in", contained),
    "notin": ("not in", lambda a, b: not contained(a, b)),
}
