"""The Hugging Face checkpoint that a native one came from, as far as it is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.records import Record, field


class Origin(Record, frozen=True, kw_only=True):
    """What is known of the Hugging Face checkpoint that a native one came from. ``text``: its config.json, of which
    ``config`` is the content; ``dtype``: what most bytes of its tensors have; ``tensor_dialect``: whose names its
    tensors have, None for the newest; ``lossy``: whether its config is inexact here; ``padded``: axis -> its size
    ``from`` before and ``to`` after; ``files``: those that go along, by name; ``kept``: keys of its config that were
    carried along without being understood; ``native``: its native config, where the one to write is to be compared with
    it; ``name``: what users call it."""

    format: str | None = None
    text: str = ""
    config: Mapping[str, Any] | None = None
    dtype: str | None = None
    tensor_dialect: str | None = None
    lossy: bool = False
    padded: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    native: Mapping[str, Any] | None = None
    name: str = ""

    def is_of(self, mapping: CompiledMapping) -> bool:
        """Whether its config is one of this format."""
        return self.format == mapping.name and self.config is not None
