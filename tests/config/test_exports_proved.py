"""Every export is read again: a mapping that does not write what it reads is found out, wherever it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden_cases import CASES

import crosswalk
from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.pipeline import PlanOptions, export_checkpoint, export_model, import_model
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.errors import CrosswalkError

BASE = {key: value for key, value in CASES["llama_gqa"].hf_config().items() if key != "rope_scaling"}


def compiled(text: str) -> CompiledMapping:
    return Catalog(texts={"test": f"crosswalk: 1\nextends: llama\n{text}"}).compiled("test")


#: The value that is left out is not the one that an absent key means.
LEFT_OUT = """attention:
  config:
    power: {is: softmax_scale_power, omit: 0.25, default: 1.0}
"""
#: What one dialect has no place for.
ONE_DIALECT = """dialects:
  transformers_4:
    config:
      old_power: {is: power, unset: 0.25}
attention:
  config:
    power: {is: softmax_scale_power, default: 1.0}
"""
FIELD = "`decoder.block.mixer.softmax_scale_power` (key `power`) is 0.25, and"
WAYS: dict[str, Callable[[CompiledMapping, dict[str, Any]], Any]] = {
    "config": lambda mapping, config: export_model(mapping, config, PlanOptions()),
    "checkpoint": lambda mapping, config: export_checkpoint(mapping, config, None, PlanOptions()),
}


def native(mapping: CompiledMapping, **keys: Any) -> dict[str, Any]:
    return import_model(mapping, BASE | keys, PlanOptions())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (LEFT_OUT, 5, f"{FIELD} the config.json that says so would be read as 1.0"),
        (ONE_DIALECT, 9, f"{FIELD} config.json in the dialect `transformers_4` would be read as 1.0"),
    ],
)
def test_a_field_that_is_read_otherwise_is_named_with_its_key_and_line(
    way: str, text: str, line: int, words: str
) -> None:
    mapping = compiled(text)
    with pytest.raises(CrosswalkError) as error:
        WAYS[way](mapping, native(mapping, power=0.25))
    (found,) = error.value.diagnostics
    assert (found.code, found.message) == ("export/differs", words)
    assert found.rule is not None
    assert (found.rule.file, found.rule.line) == ("test.yaml", line)
    assert WAYS[way](mapping, native(mapping, power=0.75))


def test_a_dialect_that_has_room_for_it_is_written() -> None:
    mapping = compiled(ONE_DIALECT)
    written = export_model(mapping, native(mapping, power=0.25), PlanOptions(dialect="transformers_5"))
    assert written["power"] == 0.25


def test_the_functions_refuse_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crosswalk.jobs.formats import catalog

    header = "crosswalk: 1\nextends: llama\narchitecture: OtherForCausalLM\nmodel_type: other\n"
    (tmp_path / "other.yaml").write_text(header + LEFT_OUT)
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(tmp_path))
    catalog.cache_clear()
    try:
        other = {"power": 0.25, "model_type": "other", "architectures": ["OtherForCausalLM"]}
        found = crosswalk.import_config(BASE | other)
        with pytest.raises(CrosswalkError, match="would be read as"):
            crosswalk.export_config(found, "other")
    finally:
        monkeypatch.undo()
        catalog.cache_clear()
