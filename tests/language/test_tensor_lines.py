"""Lines of ``tensors:``: which names they give, by the types of modules, from near and from far."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from golden_cases import CASES

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.layout.modules import instances, types_below
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.pipeline import PlanOptions, import_checkpoint
from crosswalk.compiler.relations.tree import CompiledMapping, Struct, nodes_of
from crosswalk.compiler.tensors import weights

LLAMA = CASES["llama_gqa"].hf_config()
STOCHASTIC = CASES["apriel2_stochastic"].hf_config()


def _compiled(base: str, text: str = "") -> CompiledMapping:
    return Catalog(texts={"mine": f"crosswalk: 1\nextends: {base}\n{text}"}, inverses=False).compiled("mine")


def _pairs(mapping: CompiledMapping, config: dict[str, Any]) -> dict[str, set[str]]:
    """Name of each hf tensor -> native parameters."""
    bound = import_checkpoint(mapping, config, None, PlanOptions()).bound
    return {
        related.tensor.name: {piece.parameter for piece in related.tensor.pieces}
        for group in bound.groups
        for related in group.alone
    }


def test_a_line_speaks_of_counted_modules_of_some_types() -> None:
    lines = '"mixers.{name}.ssm": "mixers.{name}(mamba)", "mixers.{name}": "mixers.{name}(attention|gdn|kda)"'
    found = _pairs(_compiled("apriel2_text", f"stochastic: {{tensors: {{{lines}}}}}\n"), STOCHASTIC)
    plain = _pairs(_compiled("apriel2_text"), STOCHASTIC)
    assert found == {name.replace(".mixers.mamba.", ".mixers.mamba.ssm."): ours for name, ours in plain.items()}
    assert {name.split(".")[6] for name in found if ".mixers." in name} >= {"attn", "gdn", "kda", "mamba"}


def test_a_line_of_an_enclosing_section_counts_before_those_of_the_module() -> None:
    line = '"lm.{i+1}.q": "decoder.{i}.mixer.query"'
    found = _pairs(_compiled("llama", f"base_model: {{tensors: {{{line}}}}}\n"), LLAMA)
    plain = _pairs(_compiled("llama"), LLAMA)

    def moved(name: str) -> str:
        match = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.q_proj\.weight", name)
        return f"lm.{int(match[1]) + 1}.q.weight" if match else name

    assert found == {moved(name): ours for name, ours in plain.items()}
    assert "lm.1.q.weight" in found


def test_a_line_of_another_type_leaves_the_module_to_the_next() -> None:
    lines = '"lm.{i}.x": "decoder.{i}.mixer.query(fixed)", "lm.{i}.q": "decoder.{i}.mixer.query"'
    with pytest.raises(Exception, match=r"`decoder\.\{i\}\.mixer\.query` is never a `fixed`"):
        _compiled("llama", f"base_model: {{tensors: {{{lines}}}}}\n")
    lines = lines.replace("(fixed)", "(block)")
    found = _pairs(_compiled("llama", f"base_model: {{tensors: {{{lines}}}}}\n"), LLAMA)
    assert {"lm.0.x.weight"} == {name for name in found if name.startswith("lm.0.")}


def test_lines_are_resolved_when_a_mapping_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = _compiled("mixtral")
    (block,) = (node for node in nodes_of(mapping.root) if isinstance(node, Struct) and node.type.name == "block")
    assert {
        (name, kind, str(rules.line and rules.line.theirs))
        for name, types in block.tensors.below.items()
        for kind, rules in types.items()
        if kind in ("attention", "moe")
    } == {("mixer", "attention", "self_attn"), ("mlp", "moe", "block_sparse_moe")}
    monkeypatch.setattr(weights, "section_tensors", None)
    assert _pairs(mapping, CASES["mixtral_base"].hf_config())


def _modules(scope: Scope) -> Iterator[tuple[str, list[str]]]:
    """The type of every module below an object, and those that the layout says it can have."""
    for child in scope.kind.children:
        possible = [kind.name for kind in types_below(scope.layout, scope.kind, child)]
        for _, inner in instances(scope, child):
            yield inner.kind.name, possible
            yield from _modules(inner)


def test_the_types_that_a_module_can_have_are_known_without_a_config() -> None:
    seen = set()
    for name in ("apriel2_stochastic", "mtp_llama_3heads", "llava_pixtral", "gemma4_moe_k_eq_v"):
        case = CASES[name]
        mapping = Catalog(inverses=False).compiled(case.format)
        native = import_checkpoint(mapping, case.hf_config(), None, PlanOptions()).config
        for kind, possible in _modules(Scope(mapping.layout, mapping.root.type, native)):
            assert kind in possible
            seen.add(kind)
    assert {"attention", "mamba", "moe", "rms_norm", "patch_embeddings", "stochastic"} <= seen
