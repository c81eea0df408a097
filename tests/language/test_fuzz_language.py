"""Whatever a mapping file holds, the reader and the expression compiler end with a value or a CrosswalkError.

A short run is part of the tests. A long one: ``python tests/language/test_fuzz_language.py 100000``.
"""

from __future__ import annotations

import importlib.resources
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from crosswalk.cli.render import render
from crosswalk.compiler.notation.expressions import MAX_DEPTH, MAX_LENGTH, compile_expression
from crosswalk.compiler.text.documents import Map, Seq, parse_document, scalar_of, validate
from crosswalk.runtime.errors import CrosswalkError


def _mapping_texts() -> list[str]:
    root = importlib.resources.files("crosswalk.mappings")
    files = [file for folder in (root, root / "layouts") for file in folder.iterdir() if file.name.endswith(".yaml")]
    return [file.read_text(encoding="utf-8") for file in sorted(files, key=lambda file: file.name)]


MAPPINGS = _mapping_texts()
LINES = sorted({line for text in MAPPINGS for line in text.splitlines() if line.strip()})


def _words(text: str) -> list[str]:
    return text.split()


TOKENS = st.sampled_from(
    [
        *_words('{ } [ ] ( ) : , | > % @ ` # " \' \\ ~ null .inf 1e999 0x 0o8 = << [[ ]] """'),
        *[": ", "- ", "? ", "&a ", "*a", "!!int ", "! ", " # c", "<<: ", "= ", "---\n", "...\n", "%YAML 1.1\n"],
        *["\t", "\n", "\r\n", "\n  ", "\x00", "\x85", "\u2028", "\ufeff", "\U0001f600", "\ud800"],
    ]
)


@st.composite
def mutated_mappings(draw: st.DrawFn) -> str:
    """A few lines of the mappings of the package, with pieces cut out, doubled and put in."""
    first = draw(st.integers(0, len(LINES) - 1))
    text = "\n".join(LINES[first : first + draw(st.integers(1, 12))]) + "\n"
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(text)))
        stop = start + draw(st.sampled_from([0, 0, 1, 1, 5, 30]))
        put = draw(st.one_of(TOKENS, st.just(text[start:stop] * 2), st.text(max_size=3)))
        text = text[:start] + put + text[stop:]
    return text


DOCUMENTS = st.one_of(
    mutated_mappings(),
    mutated_mappings(),
    st.lists(TOKENS | st.sampled_from(["a", "b", " ", "1", "a: "]), max_size=40).map("".join),
    st.text(max_size=60),
)

