"""There and back: byte-identical tensors and an identical config, in memory and through directories."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from comparing import differences, same_bytes, shapes, stored_as, tensor_differences
from formats import CONFIGS, normalized
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_checkpoints import MODEL_FILES, random_tensors, read_checkpoint, write_checkpoint
from semantics import meaning

import crosswalk
from crosswalk.runtime import execute

pytestmark = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="drawn configs are read by transformers 5")

# Without shrinking: a failing example through files would be shrunk for minutes.
_FILES = settings(
    max_examples=max(3, settings().max_examples // 4), phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
FORMATS = [f for f in CONFIGS if f not in oracles.REAL_CLASSES or oracles.available(f)]


def round_trip(config: dict[str, Any], tensors: dict[str, torch.Tensor], **options: Any) -> Any:
    """Config and tensors after HF -> native -> HF, on disk; the native checkpoint is verified against its source."""
    with tempfile.TemporaryDirectory() as folder:
        source, native, back = (Path(folder) / name for name in ("source", "native", "back"))
        write_checkpoint(source, config, tensors)
        crosswalk.convert(source, native, to="fast_llm")
        crosswalk.verify(source, native)
        crosswalk.convert(native, back, to="hf", **options)
        for name in ("generation_config.json", *MODEL_FILES.get(config["model_type"], ())):
            assert (back / name).read_bytes() == (source / name).read_bytes(), name
        return read_checkpoint(back)


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data())
def test_plans_there_and_back_restore_every_byte(format: str, data: st.DataObject) -> None:
    config = data.draw(CONFIGS[format])
    native_config = crosswalk.import_config(config, format=format)
    there = stored_as(crosswalk.compile_plan(config, format=format, to="fast_llm"), "BF16")
    back = stored_as(crosswalk.compile_plan(native_config, format=format, to="hf"), "BF16")
    assert str(there.verify()) == str(back.verify()) == "bijective"
    assert there.inverse().digest == back.digest
    assert back.inverse().digest == there.digest
    tensors = random_tensors(shapes(there.sources))
    native = dict(execute(there, tensors))
    assert {name: tuple(tensor.shape) for name, tensor in native.items()} == shapes(there.targets)
    assert tensor_differences(dict(execute(back, native)), tensors) == []


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data())
def test_exported_config_imports_as_the_same_native_config(format: str, data: st.DataObject) -> None:
    native = crosswalk.import_config(data.draw(CONFIGS[format]), format=format)
    again = crosswalk.import_config(crosswalk.export_config(native, format), format=format)
    assert differences(normalized(again, format), normalized(native, format)) == []


@pytest.mark.parametrize("format", FORMATS)
@_FILES
@given(data=st.data())
def test_files_there_and_back_keep_the_meaning_of_every_key(format: str, data: st.DataObject) -> None:
    config = data.draw(CONFIGS[format])
    tensors = random_tensors(oracles.names_and_shapes(config))
    again, found = round_trip(config, tensors)
    assert tensor_differences(found, tensors) == []
    again.pop("auto_map", None)  # written even where the file had none
    assert differences(meaning(again), meaning(config)) == []
    if format in oracles.REAL_CLASSES:
        assert differences(oracles.as_saved(again), oracles.as_saved(config)) == []


@pytest.mark.parametrize("format", [f for f in FORMATS if f in oracles.REAL_CLASSES])
@_FILES
@given(data=st.data())
def test_a_config_as_its_class_writes_it_comes_back_identical(format: str, data: st.DataObject) -> None:
    config = oracles.as_saved(data.draw(CONFIGS[format]))
    again, _ = round_trip(config, random_tensors(oracles.names_and_shapes(config)))
    assert differences(again, config) == []


@pytest.mark.parametrize("format", ["apriel2_text", "apriel2"])
@_FILES
@given(data=st.data())
def test_a_config_that_spells_everything_out_comes_back_identical(format: str, data: st.DataObject) -> None:
    config = data.draw(CONFIGS[format])
    again, _ = round_trip(config, random_tensors(oracles.names_and_shapes(config)))
    again.pop("auto_map", None)
    assert differences(again, config) == []


def test_random_tensors_hold_what_a_cast_would_lose() -> None:
    tensor = random_tensors({"x": (99, 99)})["x"]
    assert tensor.isnan().any()
    assert same_bytes(tensor, tensor.clone())
    assert not same_bytes(torch.tensor([0.0]), torch.tensor([-0.0]))
