"""``read`` and ``write``: what is proved of them, what is refused, and what is written."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from golden_cases import CASES

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.config.read import import_config
from crosswalk.compiler.config.write import export_config
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.errors import CrosswalkError

BASE = CASES["llama_gqa"].hf_config()


def compiled(entry: str, section: str = "attention", extends: str = "llama", more: str = "") -> CompiledMapping:
    text = f"crosswalk: 1\nextends: {extends}\n{section}:\n  config:\n    {entry}\n{more}"
    return Catalog(texts={"test": text}).compiled("test")


def config(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in copy.deepcopy(BASE).items() if key != "rope_scaling"} | keys


def theta(native: dict[str, Any]) -> Any:
    return native["decoder"]["block"]["mixer"]["rotary"]["theta"]


POWER = "rope_theta: {is: theta, read: = value ** (1 / factor), write: = value ** factor, rounded: true}"
PARTIAL = f"""Rotary:
  cases:
    default:
      of: proportional
      config:
        factor: partial_rotary_factor
        {POWER}
"""


def partial() -> CompiledMapping:
    return Catalog(texts={"test": f"crosswalk: 1\nextends: llama\n{PARTIAL}"}).compiled("test")


@pytest.mark.parametrize(("given", "factor"), [(10000.0, 0.5), (10000.0, 0.4), (23456.7, 0.3), (5e5, 0.75)])
def test_a_power_of_a_key_comes_back_as_it_was_written(given: float, factor: float) -> None:
    mapping = partial()
    native, _ = import_config(mapping, config(rope_parameters={"rope_theta": given, "factor": factor}))
    assert theta(native) == pytest.approx(given ** (1 / factor), rel=1e-15)
    before = config(rope_parameters={"rope_theta": given, "factor": factor})
    native["head"]["normalization"]["epsilon"] = native["decoder"]["block"]["normalization"]["epsilon"] = 1e-4
    written, _ = export_config(mapping, native, before=before)
    assert written["rope_parameters"]["rope_theta"] == given


def test_without_the_original_the_shortest_decimal_is_written_that_is_read_as_the_same() -> None:
    mapping = compiled("attention_dropout: {is: dropout, read: = value / 3, write: = value * 3, rounded: true}")
    native, _ = import_config(mapping, config(attention_dropout=0.7))
    assert export_config(mapping, native)[0]["attention_dropout"] == 0.7


def test_a_whole_number_stays_one_where_the_default_is_one() -> None:
    for default, kind in (("8", int), ("8.0", float)):
        entry = f"w: {{is: softmax_scale_power, default: {default}, read: = value / 16.0, write: = value * 16.0}}"
        written = export_config(*(lambda m: (m, import_config(m, config())[0]))(compiled(entry)))[0]
        assert (written["w"], type(written["w"])) == (8, kind)


def test_null_and_conditions_are_tried_at_every_value() -> None:
    entry = "sliding_window: {is: window_size, default: 4096, read: = value if use_window else null}"
    mapping = compiled(f"{entry}\n    use_window: {{default: false, write: = sliding_window != null}}")
    for keys, window in (({}, None), ({"use_window": True}, 4096), ({"use_window": True, "sliding_window": 5}, 5)):
        native, _ = import_config(mapping, config(**keys))
        assert native["decoder"]["block"]["mixer"]["window_size"] == window
        written = export_config(mapping, native)[0]
        assert (written["sliding_window"], written["use_window"]) == (window, window is not None)


REFUSED = {
    "window that is written as it was": (
        "sliding_window: {is: window_size, default: 4096, read: = 2 * value if value else null, write: = value}",
        "would be written as",
    ),
    "read alone": ("attention_dropout: {is: dropout, read: = value ** 2}", "which is not read as that"),
    "the wrong power": (
        "w: {is: softmax_scale_power, default: 1.0, read: = value ** (1 / head_dim), write: = value ** (2 * head_dim)}",
        "`head_dim` =",
    ),
    "what rounds and does not say so": (
        "w: {is: softmax_scale_power, default: 1.0, read: = value / 3, write: = value * 3}",
        "say `rounded: true`",
    ),
    "a remainder": ("w: {is: head_groups, read: = value % 7, write: = value}", "goes through `%` in `read`"),
    "a smallest": ("w: {is: head_groups, read: '= min(value, 7)', write: = value}", "goes through `min` in `read`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pair_that_does_not_undo_itself_is_refused(name: str) -> None:
    entry, words = REFUSED[name]
    with pytest.raises(CrosswalkError) as error:
        compiled(entry)
    (found,) = error.value.diagnostics
    assert found.code == "mapping/inverse"
    assert words in found.message
    assert (found.position.file, found.position.line) == ("test.yaml", 5)


def test_a_sign_that_is_lost_is_refused_where_the_field_may_have_one() -> None:
    entry = "w: {is: router_input_scale, default: 1.0, read: = value if value > 0 else 0 - value}"
    with pytest.raises(CrosswalkError, match=r"-\d\S+ would be written as -\d\S+, which is not read as that"):
        compiled(entry, "moe", "mixtral")
    assert compiled(entry.replace("router_input_scale", "softmax_scale_power"))


def test_a_key_that_several_objects_write_must_be_the_same() -> None:
    mapping = Catalog().compiled("granite")
    native, _ = import_config(mapping, {"model_type": "granite"})
    native["head"]["normalization"]["epsilon"] = 1e-3
    with pytest.raises(CrosswalkError, match=r"`rms_norm_eps` would be both 1e-06 and 0.001"):
        export_config(mapping, native)


def test_keys_that_no_field_holds_stay_what_they_were_where_the_model_is_the_same() -> None:
    """Granite: any scale of residuals can be written for one model, so that of the original is."""
    mapping = Catalog().compiled("granite")
    keys = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "logits_scaling": 16.0}
    before = {"model_type": "granite", "num_attention_heads": 32, "attention_multiplier": 0.0078125, **keys}
    native, _ = import_config(mapping, before)
    assert native["decoder"]["block"]["mixer"]["softmax_scale_power"] == 1.0
    native["decoder"]["block"]["mixer"]["rotary"]["theta"] = 12345.0
    written, _ = export_config(mapping, native, before=before)
    assert {key: written[key] for key in keys} == keys
    assert written["rope_parameters"]["rope_theta"] == 12345.0
    assert export_config(mapping, native)[0]["residual_multiplier"] == 1.0


def test_what_is_read_as_another_value_is_refused_when_it_is_written() -> None:
    """Pairs are shown to undo each other for positive numbers; any other is tried when there is one."""
    entry = "rope_theta: {is: theta, read: = value if value > 0 else 0 - value, write: = value}"
    text = f"crosswalk: 1\nextends: llama\nRotary:\n  cases:\n    default:\n      config:\n        {entry}\n"
    mapping = Catalog(texts={"test": text}).compiled("test")
    native, _ = import_config(mapping, config(rope_parameters={"rope_theta": -4.0}))
    assert theta(native) == 4.0
    native["decoder"]["block"]["mixer"]["rotary"]["theta"] = -4.0
    with pytest.raises(CrosswalkError) as error:
        export_config(mapping, native)
    (found,) = error.value.diagnostics
    assert found.code == "export/inverse"
    assert "`rope_parameters.rope_theta` = -4.0 would not be read as -4.0" in found.message
