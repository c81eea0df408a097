"""Plans restricted to boxes and composed with each other, case by case."""

from __future__ import annotations

import pytest
import torch
from toy_plans import RULE, grouped_qkv, interleaved_experts, spec, tied, whole

from crosswalk.runtime import execute
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Exemption, Plan, Rule, make_plan
from crosswalk.runtime.plan.proof import prove
from crosswalk.runtime.records import replace

# --- restriction --------------------------------------------------------------------------------------------------


def test_a_box_across_interleaved_experts() -> None:
    plan = interleaved_experts()
    w = torch.arange(3 * 10 * 7.0).view(3, 10, 7)
    part = plan.restrict(targets={"experts.1.up": ((2, 6), (1, 4)), "experts.2.gate": ((0, 7), (0, 0))})
    assert part.targets == (spec("experts.1.up", 4, 3), spec("experts.2.gate", 7, 0))
    result = dict(execute(part, {"w": w}))
    assert torch.equal(result["experts.1.up"], w[1, 1::2].T[2:6, 1:4])
    assert len(part.copies) == 1


def test_a_box_of_the_source_renumbers_it() -> None:
    """What one rank of three holds of `w` by its last dimension, and what it gives to which target."""
    plan = interleaved_experts(hidden=9)
    w = torch.arange(3 * 10 * 9.0).view(3, 10, 9)
    inverse = plan.inverse()
    mine = inverse.restrict(targets={"w": ((0, 3), (0, 10), (3, 6))})
    assert prove(mine, ends=("target",)).ok
    result = dict(execute(mine, dict(execute(plan, {"w": w}))))["w"]
    assert torch.equal(result, w[:, :, 3:6])
    assert len(mine.copies) == len(plan.copies)


def test_boxes_on_both_ends() -> None:
    plan = make_plan([spec("w", 5, 7)], [spec("t", 7, 5)], [("w", "t", (5, 7), 0, (7, 1), 0, (1, 5), 0)])
    part = plan.restrict(targets={"t": ((1, 6), (0, 4))}, sources={"w": ((2, 5), (3, 7))})
    (copy,) = part.copies
    assert (copy.extents, copy.source_offset, copy.source_strides) == ((3, 2), 0, (1, 4))
    assert (copy.target_offset, copy.target_strides) == (2 * 4 + 2, (4, 1))


def test_exemptions_follow_their_tensors() -> None:
    rows, others = ((1, 3), (0, 5)), ((0, 2), (0, 5))
    both = tied().restrict(sources={"embed": rows, "head": rows})
    assert both.exemptions == (Exemption("tied", "head", of="embed"),)
    assert prove(both, ends=("source",)).ok
    assert tied().restrict(sources={"embed": rows, "head": others}).exemptions == ()
    assert tied().restrict(sources={"head": rows}).exemptions == ()
    assert tied().restrict(targets={"out": rows}).sources == (spec("embed", 3, 5),)


def test_every_box_that_does_not_fit_is_named() -> None:
    with pytest.raises(CrosswalkError) as caught:
        grouped_qkv().restrict(
            targets={"q": ((0, 31), (0, 7)), "k": ((0, 3),), "x": ()}, sources={"qkv": ((5, 4), (0, 7))}
        )
    assert [problem.code for problem in caught.value.diagnostics] == [
        "plan/box",
        "plan/box",
        "plan/box",
        "plan/no-such-tensor",
    ]
    assert "the box [[0, 31], [0, 7]] does not lie inside `q` (shape [30, 7])" in str(caught.value)


# --- composition --------------------------------------------------------------------------------------------------


