"""All kinds of directories, in the order in which they are looked for."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from crosswalk.checkpoints.huggingface import holds_weights
from crosswalk.compiler.layout.model import Layout
from crosswalk.runtime.errors import Position, fail

from . import dcp, fast_llm, huggingface, safetensors, torch_dist
from .kind import Kind

HUGGING_FACE = huggingface.KIND
#: Those of trainers. A directory may have the marks of several: the first is what it is.
OF_TRAINERS: tuple[Kind, ...] = (fast_llm.KIND, torch_dist.KIND, dcp.KIND, safetensors.KIND)
BY_NAME = {kind.name: kind for kind in OF_TRAINERS}


def kind_of(path: Path, layout: str | None = None) -> Kind:
    """The kind of a directory. One that shows none is of Hugging Face, as is every one of which the user says so; or,
    if another ``layout`` is said, nothing but safetensors files. Raises ``CrosswalkError`` for one that may not be
    read."""
    if layout == HUGGING_FACE.name:
        return HUGGING_FACE
    try:
        shown = next((kind for kind in OF_TRAINERS if kind.recognises(path)), HUGGING_FACE)
        inside = _inside(path) if shown is HUGGING_FACE else []
    except PermissionError as error:
        raise fail("source/unreadable", f"cannot be read: {error.strerror}", Position(str(path))) from error
    if shown is not HUGGING_FACE:
        return shown
    if len(inside) == 1 and not holds_weights(path):
        text = f"the checkpoint is not here, but in the folder {inside[0]}"
        raise fail("source/not-found", text, Position(str(path)), f"name {path / inside[0]}")
    return safetensors.KIND if layout is not None else shown


def _inside(path: Path) -> list[str]:
    """The folders of torch.distributed.checkpoint in a directory: trainers keep a config and more beside one."""
    found = []
    for entry in path.iterdir() if path.is_dir() else ():
        with suppress(OSError):  # one that may not be looked into
            if (entry / dcp.KIND.mark).is_file():
                found.append(entry.name)
    return found


def kind_to_write(name: str | None, layout: Layout | None) -> Kind:
    """The kind asked for, or that of the layout; ``layout`` is None for Hugging Face. Raises ``CrosswalkError`` for one
    that does not exist, or is not for this layout."""
    if layout is None:
        if name not in (None, HUGGING_FACE.name):
            text = f"what goes to `hf` is a Hugging Face directory, and no `{name}`"
            raise fail("usage/kind", text, None, "leave out --as")
        return HUGGING_FACE
    kind = BY_NAME.get(name or layout.directory)
    every = [known for known in OF_TRAINERS if known.lay_out is not None]
    allowed = [known.name for known in every if known.every or known.name == layout.directory]
    if kind is None or kind.name not in allowed:
        text = f"a checkpoint of layout `{layout.name}` cannot be written as `{name or layout.directory}`"
        raise fail("usage/kind", text, None, f"pass --as with one of {', '.join(allowed)}")
    return kind
