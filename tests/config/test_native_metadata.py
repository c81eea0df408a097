"""What metadata.yaml says of a model: its kind, and every field that decides what the model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import custom_oracles
import portable
import pytest
import yaml
from golden_cases import CASES, Case, cases
from native_meaning import effective
from random_checkpoints import random_tensors, write_checkpoint
from small_checkpoints import contents

import crosswalk
from crosswalk.checkpoints.native import METADATA, metadata_yaml
from crosswalk.compiler.layout.model import Layout, load_layout
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.text.documents import parse_document
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError

LAYOUT: Layout = catalog().layout("fast_llm")
INDEX = {"head.output_weights/weights": "model_0.safetensors"}


def stored(config: dict[str, Any], root: str = "base_model") -> Any:
    """What the trainer's YAML reads in the metadata of a native config."""
    complete = crosswalk.normalize_native(config, root=root)
    return yaml.safe_load(metadata_yaml(LAYOUT, complete, root, INDEX, {}))


@pytest.mark.parametrize("case", cases("fast_llm_config.yaml"), ids=lambda case: case.name)
def test_the_trainer_reads_the_config_that_was_meant(case: Case) -> None:
    config = crosswalk.normalize_native(case.native_config(), root=case.root)
    again = crosswalk.normalize_native(stored(config, case.root)["config"]["base_model"], root=case.root)
    assert portable.typed(effective(again)) == portable.typed(effective(config))


@pytest.mark.parametrize("case", cases("fast_llm_config.yaml"), ids=lambda case: case.name)
def test_no_field_that_decides_what_is_computed_is_left_out(case: Case) -> None:
    base_model = stored(case.native_config(), case.root)["config"]["base_model"]
    for path, scope in Scope(LAYOUT, LAYOUT.types[case.root], base_model).walk():
        decides = {name for name, field in scope.kind.fields.items() if field.group != "training"}
        assert decides <= scope.config.keys(), path


def test_a_null_that_the_trainer_refuses_is_stored_as_what_it_means() -> None:
    """Its loader refuses ``activation: null``; ``bias.enabled: null`` it takes, which is what mappings speak of."""
    found = stored({"decoder": {"block": {"mlp": {"gated": True}}}})["config"]["base_model"]["decoder"]["block"]["mlp"]
    assert found["activation"] == "silu"
    assert found["layer_1"] == {"bias": {"enabled": None}}


def test_training_fields_are_stored_only_where_they_say_something() -> None:
    mixers = {"a": {"type": "attention", "dropout": 0.1}, "no": {"type": "attention"}}
    block = {"mixer": {"type": "stochastic", "mixers": mixers}, "mlp": {"type": "moe", "add_linear_biases": False}}
    found = stored({"decoder": {"block": block}})["config"]["base_model"]["decoder"]["block"]
    assert "seed_shift" not in found["mixer"]
    assert found["mixer"]["main_mixer_name"] == "a"
    assert found["mixer"]["mixers"]["a"]["dropout"] == 0.1
    assert "dropout" not in found["mixer"]["mixers"]["no"]
    assert "router" not in found["mlp"]  # the router of the trainer has no bias, so nothing is left to say


def test_metadata_that_leaves_defaults_out_is_still_read(tmp_path: Path) -> None:
    """As the trainer writes it."""
    case = CASES["llama_gqa"]
    write_checkpoint(tmp_path / "source", case.hf_config(), case.hf_tensors())
    crosswalk.convert(tmp_path / "source", tmp_path / "native")
    document = yaml.safe_load((tmp_path / "native" / METADATA).read_text())
    document["config"]["base_model"] = case.native_config()
    (tmp_path / "native" / METADATA).write_text(yaml.safe_dump(document))
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "source")


@pytest.mark.parametrize("image_token_index", [{}, {"image_token_index": 68}], ids=["", "image_token_index"])
def test_a_multimodal_format_without_vision_is_a_language_model(image_token_index: Any, tmp_path: Path) -> None:
    """The trainer refuses ``model: multimodal`` without an encoder. A key that means nothing then comes back."""
    config = CASES["apriel2_attention"].hf_config() | {
        "architectures": ["Apriel2ForConditionalGeneration"],
        "model_type": "apriel2",
        **image_token_index,
    }
    write_checkpoint(tmp_path / "source", config, random_tensors(custom_oracles.BY_MODEL_TYPE["apriel2"](config)))
    crosswalk.convert(tmp_path / "source", tmp_path / "native")
    found = yaml.safe_load((tmp_path / "native" / METADATA).read_text())
    assert (found["model"], found["config"]["type"]) == ("gpt", "gpt")
    assert not {"vision_encoder", "image_token_index"} & found["config"]["base_model"].keys()
    crosswalk.verify(tmp_path / "source", tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "source")


def test_a_multimodal_model_stays_one() -> None:
    found = stored({"vision_encoder": {}}, "multimodal_model")
    assert (found["model"], found["config"]["type"]) == ("multimodal", "multimodal")


def test_a_type_is_stored_only_as_one_that_it_extends() -> None:
    types = "  a: {}\n  b: {stored_as: {a: width == 1}, fields: {width: int}}\n"
    text = f"crosswalk: 1\nlayout: tiny\nroot: a\ntypes:\n{types}"
    with pytest.raises(CrosswalkError) as error:
        load_layout(parse_document(text, "tiny.yaml"))
    (found,) = error.value.diagnostics
    assert f"{found.position}: {found.message}" == (
        "tiny.yaml:6:19: type `b` cannot be stored as `a`, which it does not extend"
    )


@pytest.mark.parametrize("name", ["no", "on", "y", "1e5", "12:30", "~", "2026-01-02", "0o17", "0x1f", "1_000", "="])
def test_hostile_names_of_blocks_arrive(name: str, tmp_path: Path) -> None:
    config = json.loads(json.dumps(CASES["apriel2_pattern_short"].hf_config()))
    decoder = config["decoder"]
    old = decoder["pattern"][0]
    decoder["blocks"][name] = decoder["blocks"].pop(old)
    decoder["pattern"] = [name if entry == old else entry for entry in decoder["pattern"]]
    write_checkpoint(tmp_path / "source", config, random_tensors(custom_oracles.BY_MODEL_TYPE["apriel2_text"](config)))
    crosswalk.convert(tmp_path / "source", tmp_path / "native")
    found = yaml.safe_load((tmp_path / "native" / METADATA).read_text())["config"]["base_model"]["decoder"]
    assert name in found["blocks"]
    assert found["pattern"] == decoder["pattern"]
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "source")


def test_many_unknown_fields_are_one_short_problem() -> None:
    config = {f"key_{number}": number for number in range(20_000)} | {"x" * 100_000: 1, "decoder": {"a": 1, "blok": 2}}
    with pytest.raises(CrosswalkError) as caught:
        crosswalk.normalize_native(config)
    assert len(str(caught.value)) < 10_000
    first, *others = (found.message for found in caught.value.diagnostics)
    assert first.startswith(
        "`base_model` has 20001 unknown fields: type `base_model` of layout `fast_llm` has no field "
    )
    assert first.endswith("`key_7`, and so on")
    assert any("`decoder.blok`: type `fixed`" in message for message in others)


def test_a_value_of_any_length_is_cut_where_it_is_shown() -> None:
    config = {"hidden_size": "9" * 1_000_000}
    with pytest.raises(CrosswalkError) as caught:
        crosswalk.normalize_native(config)
    assert "`hidden_size` must be of type int" in str(caught.value)
    assert len(str(caught.value)) < 20_000
