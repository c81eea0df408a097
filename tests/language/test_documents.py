"""Reading documents with the positions of all that is in them, and what is refused."""

from __future__ import annotations

import copy
import importlib.resources
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from crosswalk.compiler.text.documents import Map, Seq, load_document, parse_document, scalar_of
from crosswalk.runtime.errors import CrosswalkError, Position

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


@given(st.dictionaries(TEXT, JSON, max_size=5), st.sampled_from([None, 0, 3]))
def test_reads_json_with_the_position_of_every_key_and_value(data: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    lines = text.split("\n")

    def written(position: Position) -> str:
        assert position.file == "config.json"
        return lines[position.line - 1][position.column - 1 :]

    def check(value: Any, position: Position) -> None:
        if isinstance(value, Map):
            assert written(value.position).startswith("{")
            for key in value:
                assert written(value.key_position(key)).startswith(json.dumps(key, ensure_ascii=False))
                check(value[key], value.value_position(key))
        elif isinstance(value, Seq):
            assert written(value.position).startswith("[")
            for index, item in enumerate(value):
                check(item, value.item_position(index))
        else:
            assert written(position).startswith(json.dumps(value, ensure_ascii=False))

    document = parse_document(text, "config.json")
    assert document == data
    check(document, document.position)


def test_reads_block_style_with_positions() -> None:
    document = parse_document(
        "# a comment\n"
        "mlp:\n"
        "  config: {hidden_act: activation, mlp_bias: {is: bias, default: false}}\n"
        "  tensors:\n"
        '    "{gate|up}_proj": layer_1   # two hf tensors\n'
        "  same:\n"
        "    - a\n"
        "    - [b, 1.0e-05]\n",
        "mlp.yaml",
    )
    mlp = document["mlp"]
    assert mlp == {
        "config": {"hidden_act": "activation", "mlp_bias": {"is": "bias", "default": False}},
        "tensors": {"{gate|up}_proj": "layer_1"},
        "same": ["a", ["b", 1e-05]],
    }
    assert str(document.key_position("mlp")) == "mlp.yaml:2:1"
    assert str(document.value_position("mlp")) == str(mlp.position) == "mlp.yaml:3:3"
    assert str(mlp["config"].key_position("mlp_bias")) == "mlp.yaml:3:36"
    assert str(mlp["config"]["mlp_bias"].value_position("default")) == "mlp.yaml:3:66"
    assert str(mlp["tensors"].value_position("{gate|up}_proj")) == "mlp.yaml:5:23"
    assert str(mlp["same"].item_position(1)) == str(mlp["same"].item_position(-1)) == "mlp.yaml:8:7"
    assert mlp.key_position("absent") == mlp.position
    assert mlp["same"].item_position(7) == mlp["same"].position


def _mappings() -> list[Any]:
    root = importlib.resources.files("crosswalk.mappings")
    return [
        file
        for folder in (root, root / "layouts")
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    ]


@pytest.mark.parametrize("file", _mappings(), ids=lambda file: file.name)
def test_agrees_with_ruamel_on_the_mappings_of_the_package(file: Any) -> None:
    def as_theirs(value: Any) -> Any:
        if isinstance(value, dict):
            return {scalar_of(key): as_theirs(item) for key, item in value.items()}
        return [as_theirs(item) for item in value] if isinstance(value, list) else value

    theirs = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    assert as_theirs(load_document(file)) == theirs


def test_keys_are_text_as_written() -> None:
    document = parse_document('false: 1\n05: {head_dim: 512}\nnull: 2\n"true": 3\n1.50: 4\n', "f")
    assert list(document) == ["false", "05", "null", "true", "1.50"]
    assert [scalar_of(key) for key in document] == [False, 5, None, True, 1.5]


@pytest.mark.parametrize(
    ("text", "value"),
    # The examples of YAML 1.2.2, section 10.3.2, and words that were values in YAML 1.1.
    [("null", None), ("~", None), ("", None), ("Null", None), ("true", True), ("FALSE", False), ("0", 0), ("0o7", 7),
     ("0x3A", 58), ("-19", -19), ("+12", 12), ("012", 12), ("0.", 0.0), ("-0.0", -0.0), (".5", 0.5),
     ("+12e03", 12000.0),
     ("-2E+05", -200000.0), ("1.0e-05", 1e-05), ("9223372036854775807", 2**63 - 1), ("yes", "yes"), ("off", "off"),
     ("1_000", "1_000"), ("0b11", "0b11"), ("12:30", "12:30"), ("2001-01-01", "2001-01-01"), ("-", "-"), ("e3", "e3"),
     ("nULL", "nULL"), ("inf", "inf"), ("nan", "nan"), ("1e", "1e")],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = scalar_of(text)
    assert (type(found), found) == (type(value), value)
    if isinstance(value, float):
        assert math.copysign(1, value) == math.copysign(1, found)  # type: ignore[arg-type]
    if text:
        parsed = parse_document(f"k: {text}\n", "f")["k"] if text != "-" else found
        assert (type(parsed), parsed) == (type(value), value)
        assert parse_document(f'k: "{text}"\n', "f")["k"] == text


def test_documents_survive_copy_and_pickle() -> None:
    document = parse_document("a: [1, {b: c}]\n", "f")
    for twin in (copy.deepcopy(document), pickle.loads(pickle.dumps(document))):
        assert twin == document
        assert twin["a"][1].key_position("b") == Position("f", 1, 9)
        assert twin["a"].item_position(1) == Position("f", 1, 8)


def test_reads_toml_with_positions_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    path.write_text(
        'name = "fast"\n\n[types.mlp]\nheads = 3\ninner.size = 5\nnote = """\nheads = 9\n"""\n'
        '[[rules]]\nkey = true\n[[rules]]\n"key" = [1, 2.5]\n'
    )
    document = load_document(path, "layout.toml")
    assert document == {
        "name": "fast",
        "types": {"mlp": {"heads": 3, "inner": {"size": 5}, "note": "heads = 9\n"}},
        "rules": [{"key": True}, {"key": [1, 2.5]}],
    }
    mlp = document["types"]["mlp"]
    assert str(document.value_position("name")) == "layout.toml:1:8"
    assert str(document["types"].key_position("mlp")) == "layout.toml:3:2"
    assert str(mlp.key_position("heads")) == "layout.toml:4:1"
    assert str(mlp["inner"].value_position("size")) == "layout.toml:5:14"
    assert str(document["rules"][1].key_position("key")) == "layout.toml:12:1"


# ---- what is refused ------------------------------------------------------------------------------------------------


def problems(text: str, kind: Any = "yaml") -> list[tuple[str, int, int]]:
    with pytest.raises(CrosswalkError) as caught:
        parse_document(text, "f", kind)
    assert all(found.position and found.position.file == "f" for found in caught.value.diagnostics)
    return [
        (found.code, found.position.line, found.position.column) for found in caught.value.diagnostics if found.position
    ]


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", "document/duplicate", 4, 3),
        ('a: 1\n"a": 2\n', "document/duplicate", 2, 1),
        ("a: &x 1\n", "document/alias", 1, 4),
        ("a: *x\n", "document/alias", 1, 4),
        ("*: same\n", "document/alias", 1, 1),
        ("a: !!str 1\n", "document/tag", 1, 4),
        ("a: ! 1\n", "document/tag", 1, 4),
        ("- a\n- b\n", "document/mapping", 0, 0),
        ("a:b\n", "document/mapping", 0, 0),
        ("", "document/mapping", 0, 0),
        ("# nothing\n", "document/mapping", 0, 0),
        ("{i}: x\n", "document/key", 1, 1),
        ("a:\n  ? [b]\n  : c\n", "document/key", 2, 5),
        (": x\n", "document/key", 1, 1),
        ("a: .inf\n", "document/number", 1, 4),
        ("a: -.INF\n", "document/number", 1, 4),
        ("a: .nan\n", "document/number", 1, 4),
        ("a: 1e999\n", "document/number", 1, 4),
        ("a: 9223372036854775808\n", "document/number", 1, 4),
        (f"a: {'1' * 5000}\n", "document/number", 1, 4),
        ("a: 1\n---\nb: 2\n", "document/syntax", 2, 1),
        ("%YAML 1.1\n---\na: yes\n", "document/syntax", 2, 1),
        ("a: x\x00\n", "document/character", 1, 5),
        ("a: \x1b[31m\n", "document/character", 1, 4),
        ("a: x\u2028y\n", "document/character", 1, 5),
        ("a: x\u202ey\n", "document/character", 1, 5),
        ('a: "x\\0"\n', "document/character", 1, 4),
        ('a: "\\ud800"\n', "document/character", 1, 4),
        ("a: \ud800\n", "document/character", 1, 4),
        ("x: " + "[" * 41 + "]" * 41, "document/depth", 1, 43),
        ("x: " + "[" * 900_000, "document/depth", 1, 43),
        ("- " * 500_000, "document/depth", 1, 81),
        ("a: " + "x" * (1 << 20), "document/size", 0, 0),
        ("a: [" + "0, " * 60_000 + "]", "document/size", 1, 150_005),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, str) else None,
)
def test_refuses(text: str, code: str, line: int, column: int) -> None:
    assert problems(text) == [(code, line, column)]


