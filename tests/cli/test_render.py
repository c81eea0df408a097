"""Problems as they are shown: the line, a caret under what is wrong, and a hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosswalk.cli.render import render
from crosswalk.runtime.errors import Diagnostic, Position

# ---- rendering ------------------------------------------------------------------------------------------------------


def test_renders_the_line_with_a_caret_and_a_hint() -> None:
    source = "\n" * 36 + "    num_key_value_heads: head_group   # theirs\n"
    found = Diagnostic(
        "mapping/no-such-field",
        "type `attention` has no field `head_group`",
        Position("mappings/llama.yaml", 37, 26),
        "did you mean `head_groups`? (layouts/fast_llm.yaml:169)",
    )
    assert render([found, found], {"mappings/llama.yaml": source}.get) == (
        "mappings/llama.yaml:37:26: error: type `attention` has no field `head_group` [mapping/no-such-field]\n"
        "  37 |     num_key_value_heads: head_group   # theirs\n"
        "     |                          ^^^^^^^^^^\n"
        "  hint: did you mean `head_groups`? (layouts/fast_llm.yaml:169)"
    )


@pytest.mark.parametrize(
    ("line", "underlined"),
    [
        ("  layers.{i}: decoder.{i}", "layers.{i}"),
        ("  a: = min(x, y) + 1  # c", "= min(x, y) + 1"),
        ("  k: {a: 1, b: [2]}, c", "{a: 1, b: [2]}"),
        ('  k: "a: [b], c" ', '"a: [b], c"'),
        ("  {k: first, l: 2}", "first"),
        ("  {k: last}", "last"),
        ("  k: 'open", "'open"),
    ],
)
def test_underlines_what_starts_at_the_position(line: str, underlined: str) -> None:
    text = render([Diagnostic("c", "m", Position("f", 1, line.index(underlined) + 1))], lambda _: line)
    _, shown, carets = text.split("\n")
    assert shown.startswith("  1 | ")
    assert [letter for letter, mark in zip(shown, carets, strict=False) if mark == "^"] == list(underlined)


def test_renders_file_by_file_as_found_with_message_lines_after_the_excerpt() -> None:
    at = {name: Position(*where) for name, where in {"b": ("f", 2, 1), "a": ("f", 1, 1), "none": ("g", 9, 1)}.items()}
    found = [
        Diagnostic("c", "nowhere"),
        Diagnostic("c", "axis\nnative: a b\nhf:     a", at["b"]),
        Diagnostic("c", "gone", at["none"]),
        Diagnostic("c", "key", at["a"], severity="warning"),
        Diagnostic("c", "the file", Position("f")),
    ]
    assert render(found, {"f": "key: 1\nother: 2\n"}.get) == (
        "f: error: the file [c]\n\n"
        "f:1:1: warning: key [c]\n  1 | key: 1\n    | ^^^\n\n"
        "f:2:1: error: axis [c]\n  2 | other: 2\n    | ^^^^^\n  native: a b\n  hf:     a\n\n"
        "g:9:1: error: gone [c]\n\n"
        "error: nowhere [c]"
    )


def test_renders_long_lines_and_control_characters_harmlessly(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("x" * 300 + ": value, " + "y" * 300)
    text = render([Diagnostic("c", "escape \x1b[31m", Position(str(path), 1, 303), "\x07")])
    head, shown, carets, hint = text.split("\n")
    assert head.endswith("error: escape \\x1b[31m [c]")
    assert hint == "  hint: \\x07"
    assert len(shown) < 130
    assert shown[carets.index("^") : carets.rindex("^") + 1] == "value"
