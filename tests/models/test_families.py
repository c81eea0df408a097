"""Each family against its class of transformers: names, shapes, logits, defaults, and the way there and back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import oracles
import pytest
from comparing import differences, tensor_differences
from family_cases import CONFIGS, format_of
from formats import normalized
from safetensors.torch import load_file

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

TOLERANCE = 1e-5
#: Whose hidden states are scaled by a number.
SCALED = ("granite", "granitemoe", "granitemoeshared", "hyperclovax-plain")
#: Of the file, not of the model.
APART = ("architectures", "model_type", "transformers_version", "dtype")

pytestmark = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="configs as transformers 5 writes them")


@pytest.fixture(params=list(CONFIGS), scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of a case, and a directory with a real random model of its class."""
    directory = tmp_path_factory.mktemp("family") / "original"
    oracles.make_checkpoint(directory, CONFIGS[request.param])
    return request.param, directory


def test_names_and_shapes_are_those_of_the_class(case: tuple[str, Path]) -> None:
    name, _ = case
    plan = crosswalk.compile_plan(oracles.as_saved(CONFIGS[name]), to="fast_llm")
    assert {tensor.name: tensor.shape for tensor in plan.sources} == oracles.names_and_shapes(CONFIGS[name])
    assert str(plan.verify()) == "bijective"


def test_the_reference_computes_what_the_class_computes(case: tuple[str, Path]) -> None:
    name, directory = case
    found = crosswalk.compare(directory, tokens=19, tolerance=TOLERANCE)
    assert found.format == format_of(name)
    assert found.same, found
    assert bool(found.notes) == (name in SCALED)


def test_there_and_back_gives_the_same_bytes(case: tuple[str, Path], tmp_path: Path) -> None:
    _, directory = case
    crosswalk.convert(directory, tmp_path / "native", to="fast_llm")
    crosswalk.convert(tmp_path / "native", tmp_path / "back", to="hf")
    before, after = (folder / "config.json" for folder in (directory, tmp_path / "back"))
    assert after.read_text() == before.read_text()
    assert not tensor_differences(*(load_file(path.with_name("model.safetensors")) for path in (after, before)))


def test_a_model_that_comes_from_nowhere_is_written_as_the_same_model(case: tuple[str, Path], tmp_path: Path) -> None:
    """A native checkpoint that remembers no config.json: the class reads what is written as the model it was."""
    name, directory = case
    crosswalk.convert(directory, tmp_path / "native", to="fast_llm")
    trained = _forgotten(tmp_path / "native", tmp_path / "trained")
    crosswalk.convert(trained, tmp_path / "back", format=format_of(name))
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    native = [normalized(crosswalk.import_config(c), format_of(name)) for c in (written, CONFIGS[name])]
    assert differences(*native) == []
    tokens = {key: value for key, value in CONFIGS[name].items() if key.endswith("_token_id")}
    (tmp_path / "back" / "config.json").write_text(json.dumps(written | tokens))
    found, expected = (oracles.logits(folder) for folder in (tmp_path / "back", directory))
    assert float((found - expected).norm() / expected.norm()) < TOLERANCE


def _forgotten(native: Path, target: Path) -> Path:
    """The same checkpoint as the trainer writes it again: without what Crosswalk keeps in the metadata."""
    from ruamel.yaml import YAML

    target.mkdir()
    yaml = YAML(typ="safe")
    metadata = yaml.load((native / "metadata.yaml").read_text())
    metadata["metadata"].pop("crosswalk", None)
    with (target / "metadata.yaml").open("w") as file:
        yaml.dump(metadata, file)
    for path in native.glob("*.safetensors"):
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_the_keys_that_transformers_4_has_for_the_kinds_of_gemma3_say_the_same() -> None:
    scaling = {"factor": 3.5, "low_freq_factor": 1.25, "high_freq_factor": 3.5, "original_max_position_embeddings": 64}
    config = copy.deepcopy(CONFIGS["gemma3_text"])
    config["rope_parameters"]["full_attention"] |= {"rope_type": "llama3", **scaling}
    native = crosswalk.import_config(config)
    older = crosswalk.export_config(native, "gemma3_text", dialect="transformers-4")
    assert (older["rope_theta"], older["rope_local_base_freq"]) == (543210.0, 12345.0)
    assert older["rope_scaling"] == {"rope_type": "llama3", **scaling}
    assert crosswalk.import_config(older) == native
    legacy = older | {"rope_scaling": {"type": "llama3", **scaling}}
    assert crosswalk.import_config(legacy) == native
    plain = crosswalk.export_config(crosswalk.import_config(CONFIGS["gemma3_text"]), "gemma3_text", "transformers-4")
    assert plain.get("rope_scaling") is None
    assert crosswalk.import_config(plain) == crosswalk.import_config(CONFIGS["gemma3_text"])


def test_what_ministral3_loses_is_beyond_the_original_context(tmp_path: Path) -> None:
    """Scores that grow with the position are refused; accepted, the models are the same up to there."""
    config = copy.deepcopy(CONFIGS["ministral3"])
    config["rope_parameters"] |= {"llama_4_scaling_beta": 0.25, "original_max_position_embeddings": 16}
    source = tmp_path / "source"
    oracles.make_checkpoint(source, config)
    with pytest.raises(CrosswalkError, match="the trainer does not scale scores beyond the original context") as caught:
        crosswalk.convert(source, tmp_path / "refused")
    assert caught.value.diagnostics[0].code == "config/lossy"
    report = crosswalk.convert(source, tmp_path / "native", allow_lossy=True)
    assert [text for text in report.lossy if "llama_4_scaling_beta" in text]
    crosswalk.convert(tmp_path / "native", tmp_path / "back", to="hf")
    assert (tmp_path / "back" / "config.json").read_text() == (source / "config.json").read_text()
    assert crosswalk.compare(source, tmp_path / "native", tokens=16, tolerance=TOLERANCE).same
    beyond = crosswalk.compare(source, tmp_path / "native", tokens=40, tolerance=TOLERANCE)
    assert beyond.first == "decoder.0"
    trained = _forgotten(tmp_path / "native", tmp_path / "trained")
    crosswalk.convert(trained, tmp_path / "new", format="ministral3")
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written["rope_parameters"]["llama_4_scaling_beta"] == 0.0


#: Without it a file is of another format, and is refused in other words than the 0 that the class takes.
OTHERS = [("granitemoeshared", "shared_intermediate_size")]
_LEFT_OUT = [
    (name, key)
    for name, config in CONFIGS.items() if "-" not in name
    for key in config if key not in APART and (name, key) not in OTHERS
]  # fmt: skip


@pytest.mark.parametrize(("name", "key"), _LEFT_OUT)
def test_a_key_left_out_means_what_the_class_says(name: str, key: str) -> None:
    config = copy.deepcopy(CONFIGS[name])
    del config[key]
    try:
        filled = oracles.as_saved(config)
    except Exception:  # what the class takes does not fit the other keys
        pytest.skip("the class refuses the file without it")
    assert _outcome(config, format_of(name)) == _outcome(filled, format_of(name))


def _outcome(config: dict[str, Any], format: str) -> dict[str, Any] | list[tuple[str, str]]:
    try:
        return normalized(crosswalk.import_config(config, format), format)
    except CrosswalkError as error:
        return sorted({(problem.code, problem.message) for problem in error.diagnostics})
