"""A conversion as something that can be run: its native config, its parameters, and what computes with them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from crosswalk.checkpoints.kinds.every import HUGGING_FACE, kind_of
from crosswalk.checkpoints.opened import Opened
from crosswalk.compiler.layout.scope import normalize
from crosswalk.jobs.detect import chosen_format
from crosswalk.jobs.formats import DEFAULT_LAYOUT, format_named, short_name
from crosswalk.jobs.options import Options
from crosswalk.jobs.plans import import_config
from crosswalk.jobs.prepare import open_import, open_trainer, prepare
from crosswalk.jobs.train import load as load_parameters
from crosswalk.reference import ForwardOutput, forward
from crosswalk.runtime import execute
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.dtypes import torch_dtype
from crosswalk.runtime.errors import CrosswalkError, Position, fail
from crosswalk.runtime.records import Record, replace

#: The layout whose own classes are the reference.
TORCHTITAN = "torchtitan"
_INSTALL = (
    "in an environment of its own: pip install --no-deps torchtitan==0.3.0 triton==3.7.0 spmd_types==0.2.3 tyro einops"
    " torchdata datasets tokenizers torch_checkpointing docstring_parser typeguard shtab"
)


class Converted(Record, frozen=True):
    """``format``: its name; ``config``: complete; ``parameters``: by native name. ``titan``: the type of the config in
    the layout ``torchtitan``, whose classes compute it; None for the reference. ``notes``: what a user should know."""

    format: str
    config: Mapping[str, Any]
    parameters: dict[str, torch.Tensor]
    titan: str | None = None
    notes: tuple[str, ...] = ()

    def run(self, tokens: torch.Tensor, images: Sequence[torch.Tensor]) -> ForwardOutput:
        """What it computes for one sequence of ``tokens`` (sequence,) and ``images`` (3, height, width)."""
        if self.titan is None:
            return forward(self.config, self.parameters, tokens, images)
        from .titan import forward as titan_forward

        return titan_forward(self.config, self.titan, self.parameters, tokens)


def layout_asked(format: str | None) -> str:
    """The layout that a conversion in memory goes to: that of a format of torchtitan, else the one of the reference."""
    named = Options(format=format).named_format
    found = DEFAULT_LAYOUT if named is None else format_named(named, None).layout.name
    return found if found == TORCHTITAN else DEFAULT_LAYOUT


def converted(path: Path, options: Options, source: Mapping[str, Any]) -> Converted:
    """A native checkpoint, or the conversion of one of Hugging Face. ``source``: the config.json that it is compared
    with, which says the config where a directory is said to be of ``options.layout``, and holds none.

    Raises ``CrosswalkError`` with everything that stands in the way, and if torchtitan is not installed where nothing
    else computes the layout."""
    if kind_of(path, options.layout) is HUGGING_FACE:
        return _in_memory(path, options)
    opened = open_trainer(path, Options(layout=options.layout))
    if opened.config is None:
        config = import_config(source, options.format, options.allow_lossy, to=opened.layout.name, keep=options.keep)
        opened = open_trainer(path, Options(layout=options.layout, native_config=config))
    name = str(options.named_format or opened.origin.get("format") or opened.layout.name)
    if opened.layout.name == DEFAULT_LAYOUT and opened.config is not None:
        return Converted(name, normalize(opened.layout, opened.config, opened.root), _read(opened.tensors))
    if opened.layout.name == TORCHTITAN and opened.config is not None and _installed():
        mapping = chosen_format(options.format, source, layout=TORCHTITAN)
        root = opened.root or mapping.root.type.name
        config = normalize(opened.layout, opened.config, root)
        return Converted(short_name(mapping), config, _read(opened.tensors), root)
    return _by_way_of_the_reference(path, options, opened)


def _in_memory(path: Path, options: Options) -> Converted:
    if options.to == TORCHTITAN and not _installed():
        raise _missing(path)
    _, imported = open_import(path, options)
    parameters = {spec.name: torch.empty(spec.shape, dtype=torch.float32) for spec in imported.plan.targets}
    loaded = load_parameters(
        path, parameters, imported.mapping.name, allow_lossy=options.allow_lossy, keep=options.keep
    )
    titan = imported.mapping.root.type.name if options.to == TORCHTITAN else None
    return Converted(loaded.format, loaded.config, parameters, titan)


def _by_way_of_the_reference(path: Path, options: Options, opened: Opened) -> Converted:
    """A checkpoint of another layout, as the layout of the reference holds the model."""
    titan = opened.layout.name == TORCHTITAN
    asked = Options(layout=options.layout, native_config=opened.config if options.layout else None)
    try:
        prepared = prepare(path, replace(asked, format=options.format, to=DEFAULT_LAYOUT, keep=options.keep))
    except CrosswalkError as error:
        raise (_missing(path) if titan else error) from error
    notes = (f"torchtitan is not installed: computed by way of `{DEFAULT_LAYOUT}`; for its classes, {_INSTALL}",)
    parameters = dict(execute(prepared.plan, _read(opened.tensors)))
    return Converted(short_name(prepared.mapping), prepared.config, parameters, notes=notes if titan else ())


def _installed() -> bool:
    return importlib.util.find_spec(TORCHTITAN) is not None


def _missing(path: Path) -> CrosswalkError:
    text = "torchtitan, whose classes compute this model, is not installed"
    return fail("compare/torchtitan", text, Position(str(path)), _INSTALL)


def _read(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, in memory."""
    names = list(checkpoint.tensors)
    reader = Reader(names, [checkpoint.tensors[name] for name in names], checkpoint.files)
    result = {}
    try:
        for index, name in enumerate(names):
            stored = checkpoint.tensors[name]
            data = bytearray(stored.nbytes)
            reader.read(index, stored.offset, memoryview(data))
            flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            result[name] = flat.view(torch_dtype(stored.dtype)).reshape(stored.shape)
    finally:
        reader.close()
    return result
