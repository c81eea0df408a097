"""Laws of the pieces under loading and saving, on counted elements."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.affine import Piece, PieceOf
from crosswalk.runtime.training.placement import Shards, place, subtract
from crosswalk.runtime.training.stretches import WASTE, blocks, without_holes


def codes(error: pytest.ExceptionInfo[CrosswalkError]) -> list[str]:
    return sorted(diagnostic.code for diagnostic in error.value.diagnostics)


# Laws of the pieces underneath, on counted elements.


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, list[Piece]]:
    """A tensor of some elements, and disjoint nested pieces of it."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    pieces = []
    cut = draw(st.integers(0, len(shape) - 1))
    for index in range(shape[cut]):
        if draw(st.booleans()):
            axes = [(n, s, s) for i, (n, s) in enumerate(zip(shape, strides, strict=True)) if i != cut and n > 1]
            start = index * strides[cut]
            pieces.append(Piece(start, start, tuple(axes)))
    return math.prod(shape), pieces


def elements(piece: Piece) -> list[tuple[int, int]]:
    return [
        (
            piece.here + sum(i * axis[1] for i, axis in zip(index, piece.axes, strict=True)),
            piece.there + sum(i * axis[2] for i, axis in zip(index, piece.axes, strict=True)),
        )
        for index in itertools.product(*(range(axis[0]) for axis in piece.axes))
    ]


@given(grid=grids(), limit=st.integers(1, 40), gap=st.integers(0, 9), exact=st.booleans(), kept=st.booleans())
def test_blocks_move_every_element_once(
    grid: tuple[int, list[Piece]], limit: int, gap: int, exact: bool, kept: bool
) -> None:
    size, pieces = grid
    wanted = sorted(itertools.chain.from_iterable(elements(piece) for piece in pieces))
    found = []
    made = blocks([PieceOf(3, piece) for piece in pieces], limit, gap, exact)
    for block in made if kept else itertools.chain.from_iterable(without_holes(block, gap) for block in made):
        assert not block.together or 0 < block.outer[-1][1] - block.length <= gap
        assert block.elements <= limit
        assert block.elements <= WASTE * block.needed
        buffer = [start + i for start in block.runs() for i in range(block.length)]
        assert len(buffer) == block.elements
        if exact:
            assert block.needed == block.elements
        for memory, piece in block.placements:
            assert memory == 3
            found += [(buffer[here], there) for here, there in elements(piece)]
        assert all(0 <= element < size for element in buffer)
    assert sorted(found) == wanted


boxes = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted).map(tuple), min_size=2, max_size=2)


@given(box=boxes.map(tuple), others=st.lists(boxes.map(tuple), max_size=4))
def test_subtracting_boxes_counts_right(box: Any, others: Any) -> None:
    def cells(of: Any) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(a, b) for a, b in of)))

    found = [cell for rest in subtract(box, others) for cell in cells(rest)]
    taken = {cell for other in others for cell in cells(other)}
    assert sorted(found) == sorted(cell for cell in cells(box) if cell not in taken)


def test_a_box_outside_its_tensor_is_an_error() -> None:
    for box in (((0, 3), (0, 6)), ((2, 1), (0, 5)), ((0, 3),)):
        with pytest.raises(CrosswalkError) as error:
            place(Shards((4, 5), [(box, torch.zeros(3, 5))]))
        assert codes(error) == ["live/box"]
