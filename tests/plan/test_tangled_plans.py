"""What proving a plan costs depends on how many copies it has: those that share no grid of strides are refused."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
from budgets import times
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.runtime.plan import affine
from crosswalk.runtime.plan.affine import Piece, is_nested, make_piece, tiling_faults
from crosswalk.runtime.plan.model import Plan, RawCopy, TensorSpec, make_plan


def strided(*strides: int, extent: int) -> Plan:
    """Copies with these strides on both ends, one after the other from the first element on."""
    size = max(strides) * extent
    copies: list[RawCopy] = [("a", "b", (extent,), n, (stride,), n, (stride,), 0) for n, stride in enumerate(strides)]
    return make_plan([TensorSpec("a", (size,), "F32")], [TensorSpec("b", (size,), "F32")], copies)


@pytest.mark.parametrize("strides", [(7, 8), (7, 8, 9), (999_983, 1_000_003), (2, 3, 5, 7, 11, 13)])
def test_strides_without_a_grid_are_not_proved(strides: tuple[int, ...]) -> None:
    problems = strided(*strides, extent=10**6).verify().problems
    assert [problem.code for problem in problems] == ["plan/tangled"] * 2
    assert "the strides of its copies share no grid" in problems[0].message


def test_a_grid_is_proved_at_any_size() -> None:
    assert strided(*[8] * 8, extent=10**12).verify().bijective
    assert strided(*[8] * 7, extent=10**12).verify().problems[0].code == "plan/gap"
    outer = [("a", "b", (10**6, 10**6), n, (3 * 10**6, 3), n, (3 * 10**6, 3), 0) for n in range(3)]
    size = 3 * 10**12
    assert make_plan([TensorSpec("a", (size,), "F32")], [TensorSpec("b", (size,), "F32")], outer).verify().bijective


@st.composite
def pieces(draw: st.DrawFn) -> tuple[list[Piece], int]:
    """Nested pieces of a small tensor: a tiling by the phases of a stride, with some pieces perhaps changed."""
    stride, rows = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    found = [(phase, (stride,), (rows,)) for phase in range(stride)]
    for index in draw(st.sets(st.integers(0, stride - 1), max_size=2)):
        count = draw(st.integers(1, 2))
        extents = tuple(draw(st.integers(1, 5)) for _ in range(count))
        strides = tuple(draw(st.integers(1, 13)) for _ in range(count))
        found[index] = (draw(st.integers(0, stride * rows - 1)), strides, extents)
    made = [
        make_piece(here, strides, number, (0,) * len(strides), extents)
        for number, (here, strides, extents) in enumerate(found)
    ]
    inside = [piece for piece in made if is_nested(piece.axes) and piece.stop <= stride * rows]
    return inside, stride * rows


def tiles(found: list[Piece], size: int) -> bool:
    """Whether each element is in exactly one piece, by counting."""
    met = Counter(
        piece.here + sum(index * axis[1] for index, axis in zip(indices, piece.axes, strict=True))
        for piece in found
        for indices in product(*(range(axis[0]) for axis in piece.axes))
    )
    assert sum(met.values()) == sum(math.prod(axis[0] for axis in piece.axes) for piece in found)
    return met == Counter(range(size))


@times(12)
@given(pieces(), st.sampled_from([(0, 0), (3, 0), (0, 4), (20_000, 200)]))
def test_nothing_is_proved_that_counting_denies(drawn: tuple[list[Piece], int], limits: tuple[int, int]) -> None:
    """The less work is allowed, the more is refused; what is small is always decided."""
    found, size = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(affine, "_PARTS", limits[0])
        patch.setattr(affine, "_PARTS_EACH", limits[1])
        faults = list(tiling_faults(found, 0, size))
    if not faults:
        assert tiles(found, size)
    elif all(fault.places for fault in faults):
        assert not tiles(found, size)
    else:
        assert limits != (20_000, 200)
