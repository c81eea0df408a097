"""Plans case by case: structures that are proved, and what the proof refuses. The laws are in test_plan_laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_plans import RULE, codes, grouped_qkv, interleaved_experts, spec, tied, whole

from crosswalk.runtime import execute
from crosswalk.runtime.plan.model import Exemption, Plan, RawCopy, Rule, make_plan
from crosswalk.runtime.records import replace

# --- structures ---------------------------------------------------------------------------------------------------


def test_interleaved_gate_and_up_per_expert() -> None:
    plan = interleaved_experts()
    assert str(plan.verify()) == "bijective"
    w = torch.arange(3 * 10 * 7.0).view(3, 10, 7)
    result = dict(execute(plan, {"w": w}))
    assert list(result) == [f"experts.{e}.{n}" for e in range(3) for n in ("gate", "up")]
    for expert in range(3):
        assert torch.equal(result[f"experts.{expert}.gate"], w[expert, 0::2].T)
        assert torch.equal(result[f"experts.{expert}.up"], w[expert, 1::2].T)
    assert torch.equal(dict(execute(plan.inverse(), result))["w"], w)


def test_grouped_query_key_value() -> None:
    plan = grouped_qkv()
    assert str(plan.verify()) == "bijective"
    qkv = torch.arange(60 * 7.0).view(60, 7)
    result = dict(execute(plan, {"qkv": qkv}))
    by_group = qkv.view(3, 4, 5, 7)
    assert torch.equal(result["q"], by_group[:, :2].reshape(30, 7))
    assert torch.equal(result["k"], by_group[:, 2].reshape(15, 7))
    assert torch.equal(result["v"], by_group[:, 3].reshape(15, 7))


def test_transpose_with_odd_sizes() -> None:
    plan = make_plan([spec("w", 5, 7)], [spec("t", 7, 5)], [("w", "t", (5, 7), 0, (7, 1), 0, (1, 5), 0)])
    assert plan.verify().bijective
    w = torch.arange(35.0).view(5, 7)
    assert torch.equal(dict(execute(plan, {"w": w}))["t"], w.T)
    (copy,) = plan.copies
    assert (copy.extents, copy.source_strides, copy.target_strides) == ((7, 5), (1, 7), (5, 1))


def test_uneven_sums_whose_strides_do_not_divide_each_other() -> None:
    """`[a: (3 [x: 2 | y: 3]) | b: (2 [x: 4 | y: 3])]`: strides 5 and 7, next to each other, and twice over in rows."""
    copies: list[RawCopy] = [
        ("w", "x", (2, 3, 2), 0, (29, 5, 1), 0, (14, 2, 1), 0),
        ("w", "y", (2, 3, 3), 2, (29, 5, 1), 0, (15, 3, 1), 0),
        ("w", "x", (2, 2, 4), 15, (29, 7, 1), 6, (14, 4, 1), 0),
        ("w", "y", (2, 2, 3), 19, (29, 7, 1), 9, (15, 3, 1), 0),
    ]
    plan = make_plan([spec("w", 2, 29)], [spec("x", 2, 14), spec("y", 2, 15)], copies)
    assert str(plan.verify()) == "bijective"
    w = torch.arange(58.0).view(2, 29)
    result = dict(execute(plan, {"w": w}))
    a, b = w[:, :15].view(2, 3, 5), w[:, 15:].view(2, 2, 7)
    assert torch.equal(result["x"], torch.cat([a[..., :2].flatten(1), b[..., :4].flatten(1)], 1))
    assert torch.equal(result["y"], torch.cat([a[..., 2:].flatten(1), b[..., 4:].flatten(1)], 1))


def test_proof_does_not_depend_on_sizes() -> None:
    """Tensors of 10^15 elements are proven by the same few steps; walking them would not end."""
    big = grouped_qkv(groups=10**4, per_group=7, head_dim=10**3, hidden=10**7)
    assert big.verify().bijective
    wrong = replace(big, copies=big.copies[1:])
    assert [problem.message for problem in wrong.verify().problems] == [
        "elements 70000000000 to 79999999999 ([7000, 0] to [7999, 9999999]) and 9999 more such ranges of source tensor "
        "`qkv` (shape [90000000, 10000000]): read by no copy",
        "target tensor `k` (shape [10000000, 10000000]) is written by no copy",
    ]


# --- what the proof refuses ---------------------------------------------------------------------------------------


def test_a_gap_names_the_rows() -> None:
    plan = make_plan([spec("w", 6, 4)], [spec("t", 6, 4)], [("w", "t", (8,), 0, (1,), 0, (1,), 0)])
    assert [problem.message for problem in plan.verify().problems] == [
        "elements 8 to 23 ([2, 0] to [5, 3]) of source tensor `w` (shape [6, 4]): read by no copy",
        "elements 8 to 23 ([2, 0] to [5, 3]) of target tensor `t` (shape [6, 4]): written by no copy",
    ]
    assert str(plan.verify()).startswith("not bijective: 2 problems, first: elements 8 to 23")


def test_repeated_gaps_are_one_problem() -> None:
    plan = interleaved_experts()
    without_up = replace(plan, copies=tuple(copy for copy in plan.copies if copy.target != 3))
    messages = [problem.message for problem in without_up.verify().problems]
    assert messages == [
        "elements 77 to 83 ([1, 1, 0] to [1, 1, 6]) and 3 more such ranges of source tensor `w` (shape [3, 10, 7]): "
        "read by no copy",
        "elements 133 to 139 ([1, 9, 0] to [1, 9, 6]) of source tensor `w` (shape [3, 10, 7]): read by no copy",
        "target tensor `experts.1.up` (shape [7, 5]) is written by no copy",
    ]


def test_an_overlap_names_both_rules_and_where_they_stand() -> None:
    rules = [RULE, Rule("toy", "mlp: up", "toy.yaml:8:3")]
    plan = make_plan(
        [spec("a", 5), spec("b", 5)],
        [spec("t", 9)],
        [("a", "t", (5,), 0, (1,), 0, (1,), 0), ("b", "t", (5,), 0, (1,), 4, (1,), 1)],
        rules,
    )
    (problem,) = plan.verify().problems
    assert problem.code == "plan/overlap"
    assert problem.message == (
        "element 4 of target tensor `t` (shape [9]): written twice, from `a` and from `b` "
        "(2 rules: `mlp: [gate|up]` at toy.yaml:7:3; `mlp: up` at toy.yaml:8:3)"
    )
    assert str(problem.position) == "toy.yaml:7:3"


def test_unread_and_unwritten_tensors() -> None:
    plan = make_plan([spec("a", 3), spec("b", 2, 5)], [spec("t", 3), spec("u", 7)], [whole("a", "t", 3)])
    assert [problem.message for problem in plan.verify().problems] == [
        "source tensor `b` (shape [2, 5]) is read by no copy",
        "target tensor `u` (shape [7]) is written by no copy",
    ]


def test_empty_tensors_and_scalars() -> None:
    plan = make_plan(
        [spec("none", 0, 3), spec("scalar")],
        [spec("nothing", 3, 0), spec("one", 1, 1)],
        [("scalar", "one", (), 0, (), 0, (), 0)],
    )
    assert plan.verify().bijective
    result = dict(execute(plan, {"none": torch.empty(0, 3), "scalar": torch.tensor(2.5)}))
    assert result["nothing"].shape == (3, 0)
    assert result["one"].tolist() == [[2.5]]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"source": 1}, "plan/index"),
        ({"target": 4}, "plan/index"),
        ({"source_offset": -1}, "plan/number"),
        ({"target_strides": (1.0,)}, "plan/number"),
        ({"source": [0]}, "plan/number"),
        ({"extents": (True,)}, "plan/number"),
        ({"extents": (0,)}, "plan/axes"),
        ({"extents": (5, 1)}, "plan/axes"),
        ({"source_strides": (0,)}, "plan/axes"),
        ({"target_offset": 1}, "plan/bounds"),
        ({"source_strides": (2,)}, "plan/bounds"),
        ({"extents": (2, 3), "source_strides": (2, 1), "target_strides": (2, 1)}, "plan/axes"),
        ({"source": "a", "extents": (5, 1)}, "plan/number"),
    ],
)
def test_a_malformed_copy_is_one_problem(change: dict[str, Any], code: str) -> None:
    plan = make_plan([spec("a", 5)], [spec("t", 5)], [whole("a", "t", 5)])
    wrong = replace(plan, copies=(plan.copies[0]._replace(**change),))
    assert codes(wrong)[0] == code


def test_malformed_tensors() -> None:
    plan = Plan((spec("a", 3), spec("a", 3), spec("b", -1), spec("c", 2, dtype="F7")), (spec("t", 3, dtype="F32"),), ())
    assert codes(plan)[:3] == ["plan/duplicate-tensor", "plan/shape", "plan/dtype"]


def test_only_floats_are_cast() -> None:
    plan = make_plan([spec("a", 5, dtype="I64")], [spec("t", 5)], [whole("a", "t", 5)])
    (problem,) = plan.verify().problems
    assert problem.message == "copy 0 from `a` to `t` casts I64 to F32: only floats are cast"


@pytest.mark.parametrize(
    ("exemption", "code"),
    [
        (Exemption("tied", "head", of="missing"), "plan/tie"),
        (Exemption("tied", "head", of="head"), "plan/tie"),
        (Exemption("tied", "head", of="small"), "plan/tie"),
        (Exemption("tied", "head", of="half"), "plan/tie"),
        (Exemption("tied", "missing", of="embed"), "plan/exemption"),
        (Exemption("dropped", "embed"), "plan/exemption"),
        (Exemption("lost", "head"), "plan/exemption"),
    ],
)
def test_exemptions_have_to_hold_together(exemption: Exemption, code: str) -> None:
    sources = [spec("embed", 3, 5), spec("head", 3, 5), spec("small", 5), spec("half", 3, 5, dtype="F16")]
    targets = [spec("t0", 15), spec("t1", 5), spec("t2", 15, dtype="F16")]
    copies = [whole("embed", "t0", 15), whole("small", "t1", 5), whole("half", "t2", 15)]
    assert code in codes(make_plan(sources, targets, copies, exemptions=[exemption]))


def test_verdicts_read_well() -> None:
    assert str(tied().verify()) == "bijective but for 1 tied tensor, 1 dropped tensor"
    assert tied().verify().ok
    assert not tied().verify().bijective
    sources = [spec("a", 3, dtype="BF16"), spec("b", 5, dtype="BF16"), spec("c", 7)]
    copies = [whole("a", "x", 3), whole("b", "y", 5), whole("c", "z", 7)]
    widened = make_plan(sources, [spec("x", 3), spec("y", 5), spec("z", 7)], copies)
    assert str(widened.verify()) == "bijective; 2 tensors cast BF16 -> F32 (exact)"
    assert widened.verify().bijective
    assert str(widened.inverse().verify()) == "bijective but for 2 tensors cast F32 -> BF16 (lossy)"
    assert widened.inverse().verify().ok
    assert not widened.inverse().verify().bijective
