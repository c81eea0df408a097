"""Parameters with axes in their names: the same copies as those of one tensor that has these axes in front."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

import crosswalk
from crosswalk.compiler.layout.cells import AxisTable, native_shape
from crosswalk.compiler.layout.model import load_layout
from crosswalk.compiler.layout.named_axes import axis_size, stacked
from crosswalk.compiler.layout.natives import natives_of
from crosswalk.compiler.layout.scope import Scope, normalize
from crosswalk.compiler.layout.variants import fitting
from crosswalk.compiler.notation.axes import parse_dims, parse_parameter
from crosswalk.compiler.notation.templates import Template
from crosswalk.compiler.tensors.lower import Source, Tensor, lower
from crosswalk.compiler.text.documents import parse_document
from crosswalk.runtime.errors import CrosswalkError

SIZES: AxisTable = {"expert": 5, "ffn": 7, "hidden": 3, "head": ("group", "per"), "group": 2, "per": 4, "one": 1}
FIRST = "([gate|up] ffn) <- hidden"


def run(tensors: list[Tensor], ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Theirs, by the copies, which write every element once."""
    result = {}
    for tensor in tensors:
        data = torch.full(tensor.shape, -1)
        for parameter, piece in tensor.pieces:
            extents, strides, others = piece.columns
            target = data.as_strided(extents, others, piece.there)
            assert (target == -1).all()
            target.copy_(ours[parameter].as_strided(extents, strides, piece.here))
        result[tensor.name] = data
    return result


@pytest.mark.parametrize(
    ("name", "axes", "pattern", "template", "dims"),
    [
        ("w{expert}", ["expert"], FIRST, "{expert}.{gate|up}_proj", None),
        ("w{expert}", ["expert"], FIRST, "{expert}.gate_up", "([gate|up] ffn) hidden"),
        ("w{expert}", ["expert"], FIRST, "gate_up", None),
        ("w{expert}", ["expert"], FIRST, "gate_up", "expert hidden (ffn [gate|up])"),
        ("w{expert}", ["expert"], FIRST, "{gate|up}", "hidden (expert ffn)"),
        ("w{expert}", ["expert"], FIRST, "{hidden}.{gate|up}", "ffn expert"),
        ("x.{expert}.b", ["expert"], "ffn", "bias.{ffn}", None),
        ("x{head}", ["head"], "ffn <- hidden", "{head}", None),
        ("x{head}", ["head"], "ffn <- hidden", "{group}", "(ffn per) hidden"),
        ("x{per}", ["per"], "group <- hidden", "{head}", None),
        ("x{head}", ["head"], "ffn <- hidden", "y", "(per ffn) (hidden group)"),
        ("x{expert}.{per}", ["expert", "per"], "group 1 <- hidden", "{expert}", "hidden head"),
        ("x{per}.{expert}", ["per", "expert"], "group <- hidden", "y", "head expert hidden"),
        ("x{one}", ["one"], "ffn <- hidden", "y", "one hidden ffn"),
    ],
)
def test_the_copies_are_those_of_the_stack(
    name: str, axes: list[str], pattern: str, template: str, dims: str | None
) -> None:
    of_each = parse_parameter(pattern)
    whole = stacked(of_each, axes)
    shape = native_shape(whole, SIZES)
    stack = torch.arange(math.prod(shape)).reshape(shape)
    written = parse_dims(dims) if dims else None
    expected = run(lower(Template.parse(template), [Source("w", whole)], SIZES, written), {"w": stack})
    source = Source.of(Template.parse(name), of_each, tuple(axes))
    indices = itertools.product(*(range(axis_size(axis, SIZES)) for axis in axes))
    parts = {str(Template.parse(name).render(dict(zip(axes, i, strict=True)))): stack[i].clone() for i in indices}
    tensors = lower(Template.parse(template), [source], SIZES, written)
    found = run(tensors, parts)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert {piece.parameter for tensor in tensors for piece in tensor.pieces} == parts.keys()


