"""Axes of the layout in parts: partial and interleaved rotary embeddings, matrices that hold several head by head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_cases import CASES

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.jobs.options import Options
from crosswalk.jobs.plans import plan_for
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.memory import execute

HEADS, GROUPS, SIZE, HIDDEN = 6, 3, 10, 14
CONFIG: dict[str, Any] = {
    **{key: value for key, value in CASES["llama_gqa"].hf_config().items() if key != "rope_scaling"},
    **{"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": SIZE, "hidden_size": HIDDEN},
    **{"num_hidden_layers": 1, "attention_bias": True},
}
CUTS = "  cuts: {pair: {turned: 2, passed: ~}}\n"
NAME = "model.layers.0.self_attn"


def compiled(tensors: str, cuts: str = CUTS) -> CompiledMapping:
    return Catalog(texts={"test": f"crosswalk: 1\nextends: llama\nattention:\n{cuts}  tensors:\n{tensors}"}).compiled(
        "test"
    )


def converted(mapping: CompiledMapping) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Hf tensors with distinct values, and what they become; there and back is the same."""
    plan = plan_for(mapping, CONFIG, Options())
    assert str(plan.verify()) == "bijective"
    theirs, count = {}, 0
    for tensor in plan.sources:
        size = torch.Size(tensor.shape).numel()
        theirs[tensor.name] = torch.arange(count, count + size, dtype=torch.float32).reshape(tensor.shape)
        count += size
    ours = dict(execute(plan, theirs))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in execute(plan.inverse(), ours))
    return theirs, ours


