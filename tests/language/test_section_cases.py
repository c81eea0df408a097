"""``by`` and ``cases`` in every section, however its type is reached; inherited cases and kinds are changed."""

from __future__ import annotations

from typing import Any

import pytest
from small_checkpoints import LLAMA, MIXTRAL

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.pipeline import Origin, PlanOptions, export_checkpoint, import_checkpoint
from crosswalk.compiler.relations.tree import CaseNode, CompiledMapping, Layers, nodes_of
from crosswalk.runtime.errors import CrosswalkError


def _compiled(text: str, base: str = "llama", **more: str) -> CompiledMapping:
    texts = {"mine": f"crosswalk: 1\nextends: {base}\n{text}", **more}
    return Catalog(texts=texts).compiled("mine")


#: Section -> its lines, the tensor that has two names then (new, old), and the config that the format extends.
SECTIONS: dict[str, tuple[str, str, str, str]] = {
    "base_model": ("old: {tensors: {lm_out.weight: head.output_weights}}", "lm_head.weight", "lm_out.weight", "llama"),
    "block": ("old: {tensors: {first: norm_1}}", "layers.1.input_layernorm.weight", "layers.1.first.weight", "llama"),
    "attention": ("old: {tensors: {out: dense}}", "layers.1.self_attn.o_proj.weight", "self_attn.out.weight", "llama"),
    "mlp": ("old: {tensors: {out: layer_2}}", "layers.1.mlp.down_proj.weight", "layers.1.mlp.out.weight", "llama"),
    "rms_norm": ("old: {tensors: {gain: weight}}", "layers.2.input_layernorm.weight", "input_layernorm.gain", "llama"),
    "moe": ("old: {tensors: {gates: router}}", "block_sparse_moe.gate.weight", "moe.gates.weight", "mixtral"),
}


def _case(section: str) -> tuple[CompiledMapping, str, str, dict[str, Any]]:
    line, new, old, base = SECTIONS[section]
    text = f"{section}:\n  by: {{naming: new}}\n  cases:\n    new: {{}}\n    {line}\n"
    return _compiled(text, base), new, old, LLAMA if base == "llama" else MIXTRAL


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_of_any_type_has_cases(section: str) -> None:
    mapping, new, old, base = _case(section)
    for config, there, gone in ((base, new, old), (base | {"naming": "old"}, old, new)):
        found = import_checkpoint(mapping, config, None, PlanOptions())
        names = [tensor.name for tensor in found.plan.sources]
        assert any(name.endswith(there) for name in names)
        assert not any(name.endswith(gone) for name in names)
        assert str(found.plan.verify()) == "bijective"
        origin = Origin(format="mine", config=config, dtype="F32")
        back = export_checkpoint(mapping, found.config, None, PlanOptions(), origin)
        assert back.unchanged == ("dtype" in config)
        assert back.config.get("naming", "new") == config.get("naming", "new")
        assert sorted(tensor.name for tensor in back.plan.targets) == sorted(names)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_value_that_is_no_case_is_refused_where_the_cases_are(section: str) -> None:
    mapping, _, _, base = _case(section)
    with pytest.raises(CrosswalkError, match=r'`naming` must be one of new, old; it is "middle"') as error:
        import_checkpoint(mapping, base | {"naming": "middle"}, None, PlanOptions())
    assert str(error.value.diagnostics[0].rule).startswith("mine.yaml:3:")


def test_a_case_holds_what_the_section_of_the_type_says_by_cases_of_its_own() -> None:
    """A family tells the type, and the section of that type another case: both keys count."""
    mapping = _compiled(
        "block:\n  config: {mlp: mlp}\nMlp:\n  by: what\n  cases: [mlp]\n"
        "mlp:\n  by: {naming: new}\n  cases:\n    new: {}\n    old: {tensors: {out: layer_2}}\n"
    )
    inner = {key: LLAMA[key] for key in ("intermediate_size", "hidden_act", "mlp_bias")} | {"what": "mlp"}
    config = {key: value for key, value in LLAMA.items() if key not in inner}
    for naming, name in (("new", "down_proj"), ("old", "out")):
        found = import_checkpoint(mapping, config | {"mlp": inner | {"naming": naming}}, None, PlanOptions())
        assert f"model.layers.0.mlp.{name}.weight" in {tensor.name for tensor in found.plan.sources}


