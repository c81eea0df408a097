"""Every error code is registered, raised somewhere and tested somewhere."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate_errors

ROOT = Path(__file__).parents[2]
FOLDERS = ("runtime", "reference", "compiler", "crosswalk")
CODES: dict[str, list[str]] = tomllib.loads((ROOT / "runtime" / "error_codes.toml").read_text())
CODE = re.compile(r"[a-z]+/[A-Za-z0-9-]+")
#: Functions that put a family before the code that they are given: file, name -> family.
SHORTENED = {
    ("compiler/notation/axes.py", "note"): "axes",
    ("compiler/tensors/lower.py", "problem"): "axes",
    ("compiler/text/documents.py", "report"): "document",
}
#: Codes whose last part is an option of the command line.
OF_OPTIONS = {"usage/pad", "usage/truncate"}


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an argument may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*texts(node.body), *texts(node.orelse))


def raised() -> dict[str, str]:
    """Every code in the sources: an argument of any call, a text of a table, or a condition; with one place of it."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                    found.setdefault(node.value, f"{name}:{node.lineno}")
                elif isinstance(node, ast.Call):
                    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    family = SHORTENED.get((name, called))
                    for text in texts(node.args[0]) if family and node.args else ():
                        found.setdefault(f"{family}/{text}", f"{name}:{node.lineno}")
    return found


def keywords() -> set[str]:
    """The keywords of JSON Schema that the schemas of documents use and that can fail by themselves."""
    used: set[str] = set()

    def walk(schema: Any) -> None:
        if isinstance(schema, list):
            for each in schema:
                walk(each)
        elif isinstance(schema, dict):
            used.update(schema)
            for key, value in schema.items():
                if key in ("properties", "patternProperties", "$defs"):
                    walk(list(value.values()))
                elif key not in ("const", "enum", "required", "x-words"):
                    walk(value)

    for name in ("mapping", "layout"):
        walk(json.loads((ROOT / "schema" / f"{name}.schema.json").read_text()))
    structural = {"if", "then", "else", "items", "prefixItems", "properties", "patternProperties", "propertyNames"}
    return {word for word in used if word not in structural | {"title", "description"} and not re.match(r"\$|x-", word)}


def registered_line(code: str) -> str:
    return f'"{code}" = ["What it means.", "What to do."]'


def test_every_code_is_registered_and_every_registered_code_is_raised() -> None:
    found = raised()
    schema = {f"schema/{word}" for word in keywords()}
    said = {code for code in found if code.partition("/")[0] in {c.partition("/")[0] for c in CODES} or is_code(code)}
    said |= schema | OF_OPTIONS
    new = [f"{registered_line(code)}    # {found.get(code, 'schema')}" for code in sorted(said - CODES.keys())]
    assert not new, "\n".join(["add to runtime/error_codes.toml, and run docs/generate_errors.py:", *new])
    gone = sorted(CODES.keys() - said)
    assert not gone, "\n".join(["nothing raises these: remove from runtime/error_codes.toml:", *gone])


def named_in_tests() -> set[str]:
    """The codes that stand in full in a test, or in the mistakes that one reads."""
    files = [*(ROOT / "tests").rglob("*.py"), ROOT / "tests" / "language" / "mapping_mistakes.txt"]
    texts = [file.read_text() for file in files if file != Path(__file__)]
    return set(re.findall(r"[a-z]+/[A-Za-z0-9-]+", "\n".join(texts))) & CODES.keys()


def test_every_code_is_named_where_it_is_tested() -> None:
    unnamed = sorted(CODES.keys() - named_in_tests())
    assert not unnamed, f"name these in a test that has it happen: {', '.join(unnamed)}"


def is_code(text: str) -> bool:
    """Whether a text with a slash is a code of a family that is not registered yet, and no path or type."""
    return bool(re.fullmatch(r"[a-z]+/[a-z]+(-[a-z]+)+", text))


def test_the_registry_is_sorted_and_says_two_sentences() -> None:
    assert list(CODES) == sorted(CODES)
    for code, said in CODES.items():
        assert len(said) == 2, code
        assert all(text.endswith(".") and "  " not in text and "|" not in text for text in said), code


def test_the_page_of_codes_is_current() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    assert page == generate_errors.render(), "run python docs/generate_errors.py"
