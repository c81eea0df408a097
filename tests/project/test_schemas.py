"""The schemas of mappings and layouts: valid, described, strict, in step with the compiler and the shipped files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from crosswalk.compiler.catalog import Catalog, schema
from crosswalk.compiler.mapping.parse import ENTRY_WORDS, RESERVED, TENSOR_WORDS
from crosswalk.compiler.text.documents import load_document, parse_document, validate

NAMES = ("mapping", "layout", "plan")
FOLDER = Path(Catalog().mapping("llama").file).parent
SHIPPED = [("mapping", file) for file in sorted(FOLDER.glob("*.yaml"))]
SHIPPED += [("layout", file) for file in sorted(FOLDER.glob("layouts/*.yaml"))]


def places(node: Any, path: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema object inside a schema, with where it is."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from places(value, f"{path}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from places(value, f"{path}/{index}")


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_valid(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(("kind", "file"), SHIPPED, ids=lambda value: value.stem if isinstance(value, Path) else None)
def test_shipped_file_validates(kind: str, file: Path) -> None:
    assert validate(load_document(file), schema(kind)) == []


@pytest.mark.parametrize("name", ["mapping", "layout"])
def test_every_property_says_what_it_is(name: str) -> None:
    """In one noun phrase, which messages quote, and then in sentences, which editors show."""
    document = schema(name)
    for place, node in places(document):
        for key, value in node.get("properties", {}).items() if isinstance(node.get("properties"), dict) else ():
            described = value
            while "description" not in described and "$ref" in described:
                described = resolved(document, described["$ref"])
            text = described.get("description", "")
            assert len(text) > 6, f"{place}/{key}"
            assert len(text.split(". ")[0]) < 120, f"{place}/{key}"


def resolved(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


@pytest.mark.parametrize("name", NAMES)
def test_an_object_of_known_shape_takes_nothing_else(name: str) -> None:
    for place, node in places(schema(name)):
        # What `if` and `then` look at is a part of an object whose shape is stated beside them.
        if isinstance(node.get("properties"), dict) and not place.endswith(("/properties", "/if", "/then")):
            assert "additionalProperties" in node, place


def test_the_words_of_the_schema_are_those_of_the_parser() -> None:
    mapping = schema("mapping")
    definitions = mapping["$defs"]
    entries = [definitions[f"{kind}_entry"]["properties"] for kind in ("field", "const", "only", "drop")]
    assert set(mapping["properties"]) == RESERVED
    assert {word for properties in entries for word in properties} == ENTRY_WORDS
    assert set(definitions["config_line"]["x-words"]) == ENTRY_WORDS
    assert set(definitions["tensor_line"]["else"]["then"]["properties"]) == TENSOR_WORDS


@pytest.mark.parametrize("file", sorted(FOLDER.glob("layouts/*.yaml")), ids=lambda file: file.stem)
def test_no_type_is_called_like_a_word_of_the_header(file: Path) -> None:
    assert not RESERVED & {kind.name for kind in Catalog().layout(file.stem).all_types()}


# One mistake each in a layout, with where and what. A mapping's are in mapping_mistakes.txt.
LAYOUT = """crosswalk: 1
layout: tiny
root: model
enums: {act: [relu, gelu]}
types:
  model:
    fields: {width: int > 0 = 8, body: Body = plain}
    axes: {hidden: width}
    children: {body: body}
    parameters: {weight: hidden hidden'}
families:
  Body:
    default: plain
    types:
      plain: {}
"""
LAYOUT_MISTAKES = [
    ("root: model\n", "", "tiny.yaml:1:1: error: key `root` is missing [schema/required]\n  hint: expected a layout"),
    ("enums:", "enmus:", "tiny.yaml:4:1: error: unknown key `enmus` [schema/additionalProperties]\n"
     "  hint: did you mean `enums`?"),
    ("fields:", "feilds:", "tiny.yaml:7:5: error: unknown key `feilds` [schema/additionalProperties]\n"
     "  hint: did you mean `fields`?"),
    ("int > 0 = 8", "8", "tiny.yaml:7:21: error: expected TYPE [?] [> N] [= DEFAULT] [else EXPRESSION],"
     " found the number 8 [schema/type]"),
    ("  model:\n", "  Model:\n", "tiny.yaml:6:3: error: expected a name in lower case"),
    ("  Body:\n", "  body:\n", "tiny.yaml:12:3: error: expected a capitalised name"),
    ("default: plain\n    ", "", "tiny.yaml:12:3: error: key `default` is missing [schema/required]\n"
     "  hint: expected a family: a typed choice between types"),
    ("hidden: width", "hidden: 0", "tiny.yaml:8:20: error: 0 is less than the minimum of 1 [schema/minimum]"),
    ("{weight: hidden hidden'}", "{weight: {axes: hidden, iff: width}}",
     "tiny.yaml:10:41: error: unknown key `iff` [schema/additionalProperties]\n  hint: did you mean `if`?"),
]  # fmt: skip


def test_the_layout_of_the_mistakes_is_right_without_them() -> None:
    assert validate(parse_document(LAYOUT, "tiny.yaml"), schema("layout")) == []


@pytest.mark.parametrize(("old", "new", "expected"), LAYOUT_MISTAKES)
def test_mistake_in_a_layout(old: str, new: str, expected: str) -> None:
    assert old in LAYOUT
    found = validate(parse_document(LAYOUT.replace(old, new, 1), "tiny.yaml"), schema("layout"))
    assert "\n".join(map(str, found)).startswith(expected)


def test_schemas_are_kept_as_people_write_them() -> None:
    """No two keys of one object are the same: json keeps the last without a word."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), [key for key, _ in pairs]
        return dict(pairs)

    for name in NAMES:
        text = (FOLDER.parent / "schema" / f"{name}.schema.json").read_text(encoding="utf-8")
        json.loads(text, object_pairs_hook=once)
