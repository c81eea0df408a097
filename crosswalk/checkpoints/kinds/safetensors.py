"""Safetensors files with the names of a layout, any one, and ``crosswalk.yaml`` beside them."""

from __future__ import annotations

from pathlib import Path

from crosswalk.checkpoints.opened import Opened
from crosswalk.runtime.checkpoint.output import OutputLayout, hugging_face_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.records import replace

from .beside import NAME, said_of, text_beside
from .kind import Contents, Given, Kind


def _recognises(path: Path) -> bool:
    return (path / NAME).is_file()


def _open(path: Path, given: Given) -> Opened:
    said, layout = said_of(path, given, KIND.name)
    tensors = open_checkpoint(path)
    return said.opened(path, KIND.name, layout, tensors, tensors.notes)


def _lay_out(contents: Contents, size: int) -> OutputLayout:
    layout = hugging_face_layout(size)
    return replace(layout, finish=lambda written: {**layout.finish(written), **text_beside(contents, written)})


KIND = Kind("safetensors", NAME, _recognises, _open, _lay_out, every=True)
