"""The kind of directory that transformers reads and writes."""

from __future__ import annotations

from pathlib import Path

from crosswalk.checkpoints.huggingface import CONFIG
from crosswalk.runtime.checkpoint.output import OutputLayout, hugging_face_layout

from .kind import Contents, Kind


def _recognises(path: Path) -> bool:
    return (path / CONFIG).is_file()


def _lay_out(contents: Contents, size: int) -> OutputLayout:
    return hugging_face_layout(size)


KIND = Kind("hf", CONFIG, _recognises, None, _lay_out)