@pytest.mark.parametrize(
    ("text", "missing"), [("mlp:\n  by: naming\n", "cases"), ("mlp:\n  cases: {a: {}, b: {}}\n", "by")]
)
def test_half_of_what_tells_cases_apart_is_an_error_at_the_section(text: str, missing: str) -> None:
    with pytest.raises(CrosswalkError, match=rf"mine.yaml:3:1.*`mlp` needs `by:` and `cases:`.*no `{missing}:`"):
        _compiled(text)


# ---- what is inherited --------------------------------------------------------------------------------------------


def _rotations(mapping: CompiledMapping) -> list[Any]:
    choice = next(n for n in nodes_of(mapping.root) if isinstance(n, CaseNode) and n.key[-1] == "rope_type")
    return [case.value for case in choice.cases]


def test_inherited_cases_are_added_to_and_one_is_taken_away() -> None:
    assert _rotations(_compiled("")) == ["default", "llama3", "yarn"]
    assert _rotations(_compiled("Rotary:\n  cases: {yarn: ~}\n")) == ["default", "llama3"]
    assert _rotations(_compiled("Rotary:\n  cases: {llama3: ~, plain: {of: none}}\n")) == ["default", "yarn", "plain"]


def test_a_list_of_cases_stated_anew_has_its_own_order_and_keeps_what_the_cases_say() -> None:
    mapping = _compiled("Rotary:\n  by: {rope_type: default}\n  cases: {yarn: ~, default: {}}\n")
    assert _rotations(mapping) == ["yarn", "default"]
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    found = import_checkpoint(mapping, LLAMA | {"rope_parameters": rope}, None, PlanOptions())
    assert found.config["decoder"]["block"]["mixer"]["rotary"]["scale_factor"] == 2.0


def test_a_case_taken_away_twice_removed_stays_away() -> None:
    middle = "crosswalk: 1\nextends: llama\nRotary:\n  cases: {yarn: ~}\n"
    assert _rotations(_compiled("Rotary:\n  cases: {llama3: {}}\n", "middle", middle=middle)) == ["default", "llama3"]


_KINDS = """crosswalk: 1
extends: llama
Sequence:
  each: names
  kinds:
    one: {}
    two: {block: {tensors: {first: norm_1}}}
    three: {block: {tensors: {third: norm_1}}}
"""


def _kinds(mapping: CompiledMapping) -> list[str | None]:
    return [kind.name for kind in next(n for n in nodes_of(mapping.root) if isinstance(n, Layers)).kinds]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", ["one", "two", "three"]),
        ("Sequence:\n  kinds: {two: ~}\n", ["one", "three"]),
        ("Sequence:\n  kinds: {four: {}, one: {}}\n", ["one", "two", "three", "four"]),
        ("Sequence:\n  each: names\n  kinds: {three: {}, one: {}}\n", ["three", "one"]),
        ("Sequence:\n  each: ~\n", [None]),
    ],
)
def test_inherited_kinds_are_added_to_taken_away_and_put_in_another_order(text: str, kinds: list[str | None]) -> None:
    assert _kinds(_compiled(text, "middle", middle=_KINDS)) == kinds


def test_a_kind_laid_over_an_inherited_one_keeps_what_it_says() -> None:
    mapping = _compiled("Sequence:\n  kinds: {two: {block: {tensors: {last: norm_2}}}}\n", "middle", middle=_KINDS)
    found = import_checkpoint(mapping, LLAMA | {"names": ["one", "two", "two"]}, None, PlanOptions())
    names = {tensor.name for tensor in found.plan.sources}
    assert {"model.layers.1.first.weight", "model.layers.1.last.weight"} <= names
    assert "model.layers.0.input_layernorm.weight" in names


def test_the_first_case_in_the_order_of_the_file_is_written() -> None:
    texts = ("cases: {a: {}, b: {}}", "cases: {b: {}, a: {}}")
    for text, first in zip(texts, "ab", strict=True):
        mapping = _compiled(f"mlp:\n  by: naming\n  {text}\n", "middle", middle=_NAMED)
        native = import_checkpoint(mapping, LLAMA | {"naming": "a"}, None, PlanOptions()).config
        assert export_config(mapping, native)[0]["naming"] == first


_NAMED = "crosswalk: 1\nextends: llama\nmlp:\n  by: naming\n  cases: {a: {}, b: {}}\n"


def test_all_cases_are_taken_away_with_the_key_that_tells_them_apart() -> None:
    mapping = _compiled("mlp:\n  by: ~\n", "middle", middle=_NAMED)
    assert not any(isinstance(node, CaseNode) and node.key[-1] == "naming" for node in nodes_of(mapping.root))
    import_checkpoint(mapping, LLAMA, None, PlanOptions())
