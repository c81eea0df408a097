"""What is written as YAML means the same to PyYAML (version 1.1, the trainer's) and to ruamel (version 1.2)."""

from __future__ import annotations

from typing import Any

import portable
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.checkpoints.yaml_text import dump

#: Texts that a reader of one of the versions, or of both, takes for something else unless they are quoted.
WORDS = r"""
    no No NO n N yes Yes y Y on On ON off Off true True TRUE false null Null NULL ~ = <<
    1e5 1E5 1e-05 1.5e3 1.5e-3 .5e3 .5 5. +1 -1 0 00 017 0o17 0x1f 0b11 1_000 1_0.5 _ 0_ 12:30 1:20:30.5 -12:30
    .inf -.INF +.inf .nan .NaN inf nan 2026-01-02 2001-12-14T21:59:43.10-05:00 ? - : , | > ! & * % @ ` # -a ?a :a a:
    [ ] { } [a] {a} !a &a *a %a @a `a #a a#b 'a' "a" ' " \ --- ... é 日本 😀 yes. no-1 true_ e5 x1f
"""
HOSTILE = [
    *WORDS.split(), "", " ", " a", "a ", "- a", "? a", "a: b", "a #b", "2001-12-14 21:59:43.10 -5", "\n", "a\nb",
    "a\n\n b", "\r\n", "\t", "a\tb", "\x00", "\x07", "\x1b", "\x7f", "\x85", "a\x85b", "a\u2028b", "\ufeff", "\ufeffa",
    "\ue000", "\ufffe", "a" * 5000, "a " * 5000,
]  # fmt: skip
FLOATS = [1e-05, 1.5e-09, 1e16, 1e22, 5e-324, 1.7976931348623157e308, 0.0, 1e5, float("inf"), float("nan")]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_text(text: str) -> None:
    document = {"blocks": {text: {text: text}}, "pattern": [text, text]}
    portable.assert_read_as(dump(document), document)


@pytest.mark.parametrize("number", [*FLOATS, *map(float.__neg__, FLOATS), 0, -1, 8, 2**63, True, False, None])
def test_numbers_keep_their_type(number: Any) -> None:
    portable.assert_read_as(dump({"value": number, "list": [number]}), {"value": number, "list": [number]})


def test_floats_have_a_dot_and_a_sign() -> None:
    assert dump({"epsilon": 1e-05, "theta": 1e16}) == "epsilon: 1.0e-05\ntheta: 1.0e+16\n"


def test_what_is_clearly_text_is_not_quoted() -> None:
    assert dump({"type": "gpt", "decoder.0.weight": "model_0.safetensors", "no": "on"}) == (
        "decoder.0.weight: model_0.safetensors\n'no': 'on'\ntype: gpt\n"
    )


_TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text("0123456789.+-_:eExob~ \n", max_size=6)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda values: st.lists(values) | st.dictionaries(_TEXTS, values),
)


@given(st.dictionaries(_TEXTS, _VALUES))
def test_every_document_has_one_meaning(document: dict[str, Any]) -> None:
    portable.assert_read_as(dump(document), document)
