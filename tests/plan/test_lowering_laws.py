"""Laws of the lowering, over random layouts and random arrangements of their axes on the other side."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crosswalk.compiler.notation.axes import parse_dims, parse_parameter
from crosswalk.compiler.notation.templates import Template
from crosswalk.compiler.tensors.lower import Source, Tensor, lower, native_shape

ATOMS = {"a": 2, "b": 3, "c": 4, "d": 1, "e": 3, "f": 2}
COMPOSITES: dict[str, tuple[str, ...]] = {"ab": ("a", "b"), "ef": ("e", "f"), "abc": ("ab", "c")}
Coordinate = frozenset[tuple[str, int]]


def coordinates(terms: list[Any]) -> list[Coordinate]:
    """Every element in storage order, as the labels and indices that it has. A term is an atom, a composite, a list (a
    product) or a dict of labels (a sum)."""

    def one(term: Any) -> list[Coordinate]:
        if isinstance(term, dict):
            return [{(label, 0)} | rest for label, own in term.items() for rest in map(set, coordinates(own))]  # type: ignore[misc]
        if isinstance(term, list):
            return coordinates(term)
        if term in COMPOSITES:
            return coordinates(list(COMPOSITES[term]))
        return [frozenset({(term, index)}) for index in range(ATOMS[term])]

    return [frozenset().union(*parts) for parts in itertools.product(*map(one, terms))]


def text(terms: list[Any], bare: bool = False) -> str:
    def one(term: Any) -> str:
        if isinstance(term, dict):
            return "[" + " | ".join(x if bare or not own else f"{x}: {text(own)}" for x, own in term.items()) + "]"
        return f"({text(term, bare)})" if isinstance(term, list) else str(term)

    return " ".join(map(one, terms))


def split(axis: str) -> list[str]:
    return [atom for factor in COMPOSITES[axis] for atom in split(factor)] if axis in COMPOSITES else [axis]


@dataclass(frozen=True)
class Case:
    layout: list[Any]
    named: list[str]
    label_named: bool
    dims: list[Any]

    @property
    def sizes(self) -> dict[str, int | tuple[str, ...]]:
        return {**ATOMS, **COMPOSITES}

    @property
    def template(self) -> str:
        labels = next(("{" + "|".join(f"w{x}={x}" for x in reversed(s)) + "}" for s in self.layout_sums), "")
        return "t" + "".join(f".{{{axis}}}" for axis in self.named) + (f".{labels}" if self.label_named else "")

    @property
    def layout_sums(self) -> list[dict[str, list[str]]]:
        flat = [inner for dim in self.layout for inner in (dim if isinstance(dim, list) else [dim])]
        return [term for term in flat if isinstance(term, dict)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A layout with at most one sum, and another order of its axes with some of them in the name."""
    common = draw(st.one_of(st.lists(st.sampled_from(["ab", "c", "d"]), unique=True), st.just(["d", "abc"])))
    taken = {atom for axis in common for atom in split(axis)}
    own = [axis for axis in ("a", "b", "ab", "ef", "f") if taken.isdisjoint(split(axis))]
    branch = st.lists(st.sampled_from(own), unique=True).filter(
        lambda axes: max(Counter(atom for axis in axes for atom in split(axis)).values(), default=1) == 1
    )
    branches = draw(st.lists(branch, max_size=3))
    sums = [dict(zip("xyz", branches, strict=False))] if branches else []
    if not common and not sums:
        common = ["c"]

    def grouped(terms: list[Any]) -> list[Any]:
        result: list[Any] = []
        for term in terms:
            if draw(st.booleans()) and result:
                result[-1] = [*result[-1], term] if isinstance(result[-1], list) else [result[-1], term]
            else:
                result.append(term)
        return result

    layout = grouped(draw(st.permutations([*common, *sums])))
    # On the other side, the atoms that every element has may be anywhere; the rest stays in the brackets.
    everywhere = [atom for axis in common for atom in split(axis)]
    inside = [{atom for axis in axes for atom in split(axis)} for axes in (sums[0].values() if sums else [])]
    shared = sorted(set.intersection(*inside)) if inside else []
    label_named = bool(sums) and all(i == set(shared) for i in inside) and draw(st.booleans())
    everywhere += shared if label_named else [atom for atom in shared if draw(st.booleans())]
    named = [atom for atom in everywhere if draw(st.booleans())]
    outside = draw(st.permutations([atom for atom in everywhere if atom not in named]))
    filled_sum = [
        {label: [a for axis in axes for a in split(axis) if a not in everywhere] for label, axes in s.items()}
        for s in sums
        if not label_named
    ]
    place = draw(st.integers(0, len(outside)))
    dims = grouped([*outside[:place], *filled_sum, *outside[place:]])
    return Case(layout, named, label_named, dims)


def pairs(tensors: list[Tensor], ours: list[Coordinate]) -> dict[str, list[Coordinate | None]]:
    """What every hf element holds, by the pieces; no element is written twice."""
    result: dict[str, list[Coordinate | None]] = {}
    for tensor in tensors:
        elements: list[Coordinate | None] = [None] * math.prod(tensor.shape)
        for _, piece in tensor.pieces:
            extents, strides, others = piece.columns
            for index in itertools.product(*map(range, extents)):
                at = piece.there + sum(i * s for i, s in zip(index, others, strict=True))
                assert elements[at] is None
                elements[at] = ours[piece.here + sum(i * s for i, s in zip(index, strides, strict=True))]
        result[tensor.name] = elements
    return result


@given(cases())
def test_every_element_goes_where_its_coordinates_say(case: Case) -> None:
    layout = parse_parameter(text(case.layout))
    ours = coordinates(case.layout)
    assert math.prod(native_shape(layout, case.sizes)) == len(ours)
    dims = parse_dims(text(case.dims, bare=True)) if case.dims else ()
    found = pairs(lower(Template.parse(case.template), [Source("p", layout)], case.sizes, dims), ours)

    labels = [(f".w{x}", {(x, 0)}) for x in case.layout_sums[0]] if case.label_named else [("", set())]
    expected = {}
    for suffix, label in labels:
        for index in itertools.product(*(range(ATOMS[atom]) for atom in case.named)):
            name = "t" + "".join(f".{i}" for i in index) + suffix
            here = label | set(zip(case.named, index, strict=True))
            expected[name] = [element | here for element in coordinates(case.dims)]
    assert found == expected
    assert Counter(itertools.chain(*found.values())) == Counter(ours)


@given(cases())
def test_without_axes_the_order_is_that_of_the_layout(case: Case) -> None:
    """Whatever goes into the name, every tensor keeps the storage order of the elements that are left for it."""
    layout = parse_parameter(text(case.layout))
    order = {element: index for index, element in enumerate(coordinates(case.layout))}
    found = pairs(lower(Template.parse(case.template), [Source("p", layout)], case.sizes), list(order))
    for elements in found.values():
        places = [order[element] for element in elements if element is not None]
        assert places == sorted(places)
    assert Counter(itertools.chain(*found.values())) == Counter(list(order))
