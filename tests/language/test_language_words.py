"""Words of the mapping language that few formats need, on small mappings: what they mean, and where a typo shows."""

from __future__ import annotations

from typing import Any

import pytest
from golden_cases import CASES

import crosswalk
from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.config.dialects import choose_dialects
from crosswalk.compiler.config.read import import_config
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.tensors.encoded import read_encodings
from crosswalk.compiler.tensors.read_config import import_with_tensors
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Encoding, TensorSpec

LLAMA = CASES["llama_gqa"].hf_config()
GEMMA = CASES["tf523__gemma4_dense"].hf_config()


def _compiled(text: str, base: str = "llama") -> CompiledMapping:
    return Catalog(texts={"mine": f"crosswalk: 1\nextends: {base}\n{text}"}).compiled("mine")


def test_several_model_types_are_read_and_the_first_is_written() -> None:
    mapping = _compiled("model_type: [one, two]\n")
    for name in ("one", "two"):
        native, _ = import_config(mapping, LLAMA | {"model_type": name})
        assert export_config(mapping, native)[0]["model_type"] == "one"
    with pytest.raises(CrosswalkError, match=r'model_type.*"one" or "two"'):
        import_config(mapping, LLAMA | {"model_type": "three"})


def test_a_case_that_is_a_text_is_refused_with_it_on_both_sides() -> None:
    mapping = _compiled("Rotary:\n  cases:\n    yarn: nobody has tried it\n")
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    with pytest.raises(CrosswalkError, match=r"rope_parameters.rope_type.*yarn.*nobody has tried it"):
        import_config(mapping, LLAMA | {"rope_parameters": rope})
    native = crosswalk.import_config(LLAMA | {"rope_parameters": rope}, "llama")
    with pytest.raises(CrosswalkError, match=r"rotary.*yarn.*nobody has tried it"):
        export_config(mapping, native)
    import_config(mapping, LLAMA)


def test_why_is_the_hint_of_a_fact() -> None:
    mapping = _compiled("base_model:\n  config:\n    twisted: {only: false, why: it cannot be straightened}\n")
    with pytest.raises(CrosswalkError, match=r"twisted.*\n.*it cannot be straightened"):
        import_config(mapping, LLAMA | {"twisted": True})


_OTHERWISE = "mlp:\n  config:\n    mlp_bias: {is: add_linear_biases, default: true, otherwise: false}\n"


def test_otherwise_is_meant_where_only_that_fits_the_tensors() -> None:
    mapping = _compiled(_OTHERWISE)
    config = {key: value for key, value in LLAMA.items() if key != "mlp_bias"}
    names = {
        flag: {t.name for t in crosswalk.compile_plan(LLAMA | {"mlp_bias": flag}, "llama").sources}
        for flag in (True, False)
    }

    def read(config: dict[str, Any], names: set[str]) -> bool:
        native, _ = import_with_tensors(mapping, config, names)
        return bool(native["decoder"]["block"]["mlp"]["add_linear_biases"])

    assert [read(config, names[flag]) for flag in (True, False)] == [True, False]
    assert read(config, {"unrelated"}) is True  # neither fits: the default, and the tensors are the error
    assert read(LLAMA | {"mlp_bias": True}, names[False]) is True  # what is said counts


def test_overrides_without_a_list_may_hold_anything_in_any_layer() -> None:
    """For classes that build every layer from its own config."""
    mapping = _compiled("Sequence:\n  overrides: per_layer_config\n", "gemma4")
    config = GEMMA | {"per_layer_config": {"0": {"intermediate_size": 60}, "2": {"head_dim": 16}}}
    native, _ = import_config(mapping, config)
    assert [block["mlp"]["intermediate_size"] for block in native["decoder"]["blocks"].values()] == [60, 56, 56]
    exported, _ = export_config(mapping, native)
    again, _ = import_config(mapping, exported)
    assert again == native


def test_a_case_of_an_encoding_replaces_the_inherited_one() -> None:
    """The other cases stay, and all that the case does not say is refused."""
    mapping = _compiled(
        "encodings:\n  quantization_config:\n    by: quant_method\n    cases:\n      fp8:\n        is: fp8_blocks\n"
        "        config: {sizes: block}\n        tensor: '{name}.weight'\n        payload: '{name}.codes'\n"
        "        scales: '{name}.scales'\n"
    ).source
    assert list(mapping.encodings["quantization_config"].cases) == ["fp8", "mxfp4"]
    specs = [TensorSpec("a.codes", (4, 6), "F8_E4M3"), TensorSpec("a.scales", (2, 2), "BF16")]
    read = read_encodings(mapping, {"quantization_config": {"quant_method": "fp8", "sizes": [2, 3]}, "b": 1}, specs)
    assert read.problems == []
    assert read.config == {"b": 1}
    assert read.specs == {"a.weight": TensorSpec("a.weight", (4, 6), "BF16")}
    assert read.encodings == [Encoding("a.weight", "fp8_blocks", tuple(specs), (2, 3))]
    said = {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [2, 3]}}
    assert [p.path[-1] for p in read_encodings(mapping, said, ()).problems] == ["fmt", "weight_block_size"]


@pytest.mark.parametrize("asked", ["transformers-5.5"])
def test_a_dialect_without_a_place_is_refused(asked: str) -> None:
    mapping = _compiled("Sequence:\n  overrides: per_layer_config\n", "gemma4")
    config = GEMMA | {"per_layer_config": {"2": {"head_dim": 16, "intermediate_size": 60}}}
    native, _ = import_config(mapping, config)
    with pytest.raises(CrosswalkError, match=r"no place for `per_layer_config.2.intermediate_size`"):
        export_config(mapping, native, choose_dialects(mapping, asked))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Sequence:\n  overrides: {per_layer_config: [head_dimm]}\n", "overrides.*head_dimm"),
        ("dialects:\n  x:\n    config:\n      old: {is: head_dim, when: attention_k_eq}\n", "when.*attention_k_eq"),
        ("Sequence:\n  overrides: [head_dim]\n", "4:14.*list of keys"),
        ("Rotary:\n  cases:\n    yarn: 3\n", "5:11.*a text that says why"),
        ("model_type: []\n", "3:13.*a list of texts"),
    ],
)
def test_mistakes_in_these_words_are_found_when_compiling(text: str, named: str) -> None:
    with pytest.raises(CrosswalkError, match=named):
        _compiled(text, "gemma4")