@pytest.mark.parametrize(
    ("text", "line", "column", "hint"),
    [
        ("a:\n  {k|v}_proj: x\n", 2, 3, 'text that starts with `{` needs quotes: "{k|v}_proj"'),
        ("{k|v}_proj: x\n", 1, 1, 'text that starts with `{` needs quotes: "{k|v}_proj"'),
        ("{i}: x\n", 1, 1, 'a name that starts with `{` needs quotes: "{i}"'),
        ("q: [q|k] hidden  # rows\n", 1, 4, 'text that starts with `[` needs quotes: "[q|k] hidden"'),
        ("a: {axes: expert [gate|up]}\n", 1, 18, "inside { } and [ ], text that contains any of , [ ] { }"),
        ("a: {layers.{i}: decoder}\n", 1, 12, "inside { } and [ ], text that contains any of , [ ] { }"),
        ("a: b: c\n", 1, 5, "text that contains `: ` needs quotes"),
        ("a: 1\n b: 2\n", 2, 3, "keys of one mapping start in the same column"),
        ("a: 1\n\tb: 2\n", 2, 1, "indent with spaces"),
        ("a: 'it's'\n", 1, 8, "inside '…', write '' for an apostrophe"),
        ("a: > 0\n", 1, 6, "text that starts with `|` or `>` needs quotes"),
        ("a: @x\n", 1, 4, "text that starts with this character needs quotes"),
        ("a: - b\n", 1, 4, "text that starts with `- ` or `? ` needs quotes"),
        ("*: same\n", 1, 1, 'text that starts with `*` needs quotes: "*"'),
        ("a:b\n", 0, 0, "is a space missing after a `:`?"),
    ],
)
def test_hints_say_what_to_write(text: str, line: int, column: int, hint: str) -> None:
    with pytest.raises(CrosswalkError) as caught:
        parse_document(text, "f")
    (found,) = caught.value.diagnostics
    assert found.position == Position("f", line, column)
    assert hint in (found.hint or "")


