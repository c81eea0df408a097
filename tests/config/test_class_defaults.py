"""A key that is left out means what the class of the format says, whatever the key is."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

import custom_configs
import oracles
import pytest
from formats import normalized
from golden_cases import CASES, Case

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

REAL = ("llama_gqa", "mistral_sliding", "mixtral_base", "qwen2_base", "llava_pixtral", "tf523__gemma4_dense")
#: Of the file, not of the model.
_APART = ("architectures", "model_type", "transformers_version", "dtype")
pytestmark = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="defaults of transformers 5")


def _keys(config: dict[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        if key in ("text_config", "vision_config"):
            yield from (f"{key}.{inner}" for inner in value if inner not in _APART)
        elif key not in _APART:
            yield key


def _left_out(config: dict[str, Any], key: str) -> dict[str, Any]:
    result = copy.deepcopy(config)
    *parents, leaf = key.split(".")
    place = functools.reduce(lambda found, name: found[name], parents, result)
    del place[leaf]
    return result


def _outcome(config: dict[str, Any], case: Case) -> dict[str, Any] | list[tuple[str, str]]:
    """The native config, or what is wrong with the file: sizes that do not fit each other are refused either way."""
    try:
        return normalized(crosswalk.import_config(config, case.format), case.format)
    except CrosswalkError as error:
        return sorted({(problem.code, problem.message) for problem in error.diagnostics})


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in REAL for key in _keys(CASES[name].hf_config())])
def test_a_key_left_out_means_what_the_class_says(name: str, key: str) -> None:
    case = CASES[name]
    config = _left_out(case.hf_config(), key)
    try:
        filled = oracles.as_saved(config)
    except Exception:  # it has no default, or one that does not fit the other keys
        pytest.skip("the class refuses the file without it")
    assert _outcome(config, case) == _outcome(filled, case)


@pytest.mark.parametrize("name", ["mtp_llama_3heads", "dream_base", "diffusion_llama_base"])
def test_a_key_left_out_means_what_a_class_of_its_own_says(name: str) -> None:
    case = CASES[name]
    for key, value in custom_configs.DEFAULTS[case.format].items():
        config = case.hf_config()
        if config.get(key, value) == value or value is None:
            continue
        assert _outcome(_left_out(config, key), case) == _outcome(config | {key: value}, case), key


def test_objects_of_apriel2_are_what_the_class_says_where_they_are_absent() -> None:
    gdn, kda = CASES["apriel2_gdn"], CASES["apriel2_kda"]
    for case in (gdn, kda):
        config = case.hf_config()
        decoder = config["decoder"]
        blocks = [decoder["block"]] if "block" in decoder else list(decoder["blocks"].values())
        for block in blocks:
            block["mixer"].pop("convolution_layer", None)
        del config["head"]
        native = normalized(crosswalk.import_config(config, case.format), case.format)
        mixers = [block["mixer"] for block in native["decoder"] if block["mixer"]["type"] in ("gdn", "kda")]
        assert {mixer["convolution_layer"]["kernel_size"] for mixer in mixers} == {4}
        assert native["head"]["normalization"]["epsilon"] == 1e-5


@pytest.mark.parametrize("name", ["apriel2_attention", "apriel2_mm_fixed"])
def test_attention_of_apriel2_has_a_group_a_head_where_it_states_none(name: str) -> None:
    """As the class reads it; the tensors of a file have to agree."""
    case = CASES[name]
    config = case.hf_config()
    mixer = config["decoder"]["block"]["mixer"]
    assert mixer["heads"] != mixer.pop("head_groups")
    native = crosswalk.import_config(config, case.format)
    assert native["decoder"]["block"]["mixer"]["head_groups"] == mixer["heads"]
    exported = crosswalk.export_config(native, case.format)["decoder"]["block"]["mixer"]
    assert exported["head_groups"] == mixer["heads"]  # to others an absent one means something else


#: What the class of Apriel2 takes where a key is absent: of a block, of its MLP and of each mixer, by its type.
_APRIEL2 = {
    "block": {"normalization": {"type": "rms_norm", "epsilon": 4e-06}},  # the epsilon is that of the head
    "mlp": {"type": "mlp", "gated": False, "add_linear_biases": False, "activation": "silu"},
    "normalization": {"type": "rms_norm", "epsilon": 4e-06},
    "attention": {"type": "attention", "causal": True, "cross_document_attention": True},
    "mamba": {"state_size": 16, "d_inner": 144, "d_xb": 72, "dt_rank": 5, "add_linear_biases": False, "d_conv": 4},
    "gdn": {"value_heads": 32, "key_heads": 8, "key_head_dim": 64, "value_head_dim": 64, "norm_eps": 1e-05,
            "convolution_layer": {"kernel_size": 4, "activation": "silu"}},
    "kda": {"heads": 32, "head_dim": 64, "convolution_layer": {"kernel_size": 4},
            "normalization": {"epsilon": 1e-05, "activation": "silu"}},
    "stochastic": {"main_mixer_name": "attn", "sampling_strategy": "uniform", "sampling_weights": None},
}  # fmt: skip


def _apriel2() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A config with every mixer, and the objects in it by the names of ``_APRIEL2``."""
    config = CASES["apriel2_stochastic"].hf_config()
    config |= {"hidden_size": 72, "head": {"normalization": {"type": "rms_norm", "epsilon": 4e-06}}}
    block = config["decoder"]["block"]
    mixer = block["mixer"]
    mixer["mixers"]["mamba"]["state_size"] = 24
    objects = {"block": block, "mlp": block["mlp"], "normalization": block["normalization"], "stochastic": mixer}
    return config, objects | {inner["type"]: inner for inner in mixer["mixers"].values()}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, found in _APRIEL2.items() for key in found])