def test_pieces_are_as_large_as_they_can_be() -> None:
    source = Source.of(Template.parse("w{expert}"), parse_parameter(FIRST), ("expert",))
    (tensor,) = lower(Template.parse("gate_up"), [source], SIZES)
    assert [(parameter, piece.columns[0], piece.there) for parameter, piece in tensor.pieces] == [
        (f"w{expert}", (2 * 7 * 3,), expert * 2 * 7 * 3) for expert in range(5)
    ]


def test_several_parameters_are_put_together_by_the_rows_of_each() -> None:
    sources = [
        Source.of(Template.parse("a{expert}"), parse_parameter("ffn <- hidden"), ("expert",)),
        Source.of(Template.parse("b{expert}"), parse_parameter("per <- hidden"), ("expert",)),
    ]
    a, b = torch.arange(5 * 7 * 3).view(5, 7, 3), torch.arange(200, 200 + 5 * 4 * 3).view(5, 4, 3)
    parts = {f"{name}{e}": stack[e].clone() for name, stack in (("a", a), ("b", b)) for e in range(5)}
    (tensor,) = lower(Template.parse("both"), sources, SIZES)
    assert torch.equal(run([tensor], parts)["both"], torch.cat([a, b], dim=1))
    found = run(lower(Template.parse("{expert}.both"), sources, SIZES), parts)
    assert all(torch.equal(found[f"{e}.both"], torch.cat([a[e], b[e]])) for e in range(5))


# Layouts.

LAYOUT = """\
crosswalk: 1
layout: small
root: model
types:
  model:
    fields: {experts: int = 3, width: int = 4, layers: int = 2}
    training: {stacked: bool = false}
    axes: {expert: experts, width: width}
    pads: [width]
    holes: {i: layers}
    parameters: {PARAMETERS}
"""


def layout_with(parameters: str) -> Scope:
    layout = load_layout(parse_document(LAYOUT.replace("PARAMETERS", parameters), "small.yaml"))
    return Scope(layout, layout.types["model"], normalize(layout, {}))


def test_a_hole_that_counts_and_an_axis_in_one_name() -> None:
    root = layout_with('"{i}.w{expert}": {axes: width}')
    assert {name: native.shape for name, native in natives_of(root).items()} == {
        f"{i}.w{e}": (4,) for i in range(2) for e in range(3)
    }


def test_a_name_that_a_condition_gives() -> None:
    """Live models show which of the names they have."""
    root = layout_with('"w{expert}": {axes: 1 <- width, called: {"all.{expert}.w": stacked}}')
    assert list(natives_of(root)) == ["w0", "w1", "w2"]
    live = {f"all.{e}.w": (1, 4) for e in range(3)}
    found = fitting(root.layout, root.kind, root.config, live)
    assert found == {**root.config, "stacked": True}
    assert {name: n.shape for name, n in natives_of(Scope(root.layout, root.kind, found)).items()} == live


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ('"w{exprt}": 1', "`w{exprt}` of type `model` cannot have `{exprt}` in its name: it is neither under `holes`"),
        ('"w{expert}": expert width', "`{expert}` in its name: the parameter has this axis already"),
        ('"w{expert}.{expert}": width', "`{expert}` in its name: the parameter has this axis already"),
        ('"w{width}": expert', "`{width}` in its name: it may be padded, and its padding would be whole tensors"),
        ('"w{expert}": {axes: width, called: {v: stacked}}', "`v` must have the holes of `w{expert}`"),
    ],
)
def test_names_that_cannot_be(parameters: str, said: str) -> None:
    with pytest.raises(CrosswalkError) as error:
        layout_with(parameters)
    (found,) = error.value.diagnostics
    assert found.code == "layout/hole"
    assert said in found.message
    assert found.position is not None


def test_so_many_that_they_are_refused_by_number(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 10_000_000}
    with pytest.raises(CrosswalkError, match=r"the config states \d+ `.*`, which take \d+ tensors or more"):
        crosswalk.compile_plan(config, to="megatron")
