"""Regions of a plan one by one: what is refused, and what is said of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from crosswalk.runtime import execute
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Exemption, Plan, Rule, TensorSpec, make_plan
from crosswalk.runtime.plan.parts import Region
from crosswalk.runtime.records import replace

RULES = (Rule("m", "weight: weight", "m.yaml:3:1"), Rule("m", "bias: bias", "m.yaml:4:1"))


def grown(dtype: str = "F32") -> Plan:
    """Four rows of three become six, and a column becomes four."""
    return make_plan(
        [TensorSpec("b", (3,), dtype), TensorSpec("w", (4, 3), dtype)],
        [TensorSpec("bias", (4,), dtype), TensorSpec("weight", (3, 6), dtype)],
        [("w", "weight", (4, 3), 0, (3, 1), 0, (1, 6), 0), ("b", "bias", (3,), 0, (1,), 0, (1,), 1)],
        RULES,
        padded=[("weight", (2, 3), 4, (1, 6), 0), ("bias", (1,), 3, (1,), 1)],
    )


def test_the_canonical_form_of_a_region() -> None:
    """Largest stride first, neighbours merged, no axis of one element; sorted by tensor and offset."""
    plan = grown()
    assert plan.padded == (Region(0, (), 3, (), 1), Region(1, (3, 2), 4, (6, 1), 0))
    merged = make_plan([], [TensorSpec("t", (4, 6), "F32")], [], padded=[("t", (6, 4, 1), 0, (1, 6, 9), 0)])
    assert merged.padded == (Region(0, (24,), 0, (1,), 0),)
    assert str(merged.verify()) == "bijective but for 1 tensor padded with 24 elements"


def test_the_verdict_of_both_directions() -> None:
    plan = grown()
    assert str(plan.verify()) == "bijective but for 2 tensors padded with 7 elements"
    assert str(plan.inverse().verify()) == "bijective but for 2 tensors truncated by 7 elements"
    assert plan.verify().reversible
    assert not plan.verify().bijective
    assert not plan.inverse().verify().reversible
    both = replace(plan, sources=tuple(replace(t, dtype="F64") for t in plan.sources))
    assert str(both.verify()) == (
        "bijective but for 2 tensors padded with 7 elements, 2 tensors cast F64 -> F32 (lossy)"
    )
    assert not both.verify().reversible


def test_a_plan_with_its_inverse_changes_nothing() -> None:
    plan = grown()
    same = plan.compose(plan.inverse())
    assert (same.padded, same.truncated) == ((), ())
    assert same.verify().bijective
    there = plan.inverse().compose(plan)
    assert (
        str(there.verify()) == "bijective but for 2 tensors padded with 7 elements, 2 tensors truncated by 7 elements"
    )


@pytest.mark.parametrize("dtype", ["BOOL", "U8", "I64", "F8_E4M3", "BF16", "F32"])
def test_zero_of_every_dtype(dtype: str) -> None:
    from crosswalk.runtime.dtypes import torch_dtype

    plan = grown(dtype)
    tensors = {t.name: torch.ones(t.shape).to(torch_dtype(dtype)) for t in plan.sources}
    made = dict(execute(plan, tensors))
    expected = torch.ones(3, 6)
    expected[:, 4:] = 0
    assert torch.equal(made["weight"].float(), expected)
    assert made["bias"].float().tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"tensor": 9}, "plan/index", "padded region 1 names a tensor that the plan does not list"),
        ({"offset": -1}, "plan/number", "padded region 1 has a number that is not a natural number"),
        ({"offset": True}, "plan/number", "padded region 1 has a number that is not a natural number"),
        ({"strides": (6,)}, "plan/axes", "padded region 1 of `weight` has extents and strides of different lengths"),
        ({"extents": (0, 2)}, "plan/axes", "padded region 1 of `weight` has no element: an extent is 0"),
        ({"offset": 5}, "plan/bounds", "padded region 1 of `weight` reaches element 18 of target tensor `weight`"),
        ({"strides": (1, 1)}, "plan/axes", "padded region 1 of `weight` has interlocking axes on its target"),
        ({"offset": 3}, "plan/overlap", "written twice, from `w` and as padding"),
        ({"extents": (3,), "strides": (6,)}, "plan/gap", "element 5 ([0, 5]) and 1 more such range"),
    ],
)
def test_a_malformed_region_is_one_problem(change: dict[str, Any], code: str, message: str) -> None:
    plan = grown()
    wrong = replace(plan, padded=(plan.padded[0], replace(plan.padded[1], **change)))
    verdict = wrong.verify()
    # An overlap leaves a gap elsewhere.
    assert {problem.code for problem in verdict.problems} <= {code, "plan/gap"}
    first = next(problem for problem in verdict.problems if problem.code == code)
    assert message in first.message
    assert code == "plan/gap" or "`weight: weight` at m.yaml:3:1" in first.message
    with pytest.raises(CrosswalkError):
        execute(wrong, {"w": torch.ones(4, 3), "b": torch.ones(3)})


def test_truncated_regions_are_checked_on_their_end() -> None:
    plan = grown().inverse()
    twice = replace(plan, truncated=(*plan.truncated, plan.truncated[0]))
    (problem,) = twice.verify().problems
    assert "read twice, to be left out and to be left out" in problem.message
    (problem, *_) = replace(plan, truncated=()).verify().problems
    assert (problem.code, problem.message.endswith("read by no copy")) == ("plan/gap", True)


def test_an_exempt_tensor_is_not_truncated() -> None:
    plan = grown().inverse()
    exempt = replace(plan, copies=plan.copies[1:], exemptions=(Exemption("dropped", "bias"),))
    codes = [(problem.code, problem.message) for problem in exempt.verify().problems]
    assert any("`bias` is exempt, and truncated all the same" in message for _, message in codes), codes


def test_explain_names_the_regions() -> None:
    plan = grown()
    *_, padding = plan.explain("weight")
    assert (padding["source"], padding["target"].name, padding["rule"]) == (None, "weight", RULES[0])
    assert padding["copy"] == plan.padded[1]
    *_, cut = plan.inverse().explain("weight")
    assert (cut["source"].name, cut["target"], cut["copy"]) == ("weight", None, plan.padded[1])
    assert plan.summary()["bytes_written"] == 4 * (4 + 18)
    assert plan.summary()["bytes_read"] == 4 * (3 + 12)


@pytest.mark.parametrize("wrong", [1, [[1]], [[0, 1, 2, 3, 4]], [None]])
def test_json_that_is_no_region(wrong: Any) -> None:
    text = json.dumps({**json.loads(grown().to_json()), "padded": wrong})
    with pytest.raises(CrosswalkError, match="this is not a plan"):
        Plan.from_json(text)


def test_a_plan_without_regions_says_nothing_of_them() -> None:
    plan = grown()
    bare = replace(plan, padded=())
    assert {"padded", "truncated"}.isdisjoint(json.loads(bare.to_json()))
    assert bare.digest != plan.digest
