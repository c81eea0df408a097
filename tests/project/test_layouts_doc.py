"""docs/layouts/fast_llm.md is what the reference says, and says something of every field that is not for training."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import generate_layouts
import pytest

from crosswalk.compiler.layout.model import ConfigType
from crosswalk.jobs.formats import catalog
from crosswalk.reference.formulas import FORMULAS, SILENT_FIELDS, SILENT_TYPES

DOCS = Path(__file__).parents[2] / "docs"
LAYOUT = catalog().layout("fast_llm")


def _computing() -> Iterator[tuple[str, ConfigType]]:
    """Every type of the layout, but those that are listed as computing nothing, by the name of its family."""
    yield from ((name, kind) for name, kind in LAYOUT.types.items() if name not in SILENT_TYPES)
    for family in LAYOUT.families.values():
        if family.name not in SILENT_TYPES:
            yield from ((family.name, kind) for kind in family.types.values())


def _function(group: str, kind: ConfigType) -> object:
    found = FORMULAS[group]
    return found[kind.name] if not callable(found) else found


COMPUTING = [pytest.param(group, kind, id=f"{group}-{kind.name}") for group, kind in _computing()]


def test_the_document_is_up_to_date() -> None:
    target = DOCS / "layouts" / "fast_llm.md"
    assert generate_layouts.render() == target.read_text(encoding="utf-8"), "python docs/generate_layouts.py"


def test_there_are_formulas_for_all_types_that_compute_and_for_no_others() -> None:
    for name in FORMULAS.keys() - LAYOUT.types.keys():
        assert FORMULAS[name].keys() == LAYOUT.families[name].types.keys()
    names = {*LAYOUT.types, *LAYOUT.families}
    assert {*FORMULAS} | {*SILENT_TYPES} == names
    assert {*FORMULAS} & {*SILENT_TYPES} == set()


@pytest.mark.parametrize(("group", "kind"), COMPUTING)
def test_every_field_has_a_line_and_every_type_a_formula(group: str, kind: ConfigType) -> None:
    formula = generate_layouts.formula_of(_function(group, kind))
    assert "=" in formula.formula
    fields = {name for name, field in kind.fields.items() if field.group != "training"}
    silent = {name for of, name in SILENT_FIELDS if of == kind.name}
    described = {*formula.fields}
    assert fields - silent <= described
    assert silent <= fields
    assert not silent & described
    known = fields if kind.name != "base_model" else {*LAYOUT.types["multimodal_model"].fields}
    assert described <= known, "a field that the type does not have"


@pytest.mark.parametrize(("group", "kind"), COMPUTING)
def test_a_field_that_has_a_line_is_read(group: str, kind: ConfigType) -> None:
    """By the function itself or by one of its module."""
    function = _function(group, kind)
    module = inspect.getmodule(function)
    assert module is not None
    source = inspect.getsource(module)
    unread = {
        name
        for name, what in generate_layouts.formula_of(function).fields.items()
        if f'"{name}"' not in source and "nothing of its own" not in what
    }
    assert unread <= WITHOUT_READING.get(kind.name, set())


#: Fields that a formula needs and a function does not: sizes that parameters have, and what is read together.
WITHOUT_READING = {
    "base_model": {"hidden_size"},
    "head": {"prediction_heads"},  # by the model, which has the heads
    "multimodal_model": {"hidden_size"},
    "vision_encoder": {"hidden_size"},
    "attention": {"heads"},
    "mamba": {"dt_rank"},
    "mlp": {"intermediate_size"},
    "moe": {"intermediate_size", "gated", "activation", "layer_1", "layer_2", "add_linear_biases"},
    "kda": {
        "head_dim", "q_projection_layer", "k_projection_layer", "v_projection_layer", "f_a_projection_layer",
        "f_b_projection_layer", "g_a_projection_layer", "g_b_projection_layer", "beta_projection_layer",
    },
}  # fmt: skip