@pytest.mark.parametrize(("text", "column"), [('a: "x\nb: 1\n', 4), ("a: [1, 2\n", 4), ("a: {b: 1\n", 4)])
def test_what_is_never_closed_is_reported_where_it_opens(text: str, column: int) -> None:
    assert problems(text) == [("document/syntax", 1, column)]


def test_reports_all_problems_at_once_and_names_both_places_of_a_duplicate() -> None:
    text = "a: 1\nb: *x\na: 2\nc: &y {d: .nan, d: 1}\ne: ]\n"
    assert [code for code, _, _ in problems(text)] == [
        f"document/{code}" for code in ("alias", "duplicate", "alias", "number", "duplicate", "syntax")
    ]
    with pytest.raises(CrosswalkError, match=r"f:3:1: error: `a` is already written at f:1:1"):
        parse_document(text, "f")
    assert len(problems("a: 1\n" * 5000)) == 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\na = 2\n", ("document/syntax", 2, 6)),
        ("a = inf\n", ("document/number", 1, 5)),
        ("b = 1\na = 9223372036854775808\n", ("document/number", 2, 5)),
        ("[t]\na = 2001-01-01\n", ("document/date", 2, 5)),
        ('a = "\\u0000"\n', ("document/character", 1, 5)),
        ("a = " + "[" * 3000, ("document/depth", 0, 0)),
        ("a." * 100 + "a = 1\n", ("document/depth", 1, 205)),
        ("a." * 500_000 + "a = 1\n", ("document/size", 1, 4001)),
        (f"a = {'1' * 3990}\n", ("document/number", 1, 5)),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_refuses_in_toml(text: str, expected: tuple[str, int, int]) -> None:
    assert problems(text, "toml") == [expected]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CrosswalkError, match=r"no\.yaml: error: cannot read the file: No such.* \[document/read\]"):
        load_document(tmp_path / "no.yaml")
    with pytest.raises(CrosswalkError, match="Is a directory"):
        load_document(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(CrosswalkError, match=r"latin\.yaml:2:7: error: this is not UTF-8.*\[document/encoding\]"):
        load_document(path, "latin.yaml")
    path.write_bytes(b"a: " + "\u00e9".encode() * (1 << 20))
    with pytest.raises(CrosswalkError, match="larger than 1 MiB"):
        load_document(path)
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = load_document(path, "bom.yaml")
    assert document == {"a": 1, "b": 2}
    assert document.key_position("b") == Position("bom.yaml", 2, 1)
