"""Configs of both sides that a format cannot hold: each by its code, and with the words that name what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from family_cases import phi3
from golden_cases import CASES

import crosswalk
from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.pipeline import PlanOptions, export_model
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.jobs.options import Options
from crosswalk.jobs.plans import plan_for
from crosswalk.runtime.errors import CrosswalkError

Config = dict[str, Any]


def compiled(text: str, base: str) -> CompiledMapping:
    return Catalog(texts={"test": f"crosswalk: 1\nextends: {base}\n{text}"}).compiled("test")


def gemma4(layers: str, **each: Config) -> Config:
    """Gemma 4 with layers of the kinds ``f`` and ``s``, and what single ones have of their own."""
    kinds = {"f": "full_attention", "s": "sliding_attention"}
    config = copy.deepcopy(CASES["gemma4_dense"].hf_config())
    del config["global_head_dim"], config["num_global_key_value_heads"]
    objects = {key.removeprefix("layer_"): value for key, value in each.items()}
    return config | {"layer_types": [kinds[layer] for layer in layers], "per_layer_config": objects}


def native(name: str, path: str, value: Any) -> Config:
    """A native config with another value of one field."""
    config = crosswalk.import_config(CASES[name].hf_config())
    *outer, last = path.split(".")
    inner: Any = config
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return config


SAME = {"head_dim": 16, "num_key_value_heads": 3}
ONE_MOVE = """dialects:
  transformers_5_5: ~
  mine:
    config:
      global_head_dim: {is: "per_layer_config.{full_attention}.head_dim", default: 512}
"""
BIASES = """attention:
  config:
    query_bias: {is: query_layer.bias.enabled, default: false}
    key_bias: {is: key_layer.bias.enabled, default: false}
    value_bias: {is: value_layer.bias.enabled, default: false}
"""
TAKEN = "block:\n  tensors:\n    block_sparse_moe.experts.3.w2.weight: norm_1.weight\n    input_layernorm: ~\n"
FUSED = "llama3:\n  tensors:\n    both.weight: [tok_embeddings.weight, lm_head.weight]\n"
REFUSED: dict[str, tuple[str, str, Callable[[], object]]] = {
    "a kind of embedding": (
        "config/refused", '`rope_parameters.rope_type` is "longrope": the trainer has no rotary embeddings',
        lambda: crosswalk.import_config(
phi3(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4})),
    ),
    "a condition": (
        "config/check", "transformers turns the last layer into a full one",
        lambda: crosswalk.import_config(gemma4("ffs", layer_0=SAME, layer_1=SAME), "gemma4"),
    ),
    "layers that differ": (
        "config/conflict", "layers 0 and 2 are both `full_attention`, and they differ",
        lambda: crosswalk.import_config(gemma4("fsf", layer_0={"head_dim": 16}, layer_2={"head_dim": 20}), "gemma4"),
    ),
    "one old place": (
        "dialect/one-value", "`transformers_5_5` has one `num_global_key_value_heads` for all layers that are",
        lambda: crosswalk.export_config(
            crosswalk.import_config(gemma4("sff", layer_1=SAME, layer_2=SAME), "gemma4"), "gemma4",
            dialect="transformers_5_5"),
    ),
    "no old place": (
        "dialect/no-place", "`mine` has no place for `per_layer_config.1.num_key_value_heads`",
        lambda: export_model(
            compiled(ONE_MOVE, "gemma4"), crosswalk.import_config(gemma4("sff", layer_1=SAME, layer_2=SAME), "gemma4"),
            PlanOptions(dialect="mine")),
    ),
    "no name of a value": (
        "export/choice", '`decoder.block.mixer.sampling_strategy` must be one of uniform; it is "weighted"',
        lambda: export_model(
            compiled("enums: {sampling: {uniform: uniform}}\n", "apriel2"),
            native("apriel2_stochastic", "decoder.block.mixer.sampling_strategy", "weighted"), PlanOptions()),
    ),
    "another type": (
        "export/type", "`decoder.block.normalization` must be `rms_norm` in this format, it is `layer_norm`",
        lambda: crosswalk.export_config(
            native("llama_gqa", "decoder.block.normalization", {"type": "layer_norm"}), "llama"),
    ),
    "a field that is not there": (
        "native/missing-field", "`decoder.pattern` is required",
        lambda: crosswalk.export_config(native("llama_gqa", "decoder", {"type": "pattern"}), "llama"),
    ),
    "a null": (
        "export/required", "`image_token_index` must not be null here",
        lambda: crosswalk.export_config(native("llava_pixtral", "image_token_index", None), "llava"),
    ),
    "none of several types": (
        "export/none-fits", "`decoder.block` fits none of what this format has: not `full_attention`: ",
        lambda: crosswalk.export_config(
            native("qwen2_base", "decoder.block.mixer.query_norm", {"type": "layer_norm"}), "qwen2"),
    ),
    "a tensor of which some parts have biases": (
        "mapping/one-sided", "is to hold query.bias and key_value.bias, of which this config has only query.bias",
        lambda: plan_for(compiled(BIASES, "phi3"), phi3(query_bias=True), Options()),
    ),
    "a tensor of which a part is tied": (
        "mapping/one-sided", "of which `lm_head.weight` (tied to `tok_embeddings.weight`) has no storage of its own",
        lambda: plan_for(
            compiled(FUSED, "torchtitan_llama3"), CASES["llama_gqa"].hf_config() | {"tie_word_embeddings": True},
            Options()),
    ),
    "two lines of one name": (
        "plan/name-twice", "two rules make the tensor `model.layers.0.block_sparse_moe.experts.3.w2.weight`",
        lambda: plan_for(compiled(TAKEN, "mixtral"), CASES["mixtral_base"].hf_config(), Options()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_format_cannot_hold(what: str) -> None:
    code, words, action = REFUSED[what]
    with pytest.raises(CrosswalkError) as error:
        action()
    assert code in {found.code for found in error.value.diagnostics}
    assert any(found.code == code and words in found.message for found in error.value.diagnostics), error.value
