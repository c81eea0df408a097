"""Name templates: holes, filling and joining them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.compiler.notation.templates import Choice, Hole, Template, join
from crosswalk.runtime.errors import CrosswalkError, Position


def test_the_kinds_of_holes() -> None:
    template = Template.parse("experts.{expert}.{w1=gate|w3=up}.{k|v}_{j+2}")
    assert template.segments == (
        "experts.",
        Hole("expert"),
        ".",
        Choice((("w1", "gate"), ("w3", "up"))),
        ".",
        Choice((("k", "k"), ("v", "v"))),
        "_",
        Hole("j", 2),
    )
    assert template.holes == template.segments[1::2]


def test_a_name_without_holes_is_one_segment() -> None:
    assert Template.parse("embed_tokens.weight").segments == ("embed_tokens.weight",)
    assert Template.parse("").segments == ()


def test_a_choice_may_give_an_empty_text() -> None:
    assert Template.parse("w{=up|_gate=gate}").holes == (Choice((("", "up"), ("_gate", "gate"))),)


def test_rendering_fills_what_is_given() -> None:
    template = Template.parse("blocks.{name}.{j}.{j+1}.{expert}.{k|v}")
    rendered = template.render({"name": "full", "j": 4, "unused": 1})
    assert str(rendered) == "blocks.full.4.5.{expert}.{k|v}"
    assert rendered == Template.parse("blocks.full.4.5.{expert}.{k|v}")
    assert rendered.render({"expert": 0}).segments == ("blocks.full.4.5.0.", Choice((("k", "k"), ("v", "v"))))


def test_only_an_index_can_be_added_to() -> None:
    with pytest.raises(CrosswalkError, match=r"`{j\+1}`: `main` is not an index.*\[names/not-an-index\]"):
        Template.parse("x.{j+1}").render({"j": "main"})


def test_joining_drops_empty_parts() -> None:
    prefix, suffix = Template.parse("layers.{i}"), Template.parse("{k|v}_proj")
    assert join(prefix, suffix) == Template.parse("layers.{i}.{k|v}_proj")
    assert join(Template.parse(""), suffix) == suffix
    assert join(prefix, Template.parse("")) == prefix


def test_positions_do_not_count_in_comparisons() -> None:
    here, there = Position("a.yaml", 1, 1), Position("b.yaml", 2, 2)
    assert Template.parse("x.{i}", here) == Template.parse("x.{i}", there)
    assert join(Template.parse("x", here), Template.parse("y", there)).position == there
    assert join(Template.parse("x", here), Template.parse("y")).position == here


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("layers.{i", 7, "this hole is not closed by `}`"),
        ("layers.{{i}}", 7, "this hole is not closed by `}`"),
        ("layers.i}", 8, "`}` closes no hole"),
        ("a.{}", 2, "`{}` is not a hole"),
        ("a.{i-1}", 2, "`{i-1}` is not a hole"),
        ("a.{i+1j}", 2, "`{i+1j}`: expected a number or another hole after `+`"),
        ("a.{k|}", 2, "`` in `{k|}` is not a label"),
        ("a.{k|k}", 2, "the text `k` is twice in `{k|k}`"),
        ("a.{x=k|y=k}", 2, "the label `k` is twice in `{x=k|y=k}`"),
        ("a.{x=k|x=v}", 2, "the text `x` is twice in `{x=k|x=v}`"),
    ],
)
def test_mistakes(text: str, column: int, message: str) -> None:
    with pytest.raises(CrosswalkError) as raised:
        Template.parse(text, Position("m.yaml", 5, 9))
    (diagnostic,) = raised.value.diagnostics
    assert (diagnostic.message, diagnostic.position) == (message, Position("m.yaml", 5, 9 + column))
    assert diagnostic.code == ("names/duplicate" if "twice" in message else "names/syntax")


labels = st.sampled_from(["gate", "up", "k", "v", "q"])
choices = st.lists(labels, min_size=2, max_size=4, unique=True).map(
    lambda names: Choice(tuple((f"w{index}" if index % 2 else name, name) for index, name in enumerate(names)))
)
holes = st.builds(Hole, st.sampled_from(["i", "expert", "x'"]), st.integers(0, 12))
segments = st.lists(st.one_of(st.text("abc._*", min_size=1, max_size=4), holes, choices), max_size=6)


@given(segments)
def test_what_is_shown_reads_as_what_it_was(parts: list[str | Hole | Choice]) -> None:
    template = Template.parse("".join(map(str, parts)))
    assert "".join(map(str, template.segments)) == "".join(map(str, parts))
    assert Template.parse(str(template)) == template
    assert template.holes == tuple(part for part in parts if not isinstance(part, str))
