"""The source specs of an import plan are the names, shapes and tie state of the real classes."""

from __future__ import annotations

from pathlib import Path

import oracles
import pytest
from golden_cases import Case, cases

_GOLDEN = cases("hf_config.json", "hf.safetensors")


def _require(format: str) -> None:
    if format in oracles.REAL_CLASSES and not oracles.available(format):
        pytest.skip(f"this transformers has no {oracles.REAL_CLASSES[format]}")


@pytest.mark.parametrize("case", _GOLDEN, ids=[case.name for case in _GOLDEN])
def test_oracle_agrees_with_the_files_of_the_reference(case: Case) -> None:
    _require(case.format)
    assert oracles.names_and_shapes(case.hf_config()) == oracles.header(case.path / "hf.safetensors")


@pytest.mark.parametrize("name", ["llama_all_bias_tied", "mixtral_base", "llava_pixtral", "gemma4_moe_k_eq_v"])
def test_oracle_agrees_with_save_pretrained(name: str, tmp_path: Path) -> None:
    case = next(case for case in _GOLDEN if case.name == name)
    _require(case.format)
    oracles.make_checkpoint(tmp_path, case.hf_config())
    assert oracles.names_and_shapes(case.hf_config()) == oracles.header(tmp_path / "model.safetensors")
