"""What a schema refuses in a document: where it is said, and what was meant."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.compiler.text.documents import parse_document, validate

# ---- values and positions -------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cf"]), max_size=12)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    SCALARS | TEXT,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXT, children, max_size=4),
    max_leaves=15,
)


# ---- validation -----------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["layout", "model_type"],
    "properties": {
        "layout": {"enum": ["fast_llm", "megatron"]},
        "model_type": {"type": "string", "pattern": "^[a-z0-9_]+$"},
        "count": {"type": ["integer", "null"], "minimum": 1},
        "tensors": {"type": "object", "additionalProperties": {"$ref": "#/$defs/target"}},
    },
    "$defs": {
        "target": {
            "description": "a parameter, a list of them, or {is, axes}",
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"is": {"type": "string"}, "axes": {"type": "string"}},
                    "required": ["is"],
                },
            ],
        }
    },
}


def violations(text: str) -> list[str]:
    return [str(found) for found in validate(parse_document(text, "f"), SCHEMA)]


@pytest.mark.parametrize("name", ["layout", "mapping"])
def test_the_schemas_of_the_package_are_schemas(name: str) -> None:
    text = (importlib.resources.files("crosswalk.schema") / f"{name}.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_valid_documents_have_no_violations() -> None:
    assert (
        violations("layout: fast_llm\nmodel_type: llama\ncount: 3\ntensors: {a: b, c: [d], e: {is: f, axes: g}}\n")
        == []
    )


def test_violations_point_at_keys_and_values_and_say_what_was_meant() -> None:
    text = "layout: fast_lm\nmodel_tipe: llama\ncount: 0\n"
    text += "tensors:\n  a: 1\n  b: [c, 2]\n  d: {is: e, axis: f}\n  g: {axes: h}\n"
    assert violations(text) == [
        "f:1:1: error: key `model_type` is missing [schema/required]",
        "f:1:9: error: expected one of `fast_llm`, `megatron`, found the text `fast_lm` [schema/enum]\n"
        "  hint: did you mean `fast_llm`?",
        "f:2:1: error: unknown key `model_tipe` [schema/additionalProperties]\n  hint: did you mean `model_type`?",
        "f:3:8: error: 0 is less than the minimum of 1 [schema/minimum]",
        "f:5:6: error: expected a parameter, a list of them, or {is, axes}, found the number 1 [schema/anyOf]",
        "f:6:10: error: expected text, found the number 2 [schema/type]",
        "f:7:14: error: unknown key `axis` [schema/additionalProperties]\n  hint: did you mean `axes`?",
        "f:8:3: error: key `is` is missing [schema/required]",
    ]


def test_brackets_where_text_is_expected_get_a_hint() -> None:
    (found,) = violations("layout: fast_llm\nmodel_type: a\ntensors:\n  q: {is: a, axes: [q|k]}\n")
    assert "expected text, found a list" in found
    assert found.endswith("if this is text, quote it")


def test_a_misspelt_key_that_passes_for_a_free_name_is_named() -> None:
    schema = {
        "type": "object",
        "properties": {"extends": {"type": "string"}},
        "additionalProperties": {"description": "a section. It says what is true of a type.", "type": "object"},
    }
    assert [str(found) for found in validate(parse_document("extend: llama\nother: 3\nmlp: {}\n", "f"), schema)] == [
        "f:1:1: error: unknown key `extend` [schema/additionalProperties]\n  hint: did you mean `extends`?",
        "f:2:8: error: expected a section, found the number 3 [schema/type]",
    ]


@given(
    st.dictionaries(
        st.sampled_from(["layout", "model_type", "count", "tensors", "other"]),
        st.sampled_from(["fast_llm", "llama", "L!", 1, 0, None, True, 2.0, 2.5])
        | st.dictionaries(st.sampled_from(["is", "axes", "x"]), JSON, max_size=3),
        min_size=1,
    )
)
def test_finds_something_exactly_where_jsonschema_does(data: dict[str, Any]) -> None:
    found = validate(parse_document(json.dumps(data, ensure_ascii=False), "f"), SCHEMA)
    assert (not found) == jsonschema.Draft202012Validator(SCHEMA).is_valid(data)
    assert all(problem.position and problem.position.line == 1 for problem in found)
