"""Mistakes in layouts that their schema cannot see, and configs that cannot be: each by its code."""

from __future__ import annotations

import pytest

import crosswalk
from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.layout.model import Layout
from crosswalk.compiler.layout.natives import natives_of
from crosswalk.compiler.layout.scope import Scope, normalize
from crosswalk.runtime.errors import CrosswalkError

LAYOUT = """layout: tiny
root: model
types:
  base:
    fields: {width: int > 0 = 8, note: str = plain}
    axes: {hidden: width}
    parameters: {weight: hidden}
  model:
    extends: base
    fields: {depth: int = 3}
    stored_as: {base: depth == 3}
    checks: {depth > 1: one layer is none}
enums: {shade: [red, blue]}
families: {Part: {default: one, types: {one: {}, two: {}}}}
crosswalk: 1
"""


def read(text: str) -> Layout:
    return Catalog(texts={"layouts/tiny": text}).layout("tiny")


def test_the_layout_of_the_mistakes_is_right_without_them() -> None:
    assert read(LAYOUT).types["model"].fields.keys() == {"width", "note", "depth"}


def test_a_weight_of_one_element_may_be_a_number() -> None:
    layout = read(LAYOUT.replace("{weight: hidden}", "{linear: {weight: 1}}"))
    assert [(str(p.name), str(p.pattern)) for p in layout.types["base"].parameters] == [("linear.weight", "1")]


@pytest.mark.parametrize(
    ("old", "new", "code", "place"),
    [
        ("extends: base", "extends: bose", "layout/extends", "9:14"),
        ("int = 3}", "'= 3'}", "schema/pattern", "10:21"),
        ("str = plain", "strong = plain", "layout/type", "5:40"),
        ("int = 3}", "int = deep}", "layout/field", "10:21"),
        ("int = 3}", "int = null}", "layout/field", "10:21"),
        ("int > 0 = 8", "int > 0 = 0", "layout/field", "5:21"),
        ("int > 0 = 8", "int > 0.0.0 = 8", "layout/field", "5:21"),
        ("int = 3}", "'list of int = [3'}", "layout/field", "10:21"),
        ("int = 3}", "'list of int = [true]'}", "layout/field", "10:21"),
        ("int = 3}", "base = 3}", "layout/field", "10:21"),
        ("int = 3}", "shade = green}", "layout/field", "10:21"),
        ("int = 3}", "Part = third}", "layout/field", "10:21"),
        ("int = 3}", "'Part = {\"type\": 2}'}", "layout/field", "10:21"),
        ("{base: depth", "{model: depth", "layout/stored-as", "11:17"),
        ("    checks:", "    children: {inner: wdth}\n    checks:", "layout/name", "12:16"),
    ],
)
def test_a_mistake_is_found_when_the_layout_is_read(old: str, new: str, code: str, place: str) -> None:
    assert old in LAYOUT
    with pytest.raises(CrosswalkError) as error:
        read(LAYOUT.replace(old, new, 1))
    found = error.value.diagnostics[0]
    assert (found.code, str(found.position)) == (code, f"layouts/tiny.yaml:{place}")


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("hidden: width", "hidden: width - 9", "layout/axis", "axis `hidden` = `width - 9` is -1, not a size"),
        ("depth > 1", "depth > heads", "layout/no-axis", "no axis `heads` in scope of type `model`"),
        ("depth > 1", "note.x > 1", "layout/name", '`note.x`: there is no `x` in "plain"'),
    ],
)
def test_a_mistake_is_found_when_a_config_is_read(old: str, new: str, code: str, words: str) -> None:
    layout = read(LAYOUT.replace(old, new, 1))
    with pytest.raises(CrosswalkError) as error:
        natives_of(Scope(layout, layout.types["model"], normalize(layout, {})))
    assert [(found.code, found.message) for found in error.value.diagnostics] == [(code, words)]


@pytest.mark.parametrize(
    ("config", "options", "code"),
    [
        ({"model_type": "llama"}, {"to": "hf", "native_config": {}}, "usage/native-config"),
        ({"model_type": "llama"}, {"to": "hf"}, "format/needed"),
        ({"model_type": "llama"}, {"to": "fast_lm"}, "format/layout"),
        ({"model_type": "llama"}, {"format": "lama"}, "usage/format"),
        ({"model_type": "llama"}, {"keep": ["nobody"]}, "usage/keep"),
    ],
)
def test_a_plan_that_cannot_be_asked_for(config: dict[str, object], options: dict[str, object], code: str) -> None:
    with pytest.raises(CrosswalkError) as error:
        crosswalk.compile_plan(config, **options)  # type: ignore[arg-type]
    assert code in {found.code for found in error.value.diagnostics}
