"""Joining copies: the same elements in fewer copies, however they were cut."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from test_plan_laws import FAST, chains, relation

from crosswalk.runtime.plan.joining import join
from crosswalk.runtime.plan.model import Plan, RawCopy, TensorSpec, make_plan

EXPERTS, WIDTH, HIDDEN = 5, 3, 7


def raw(plan: Plan) -> list[RawCopy]:
    return [
        (
            plan.sources[c.source].name,
            plan.targets[c.target].name,
            c.extents,
            c.source_offset,
            c.source_strides,
            c.target_offset,
            c.target_strides,
            c.rule,
        )
        for c in plan.copies
    ]


def with_copies(plan: Plan, copies: list[RawCopy]) -> Plan:
    return make_plan(plan.sources, plan.targets, copies, plan.rules, plan.exemptions, plan.metadata)


def shattered(copy: RawCopy, random: random.Random) -> Iterator[RawCopy]:
    """The copy in up to eight parts: cut across some axes, at any place."""
    source, target, extents, source_offset, source_strides, target_offset, target_strides, rule = copy
    cuttable = [index for index, extent in enumerate(extents) if extent > 1]
    if not cuttable or random.random() < 0.3:
        yield copy
        return
    axis = random.choice(cuttable)
    cut = random.randrange(1, extents[axis])
    for start, stop in ((0, cut), (cut, extents[axis])):
        part = (*extents[:axis], stop - start, *extents[axis + 1 :])
        places = (source_offset + start * source_strides[axis], target_offset + start * target_strides[axis])
        yield from shattered((source, target, part, places[0], source_strides, places[1], target_strides, rule), random)


@FAST
@given(chains())
def test_the_joined_copies_move_the_same_elements_in_fewer_copies(chain: tuple[random.Random, list[Plan]]) -> None:
    generator, (plan,) = chain
    cut = with_copies(plan, [part for copy in raw(plan) for part in shattered(copy, generator)])
    joined = with_copies(plan, join(raw(cut)))
    assert relation(joined) == relation(plan)
    assert joined.verify().problems == ()
    assert len(joined.copies) <= len(cut.copies)
    assert with_copies(plan, join(raw(joined))).copies == joined.copies
    rules = {(copy.target, copy.rule) for copy in plan.copies}
    assert {(copy.target, copy.rule) for copy in joined.copies} == rules


@FAST
@given(chains())
def test_the_order_does_not_matter(chain: tuple[random.Random, list[Plan]]) -> None:
    generator, (plan,) = chain
    copies = [part for copy in raw(plan) for part in shattered(copy, generator)]
    assert with_copies(plan, join(copies)) == with_copies(plan, join(generator.sample(copies, len(copies))))


def stack(gated: bool) -> Plan:
    """A stack of experts, or of experts with gate and up in each, to one tensor an expert and matrix."""
    size, kinds = WIDTH * HIDDEN, ["gate", "up"] if gated else ["down"]
    sources = [TensorSpec("stack", (EXPERTS * len(kinds) * WIDTH, HIDDEN), "BF16")]
    names = [(f"{expert}.{kind}", expert * len(kinds) + i) for expert in range(EXPERTS) for i, kind in enumerate(kinds)]
    targets = [TensorSpec(name, (WIDTH, HIDDEN), "BF16") for name, _ in names]
    return make_plan(sources, targets, [("stack", name, (size,), at * size, (1,), 0, (1,), 0) for name, at in names])


def apart() -> Plan:
    """One tensor an expert and matrix to a stack of the gates and one of the others."""
    size = WIDTH * HIDDEN
    names = [(f"{expert}.{kind}", kind, expert) for expert in range(EXPERTS) for kind in ("gate", "up")]
    return make_plan(
        [TensorSpec(name, (WIDTH, HIDDEN), "BF16") for name, _, _ in names],
        [TensorSpec(kind, (EXPERTS, WIDTH, HIDDEN), "BF16") for kind in ("gate", "up")],
        [(name, kind, (size,), 0, (1,), expert * size, (1,), 0) for name, kind, expert in names],
    )


@pytest.mark.parametrize("gated", [False, True])
def test_what_was_taken_apart_and_put_together_again_is_one_copy(gated: bool) -> None:
    plan = stack(gated).compose(stack(gated).inverse())
    (copy,) = plan.copies
    assert (copy.extents, copy.source_strides) == ((EXPERTS * (1 + gated) * WIDTH * HIDDEN,), (1,))


def test_one_stack_of_experts_to_two() -> None:
    plan = stack(gated=True).compose(apart())
    size = WIDTH * HIDDEN
    assert [(c.extents, c.source_offset, c.source_strides, c.target_strides) for c in plan.copies] == [
        ((EXPERTS, size), 0, (2 * size, 1), (size, 1)),
        ((EXPERTS, size), size, (2 * size, 1), (size, 1)),
    ]
    assert plan.verify().bijective


def test_copies_of_different_rules_stay_apart() -> None:
    halves: list[RawCopy] = [("a", "b", (3,), 0, (1,), 0, (1,), 0), ("a", "b", (3,), 3, (1,), 3, (1,), 1)]
    assert sorted(join(halves)) == halves
    assert join([(*copy[:-1], 0) for copy in halves]) == [("a", "b", (6,), 0, (1,), 0, (1,), 0)]


def test_rows_in_another_order_are_axes_in_another_order() -> None:
    rows: list[RawCopy] = [("a", "b", (2,), at, (1,), 2 * i, (1,), 0) for i, at in enumerate((0, 4, 2, 6))]
    assert join(rows) == [("a", "b", (2, 2, 2), 0, (2, 4, 1), 0, (4, 2, 1), 0)]


def test_what_would_interlock_or_go_backwards_stays_apart() -> None:
    crossing: list[RawCopy] = [("a", "b", (3,), 3 * i, (2,), 3 * i, (1,), 0) for i in range(3)]
    backwards: list[RawCopy] = [("a", "b", (2,), 4 - 2 * i, (1,), 2 * i, (1,), 0) for i in range(3)]
    assert (len(join(crossing)), len(join(backwards))) == (3, 3)
