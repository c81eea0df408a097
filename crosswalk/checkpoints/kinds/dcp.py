"""A folder of torch.distributed.checkpoint: what training with FSDP, DTensor and their like saves.

Only the tensors of the model are taken: the state of optimizers, schedulers and data loaders beside them is counted,
and left out. A folder says nothing of the model: its config is ``crosswalk.yaml`` in it, or given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from crosswalk.checkpoints.opened import Opened
from crosswalk.compiler.layout.model import Layout
from crosswalk.compiler.notation.templates import Template
from crosswalk.runtime.checkpoint.output import OutputLayout
from crosswalk.runtime.dcp.folder import is_folder, locate, open_folder
from crosswalk.runtime.dcp.metadata import METADATA
from crosswalk.runtime.dcp.output import folder_layout
from crosswalk.runtime.errors import Position, fail

from .beside import said_of, text_beside
from .kind import Contents, Given, Kind

#: First parts of names of what trainers save beside a model.
_STATE = frozenset(
    ("optimizer", "optimizers", "optim", "lr_scheduler", "lr_schedulers", "scheduler", "dataloader", "train_state",
     "rng_state", "rng", "loss_scaler", "grad_scaler", "ema", "ft_manager")
)  # fmt: skip
#: What states of training have the model below.
_ABOVE = ("model", "module", "state_dict", "app", "state", "_orig_mod")


def _open(path: Path, given: Given) -> Opened:
    said, layout = said_of(path, given)
    folder = open_folder(path)
    names, left = model_names(folder.entries.tensors, layout)
    if not names:
        text = f"no tensor of this folder is one of a model: {_counted(left)}"
        raise fail("dcp/no-model", text, Position(str(path / METADATA)), "name the folder that holds the model")
    notes = left_out(left, folder.entries.objects)
    return said.opened(path, KIND.name, layout, locate(folder, names), notes)


def model_names(entries: Iterable[str], layout: Layout) -> tuple[dict[str, str], list[str]]:
    """The entries of the model, under the names that they have in it, and the names of those that are state of the
    training. What a layout has a module for is no state."""
    known = _first_parts(layout)
    names, left = {}, []
    for name in entries:
        first = name.partition(".")[0]
        if first in _STATE and first not in known:
            left.append(name)
        else:
            names[name] = name
    while names:
        firsts = {name.partition(".")[0] for name in names.values()}
        first = next(iter(firsts))
        if len(firsts) > 1 or first not in _ABOVE or first in known or not all("." in name for name in names.values()):
            break
        names = {entry: name.partition(".")[2] for entry, name in names.items()}
    return names, left


def _first_parts(layout: Layout) -> set[str]:
    """The first parts of all names of a layout that are not made of a config."""
    types = [layout.types[root] for root in layout.roots().values()]
    templates: list[Template] = [child.name for kind in types for child in kind.children]
    templates += [parameter.name for kind in types for parameter in kind.parameters]
    starts = [template.segments[0] for template in templates if template.segments]
    return {start.partition(".")[0] for start in starts if isinstance(start, str)}


def left_out(tensors: Iterable[str], objects: Iterable[str]) -> tuple[str, ...]:
    """What of a folder is no part of the model, in words."""
    notes = []
    if listed := list(tensors):
        notes.append(f"left out as state of the training, {len(listed)} tensors: {_counted(listed)}")
    if listed := list(objects):
        notes.append(f"left out as no tensors, {len(listed)} entries: {_counted(listed)}")
    return tuple(notes)


def _counted(names: Iterable[str]) -> str:
    """Names by their first parts, with how many there are of each."""
    counts = Counter(f"{name.partition('.')[0]}.*" if "." in name else name for name in names)
    shown = [f"`{name}`" + (f" ({count})" if count > 1 else "") for name, count in sorted(counts.items())]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _lay_out(contents: Contents, size: int) -> OutputLayout:
    ties: Mapping[str, str] = contents.ties
    return folder_layout(lambda written: text_beside(contents, written), size, ties)


KIND = Kind("dcp", METADATA, is_folder, _open, _lay_out, every=True, twice=True)
