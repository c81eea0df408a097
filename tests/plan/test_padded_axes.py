"""Axes that are longer on the native side than on the hf side: by brute force over random layouts; which may be."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_lowering_laws import ATOMS, COMPOSITES, Case, cases, coordinates, pairs
from test_lowering_laws import text as pattern_text

from crosswalk.compiler.layout.cells import outside
from crosswalk.compiler.layout.model import load_layout
from crosswalk.compiler.notation.axes import parse_dims, parse_parameter, resolve
from crosswalk.compiler.notation.templates import Template
from crosswalk.compiler.tensors.lower import Source, lower
from crosswalk.compiler.text.documents import parse_document
from crosswalk.runtime.errors import CrosswalkError


@given(cases(), st.data())
def test_an_axis_that_is_shorter_on_their_side_relates_its_first_elements(case: Case, data: st.DataObject) -> None:
    """Wherever the axis stands: inside products and sums, transposed, and again in other branches; and several."""
    atoms = st.sampled_from([x for x, size in ATOMS.items() if size > 1 and x not in case.named])
    shorter = {atom: data.draw(st.integers(1, ATOMS[atom] - 1)) for atom in data.draw(st.sets(atoms, min_size=1))}
    lengths: dict[str, Any] = {**ATOMS, **COMPOSITES, **shorter}

    def kept(element: frozenset[tuple[str, int]]) -> bool:
        return all(index < shorter.get(atom, index + 1) for atom, index in element)

    layout = resolve(parse_parameter(pattern_text(case.layout)), lambda _: True)
    ours = coordinates(case.layout)
    dims = parse_dims(pattern_text(case.dims, bare=True)) if case.dims else ()
    related = lower(Template.parse(case.template), [Source("p", layout)], case.sizes, dims, lengths=lengths)
    labels = [(f".w{x}", {(x, 0)}) for x in case.layout_sums[0]] if case.label_named else [("", set())]
    expected = {}
    for suffix, label in labels:
        for index in itertools.product(*(range(ATOMS[other]) for other in case.named)):
            here = label | set(zip(case.named, index, strict=True))
            name = "t" + "".join(f".{i}" for i in index) + suffix
            expected[name] = [element | here for element in coordinates(case.dims) if kept(element)]
    assert pairs(related, ours) == expected
    beyond = [
        ours[offset + sum(i * s for i, s in zip(index, strides, strict=True))]
        for extents, offset, strides in outside(layout.dims, case.sizes, lengths)
        for index in itertools.product(*map(range, extents))
    ]
    assert sorted(map(sorted, beyond)) == sorted(sorted(element) for element in ours if not kept(element))


def test_an_axis_in_a_name_cannot_be_shorter() -> None:
    source, sizes = Source("w", parse_parameter("a b")), {"a": 4, "b": 3}
    with pytest.raises(CrosswalkError, match=r"(?s)it would name other tensors.*\[axes/padded\]"):
        lower(Template.parse("w.{a}"), [source], sizes, lengths={"a": 3, "b": 3})


LAYOUT = """
crosswalk: 1
layout: small
root: model
types:
  model:
    fields: {inner: inner, size: int = 4, maybe: int? = null, rate: float = 1.0}
    axes: {plain: size, nested: inner.width, pair: 2, formula: size * 2, both: (plain nested), null: maybe, real: rate}
    pads: [AXIS]
  inner: {fields: {width: int = 3}}
"""


@pytest.mark.parametrize(
    ("axis", "reason"),
    [
        ("plain", None),
        ("nested", None),
        ("pair", "its size is not one field of the config"),
        ("formula", "its size is not one field of the config"),
        ("both", "its size is not one field of the config"),
        ("'null'", "its size `maybe` is no field of whole numbers"),
        ("real", "its size `rate` is no field of whole numbers"),
        ("other", "the type has no such axis; its axes are plain, nested, pair, formula, both, null, real"),
    ],
)
def test_the_size_of_a_padded_axis_is_one_field(axis: str, reason: str | None) -> None:
    document = parse_document(LAYOUT.replace("AXIS", axis).replace(" null:", " 'null':"), "small.yaml")
    if reason is None:
        assert load_layout(document).types["model"].pads == (axis,)
        return
    with pytest.raises(CrosswalkError) as error:
        load_layout(document)
    (found,) = error.value.diagnostics
    assert (found.code, found.message.endswith(f"cannot be padded: {reason}")) == ("layout/pads", True), found
