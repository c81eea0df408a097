"""The kind of directory that the trainer Fast-LLM reads and writes: ``metadata.yaml`` and safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from crosswalk.checkpoints.native import METADATA, is_native, metadata_yaml, open_native
from crosswalk.checkpoints.opened import Opened
from crosswalk.runtime.checkpoint.output import OutputLayout, Written, native_layout

from .kind import Contents, Given, Kind


def _open(path: Path, given: Given) -> Opened:
    return open_native(path, given.layouts("fast_llm"))


def _lay_out(contents: Contents, size: int) -> OutputLayout:
    def finish(written: Written) -> Mapping[str, bytes]:
        assert contents.layout is not None
        origin = {**contents.origin, "checksums": dict(sorted(written.checksums.items()))}
        text = metadata_yaml(contents.layout, contents.config, contents.root, written.weight_map, origin)
        return {METADATA: text, "ok": b""}

    return native_layout(finish, size)


KIND = Kind("fast_llm", METADATA, is_native, _open, _lay_out, exact=True)
