"""What a kind of directory is: how it is recognised, opened, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.opened import Opened
from crosswalk.compiler.layout.model import Layout
from crosswalk.runtime.checkpoint.output import OutputLayout
from crosswalk.runtime.plan.model import TensorSpec


@dataclass(frozen=True)
class Given:
    """What a user says of a directory that may not say it. ``layout``: the name of its layout; ``layouts``: finds one
    by its name; ``config``: a file with the native config, or that config."""

    layouts: Callable[[str], Layout]
    layout: str | None = None
    config: Path | Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Contents:
    """What is written beside the tensors of a trainer: its layout, the complete native config and the type of that,
    what it is to remember of its origin, parameters (``ties``) that have the storage of another one, and the tensors
    that are written (``targets``)."""

    layout: Layout
    root: str
    config: Mapping[str, Any]
    origin: Mapping[str, Any] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    targets: Sequence[TensorSpec] = ()


@dataclass(frozen=True)
class Kind:
    """``mark``: the file that shows a directory to be of this kind. ``open`` raises ``CrosswalkError`` with everything
    that is wrong with one; that of Hugging Face is opened by itself. ``lay_out``: how one is written, with data files
    of so many bytes, None if it is only read. ``every``: whether any layout can be written so, or only one whose
    directories are of this kind. ``twice``: whether parameters that are tied stand in one under each of their names.
    ``exact``: whether its loader takes the tensors that its config says, and no others.
    """

    name: str
    mark: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, Given], Opened] | None
    lay_out: Callable[[Contents, int], OutputLayout] | None
    every: bool = False
    twice: bool = False
    exact: bool = False
