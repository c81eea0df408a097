"""Kinds of layers by number and by index: read, written back in the keys of the format, or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from golden_cases import CASES

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.config.read import import_config
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.layout.scope import normalize
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.errors import CrosswalkError

BASE = {key: value for key, value in CASES["llama_gqa"].hf_config().items() if key != "rope_scaling"}
KINDS = """  kinds:
    {0}: {{block: {{sets: {{mlp: mlp}}}}}}
    {1}: {{block: {{sets: {{mlp: moe}}}}}}
moe:
  config:
    width: intermediate_size
    num_experts: experts
    num_experts_per_tok: experts_per_token
  tensors:
    gate: router
    experts.{{expert}}.{{gate|up}}_proj: layer_1
    experts.{{expert}}.down_proj: layer_2
"""
MOE = {"width": 21, "num_experts": 5, "num_experts_per_tok": 2}


def compiled(each: str, config: str, kinds: tuple[str, str] = ("dense", "moe")) -> CompiledMapping:
    body = (
        f"Sequence:\n  each: {each}\n  config:\n    num_hidden_layers: {{default: 32}}\n{config}{KINDS.format(*kinds)}"
    )
    return Catalog(texts={"test": f"crosswalk: 1\nextends: llama\n{body}"}).compiled("test")


FORMS: dict[str, tuple[str, str]] = {
    "indices": (
        "= 'dense' if layer in (dense_layers or []) else 'moe'",
        "    dense_layers: {default: [], write: \"= indices(kinds, 'dense')\"}\n",
    ),
    "first": (
        "= 'dense' if layer < first_k else 'moe'",
        "    first_k: {default: 0, write: \"= find(kinds, 'moe', num_hidden_layers)\"}\n",
    ),
    "numbers": ("moe_layers", "    moe_layers: {default: '= [1] * num_hidden_layers'}\n"),
    "flags": ("moe_flags", "    moe_flags: {default: '= [true] * num_hidden_layers'}\n"),
}
NAMES = {"numbers": ("0", "1"), "flags": ("false", "true")}


def form(name: str) -> CompiledMapping:
    return compiled(*FORMS[name], NAMES.get(name, ("dense", "moe")))


def mlps(native: dict[str, Any]) -> str:
    """What each layer has, as d for dense and m for experts."""
    decoder = native["decoder"]
    if decoder["type"] == "fixed":
        return {"mlp": "d", "moe": "m"}[decoder["block"]["mlp"]["type"]] * decoder["num_blocks"]
    types = [decoder["blocks"][name]["mlp"]["type"] for name in decoder["pattern"]]
    return "".join({"mlp": "d", "moe": "m"}[kind] for kind in types)


@pytest.mark.parametrize(
    ("name", "keys", "layers", "written"),
    [
        ("indices", {"dense_layers": [1, 3]}, "mdmdm", {"dense_layers": [1, 3]}),
        ("indices", {"dense_layers": [3, 0]}, "dmmdm", {"dense_layers": [0, 3]}),
        ("indices", {"dense_layers": None}, "mmmmm", {"dense_layers": []}),
        ("indices", {}, "mmmmm", {"dense_layers": []}),
        ("first", {"first_k": 2}, "ddmmm", {"first_k": 2}),
        ("first", {}, "mmmmm", {"first_k": 0}),
        ("first", {"first_k": 9}, "ddddd", {"first_k": 5}),
        ("numbers", {"moe_layers": [1, 0, 0, 1, 1]}, "mddmm", {"moe_layers": [1, 0, 0, 1, 1]}),
        ("numbers", {}, "mmmmm", {"moe_layers": [1] * 5}),
        (
            "flags",
            {"moe_flags": [False, True, True, True, False]},
            "dmmmd",
            {"moe_flags": [False, True, True, True, False]},
        ),
    ],
)
def test_kinds_are_read_and_written_back(name: str, keys: dict[str, Any], layers: str, written: dict[str, Any]) -> None:
    mapping = form(name)
    config = BASE | MOE | keys | {"num_hidden_layers": 5}
    native, _ = import_config(mapping, config)
    assert mlps(native) == layers
    found, _ = export_config(mapping, native)
    assert {key: found[key] for key in written} == written
    assert [type(value) for value in found.values()] == [type(found[key]) for key in found]
    unknown = found.keys() - {path[0] for path in mapping.claims} - {"architectures"}
    assert not unknown, "no key is made up"
    assert mlps(import_config(mapping, found)[0]) == layers


def test_a_value_of_another_json_type_is_another_kind() -> None:
    with pytest.raises(CrosswalkError, match=r"`moe_layers` has True; this mapping knows 0, 1"):
        import_config(form("numbers"), BASE | MOE | {"moe_layers": [True, 0], "num_hidden_layers": 2})


def test_kinds_that_the_keys_cannot_say_are_refused() -> None:
    native, _ = import_config(form("indices"), BASE | MOE | {"dense_layers": [0, 2], "num_hidden_layers": 4})
    with pytest.raises(CrosswalkError) as error:
        export_config(form("first"), native)
    (found,) = error.value.diagnostics
    assert found.code == "export/kinds"
    assert "layer 2 is `dense`, and the keys of this format can only say `moe` there" in found.message


def test_the_origin_keeps_its_way_of_saying_the_same() -> None:
    mapping = Catalog().compiled("qwen3_moe")
    moe = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 21, "norm_topk_prob": True}
    before = BASE | moe | {"model_type": "qwen3_moe", "decoder_sparse_step": 2, "num_hidden_layers": 5}
    before = {key: value for key, value in before.items() if key not in ("architectures", "mlp_bias")}
    native, _ = import_config(mapping, before)
    assert mlps(native) == "dmdmd"
    native = normalize(mapping.layout, native, "base_model")
    for block in native["decoder"]["blocks"].values():
        block["mixer"]["rotary"]["theta"] = 777.0
    written, _ = export_config(mapping, copy.deepcopy(native), before=before)
    assert (written["decoder_sparse_step"], written.get("mlp_only_layers")) == (2, None)
    written, _ = export_config(mapping, native)
    assert (written["decoder_sparse_step"], written["mlp_only_layers"]) == (1, [0, 2, 4])


@pytest.mark.parametrize(
    ("each", "config", "words"),
    [
        (
            "= 'dense' if layer < first_k else 'moe'",
            "    first_k: {default: 0}\n",
            "what is written of these is read as",
        ),
        (
            "= 'dense' if layer <= first_k else 'moe'",
            "    first_k: {default: 0, write: \"= find(kinds, 'moe', num_hidden_layers)\"}\n",
            "what is written of these is read as",
        ),
        (FORMS["first"][0].replace("'moe'", "'moes'"), FORMS["first"][1], '`"moes"` is none of its kinds'),
    ],
)
def test_what_is_not_written_back_is_refused(each: str, config: str, words: str) -> None:
    with pytest.raises(CrosswalkError) as error:
        compiled(each, config)
    (found,) = error.value.diagnostics
    assert found.code == "mapping/inverse"
    assert words in found.message


def test_lists_within_lists_are_tried_as_such() -> None:
    each = "= (turns[0][0] * turns[0][1])[layer]"
    keys = '    turns: {default: [[[dense, moe], 12]], write: "= [[kinds, 1]]"}\n'
    mapping = compiled(each, keys)
    found = BASE | MOE | {"turns": [[["moe", "moe", "dense"], 2]], "num_hidden_layers": 5}
    assert mlps(import_config(mapping, found)[0]) == "mmdmm"
    with pytest.raises(CrosswalkError, match="do not undo each other"):
        compiled(each, keys.replace("[[kinds, 1]]", "[[kinds[:1], 9]]"))


def test_names_in_the_expression_are_looked_up() -> None:
    with pytest.raises(CrosswalkError, match="no rule speaks of a key `layers`"):
        compiled("= 'dense' if layers < first_k else 'moe'", FORMS["first"][1])
