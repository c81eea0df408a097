"""The notation of axes: what is read, what is refused and where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.compiler.notation.axes import (
    Axis,
    Branch,
    One,
    ParameterPattern,
    Product,
    Sum,
    Term,
    absent_labels_of,
    axes_of,
    bias_of,
    conditions_of,
    format_terms,
    labels_of,
    parse_dims,
    parse_parameter,
    resolve,
)
from crosswalk.runtime.errors import CrosswalkError, Position

HIDDEN = Axis("hidden")


def test_a_parameter_without_an_arrow_has_its_output_first() -> None:
    expected = ParameterPattern((Axis("conv"), One(), Axis("kernel")), outputs=(0,), inputs=(1, 2), arrow=None)
    assert parse_parameter("conv 1 kernel") == expected
    assert parse_parameter("width") == ParameterPattern((Axis("width"),), (0,), ())
    assert parse_parameter("1") == ParameterPattern((One(),), (0,), ())


def test_the_arrow_points_at_the_outputs_and_both_sides_are_in_storage_order() -> None:
    dense = parse_parameter("hidden <- (head head_dim)")
    assert dense == ParameterPattern((HIDDEN, Product((Axis("head"), Axis("head_dim")))), (0,), (1,), "<-")
    down = parse_parameter("(expert intermediate) -> output")
    assert down == ParameterPattern((Product((Axis("expert"), Axis("intermediate"))), Axis("output")), (1,), (0,), "->")


def test_a_branch_has_a_label_a_condition_and_axes() -> None:
    pattern = parse_parameter("[k: group head_dim | v if not shared(a[1], {b}): group head_dim] <- hidden")
    own = (Axis("group"), Axis("head_dim"))
    branches = (Branch("k", None, own), Branch("v", "not shared(a[1], {b})", own))
    assert pattern == ParameterPattern((Sum(branches), HIDDEN), (0,), (1,), "<-")

    gated = parse_parameter("([gate if gated | up] intermediate) <- hidden")
    assert gated.dims[0] == Product((Sum((Branch("gate", "gated"), Branch("up"))), Axis("intermediate")))


def test_a_primed_axis_is_another_axis() -> None:
    assert parse_parameter("(head channel) <- channel'").dims[1] == Axis("channel'")


def test_dims_of_a_mapping() -> None:
    assert parse_dims("(group [q|k|v]) hidden") == (
        Product((Axis("group"), Sum((Branch("q"), Branch("k"), Branch("v"))))),
        HIDDEN,
    )
    assert parse_dims("(a)  1") == (Axis("a"), One())
    assert parse_dims("[q: a b | k: b]") == (
        Sum((Branch("q", None, (Axis("a"), Axis("b"))), Branch("k", None, (Axis("b"),)))),
    )


def test_resolving_takes_branches_out_and_remembers_their_labels() -> None:
    pattern = parse_parameter("(expert [gate if gated | up] intermediate) <- hidden")
    without = resolve(pattern, lambda condition: {"gated": False}[condition])
    assert without.dims[0] == Product((Axis("expert"), Sum((Branch("up"),), ("gate",)), Axis("intermediate")))
    assert (labels_of(without.dims), absent_labels_of(without.dims)) == (("up",), ("gate",))
    with_gate = resolve(pattern, lambda condition: True)
    assert (labels_of(with_gate.dims), absent_labels_of(with_gate.dims)) == (("gate", "up"), ())
    assert conditions_of(pattern.dims) == ("gated",)
    assert conditions_of(with_gate.dims) == ()


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        ("[q: head head_dim] <- hidden", "[q: head head_dim]"),
        ("intermediate -> output", "output"),
        ("(head channel) 1 kernel", "(head channel)"),
        ("(head channel) <- channel'", "(head channel)"),
    ],
)
def test_a_bias_has_the_outputs_of_its_weight(weight: str, bias: str) -> None:
    found = bias_of(parse_parameter(weight))
    assert str(found) == bias
    assert (found.outputs, found.inputs, found.arrow) == ((0,), (), None)


def test_axes_are_listed_once_in_order() -> None:
    pattern = parse_parameter("[q: head head_dim | k: group head_dim] <- hidden")
    assert axes_of(pattern.dims) == ("head", "head_dim", "group", "hidden")
    assert labels_of(pattern.dims) == ("q", "k")


@pytest.mark.parametrize(
    "text",
    [
        "[k: group head_dim | v if not shared_key_value: group head_dim] <- hidden",
        "(expert [gate if gated | up] intermediate) <- hidden",
        "(expert intermediate) -> output",
        "[z: inner | x: xb | B: xb | C: inner] <- hidden",
        "[q: key_head key_dim | v: value_head value_dim] 1 kernel",
        "(head channel) <- channel'",
        "([gate|up] intermediate) hidden",
    ],
)
def test_patterns_are_shown_as_written(text: str) -> None:
    assert str(parse_parameter(text)) == text


MISTAKES = [
    ("", 0, "expected an axis, `1`, `(` or `[`, found the end"),
    ("a (b c", 6, "expected `)`, found the end"),
    ("a b)", 3, "`)` closes nothing"),
    ("a [q|k) b", 6, "expected `:`, `|` or `]` after the label `k`"),
    ("a (q [k) b", 7, "expected `:`, `|` or `]` after the label `k`"),
    ("(q [k: a) b", 8, "expected `]`, found `)`"),
    ("a ()", 3, "expected an axis, `1`, `(` or `[`, found `)`"),
    ("[q|]", 3, "expected the label of a branch, found `]`"),
    ("[q|k v]", 5, "expected `:`, `|` or `]` after the label `k`"),
    ("a 3 b", 2, "a dimension of size 3 needs a name"),
    ("a, b", 1, "expected an axis, `1`, `(` or `[`, found `,`"),
    ("a | b", 2, "unexpected `|`"),
    ("a if b", 2, "expected an axis, `1`, `(` or `[`, found `if`"),
    ("hidden (a hidden)", 10, "axis `hidden` is written twice"),
    ("[q: a b | k: b] a", 16, "axis `a` is written twice"),
    ("a [q: a | k]", 6, "axis `a` is written twice"),
    ("[q|k] [v|q]", 9, "label `q` is written twice"),
    ("a " + "(" * 3000, 32, "nested more than 30 levels deep"),
]


def code_of(message: str) -> str:
    """What is written twice is told apart from what cannot be read."""
    twice = {"axis": "axes/duplicate-axis", "label": "axes/duplicate-label"}
    return twice[message.split()[0]] if message.endswith("twice") else "axes/syntax"


@pytest.mark.parametrize(("text", "column", "message"), [*MISTAKES, ("a <- b", 2, "`<-` cannot stand here")])
def test_mistakes_in_dims(text: str, column: int, message: str) -> None:
    with pytest.raises(CrosswalkError) as raised:
        parse_dims(text, Position("m.yaml", 7, 11))
    (diagnostic,) = raised.value.diagnostics
    assert (diagnostic.message, diagnostic.position) == (message, Position("m.yaml", 7, 11 + column))
    assert diagnostic.code == code_of(message)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        *MISTAKES,
        ("a <- b -> c", 7, "`->` cannot stand here"),
        ("a <-", 4, "expected an axis, `1`, `(` or `[`, found the end"),
        ("[q if | k]", 6, "a condition is missing after `if`"),
    ],
)
def test_mistakes_in_a_layout(text: str, column: int, message: str) -> None:
    with pytest.raises(CrosswalkError) as raised:
        parse_parameter(text, Position("l.yaml", 3, 1))
    (diagnostic,) = raised.value.diagnostics
    assert (diagnostic.message, diagnostic.position) == (message, Position("l.yaml", 3, 1 + column))


def test_a_mapping_has_no_conditions() -> None:
    with pytest.raises(CrosswalkError, match="only a layout has conditions"):
        parse_dims("[q if a | k] hidden")


def test_all_repetitions_are_reported_at_once() -> None:
    with pytest.raises(CrosswalkError) as raised:
        parse_dims("a a [q|q] b b")
    assert [d.message for d in raised.value.diagnostics] == [
        "axis `a` is written twice",
        "label `q` is written twice",
        "axis `b` is written twice",
    ]


@st.composite
def terms(draw: st.DrawFn) -> tuple[Term, ...]:
    """Well-formed terms: fresh names, no product of one."""
    names = iter(range(1000))

    def term(depth: int) -> Term:
        kind = draw(st.sampled_from(["axis", "one", "product", "sum"] if depth else ["axis", "one"]))
        if kind == "product":
            return Product(tuple(term(depth - 1) for _ in range(draw(st.integers(2, 3)))))
        if kind == "sum":
            return Sum(tuple(branch(depth - 1) for _ in range(draw(st.integers(1, 3)))))
        return One() if kind == "one" else Axis(f"a{next(names)}" + draw(st.sampled_from(["", "'"])))

    def branch(depth: int) -> Branch:
        own = tuple(term(depth) for _ in range(draw(st.integers(1, 2)))) if draw(st.booleans()) else None
        return Branch(f"l{next(names)}", draw(st.sampled_from([None, "x == (1)"])), own)

    return tuple(term(2) for _ in range(draw(st.integers(1, 3))))


@given(terms())
def test_what_is_shown_reads_as_what_it_was(dims: tuple[Term, ...]) -> None:
    assert parse_parameter(format_terms(dims)).dims == dims
