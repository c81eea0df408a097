"""Models that denoise tokens in any order: they attend in both directions, and their classes know no window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from formats import normalized
from golden_cases import CASES, Case
from safetensors.torch import save_file

import crosswalk
from crosswalk.compiler.catalog import Catalog
from crosswalk.runtime.errors import CrosswalkError

DIFFUSION = [case for case in CASES.values() if case.format in ("dream", "diffusion_llama")]
NAMES = [case.name for case in DIFFUSION]
WINDOW = {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1, "use_mrope": False}


def _mixers(native: dict[str, Any], format: str) -> list[dict[str, Any]]:
    return [block["mixer"] for block in normalized(native, format)["decoder"]]


def _source(path: Path, case: Case, **keys: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(case.hf_config() | keys, indent=1))
    save_file(case.hf_tensors(), path / "model.safetensors")
    for name in Catalog().mapping(case.format).files:
        (path / name).write_text(f"# {name}")
    return path


@pytest.mark.parametrize("case", DIFFUSION, ids=NAMES)
def test_a_model_that_attends_in_both_directions_is_imported_as_such(case: Case) -> None:
    reference = _mixers(case.reference_native_config(), case.format)
    found = _mixers(crosswalk.import_config(case.hf_config()), case.format)
    assert {mixer["causal"] for mixer in reference} == {True}
    assert {mixer["causal"] for mixer in found} == {False}
    assert {mixer["window_size"] for mixer in found} == {None}


@pytest.mark.parametrize("types", [None, ["full_attention", "sliding_attention"]])
def test_the_class_of_dream_looks_at_no_window(types: list[str] | None) -> None:
    config = CASES["dream_base"].hf_config()
    plain = crosswalk.import_config(config)
    assert crosswalk.import_config(config | WINDOW | ({"layer_types": types} if types else {})) == plain


@pytest.mark.parametrize("case", DIFFUSION, ids=NAMES)
def test_only_a_model_that_attends_in_both_directions_is_exported(case: Case) -> None:
    native = crosswalk.import_config(case.hf_config())
    exported = crosswalk.export_config(native, case.format)
    assert crosswalk.import_config(exported) == native
    assert not {"sliding_window", "use_sliding_window", "layer_types"} & exported.keys()
    mixer = native["decoder"]["block"]["mixer"]
    mixer["window_size"] = 5
    with pytest.raises(CrosswalkError, match="window"):
        crosswalk.export_config(native, case.format)
    mixer |= {"window_size": None, "causal": True}
    with pytest.raises(CrosswalkError, match=r"decoder\.block\.mixer\.causal` must be false.*\[export/fact\]"):
        crosswalk.export_config(native, case.format)


@pytest.mark.parametrize("name", ["llama_gqa", "mistral_sliding", "mixtral_base", "qwen2_base", "mtp_llama_3heads"])
def test_a_causal_class_takes_no_other_model(name: str) -> None:
    case = CASES[name]
    native = crosswalk.import_config(case.hf_config())
    native["decoder"]["block"]["mixer"] |= {"window_size": None, "causal": False}
    with pytest.raises(CrosswalkError, match=r"decoder\.block\.mixer\.causal"):
        crosswalk.export_config(native, case.format)


def test_the_keys_of_a_window_come_back_byte_for_byte(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", CASES["dream_base"], **WINDOW)
    crosswalk.convert(source, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert (tmp_path / "back/config.json").read_bytes() == (source / "config.json").read_bytes()


def test_files_of_the_first_release_spell_the_type_otherwise(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", CASES["dream_base"], model_type="Dream")
    report = crosswalk.convert(source, tmp_path / "native")
    assert report.format == "dream"
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text())["model_type"] == "Dream"


@pytest.mark.parametrize("case", DIFFUSION, ids=NAMES)
def test_a_generation_config_is_made_where_there_is_none(case: Case, tmp_path: Path) -> None:
    """The classes open generation_config.json when they are loaded, and fail without."""
    source = _source(tmp_path / "source", case, bos_token_id=3, eos_token_id=4)
    crosswalk.convert(source, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "back")
    made = json.loads((tmp_path / "back/generation_config.json").read_text())
    assert made == {"bos_token_id": 3, "eos_token_id": 4, "mask_token_id": 88}
    crosswalk.verify(tmp_path / "native", tmp_path / "back")


@pytest.mark.parametrize("case", DIFFUSION, ids=NAMES)
def test_a_generation_config_is_carried_or_given(case: Case, tmp_path: Path) -> None:
    source = _source(tmp_path / "source", case)
    crosswalk.convert(source, tmp_path / "bare")
    (source / "generation_config.json").write_text('{"steps": 7}')
    crosswalk.convert(tmp_path / "bare", tmp_path / "given", model_files=source)
    crosswalk.convert(source, tmp_path / "native")
    crosswalk.convert(tmp_path / "native", tmp_path / "carried")
    for back in ("given", "carried"):
        assert (tmp_path / back / "generation_config.json").read_text() == '{"steps": 7}'


def test_saving_a_live_model_makes_the_generation_config_too(tmp_path: Path) -> None:
    case = CASES["dream_base"]
    source = _source(tmp_path / "source", case)
    native = crosswalk.import_config(case.hf_config())
    crosswalk.save(case.native_tensors(), native, tmp_path / "saved", "dream", carry_from=source)
    assert json.loads((tmp_path / "saved/generation_config.json").read_text()) == {"mask_token_id": 88}
