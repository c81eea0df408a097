"""What a kind of directory is: how it is recognised, opened, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crosswalk.checkpoints.opened import Opened
from crosswalk.compiler.layout.model import Layout
from crosswalk.runtime.checkpoint.output import OutputLayout
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.records import Record, field

from .forms import Form, Mappings


class Given(Record, frozen=True):
    """What a user says of a directory that may not say it. ``layout``: the name of its layout; ``layouts`` and
    ``mappings``: find one by its name, ``kept_as`` the names of layouts whose directories are of a kind; ``config``: a
    file with the native config, or that config; ``like``: whether an original is named, whose config counts."""

    layouts: Callable[[str], Layout]
    mappings: Mappings
    kept_as: Callable[[str], list[str]]
    layout: str | None = None
    config: Path | Mapping[str, Any] | None = None
    like: bool = False


class Contents(Record, frozen=True):
    """What is written beside the tensors of a trainer: its layout, the complete native config and the type of that,
    what it is to remember of its origin, parameters (``ties``) that have the storage of another one, the tensors that
    are written (``targets``), and other forms of the config."""

    layout: Layout
    root: str
    config: Mapping[str, Any]
    origin: Mapping[str, Any] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    targets: Sequence[TensorSpec] = ()
    forms: Sequence[Form] = ()


class Kind(Record, frozen=True):
    """``mark``: the file that shows a directory to be of this kind. ``open`` raises ``CrosswalkError`` with everything
    that is wrong with one; that of Hugging Face is opened by itself. ``lay_out``: how one is written, with data files
    of so many bytes, None if it is only read. ``every``: whether any layout can be written so, or only one whose
    directories are of this kind. ``twice``: whether parameters that are tied stand in one under each of their names.
    ``exact``: whether its loader takes the tensors that its config says, and no others. ``forms``: whether other forms
    of the config are written in one.
    """

    name: str
    mark: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, Given], Opened] | None
    lay_out: Callable[[Contents, int], OutputLayout] | None
    every: bool = False
    twice: bool = False
    exact: bool = False
    forms: bool = False
