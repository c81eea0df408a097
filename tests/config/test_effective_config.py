"""What the class of a format computes with is the same before and after: with the dialect of the source, or with both.

The file passes under transformers 4 and 5: each golden case is read by the real config class of whichever is installed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import custom_configs
import oracles
import pytest
from golden_cases import Case, cases
from safetensors.torch import save_file
from semantics import rope_of
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import crosswalk
from crosswalk.compiler.catalog import Catalog

#: Of the file, not of the model; and what is said in two ways: rotary embeddings, compared apart, and the first layer
#: with a window, which ``layer_types`` says.
_APART = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures", "auto_map", "type",
          "rope_parameters", "rope_theta", "rope_scaling", "rope_type", "max_window_layers")  # fmt: skip
#: Known from the source alone.
_CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "max_position_embeddings", "use_cache",
            "initializer_range", "pretraining_tp", "image_size", "image_seq_length", "use_sliding_window",
            "layer_types", "router_jitter_noise", "router_aux_loss_coef", "ssm_cfg",
            "vocab_size_per_layer_input", "output_router_logits", "projection_dim", "initializer_factor")  # fmt: skip
_PARTS = ("text_config", "vision_config")


def _class(config: Mapping[str, Any]) -> Any:
    kind = config["model_type"]
    if kind in custom_configs.CLASSES:
        return custom_configs.CLASSES[kind]
    return CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else None  # noqa: SIM401  (its `get` finds nothing)


def _known(case: Case) -> bool:
    return _class(case.hf_config()) is not None


CASES = [case for case in cases("hf_config.json", "hf.safetensors") if _known(case)]
IDS = [case.name for case in CASES]


def effective(config: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """What the installed class makes of a file: every attribute, the rotary embedding as it computes with it."""
    return _flat(_class(config).from_dict(copy.deepcopy(dict(config))), without)


def _flat(read: Any, without: tuple[str, ...]) -> dict[str, Any]:
    rope = getattr(read, "rope_parameters", None) if oracles.TRANSFORMERS_MAJOR >= 5 else None
    if type(read).__module__ == custom_configs.__name__ and not isinstance(read, custom_configs.MistralConfig):
        rope = None  # classes made for transformers 4 look at their own
    if rope is None:
        theta, scaling = getattr(read, "rope_theta", None), getattr(read, "rope_scaling", None)
        rope = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    rope = {key: value for key, value in rope.items() if key != "type"}
    result = {key: value for key, value in read.to_dict().items() if key not in (*_APART, *_PARTS, *without)}
    parts = {name: _flat(getattr(read, name), without) for name in _PARTS if hasattr(read, name)}
    if parts and oracles.TRANSFORMERS_MAJOR < 5:
        del result["tie_word_embeddings"]  # not looked at: the text model ties by its own
    return {**result, "rope": rope, **parts}


def _in_both_forms(config: Mapping[str, Any]) -> dict[str, Any]:
    """The original with its rotary embedding said in the form of either version, by hand."""
    result = dict(config)
    for name in _PARTS:
        if name in result:
            result[name] = _in_both_forms(result[name])
    if result.get("rope_theta") is None and "rope_parameters" not in result:
        return result
    if "rope_theta" not in result.get("rope_parameters", {"rope_theta": 0}):
        return result  # one for each kind of layer: transformers 4 has no such class
    default = "axial" if result["model_type"] == "pixtral" else "default"
    rope = rope_of(result, default)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    unscaled = rope["rope_type"] in ("default", "axial")
    return result | {
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if unscaled else scaling,
    }


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_without_a_source_the_class_of_either_version_reads_the_same_model(case: Case) -> None:
    exported = crosswalk.export_config(case.native_config(), case.format)
    assert effective(exported, *_CARRIED) == effective(_in_both_forms(case.hf_config()), *_CARRIED)


def _folder(path: Path, case: Case, config: Mapping[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(case.hf_tensors(), path / "model.safetensors")
    for name in Catalog().mapping(case.format).files:
        (path / name).write_text("")
    return path


def _rope_keys(config: Mapping[str, Any]) -> set[str]:
    return set(config) & {"rope_parameters", "rope_theta"}


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_with_a_source_its_dialect_is_kept_and_the_class_reads_the_same(case: Case, tmp_path: Path) -> None:
    """Cast to another dtype, so that config.json is written anew."""
    config = case.hf_config() | {"bos_token_id": 7, "eos_token_id": [8, 9]}
    source = _folder(tmp_path / "source", case, config)
    crosswalk.convert(source, tmp_path / "native", allow_lossy=True)
    crosswalk.convert(tmp_path / "native", tmp_path / "back", dtype="float16")
    back = json.loads((tmp_path / "back/config.json").read_text())
    for found, original in ((back, config), *((back[n], config[n]) for n in _PARTS if n in config)):
        assert _rope_keys(found) == _rope_keys(original)
    assert back["transformers_version"] == config["transformers_version"]
    assert effective(back) == effective(config)
    saved = tmp_path / "saved"
    crosswalk.save(case.native_tensors(), case.native_config(), saved, case.format, carry_from=source)
    assert effective(json.loads((saved / "config.json").read_text())) == effective(config)


LLAMA = next(case for case in CASES if case.name == "llama_rope_llama3")
OLD, NEW = _in_both_forms(LLAMA.hf_config()), _in_both_forms(LLAMA.hf_config())
del OLD["rope_parameters"], NEW["rope_theta"], NEW["rope_scaling"]


@pytest.mark.parametrize(
    ("source", "version", "dialect", "written", "left"),
    [
        (OLD, "4.51.3", None, {"rope_theta"}, "4.51.3"),
        (OLD, "4.51.3", "transformers-5", {"rope_parameters"}, None),
        (OLD, "4.51.3", "transformers-5,transformers-4", {"rope_parameters", "rope_theta"}, "4.51.3"),
        (NEW, "5.0.0.dev0", None, {"rope_parameters"}, "5.0.0.dev0"),
        (NEW, "4.57.1", None, {"rope_parameters"}, None),
        (NEW, "5.24.0", "transformers-4", {"rope_theta"}, None),
    ],
)
def test_the_version_of_another_dialect_is_not_left_in_the_file(
    source: dict[str, Any], version: str, dialect: str | None, written: set[str], left: str | None, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "source", LLAMA, source | {"transformers_version": version})
    crosswalk.convert(folder, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back", dialect=dialect, dtype="float16")
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert (_rope_keys(back), back.get("transformers_version")) == (written, left)


@pytest.mark.parametrize(("version", "written"), [("4.31.0", {"rope_theta"}), ("5.3.0", {"rope_parameters"})])
def test_a_file_that_says_nothing_of_positions_is_in_the_dialect_of_its_version(
    version: str, written: set[str], tmp_path: Path
) -> None:
    config = {key: value for key, value in NEW.items() if key != "rope_parameters"}
    folder = _folder(tmp_path / "source", LLAMA, config | {"transformers_version": version})
    crosswalk.convert(folder, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back", dtype="float16")
    assert _rope_keys(json.loads((tmp_path / "back/config.json").read_text())) == written


def test_the_dialect_of_the_source_is_given_back_byte_for_byte(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "source", LLAMA, OLD)
    crosswalk.convert(folder, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back", dialect="transformers-4")
    assert (tmp_path / "back/config.json").read_bytes() == (folder / "config.json").read_bytes()
