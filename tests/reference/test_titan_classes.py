"""``compare`` of checkpoints of torchtitan: its own classes where they are installed, else what is said of them."""

from __future__ import annotations

from pathlib import Path

import oracles
import pytest
import titan_cases
from real_configs import CONFIGS

import crosswalk
from crosswalk.runtime.errors import CrosswalkError


def test_without_torchtitan_the_reference_computes_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosswalk.models.converted._installed", lambda: False)
    oracles.make_checkpoint(tmp_path / "hf", CONFIGS["qwen3"] | {"attention_bias": False})
    source = tmp_path / "hf"
    crosswalk.convert(source, tmp_path / "titan", to="torchtitan")
    found = crosswalk.compare(source, tmp_path / "titan")
    assert found.same
    assert found.by == "the reference"
    assert "torchtitan is not installed: computed by way of `fast_llm`" in found.notes[0]
    assert "pip install --no-deps torchtitan==" in found.notes[0]
    titan_cases.hugging_face("gpt_oss", tmp_path / "other")
    crosswalk.convert(tmp_path / "other", tmp_path / "other-titan", to="torchtitan")
    pairs: list[tuple[Path | None, str | None]] = [(tmp_path / "other-titan", None), (None, "torchtitan_gpt_oss")]
    for converted, format in pairs:
        with pytest.raises(CrosswalkError, match=r"is not installed \[compare/torchtitan\]") as caught:
            crosswalk.compare(tmp_path / "other", converted, format)
        assert "pip install --no-deps torchtitan==" in str(caught.value)


@pytest.mark.parametrize("name", titan_cases.FORMATS)
def test_the_classes_of_torchtitan_run_its_checkpoints(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchtitan")
    source = titan_cases.hugging_face(name, tmp_path / "hf")
    crosswalk.convert(source, tmp_path / "titan", to="torchtitan")
    found = crosswalk.compare(source, tmp_path / "titan", tokens=23)
    assert found.by == f"`{titan_cases.ROOTS[titan_cases.FORMATS[name][0]]}` of torchtitan"
    assert found.same, found
    assert max(*found.parts.values(), found.logits) < 1e-5
    (tmp_path / "titan" / "crosswalk.yaml").unlink()  # as training saves it
    assert crosswalk.compare(source, tmp_path / "titan", tokens=23, layout="torchtitan") == found
