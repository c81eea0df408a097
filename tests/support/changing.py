"""Configs and checkpoints of reference conversions with one thing changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from golden_cases import Case
from safetensors.torch import save_file


def mixer_of(config: dict[str, Any]) -> dict[str, Any]:
    found = config["decoder"]["block"]["mixer"]
    assert isinstance(found, dict)
    return found


def files_of(case: Case, directory: Path) -> Path:
    """The Hugging Face checkpoint of a reference conversion."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(case.hf_config()))
    save_file(case.hf_tensors(), directory / "model.safetensors", {"format": "pt"})
    return directory


def changed(config: dict[str, Any], *keys: str, value: Any) -> dict[str, Any]:
    """A copy with ``value`` at the place of ``keys``; ``...`` removes the key."""
    result = copy.deepcopy(config)
    *parents, last = keys
    place = result
    for key in parents:
        place = place[key]
    if value is ...:
        place.pop(last, None)
    else:
        place[last] = value
    return result