def test_a_key_of_apriel2_left_out_means_what_its_class_says(name: str, key: str) -> None:
    case = CASES["apriel2_stochastic"]
    absent, objects = _apriel2()
    objects[name].pop(key, None)
    stated, objects = _apriel2()
    objects[name][key] = _APRIEL2[name][key]
    expected = _outcome(stated, case)
    assert _outcome(absent, case) == expected
    if isinstance(expected, dict):
        exported = crosswalk.export_config(crosswalk.import_config(absent, case.format), case.format)
        assert normalized(crosswalk.import_config(exported, case.format), case.format) == expected


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("kda", "normalization", {"epsilon": 2e-05, "activation": "sigmoid"}),
        ("stochastic", "sampling_weights", {"attn": 2.0}),
        ("stochastic", "main_mixer_name", "gdn"),
    ],
)
def test_what_the_class_of_apriel2_reads_is_kept(name: str, key: str, value: Any) -> None:
    case = CASES["apriel2_stochastic"]
    config, objects = _apriel2()
    objects[name][key] = value
    if key == "sampling_weights":
        objects[name]["sampling_strategy"] = "weighted"
    exported = crosswalk.export_config(crosswalk.import_config(config, case.format), case.format)
    mixer = exported["decoder"]["block"]["mixer"]
    found = {inner["type"]: inner for inner in mixer["mixers"].values()} | {"stochastic": mixer}
    assert found[name][key] == value


def test_the_adapter_of_apriel2_has_biases_and_the_exact_gelu_where_it_says_nothing() -> None:
    """As its class makes it; the trainer computes the other gelu."""
    case = CASES["apriel2_mm_fixed"]
    config = case.hf_config()
    for key in ("add_linear_biases", "activation"):
        del config["vision_encoder"]["adapter"][key]
    with pytest.raises(CrosswalkError, match="the tanh approximation of gelu"):
        crosswalk.import_config(config, case.format)
    adapter = crosswalk.import_config(config, case.format, allow_lossy=True)["vision_encoder"]["adapter"]
    assert (adapter["add_linear_biases"], adapter["activation"]) == (True, "gelu")


def test_a_decoder_that_is_absent_is_refused() -> None:
    """The class fills in blocks with rotary embeddings of a type that it does not know, and makes no model of them."""
    case = CASES["apriel2_attention"]
    with pytest.raises(CrosswalkError) as caught:
        crosswalk.import_config(_left_out(case.hf_config(), "decoder"), case.format)
    assert [problem.message for problem in caught.value.diagnostics][:1] == [
        "`decoder.num_blocks` is required, it is absent"
    ]


@pytest.mark.parametrize("name", ["qwen2_base"])
def test_a_window_that_the_class_cannot_compute_is_refused(name: str) -> None:
    """``layer_types`` names a window and ``use_sliding_window`` is false: the class drops its size, and fails."""
    config = CASES[name].hf_config()
    config |= {"layer_types": ["sliding_attention"] * config["num_hidden_layers"], "sliding_window": 5}
    with pytest.raises(CrosswalkError, match=r"use_sliding_window.*false"):
        crosswalk.import_config(config | {"use_sliding_window": False})
    assert (
        crosswalk.import_config(config | {"use_sliding_window": True})["decoder"]["block"]["mixer"]["window_size"] == 5
    )


def test_names_of_one_activation_are_read_alike() -> None:
    """Every two names that transformers has for one function: it computes the same, and is read the same."""
    import torch
    from transformers.activations import ACT2FN

    grid = torch.linspace(-5, 5, 201, dtype=torch.float64)
    base = CASES["llama_gqa"].hf_config()
    found: dict[str, list[torch.Tensor]] = {}
    for name in ACT2FN:
        with contextlib.suppress(CrosswalkError, RuntimeError):
            native = crosswalk.import_config(base | {"hidden_act": name}, "llama")
            found.setdefault(native["decoder"]["block"]["mlp"]["activation"], []).append(ACT2FN[name](grid))
    assert {name: len(values) for name, values in found.items()} == {
        "silu": 2, "gelu": 5, "relu": 1, "squared_relu": 1, "identity": 1, "sigmoid": 1
    }  # fmt: skip
    for values in found.values():
        for value in values[1:]:
            torch.testing.assert_close(value, values[0], rtol=1e-9, atol=1e-9)
