"""The expression language: what it computes, what it asks for, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from budgets import times
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.compiler.notation.expressions import Expression, compile_expression
from crosswalk.runtime.errors import CrosswalkError, Position

VALUES: dict[tuple[str, ...], Any] = {
    ("hidden",): 768,
    ("heads",): 12,
    ("seven",): 7,
    ("factor",): 8.0,
    ("gated",): True,
    ("name",): "yarn",
    ("nothing",): None,
    ("root", "head", "normalization", "epsilon"): 1e-05,
    ("config", "layer_types"): ["sliding", "sliding", "full"],
    ("mixers",): {"main": {"heads": 3}, "other": {"heads": 5}},
}


def value_of(text: str) -> Any:
    return compile_expression(text).evaluate(VALUES.__getitem__)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hidden / heads", 64),
        ("4 * hidden", 3072),
        ("hidden ** 0.5", math.sqrt(768)),
        ("hidden ** -0.5", 768**-0.5),
        ("0.1 * log(factor) + 1", 0.1 * math.log(8) + 1),
        ("ceil_div(hidden, 16)", 48),
        ("ceil_div(hidden + 1, 16)", 49),
        ("ceil_div(-seven, 2)", -3),
        ("-7 // 2", -4),
        ("-7 % 3", 2),
        ("7 / 2.0", 3.5),
        ("seven % 2 == 1", True),
        ("1 < seven <= 7 != 8", True),
        ("not gated or nothing", None),
        ("nothing or name", "yarn"),
        ("'silu' if gated else 'gelu'", "silu"),
        ("config.layer_types[-1]", "full"),
        ("config.layer_types[-1] == 'full'", True),
        ("config.layer_types[:2]", ["sliding", "sliding"]),
        ("config.layer_types[::-1][0]", "full"),
        ("find(config.layer_types, 'full', -1)", 2),
        ("find(config.layer_types, 'none', len(config.layer_types))", 3),
        ("flags(config.layer_types, ['full', 'none'])", [0, 0, 1]),
        ("flags([true, 1, 2], [1])", [0, 1, 0]),
        ("[is_list(config.layer_types), is_list(seven), is_list(nothing), is_list(name)]", [True, False, False, False]),
        ("first(mixers)", "main"),
        ("first(config.layer_types)", "sliding"),
        ("mixers['other']['heads']", 5),
        ("'main' in mixers and 'full' in config.layer_types and 'x' not in mixers", True),
        ("['full'] * 3 + ['sliding']", ["full", "full", "full", "sliding"]),
        ("2 * [seven]", [7, 7]),
        ("(1, 2)", [1, 2]),
        ("(seven)", 7),
        ("{'type': name, 'nested': {'factor': factor}}", {"type": "yarn", "nested": {"factor": 8.0}}),
        ("min(seven, 3, heads)", 3),
        ("max([1, 2.5])", 2.5),
        ("null", None),
        ("[none, None, true, True, false]", [None, None, True, True, False]),
        ("root.head.normalization.epsilon == 1.0e-05", True),
        ("0x10 + 1_000", 1016),
        ("'a' < 'b'", True),
        ("9223372036854775807", 2**63 - 1),
        ("true == 1", False),
        ("[true] == [1]", False),
        ("{'a': 1} == {'a': 1.0}", True),
        ("1 in [true, 1]", True),
        ("find([true, 1], 1, -1)", 1),
    ],
)
def test_values(text: str, value: object) -> None:
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_names_are_the_longest_static_chains() -> None:
    expression = compile_expression(
        "root.head.normalization.epsilon + config.layer_types[index] * len(a['b']) if has('x.0.bias') else null"
    )
    assert expression.names == {
        ("root", "head", "normalization", "epsilon"),
        ("config", "layer_types"),
        ("index",),
        ("a",),
    }
    assert expression.tested == {("x", "0", "bias")}
    assert compile_expression("min").names == {("min",)}  # a function's name is free as a key


def test_equal_text_and_position_make_equal_expressions() -> None:
    at = Position("f", 3, 4)
    assert compile_expression("a + 1", at) == compile_expression("a + 1", at)
    assert len({compile_expression("a + 1", at), compile_expression("a + 1", at), compile_expression("a + 1")}) == 2


@pytest.mark.parametrize(
    ("text", "value", "asked"),
    [
        ("a if yes else b", "a", ["yes", "a"]),
        ("a if no else b", "b", ["no", "b"]),
        ("no and a", False, ["no"]),
        ("yes or a", True, ["yes"]),
        ("yes and a", "a", ["yes", "a"]),
        ("1 > 2 > a", False, []),
        ("no and a or yes", True, ["no", "yes"]),
        ("[a, a]", ["a", "a"], ["a", "a"]),
    ],
)
def test_resolves_only_what_is_needed(text: str, value: object, asked: list[str]) -> None:
    calls: list[str] = []

    def resolve(path: tuple[str, ...]) -> Any:
        (name,) = path
        calls.append(name)
        return {"yes": True, "no": False}.get(name, name)

    assert compile_expression(text).evaluate(resolve) == value
    assert calls == asked


@pytest.mark.parametrize(
    "error", [KeyError("k"), TypeError("t"), RecursionError(), ZeroDivisionError(), StopIteration()]
)
def test_what_resolve_raises_passes_through_unchanged(error: Exception) -> None:
    def resolve(path: tuple[str, ...]) -> Any:
        raise error

    for text in ("a", "1 / a", "[len(a)]", "a.b[0] in [1]", "min(1, a) < 2", "{'k': a}", "x if not a else y"):
        with pytest.raises(type(error)) as caught:
            compile_expression(text).evaluate(resolve)
        assert caught.value is error


def test_has_asks_the_second_callback() -> None:
    asked: list[tuple[str, ...]] = []

    def exists(path: tuple[str, ...]) -> bool:
        asked.append(path)
        return path[-1] == "bias"

    expression = compile_expression("has('q_proj.bias') and not has('q_proj.weight')")
    assert expression.evaluate(VALUES.__getitem__, exists) is True
    assert asked == [("q_proj", "bias"), ("q_proj", "weight")]
    with pytest.raises(CrosswalkError, match="cannot be used here"):
        expression.evaluate(VALUES.__getitem__)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden / seven", "768 is not a multiple of 7 (`/` of 768, 7)"),
        ("hidden / (seven - 7)", "division by zero (`/` of 768, 0)"),
        ("hidden // 0", "division by zero"),
        ("hidden % 0", "division by zero"),
        ("0.0 ** -1", "division by zero"),
        ("factor / 0.0", "division by zero"),
        ("ceil_div(1, 0)", "division by zero"),
        ("ceil_div(1, 0.5)", "expected a whole number, found 0.5"),
        ("gated + 1", "expected a number, found true"),
        ("-gated", "expected a number, found true"),
        ("name * 3", 'expected a number, found "yarn"'),
        ("name + 'x'", 'expected a number, found "yarn"'),
        ("'%s' % name", 'expected a number, found "%s"'),
        ("nothing < 1", "expected a number, found null"),
        ("name < 1", 'expected a number, found "yarn"'),
        ("'a' in name", 'expected a list, found "yarn"'),
        ("name[0]", 'expected a list, found "yarn"'),
        ("len(name)", 'expected a list, found "yarn"'),
        ("mixers['third']", 'there is no key "third"'),
        ("config.layer_types[3]", "list index out of range"),
        ("config.layer_types[true]", "expected a whole number, found true"),
        ("config.layer_types[1.0]", "expected a whole number, found 1.0"),
        ("config.layer_types[::0]", "slice step cannot be zero"),
        ("mixers[:1]", "expected a list"),
        ("log(0)", "math domain error"),
        ("log(-1.5)", "math domain error"),
        ("(0 - 8) ** 0.5", "expected a number"),
        ("min([])", "empty"),
        ("max(1, 'x')", 'expected a number, found "x"'),
        ("first([])", "it is empty"),
        ("first(seven)", "expected a list, found 7"),
        ("{seven: 1}", "keys of a dict must be text"),
        ("{'a': 1, 'a': 2}", "must be text and differ"),
        ("2 ** 63", "out of range"),
        ("2 ** 65", "exponent is beyond 64"),
        ("9223372036854775807 + 1", "out of range"),
        ("9223372036854775807 ** 64", "out of range"),
        ("1e300 * 1e300", "out of range"),
        ("1e300 ** 64", "out of range"),
        ("[0] * 100001", "more than 100000 items"),
        ("[[0] * 1000] * 1000", "more than 100000 items"),
        ("[0] * 60000 + [0] * 60000", "more than 100000 items"),
        ("[[0] * 60000, [0] * 60000]", "more than 100000 items"),
        ("[0] * 2.0", "expected a whole number"),
    ],
)
def test_evaluation_errors_name_the_expression_and_the_values(text: str, message: str) -> None:
    expression = compile_expression(text, Position("m.yaml", 5, 9))
    with pytest.raises(CrosswalkError) as caught:
        expression.evaluate(VALUES.__getitem__)
    (found,) = caught.value.diagnostics
    assert found.code == "expression/value"
    assert found.position == Position("m.yaml", 5, 9)
    assert f"`{text}`" in found.message
    assert message in found.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "xpected"),
        ("a b", "`b` is left over"),
        ("a }} b", "left over"),
        ("a,", "left over"),
        ("(a", "unexpected end"),
        ("not", "unexpected 'end of the expression'"),
        ("a == ", "unexpected 'end of the expression'"),
        ("'open", "unexpected char"),
        ("a if b", "needs an `else`"),
        ("a is defined", "tests (`is`) are not allowed"),
        ("a | length", "filters (`|`) are not allowed"),
        ("a ~ b", "`~` operators are not allowed"),
        ("a()", "there is no function `a`"),
        ("lenght(a)", "there is no function `lenght`"),
        ("range(10)", "there is no function `range`"),
        ("a.keys()", "only named functions can be called"),
        ("len(a)(b)", "only named functions can be called"),
        ("len()", "`len` takes 1 argument, not 0"),
        ("ceil_div(1)", "`ceil_div` takes 2 arguments, not 1"),
        ("min()", "`min` takes 1 or more arguments, not 0"),
        ("min(*a)", "positional arguments only"),
        ("min(**a)", "positional arguments only"),
        ("log(x=1)", "positional arguments only"),
        ("has(a.b)", "dotted path in quotes"),
        ("has('a..b')", "dotted path in quotes"),
        ("a[0].b", "`.b` can only follow a name; write ['b']"),
        ("first(a).b", "`.b` can only follow a name"),
        ("'x'.join", "`.join` can only follow a name"),
        ("a.__class__", "the name `__class__` is not allowed"),
        ("__import__", "the name `__import__` is not allowed"),
        ("-a ** 2", "the base of `**` cannot be a sign"),
        ("2 ** 3 ** 2", "or another power"),
        ("'a\\x41'", "a backslash is not allowed"),
        ("9223372036854775808", "out of range"),
        ("1e999", "out of range"),
        ("a[1:2, 3]", "slices outside of `name[...]` are not allowed"),
        ("a +" * 166 + "a", "nested more than 30 levels"),
        ("a + " * 1001, "longer than 4000"),
        ("(" * 400, "nested more than 30 levels"),
        ("not " * 120 + "a", "nested more than 30 levels"),
        ("-" * 400 + "1", "nested more than 30 levels"),
        ("[" * 31 + "]" * 31, "nested more than 30 levels"),
        ("{% raw %}", "unexpected"),
        ("a; b", "left over"),
        ("a ? b", "unexpected char"),
        ("lambda: 1", "left over"),
    ],
)
def test_refuses_to_compile(text: str, message: str) -> None:
    with pytest.raises(CrosswalkError) as caught:
        compile_expression(text, Position("m.yaml", 5, 9))
    (found,) = caught.value.diagnostics
    assert found.code == "expression/syntax"
    assert found.position == Position("m.yaml", 5, 9)
    assert message in found.message


def test_an_unknown_function_gets_the_list_of_what_there_is() -> None:
    with pytest.raises(
        CrosswalkError, match=r"allowed are .*round, min, max, len, find, indices, flags, first, is_list, has"
    ):
        compile_expression("sqrt(2)")


# ---- against Python -------------------------------------------------------------------------------------------------

NUMBERS = {"a": 3, "b": -5, "c": 7.5, "d": 0}


def _grow(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def binary(symbols: list[str]) -> st.SearchStrategy[str]:
        return st.tuples(children, st.sampled_from(symbols), children).map("({0[0]} {0[1]} {0[2]})".format)

    return st.one_of(
        binary(["+", "-", "*", "//", "%"]),
        binary(["<", "<=", ">", ">="]).map("(1 if {} else 2)".format),
        st.tuples(children, children, children).map("({0[0]} if {0[1]} else {0[2]})".format),
        binary(["and", "or"]),
        children.map("(-{})".format),
        st.tuples(children, children).map("min({0[0]}, {0[1]})".format),
        st.tuples(children, children).map("[{0[0]}, {0[1]}][-1]".format),
        st.tuples(children, st.sampled_from(["<", "=="]), children, children).map(
            "(4 if {0[0]} {0[1]} {0[2]} < {0[3]} else 5)".format
        ),
    )


ARITHMETIC = st.recursive(st.sampled_from([*NUMBERS, "1", "2", "11", "0.25"]), _grow, max_leaves=8)


class _Recording(dict[str, Any]):
    """The names Python asks for, in order."""

    def __init__(self) -> None:
        super().__init__(NUMBERS)
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.asked.append(name)
        return super().__getitem__(name)


def _outcome(compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except (ZeroDivisionError, CrosswalkError):
        return "error"


@times(12)
@given(ARITHMETIC)
def test_computes_and_asks_for_what_python_does(text: str) -> None:
    if len(text) > 500:
        return
    theirs, ours = _Recording(), _Recording()
    expected = _outcome(lambda: eval(text, {"__builtins__": {}, "min": min}, theirs))
    theirs.asked = [name for name in theirs.asked if name in NUMBERS]
    expression: Expression = compile_expression(text)
    found = _outcome(lambda: expression.evaluate(lambda path: ours[path[0]]))
    assert (found, type(found)) == (expected, type(expected))
    assert ours.asked == theirs.asked
    assert {path[0] for path in expression.names} >= set(ours.asked)


@given(st.integers(-(10**6), 10**6), st.integers(-50, 50))
def test_division_is_exact_or_refused(a: int, b: int) -> None:
    values = {("a",): a, ("b",): b}
    divide = compile_expression("a / b")
    if b and a == a // b * b:
        assert divide.evaluate(values.__getitem__) * b == a
        assert type(divide.evaluate(values.__getitem__)) is int
    else:
        with pytest.raises(CrosswalkError):
            divide.evaluate(values.__getitem__)
    if b:
        up = compile_expression("ceil_div(a, b)").evaluate(values.__getitem__)
        assert up - 1 < a / b <= up