def ours_of(rows: torch.Tensor, turned: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
    """Heads in the order of the trainer: ``turned`` and ``passed`` are hf channels, (half, pair) each."""
    order = torch.cat([turned, passed], dim=1).flatten()
    return rows.unflatten(0, (-1, SIZE))[:, order].flatten(0, 1)


PARTIAL = (torch.arange(4).reshape(2, 2), torch.arange(4, 10).reshape(2, 3))
Q = '    q_proj: {is: query, axes: "(head [turned: half turned | passed: half passed]) hidden"}\n'
FORMS = {
    # their channels: turned ones first, in two halves; the rest, in two halves
    "partial": ("[turned: half turned | passed: half passed]", PARTIAL),
    "interleaved": ("pair half", (torch.arange(10).reshape(5, 2).T[:, :2], torch.arange(10).reshape(5, 2).T[:, 2:])),
    "both at once": ("[turned: turned half | passed: half passed]", (PARTIAL[0].reshape(2, 2).T, PARTIAL[1])),
    "the rest first": (
        "[passed: half passed | turned: half turned]",
        (torch.arange(6, 10).reshape(2, 2), torch.arange(6).reshape(2, 3)),
    ),
}


def test_norms_of_heads_are_reordered_as_the_channels_that_they_scale() -> None:
    axes = FORMS["both at once"][0]
    theirs, ours = converted(
        compiled(
            f'    q_proj: {{is: query, axes: "(head {axes}) hidden"}}\n'
            f'    q_norm.weight: {{is: query_norm.weight, axes: "{axes}"}}\n',
            f"{CUTS}  sets: {{query_norm: rms_norm}}\n",
        )
    )
    expected = ours_of(theirs[f"{NAME}.q_norm.weight"], *FORMS["both at once"][1])
    assert torch.equal(ours["decoder.0.mixer.query_norm.weight"], expected)
    assert not torch.equal(expected, theirs[f"{NAME}.q_norm.weight"])


@pytest.mark.parametrize("name", FORMS)
def test_channels_are_where_the_pattern_says(name: str) -> None:
    axes, (turned, passed) = FORMS[name]
    theirs, ours = converted(
        compiled(
            f'    q_proj: {{is: query, axes: "(head {axes}) hidden"}}\n'
            f'    "{{k|v}}_proj": {{is: key_value, axes: "[k: group {axes} | v: group head_dim] hidden"}}\n'
        )
    )
    for leaf in ("weight", "bias"):
        q, k, v = (theirs[f"{NAME}.{one}_proj.{leaf}"] for one in "qkv")
        assert torch.equal(ours[f"decoder.0.mixer.query.{leaf}"], ours_of(q, turned, passed))
        both = torch.cat([ours_of(k, turned, passed), v])
        assert torch.equal(ours[f"decoder.0.mixer.key_value.{leaf}"], both)


def test_queries_keys_and_values_of_each_group_in_one_matrix() -> None:
    """As InternLM2 has them: for each group its queries, its key, its value; keys partly turned."""
    part = "[turned: half turned | passed: half passed]"
    axes = f"(group [q: per_group {part} | k: {part} | v: head_dim]) hidden"
    theirs, ours = converted(compiled(f'    wqkv: {{is: [query, key_value], axes: "{axes}"}}\n'))
    for leaf in ("weight", "bias"):
        groups = theirs[f"{NAME}.wqkv.{leaf}"].unflatten(0, (GROUPS, HEADS // GROUPS + 2, SIZE))
        q = groups[:, :-2].flatten(0, 2)
        assert torch.equal(ours[f"decoder.0.mixer.query.{leaf}"], ours_of(q, *PARTIAL))
        k, v = groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)
        assert torch.equal(ours[f"decoder.0.mixer.key_value.{leaf}"], torch.cat([ours_of(k, *PARTIAL), v]))


def test_a_size_may_follow_from_the_config() -> None:
    mapping = compiled(Q, "  cuts: {pair: {turned: = head_size / 5, passed: ~}}\n")
    theirs, ours = converted(mapping)
    turned, passed = torch.arange(4).reshape(2, 2), torch.arange(4, 10).reshape(2, 3)
    assert torch.equal(ours["decoder.0.mixer.query.weight"], ours_of(theirs[f"{NAME}.q_proj.weight"], turned, passed))


WRONG = {
    "too much": ("  cuts: {pair: {turned: 6, passed: ~}}\n", Q, "axes/cut", "axis `pair` is 5 long, its parts are 6"),
    "too little": ("  cuts: {pair: {turned: 2, passed: 2}}\n", Q, "axes/cut", "is 5 long, its parts are 2 + 2"),
    "no size": ("  cuts: {pair: {turned: = head_size / 2.5, passed: ~}}\n", Q, "axes/cut", "is 4.0, not a size"),
    "made of others": ("  cuts: {head_dim: {turned: 2, passed: ~}}\n", Q, "axes/cut", "made of half and pair"),
    "no axis": ("  cuts: {pairs: {turned: 2, passed: ~}}\n", Q, "mapping/cut", "the layout has no axis `pairs`"),
    "two open": ("  cuts: {pair: {turned: ~, passed: ~}}\n", Q, "mapping/cut", "cannot both be what the others leave"),
    "no name": ("  cuts: {pair: {turned: = heads_size, passed: ~}}\n", Q, "mapping/no-such-name", "`heads_size`"),
    "half of it": (CUTS, Q.replace(" | passed: half passed", ""), "axes/labels", "has no place of its own"),
    "not cut": ("", Q, "axes/unknown-axis", "names the unknown axis `turned`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(name: str) -> None:
    cuts, tensors, code, words = WRONG[name]
    with pytest.raises(CrosswalkError) as error:
        plan_for(compiled(tensors, cuts), CONFIG, Options())
    found = error.value.diagnostics[0]
    assert found.code == code
    assert words in found.message
    assert found.place is not None
    assert found.place.file == "test.yaml"


def test_an_axis_is_cut_in_the_section_of_a_type_that_has_it() -> None:
    text = "base_model:\n  cuts: {position: {unused: 2, used: ~}}\n"
    header = "# A model.\ncrosswalk: 1\nextends: gpt2\narchitecture: AForCausalLM\nmodel_type: a\n"
    with pytest.raises(CrosswalkError) as error:
        Catalog(texts={"test": header + text}).compiled("test")
    (found,) = error.value.diagnostics
    assert found.code == "mapping/cut"
    assert "type `base_model` has no axis `position`" in found.message
    assert found.hint == "cut it in the section of `embeddings`"
    assert found.place is not None
    assert found.place.line == 7
