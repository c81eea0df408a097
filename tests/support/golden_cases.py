"""Reference conversions: what the original trainer made of small random checkpoints of the real Hugging Face classes.

One folder a case below ``tests/golden``; tensors are BF16.

case.json               format, versions, the outcome of every step of the reference (``ok`` or how it failed)
hf_config.json          the Hugging Face config as its own class writes it
hf.safetensors          the tensors under their names on disk
fast_llm_config.yaml    the native base-model config; fields at their default may be absent
fast_llm.safetensors    the native tensors (on disk the trainer appends ``/weights`` to each name)
fast_llm_metadata.yaml  metadata.yaml of the trainer's own checkpoint
hf_config_export.json   the config that the reference's exporter makes of the native config
trainer.safetensors     the hidden states and logits of its forward pass, see ``reference/native_cases.py``
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden_differences import expected_native
from ruamel.yaml import YAML

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True, slots=True)
class Case:
    """One reference conversion; ``name`` is its folder."""

    name: str
    format: str
    root: str
    transformers: str
    steps: dict[str, Any]

    def has(self, file: str) -> bool:
        return (GOLDEN / self.name / file).exists()

    @property
    def path(self) -> Path:
        return GOLDEN / self.name

    @property
    def dialect(self) -> str:
        """The dialect that the exporter of the reference wrote: it follows the installed transformers."""
        major, minor = (int(part) for part in self.transformers.split(".")[:2])
        if self.format == "gemma4":
            return GEMMA4_OLD if (major, minor) < (5, 15) else NEWEST
        return NEWEST if major >= 5 else TRANSFORMERS_4

    def hf_config(self) -> dict[str, Any]:
        return _json(self.path / "hf_config.json")

    def hf_config_export(self) -> dict[str, Any]:
        return _json(self.path / "hf_config_export.json")

    def native_config(self) -> dict[str, Any]:
        """The native config of the reference, with the intended differences."""
        return expected_native(self.format, self.reference_native_config())

    def reference_native_config(self) -> dict[str, Any]:
        return read_yaml(self.path / "fast_llm_config.yaml")

    def metadata(self) -> dict[str, Any]:
        return read_yaml(self.path / "fast_llm_metadata.yaml")

    def hf_tensors(self) -> dict[str, Any]:
        return load_tensors(self.path / "hf.safetensors")

    def native_tensors(self) -> dict[str, Any]:
        return load_tensors(self.path / "fast_llm.safetensors")


#: Names of the dialects, kept in one place.
NEWEST = "transformers-5"
TRANSFORMERS_4 = "transformers-4"
GEMMA4_OLD = "transformers-5.5"


def load_tensors(path: Path) -> dict[str, Any]:
    """All tensors of a safetensors file, as torch tensors."""
    from safetensors.torch import load_file

    return load_file(path)


def read_yaml(path: Path) -> dict[str, Any]:
    data = YAML(typ="safe", pure=True).load(path.read_text())
    assert isinstance(data, dict)
    return data


def _json(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text())
    assert isinstance(data, dict)
    return data


def _read(folder: Path) -> Case:
    data = _json(folder / "case.json")
    root = {"gpt": "base_model", "multimodal": "multimodal_model"}[data["model_type"]]
    return Case(folder.name, data["format"], root, data["transformers"], data["steps"])


CASES: dict[str, Case] = {folder.name: _read(folder) for folder in sorted(GOLDEN.iterdir()) if folder.is_dir()}


def cases(*files: str) -> list[Case]:
    """The cases that have all the given files."""
    return [case for case in CASES.values() if all(case.has(file) for file in files)]