SCHEMA = {
    "type": "object",
    "properties": {"config": {"anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"const": 1}]}},
    "additionalProperties": {"oneOf": [{"type": "string"}, {"type": "object", "required": ["is"]}]},
}


def _plain(value: Any, depth: int = 0) -> None:
    """Only what was promised: plain data, text keys, positions inside the file, finite numbers."""
    assert depth <= 41
    if isinstance(value, Map):
        for key, item in value.items():
            assert type(key) is str
            assert value.key_position(key).file == value.value_position(key).file == "fuzz"
            _plain(item, depth + 1)
    elif isinstance(value, Seq):
        for index, item in enumerate(value):
            assert value.item_position(index).file == "fuzz"
            _plain(item, depth + 1)
    else:
        assert value is None or type(value) in (bool, int, float, str)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")


def check_document(text: str, kind: Any) -> None:
    try:
        document = parse_document(text, "fuzz", kind)
        _plain(document)
        problems = validate(document, SCHEMA)
        for key in document:
            scalar_of(key)
    except CrosswalkError as error:
        problems = list(error.diagnostics)
        assert problems
    for found in problems:
        assert found.position is None or found.position.line <= len(text.splitlines()) + 1
    render(problems, lambda _: text).encode("utf-8", "surrogatepass")


NAMES = ["hidden", "heads", "layers", "config.layer_types", "root.head.epsilon", "flag", "none_", "table"]
VALUES: dict[str, Any] = dict(
    zip(NAMES, [768, 12, 0, ["a", "b", "a"], 1e-5, True, None, {"k": {"n": 3}, "m": [1.5]}], strict=True)
)
PIECES = st.sampled_from(
    [
        *NAMES,
        *_words("+ - * / // % ** == != < <= > >= in not and or if else is ( ) [ ] { } , : . | ~ \\ ' \u00e9"),
        *_words("null true 1 0 2.5 1e308 100000 9223372036854775807 'a' \"k\" [1]* [[0]*9]* [0] [-1] [::2] ['k']"),
        *_words("len( min( max( find( first( log( ceil_div( has('a.b') range( *args x="),
        *_words(".__class__ __import__('os') .mro() self loop cycler lipsum url_for }} {% %} {# #}"),
        "\n",
    ]
)


def _grow(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    symbols = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "==", "<", "in", "not in", "and", "or"])
    names = st.sampled_from(["len", "first", "log", "min", "max", "-", "not "])
    return st.one_of(
        st.tuples(children, symbols, children).map("({0[0]} {0[1]} {0[2]})".format),
        st.tuples(names, children).map("{0[0]}({0[1]})".format),
        st.tuples(children, children).map("{0[0]}[{0[1]}]".format),
        st.tuples(children, children).map("[{0[0]}, {0[1]}]".format),
        st.tuples(children, children).map("find({0[0]}, {0[1]}, 0)".format),
        st.tuples(children, children, children).map("({0[0]} if {0[1]} else {0[2]})".format),
    )


ATOMS = [
    *NAMES,
    "1",
    "0",
    "2.5",
    "1e308",
    "100000",
    "9223372036854775807",
    "64",
    "'a'",
    "'k'",
    "null",
    "true",
    "[0]",
    "{}",
]
EXPRESSIONS = st.one_of(
    st.lists(PIECES, max_size=20).map(" ".join),
    st.lists(PIECES, max_size=20).map("".join),
    st.recursive(st.sampled_from(ATOMS), _grow, max_leaves=12),
    st.text(max_size=40),
    st.builds(lambda piece, count: piece * count, PIECES | st.sampled_from(["a.", "-", "not ", "a,", "a[", "f("]),
              st.integers(1, 600)),
)  # fmt: skip


def _bounded(value: Any, depth: int = 0) -> int:
    assert depth <= MAX_DEPTH + 3
    if isinstance(value, list | dict):
        items = value.values() if isinstance(value, dict) else value
        return len(value) + sum(_bounded(item, depth + 1) for item in items)
    assert value is None or type(value) in (bool, int, float, str)
    assert not isinstance(value, int) or abs(value) < 2**63
    return 0


def check_expression(text: str) -> None:
    try:
        expression = compile_expression(text)
        assert len(text) <= MAX_LENGTH
        assert all(type(part) is str and part for path in expression.names | expression.tested for part in path)
        names = {".".join(path) for path in expression.names}

        def resolve(path: tuple[str, ...]) -> Any:
            assert ".".join(path) in names
            return VALUES.get(".".join(path))

        assert _bounded(expression.evaluate(resolve, lambda path: path == ("a", "b"))) <= 100_000
    except CrosswalkError as caught:
        error = caught
    else:
        return
    assert len(error.diagnostics) == 1
    assert len(str(error)) < 3000


BOUNDED = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


@BOUNDED
@given(DOCUMENTS, st.sampled_from(["yaml", "yaml", "yaml", "toml"]))
def test_documents(text: str, kind: str) -> None:
    check_document(text, kind)


@BOUNDED
@given(EXPRESSIONS)
def test_expressions(text: str) -> None:
    check_expression(text)


def test_the_values_of_fuzzed_expressions_are_reached() -> None:
    """The fuzzing above is not only of refusals: these are among its inputs."""
    values: list[Callable[[], Any]] = [
        lambda: compile_expression("(hidden // heads)").evaluate(lambda path: VALUES[path[0]]),
        lambda: compile_expression("table['k']").evaluate(lambda path: VALUES[path[0]]),
    ]
    assert [value() for value in values] == [64, {"n": 3}]
    assert sum(len(parse_document(text, "f")) for text in MAPPINGS) > 20


def main(examples: int) -> None:
    documents = st.tuples(DOCUMENTS, st.sampled_from(["yaml", "yaml", "yaml", "toml"]))
    _run("documents", documents, lambda case: check_document(*case), examples)
    _run("expressions", EXPRESSIONS, check_expression, examples)


def _run(name: str, strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int) -> None:
    count, slowest, worst = 0, 0.0, None

    @settings(BOUNDED, max_examples=examples, database=None, phases=[Phase.generate, Phase.shrink])
    @given(strategy)
    def run(case: Any) -> None:
        nonlocal count, slowest, worst
        started = time.monotonic()
        check(case)
        count += 1
        if time.monotonic() - started > slowest:
            slowest, worst = time.monotonic() - started, case

    started = time.monotonic()
    run()
    print(f"{name}: {count} examples in {time.monotonic() - started:.0f} s, the slowest {slowest:.3f} s: {worst!r}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
