"""Texts of plans in which layers and experts are written once: what they stand for, how long they are, and bad ones."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosswalk import compile_plan
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.folded import fold, unfold
from crosswalk.runtime.plan.model import Encoding, Plan, RawCopy, Rule, TensorSpec, make_plan

SCHEMA = json.loads(resources.files("crosswalk.schema").joinpath("plan.schema.json").read_text())


def stacked(layers: list[int], experts: int, encoded: bool = False) -> Plan:
    """Experts of some layers that are stored one by one, as two parts, and stacked; and a tensor that has no other."""
    rows, columns = 3, 5
    sources, targets = [TensorSpec("norm", (7,), "F32")], [TensorSpec("norm", (7,), "F32")]
    copies: list[RawCopy] = [("norm", "norm", (7,), 0, (1,), 0, (1,), 0)]
    encodings = []
    for layer in layers:
        targets.append(TensorSpec(f"blocks.{layer + 1}.stack", (experts, 2, columns, rows), "F32"))
        for expert in range(experts):
            for part in range(2):
                name = f"layers.{layer}.experts.{expert}.w{2 * part + 1}"
                sources.append(TensorSpec(name, (rows, columns), "F32"))
                place = (expert * 2 + part) * rows * columns
                copies.append(
                    (name, f"blocks.{layer + 1}.stack", (columns, rows), 0, (1, columns), place, (rows, 1), 1)
                )
                if encoded:
                    scales = TensorSpec(f"{name}_scale_inv", (1, 1), "F32")
                    payload = TensorSpec(f"{name}_payload", (rows, columns), "F8_E4M3")
                    encodings.append(Encoding(name, "fp8_blocks", (payload, scales), (128, 128)))
    rules = [Rule("toy", "norm: norm", "toy.yaml:1:1"), Rule("toy", "experts.{e}.w{1|3}: stack", "toy.yaml:2:1")]
    return make_plan(sources, targets, copies, rules, encodings=encodings)


def entries(plan: Plan, part: str) -> list[Any]:
    found: list[Any] = json.loads(plan.to_json())[part]
    return found


def test_an_entry_says_what_it_is_repeated_over() -> None:
    assert entries(stacked([2, 3, 4, 5], 11), "copies") == [
        ["layers.{0}.experts.{1}.w{2}", "blocks.{0+1}.stack", [5, 3], 0, [1, 5], 0, [3, 1], 1,
         {"for": [[2, 5], [0, 10], [1, 3, 2]], "steps": [[0, 0, 0], [0, 30, 15]]}],
        [88, 4, [7], 0, [1], 0, [1], 0],
    ]  # fmt: skip


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("layers", [[0, 1, 2], [0, 2, 4, 6], [1, 2, 5, 11, 12, 13], [7]])
def test_a_folded_text_is_the_same_plan(layers: list[int], encoded: bool) -> None:
    plan = stacked(layers, 13, encoded)
    text, flat = plan.to_json(), plan.to_json(folded=False)
    assert len(text) < len(flat) / 4
    jsonschema.validate(json.loads(text), SCHEMA)
    jsonschema.validate(json.loads(flat), SCHEMA)
    assert (json.loads(text)["crosswalk_plan"], json.loads(flat)["crosswalk_plan"]) == (2, 1)
    for again in (Plan.from_json(text), Plan.from_json(flat)):
        assert again == plan
        assert again.digest == plan.digest
        assert again.to_json() == text


def test_one_that_is_missing_or_elsewhere_is_not_made_up() -> None:
    whole = stacked([0, 1, 2, 3], 5)
    for change in ("gone", "moved"):
        copies = [
            c for c in whole.copies if change == "moved" or whole.sources[c.source].name != "layers.2.experts.3.w1"
        ]
        raw = [
            (whole.sources[c.source].name, whole.targets[c.target].name, c.extents, c.source_offset, c.source_strides,
             c.target_offset + (change == "moved" and c.source == 17), c.target_strides, c.rule)
            for c in copies
        ]  # fmt: skip
        plan = make_plan(whole.sources, whole.targets, raw, whole.rules)
        assert Plan.from_json(plan.to_json()) == plan


def test_names_with_braces_are_left_alone() -> None:
    names = [f"a.{number}.{{0}}" for number in range(9)]
    specs = [TensorSpec(name, (number + 2,), "F32") for number, name in enumerate(names)]
    plan = make_plan(specs, specs, [(s.name, s.name, s.shape, 0, (1,), 0, (1,), 0) for s in specs])
    assert json.loads(plan.to_json())["crosswalk_plan"] == 1
    assert Plan.from_json(plan.to_json()) == plan


_NAMES = st.tuples(st.sampled_from(["a", "b.", "0"]), st.integers(0, 3), st.integers(0, 3), st.sampled_from(["", "07"]))


@given(st.dictionaries(_NAMES, st.integers(0, 3), max_size=30))
def test_any_entries_come_back(found: dict[tuple[str, int, int, str], int]) -> None:
    listed = [[f"{a}{b}.{c}{d}", [2], at + 5 * b] for (a, b, c, d), at in found.items()]
    assert sorted(unfold(fold(listed, (2,)), (2,), "entries")) == sorted(listed)


def test_the_text_of_a_model_does_not_grow_with_its_layers_and_experts() -> None:
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 12, "vocab_size": 31,
              "intermediate_size": 14, "num_attention_heads": 3, "num_key_value_heads": 1}  # fmt: skip

    def plan(layers: int, experts: int) -> Plan:
        return compile_plan({**config, "num_hidden_layers": layers, "num_local_experts": experts})

    small, large = plan(5, 6), plan(9, 30)
    assert len(large.sources) > 6 * len(small.sources)
    assert len(large.to_json()) < len(small.to_json()) + 100
    assert Plan.from_json(large.to_json()) == large


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"for": [[0, 10**9]]}, "more than"),
        ({"for": [[0, 2000]] * 3}, "more than"),
        ({"for": [[0, 5]] * 10}, "`for` and `steps`"),
        ({"for": []}, "`for` and `steps`"),
        ({"for": [[0, 5]], "more": 1}, "`for` and `steps`"),
        ({"for": [[5, 0]]}, "a range is"),
        ({"for": [[0, 5, 0]]}, "a range is"),
        ({"for": [[0, True]]}, "a range is"),
        ({"for": [[0, 5]], "steps": [[1]]}, "`steps` is not"),
        ({"for": [[0, 5]], "steps": [[1, 1], [1, 1]]}, "`steps` is not"),
        ({"for": [[2, 5]], "steps": [[0], [-1]]}, "not a whole number"),
        ({"for": [[2, 90]]}, "not both listed"),
    ],
)
def test_a_bad_folding_is_an_error(said: dict[str, Any], text: str) -> None:
    document = json.loads(stacked([2, 3, 4, 5], 11).to_json())
    document["copies"][0][-1] = said
    document["copies"][0][:2] = ["layers.{0}.experts.0.w1", "blocks.{0+1}.stack"]
    with pytest.raises(CrosswalkError, match=text) as caught:
        Plan.from_json(json.dumps(document))
    assert [problem.code for problem in caught.value.diagnostics] == ["plan/malformed"]


def test_a_hole_without_a_range_is_an_error() -> None:
    document = json.loads(stacked([2, 3, 4, 5], 11).to_json())
    document["copies"][0][0] = "layers.{0}.experts.{1}.w{3}"
    with pytest.raises(CrosswalkError, match="no range for"):
        Plan.from_json(json.dumps(document))
