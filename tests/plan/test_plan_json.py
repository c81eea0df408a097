"""A plan as text: its schema, its digest, and what is no plan."""

from __future__ import annotations

import hashlib
import json
from importlib import resources

import jsonschema
import pytest
from toy_plans import grouped_qkv, interleaved_experts, tied

from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Plan, make_plan
from crosswalk.runtime.records import replace

# --- formats ------------------------------------------------------------------------------------------------------


def schema() -> jsonschema.Draft202012Validator:
    text = resources.files("crosswalk.schema").joinpath("plan.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return jsonschema.Draft202012Validator(json.loads(text))


@pytest.mark.parametrize("plan", [interleaved_experts(), grouped_qkv(), tied(), make_plan([], [], [])])
def test_plans_are_valid_by_the_schema_and_come_back(plan: Plan) -> None:
    schema().validate(json.loads(plan.to_json()))
    assert Plan.from_json(plan.to_json()) == plan


def test_the_schema_knows_the_dtypes_of_the_runtime() -> None:
    dtypes = schema().schema["$defs"]["tensor"]["prefixItems"][2]["enum"]  # type: ignore[index]
    assert dtypes == list(DTYPES)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("crosswalk_plan", 3),
        ("sources", [["w", [3, -1], "F32"]]),
        ("sources", [["w", [3], "F7"]]),
        ("targets", [["w", [3]]]),
        ("copies", [[0, 0, [1], 0, [1], 0, [1], 0]]),
        ("copies", [[0, 0, [2], 0, [0], 0, [1], 0]]),
        ("copies", [[0, 0, [2], 0.5, [1], 0, [1], 0]]),
        ("rules", [["toy", "rule"]]),
        ("exemptions", [["tied", "head", None, ""]]),
        ("exemptions", [["lost", "head", None, ""]]),
        ("more", []),
    ],
)
def test_the_schema_refuses(part: str, value: object) -> None:
    data = json.loads(interleaved_experts().to_json()) | {part: value}
    assert not schema().is_valid(data)


def test_every_property_of_the_schema_is_described() -> None:
    def walk(node: object, path: str) -> None:
        if isinstance(node, dict):
            for name, child in [*node.get("properties", {}).items(), *node.get("$defs", {}).items()]:
                assert child.get("description"), f"{path}/{name}"
                walk(child, f"{path}/{name}")
            for index, child in enumerate(node.get("prefixItems", [])):
                assert child.get("description"), f"{path}/{index}"

    walk(schema().schema, "")


def test_the_digest_is_what_the_documentation_says() -> None:
    plan = interleaved_experts()
    body = json.loads(plan.to_json(folded=False))
    del body["rules"], body["metadata"]
    body["copies"] = [copy[:-1] for copy in body["copies"]]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert plan.digest == hashlib.sha256(text.encode()).hexdigest()
    assert replace(plan, rules=(), metadata={"run": 1}).digest == plan.digest
    assert plan.inverse().digest != plan.digest


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"crosswalk_plan": 2}', '{"crosswalk_plan": 3}', '{"crosswalk_plan": 1, "sources": 3}']
)
def test_what_is_not_a_plan_is_an_error(text: str) -> None:
    with pytest.raises(CrosswalkError, match="plan"):
        Plan.from_json(text)
