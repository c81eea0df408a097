"""Plans case by case: proof, execution, restriction, composition, formats. The laws are in test_plan_laws."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from importlib import resources
from typing import Any

import jsonschema
import pytest
import torch

from crosswalk.runtime import execute
from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Exemption, Plan, RawCopy, Rule, TensorSpec, make_plan
from crosswalk.runtime.plan.proof import prove

RULE = Rule("toy", "mlp: [gate|up]", "toy.yaml:7:3")


def spec(name: str, *shape: int, dtype: str = "F32") -> TensorSpec:
    return TensorSpec(name, shape, dtype)


def whole(source: str, target: str, elements: int) -> RawCopy:
    return (source, target, (elements,), 0, (1,), 0, (1,), 0)


def codes(plan: Plan) -> list[str]:
    return [problem.code for problem in plan.verify().problems]


def interleaved_experts(experts: int = 3, intermediate: int = 5, hidden: int = 7) -> Plan:
    """`expert (intermediate [gate|up]) hidden`, to one transposed `gate` and one `up` per expert."""
    row = hidden
    targets, copies = [], []
    for expert in range(experts):
        for part, name in enumerate(("gate", "up")):
            target = f"experts.{expert}.{name}"
            targets.append(spec(target, hidden, intermediate))
            offset = expert * 2 * intermediate * row + part * row
            copies.append(("w", target, (intermediate, hidden), offset, (2 * row, 1), 0, (1, intermediate), part))
    rules = [RULE, Rule("toy", "up", "toy.yaml:8:3")]
    return make_plan([spec("w", experts, 2 * intermediate, hidden)], targets, copies, rules)


def grouped_qkv(groups: int = 3, per_group: int = 2, head_dim: int = 5, hidden: int = 7) -> Plan:
    """`(group [q: per_group | k | v] head_dim) hidden`, to `q`, `k` and `v`."""
    head = head_dim * hidden
    group = (per_group + 2) * head
    targets = [spec("q", groups * per_group * head_dim, hidden)]
    targets += [spec(name, groups * head_dim, hidden) for name in "kv"]
    copies: list[RawCopy] = [
        ("qkv", "q", (groups, per_group * head), 0, (group, 1), 0, (per_group * head, 1), 0),
        ("qkv", "k", (groups, head), per_group * head, (group, 1), 0, (head, 1), 0),
        ("qkv", "v", (groups, head), (per_group + 1) * head, (group, 1), 0, (head, 1), 0),
    ]
    return make_plan([spec("qkv", groups * (per_group + 2) * head_dim, hidden)], targets, copies)


def tied(dtype: str = "F32") -> Plan:
    return make_plan(
        [spec("embed", 3, 5, dtype=dtype), spec("head", 3, 5, dtype=dtype), spec("inv_freq", 7)],
        [spec("out", 3, 5, dtype=dtype)],
        [whole("embed", "out", 15)],
        exemptions=[Exemption("tied", "head", of="embed"), Exemption("dropped", "inv_freq", reason="from the config")],
    )


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
    wrong = dataclasses.replace(big, copies=big.copies[1:])
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
    without_up = dataclasses.replace(plan, copies=tuple(copy for copy in plan.copies if copy.target != 3))
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
    ],
)
def test_a_malformed_copy_is_one_problem(change: dict[str, Any], code: str) -> None:
    plan = make_plan([spec("a", 5)], [spec("t", 5)], [whole("a", "t", 5)])
    wrong = dataclasses.replace(plan, copies=(dataclasses.replace(plan.copies[0], **change),))
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


# --- execution ----------------------------------------------------------------------------------------------------


def test_execute_names_every_wrong_source_before_the_first_target() -> None:
    plan = make_plan(
        [spec("a", 3), spec("b", 5), spec("c", 7)],
        [spec("t", 15)],
        [
            ("a", "t", (3,), 0, (1,), 0, (1,), 0),
            ("b", "t", (5,), 0, (1,), 3, (1,), 0),
            ("c", "t", (7,), 0, (1,), 8, (1,), 0),
        ],
    )
    with pytest.raises(CrosswalkError) as caught:
        execute(plan, {"b": torch.zeros(1, 5), "c": torch.zeros(7, dtype=torch.complex64), "d": torch.zeros(1)})
    assert [problem.code for problem in caught.value.diagnostics] == [
        "execute/missing",
        "execute/shape",
        "execute/dtype",
        "execute/unexpected",
    ]
    assert "`c` has dtype torch.complex64, the plan says F32" in str(caught.value)


def test_execute_refuses_a_plan_that_leaves_memory_unwritten() -> None:
    plan = make_plan([spec("a", 3)], [spec("t", 5)], [whole("a", "t", 3)])
    with pytest.raises(CrosswalkError, match=r"elements 3 to 4 of target tensor `t`"):
        execute(plan, {"a": torch.zeros(3)})


def test_tied_tensors_are_compared_bit_for_bit() -> None:
    embed = torch.arange(15.0).view(3, 5)
    embed[0, 0] = float("nan")
    inv_freq = torch.zeros(7)
    result = dict(execute(tied(), {"embed": embed, "head": embed.clone(), "inv_freq": inv_freq}))
    assert torch.equal(result["out"].view(torch.int32), embed.view(torch.int32))
    head = embed.clone()
    head[2, 4] = -head[2, 4]
    with pytest.raises(CrosswalkError, match="`head` differs from `embed`, which it is tied to"):
        execute(tied(), {"embed": embed, "head": head, "inv_freq": inv_freq})


def test_negative_zero_is_not_zero_for_a_tie() -> None:
    zeros = torch.zeros(3, 5, dtype=torch.bfloat16)
    with pytest.raises(CrosswalkError, match="tied"):
        execute(tied("BF16"), {"embed": zeros, "head": -zeros, "inv_freq": torch.zeros(7)})


def test_sources_may_be_views_with_gradients() -> None:
    """Parameters, transposed and offset views of one storage: values count, memory does not."""
    storage = torch.arange(100.0, requires_grad=True)
    view, offset = storage[:70].view(7, 10).T, storage[3:38].view(5, 7)
    plan = make_plan(
        [spec("view", 10, 7), spec("offset", 5, 7)],
        [spec("even", 5, 7), spec("odd", 5, 7), spec("turned", 7, 5)],
        [
            ("view", "even", (5, 7), 0, (14, 1), 0, (7, 1), 0),
            ("view", "odd", (5, 7), 7, (14, 1), 0, (7, 1), 0),
            ("offset", "turned", (5, 7), 0, (7, 1), 0, (1, 5), 0),
        ],
    )
    result = dict(execute(plan, {"view": view, "offset": offset}))
    assert torch.equal(result["even"], view[0::2])
    assert torch.equal(result["odd"], view[1::2])
    assert torch.equal(result["turned"], offset.T)
    assert not any(tensor.requires_grad for tensor in result.values())
    assert all(tensor.is_contiguous() for tensor in result.values())


def test_casts_are_those_of_torch() -> None:
    plan = make_plan([spec("a", 5, 3)], [spec("t", 3, 5, dtype="BF16")], [("a", "t", (5, 3), 0, (3, 1), 0, (1, 5), 0)])
    a = torch.linspace(-1, 1, 15).view(5, 3)
    assert torch.equal(dict(execute(plan, {"a": a}))["t"], a.T.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_keeps_its_bytes(dtype: str) -> None:
    size, name = DTYPES[dtype]
    plan = make_plan(
        [spec("a", 3, 5, dtype=dtype)], [spec("t", 5, 3, dtype=dtype)], [("a", "t", (3, 5), 0, (5, 1), 0, (1, 3), 0)]
    )
    highest = 2 if dtype == "BOOL" else 120
    data = torch.randint(0, highest, (15 * size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tensor = data.view(getattr(torch, name)).view(3, 5)
    result = dict(execute(plan, {"a": tensor}))["t"]
    assert torch.equal(result.view(torch.uint8).view(5, 3, size), data.view(3, 5, size).transpose(0, 1))


def test_targets_come_one_at_a_time_on_the_device_asked_for() -> None:
    plan = interleaved_experts()
    stream = execute(plan, {"w": torch.zeros(3, 10, 7)}, device="meta")
    name, tensor = next(stream)
    assert (name, tensor.device.type, tuple(tensor.shape)) == ("experts.0.gate", "meta", (7, 5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_execution_on_a_gpu_is_the_same() -> None:
    w = torch.arange(3 * 10 * 7.0).view(3, 10, 7)
    expected = dict(execute(interleaved_experts(), {"w": w}))
    for source, device in ((w.cuda(), None), (w, "cuda"), (w.cuda(), "cpu")):
        for name, tensor in execute(interleaved_experts(), {"w": source}, device):
            assert tensor.device.type == (device or "cuda")
            assert torch.equal(tensor.cpu(), expected[name])


def test_importing_the_runtime_does_not_import_torch() -> None:
    code = (
        "import sys, crosswalk.runtime, crosswalk.runtime.plan.algebra, crosswalk.runtime.plan.proof; "
        "assert 'torch' not in sys.modules; assert 'crosswalk.runtime.memory' not in sys.modules; "
        "crosswalk.runtime.execute; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
    first = dataclasses.replace(first, rules=(RULE,), metadata={"from": "a"})
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
    with pytest.raises(CrosswalkError, match="`a` loses precision in `m` on its way to `t`"):
        cast("a", "m", "F32", "BF16").compose(cast("m", "t", "BF16", "F32"))


def test_a_plan_compiled_without_files_takes_the_dtypes_of_the_one_before() -> None:
    assumed = {"dtypes": "assumed"}
    first = make_plan([spec("a", 5, dtype="BF16")], [spec("m", 5, dtype="BF16")], [whole("a", "m", 5)])
    guess = make_plan([spec("m", 5)], [spec("t", 5)], [whole("m", "t", 5)], metadata=assumed)
    narrow = make_plan([spec("m", 5)], [spec("t", 5, dtype="F16")], [whole("m", "t", 5)], metadata=assumed)
    for second, dtype in ((guess, "BF16"), (narrow, "F16")):
        plan = first.compose(second)
        assert (plan.sources[0].dtype, plan.targets[0].dtype, plan.metadata) == ("BF16", dtype, {})
    both = dataclasses.replace(first, metadata=assumed).compose(guess)
    assert both.metadata == assumed
    known = dataclasses.replace(guess, metadata={})
    with pytest.raises(CrosswalkError, match="writes `m` as BF16"):
        dataclasses.replace(first, metadata=assumed).compose(known)


# --- formats ------------------------------------------------------------------------------------------------------


def schema() -> jsonschema.Draft202012Validator:
    text = resources.files("crosswalk.schema").joinpath("plan.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return jsonschema.Draft202012Validator(json.loads(text))


@pytest.mark.parametrize("plan", [interleaved_experts(), grouped_qkv(), tied(), make_plan([], [], [])])
def test_plans_are_valid_by_the_schema_and_come_back(plan: Plan) -> None:
    schema().validate(json.loads(plan.to_json()))
    assert Plan.from_json(plan.to_json()) == plan


def test_the_schema_knows_the_dtypes_of_the_runtime() -> None:
    dtypes = schema().schema["$defs"]["tensor"]["prefixItems"][2]["enum"]  # type: ignore[index]
    assert dtypes == list(DTYPES)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("crosswalk_plan", 2),
        ("sources", [["w", [3, -1], "F32"]]),
        ("sources", [["w", [3], "F7"]]),
        ("targets", [["w", [3]]]),
        ("copies", [[0, 0, [1], 0, [1], 0, [1], 0]]),
        ("copies", [[0, 0, [2], 0, [0], 0, [1], 0]]),
        ("copies", [[0, 0, [2], 0.5, [1], 0, [1], 0]]),
        ("rules", [["toy", "rule"]]),
        ("exemptions", [["tied", "head", None, ""]]),
        ("exemptions", [["lost", "head", None, ""]]),
        ("more", []),
    ],
)
def test_the_schema_refuses(part: str, value: object) -> None:
    data = json.loads(interleaved_experts().to_json()) | {part: value}
    assert not schema().is_valid(data)


def test_every_property_of_the_schema_is_described() -> None:
    def walk(node: object, path: str) -> None:
        if isinstance(node, dict):
            for name, child in [*node.get("properties", {}).items(), *node.get("$defs", {}).items()]:
                assert child.get("description"), f"{path}/{name}"
                walk(child, f"{path}/{name}")
            for index, child in enumerate(node.get("prefixItems", [])):
                assert child.get("description"), f"{path}/{index}"

    walk(schema().schema, "")


def test_the_digest_is_what_the_documentation_says() -> None:
    plan = interleaved_experts()
    body = json.loads(plan.to_json())
    del body["rules"], body["metadata"]
    body["copies"] = [copy[:-1] for copy in body["copies"]]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert plan.digest == hashlib.sha256(text.encode()).hexdigest()
    assert dataclasses.replace(plan, rules=(), metadata={"run": 1}).digest == plan.digest
    assert plan.inverse().digest != plan.digest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"crosswalk_plan": 2}', '{"crosswalk_plan": 1, "sources": 3}'])
def test_what_is_not_a_plan_is_an_error(text: str) -> None:
    with pytest.raises(CrosswalkError, match="plan"):
        Plan.from_json(text)