def test_from_one_fused_layout_to_another() -> None:
    """Grouped q, k, v to `[q | k | v]`, without the separate tensors between."""
    concatenate = make_plan(
        [spec("q", 30, 7), spec("k", 15, 7), spec("v", 15, 7)],
        [spec("fused", 60, 7)],
        [
            ("q", "fused", (210,), 0, (1,), 0, (1,), 0),
            ("k", "fused", (105,), 0, (1,), 210, (1,), 0),
            ("v", "fused", (105,), 0, (1,), 315, (1,), 0),
        ],
    )
    plan = grouped_qkv().compose(concatenate)
    assert [(c.extents, c.source_offset, c.source_strides, c.target_offset) for c in plan.copies] == [
        ((3, 70), 0, (140, 1), 0),
        ((2, 3, 35), 70, (35, 140, 1), 210),  # k and v in one
    ]
    assert plan.verify().bijective


def test_composition_keeps_rules_and_exemptions() -> None:
    first = tied()
    first = replace(first, rules=(RULE,), metadata={"from": "a"})
    second = make_plan(
        [spec("out", 3, 5)],
        [spec("end", 15)],
        [whole("out", "end", 15)],
        [Rule("toy", "last", "toy.yaml:9:1")],
        metadata={"to": "b"},
    )
    plan = first.compose(second)
    assert plan.rules[plan.copies[0].rule].text == "last"
    assert plan.rules == (*second.rules, RULE)
    assert plan.exemptions == first.exemptions
    assert plan.metadata == {"from": "a", "to": "b"}
    assert plan.verify().ok


def test_plans_that_do_not_meet() -> None:
    first = make_plan(
        [spec("a", 3), spec("b", 5)], [spec("m", 3), spec("n", 5)], [whole("a", "m", 3), whole("b", "n", 5)]
    )
    second = make_plan(
        [spec("n", 5, dtype="F16"), spec("o", 7), spec("p", 3)],
        [spec("t", 5), spec("u", 7)],
        [whole("n", "t", 5), whole("o", "u", 7)],
        exemptions=[Exemption("dropped", "p", reason="from the config")],
    )
    with pytest.raises(CrosswalkError) as caught:
        first.compose(second)
    assert [(problem.code, problem.message) for problem in caught.value.diagnostics] == [
        ("plan/compose-missing", "the second plan reads `o`, which the first does not write"),
        ("plan/compose-unexpected", "the first plan writes `m`, which the second does not read"),
        ("plan/compose-differs", "the first plan writes `n` as F32 [5], the second reads it as F16 [5]"),
    ]


def test_casts_compose_only_when_one_cast_does_the_same() -> None:
    def cast(one: str, other: str, source: str, target: str) -> Plan:
        return make_plan([spec(one, 5, dtype=source)], [spec(other, 5, dtype=target)], [whole(one, other, 5)])

    for source, between, target in [("BF16", "F32", "F16"), ("F32", "BF16", "BF16"), ("F32", "F32", "F16")]:
        plan = cast("a", "m", source, between).compose(cast("m", "t", between, target))
        assert (plan.sources[0].dtype, plan.targets[0].dtype) == (source, target)
    with pytest.raises(CrosswalkError, match=r"`a` loses precision in `m` on its way to `t`.*\[plan/compose-cast\]"):
        cast("a", "m", "F32", "BF16").compose(cast("m", "t", "BF16", "F32"))


def test_a_plan_compiled_without_files_takes_the_dtypes_of_the_one_before() -> None:
    assumed = {"dtypes": "assumed"}
    first = make_plan([spec("a", 5, dtype="BF16")], [spec("m", 5, dtype="BF16")], [whole("a", "m", 5)])
    guess = make_plan([spec("m", 5)], [spec("t", 5)], [whole("m", "t", 5)], metadata=assumed)
    narrow = make_plan([spec("m", 5)], [spec("t", 5, dtype="F16")], [whole("m", "t", 5)], metadata=assumed)
    for second, dtype in ((guess, "BF16"), (narrow, "F16")):
        plan = first.compose(second)
        assert (plan.sources[0].dtype, plan.targets[0].dtype, plan.metadata) == ("BF16", dtype, {})
    both = replace(first, metadata=assumed).compose(guess)
    assert both.metadata == assumed
    known = replace(guess, metadata={})
    with pytest.raises(CrosswalkError, match="writes `m` as BF16"):
        replace(first, metadata=assumed).compose(known)
