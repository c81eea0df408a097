"""The text of a plan is hostile input: what the schema refuses is refused, and nothing else is."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Encoding, Exemption, Plan, Rule, TensorSpec, make_plan

SCHEMA = json.loads((Path(__file__).parents[2] / "schema" / "plan.schema.json").read_text())
STORED = (TensorSpec("e", (128, 256), "F8_E4M3"), TensorSpec("e_scale", (1, 2), "F32"))
PLAN = make_plan(
    [TensorSpec("a", (3, 5), "F32"), TensorSpec("b", (3, 5), "F32"), TensorSpec("e", (128, 256), "BF16")],
    [TensorSpec("x", (5, 3), "F32"), TensorSpec("z", (128, 256), "BF16")],
    [("a", "x", (5, 3), 0, (1, 5), 0, (3, 1), 0), ("e", "z", (128 * 256,), 0, (1,), 0, (1,), 0)],
    [Rule("llama", "a: x", "llama.yaml:3:5")],
    [Exemption("tied", "b", "a")],
    {"config": {"sizes": [3, 5]}},
    encodings=[Encoding("e", "fp8_blocks", STORED, (128, 128))],
)
DOCUMENT = json.loads(PLAN.to_json())

values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(0, 3), st.sampled_from(["", "a", "F32", "tied"]),
    st.just([]), st.just({}), st.lists(st.integers(0, 2), max_size=3),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, entry in inside for place in places(entry, (*path, key)))]


PLACES = [place for place in places(DOCUMENT) if place]


def changed(place: tuple[Any, ...], value: Any) -> Any:
    document = copy.deepcopy(DOCUMENT)
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return document


def read(document: Any) -> tuple[Plan | None, str | None]:
    """The plan, or the code of what is wrong with it."""
    try:
        return Plan.from_json(json.dumps(document)), None
    except CrosswalkError as error:
        return None, error.diagnostics[0].code


def test_the_plan_itself() -> None:
    jsonschema.validate(DOCUMENT, SCHEMA)
    assert Plan.from_json(PLAN.to_json()) == PLAN


@pytest.mark.parametrize("place", PLACES, ids=str)
@given(value=values)
def test_what_the_schema_refuses_is_refused(place: tuple[Any, ...], value: Any) -> None:
    """At every place of the document; what is accepted has a proof or problems, never another exception."""
    document = changed(place, value)
    allowed = jsonschema.Draft202012Validator(SCHEMA).is_valid(document)
    # JSON Schema takes 1.0 for a whole number; an exemption's second half depends on its first.
    strict = not any(isinstance(v, float) for v in ([value] if not isinstance(value, list) else value))
    plan, refused = read(document)
    if plan is None:
        assert refused in ("plan/malformed", "plan/dtype", "plan/version")
        assert not (allowed and strict), refused
        return
    plan.verify()
    if place[0] not in ("exemptions", "encodings"):
        assert allowed


@pytest.mark.parametrize("place", [place for place in PLACES if isinstance(place[-1], int)], ids=str)
def test_half_of_a_surrogate_pair_is_no_text(place: tuple[Any, ...]) -> None:
    with pytest.raises(CrosswalkError) as error:
        Plan.from_json(json.dumps(changed(place, "\ud800")))
    str(error.value).encode()


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{}", '{"crosswalk_plan": 1}', "[" * 100_000, '"\\ud800"'])
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(CrosswalkError):
        Plan.from_json(text)


def test_metadata_and_unknown_keys() -> None:
    for document in (
        DOCUMENT | {"metadata": []},
        DOCUMENT | {"metadata": {"\udfff": 1}},
        DOCUMENT | {"metadata": {"a": ["\udfff"]}},
        DOCUMENT | {"more": 1},
    ):
        with pytest.raises(CrosswalkError, match="this is not a plan"):
            Plan.from_json(json.dumps(document))
