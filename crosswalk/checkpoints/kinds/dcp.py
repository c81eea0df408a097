"""A folder of torch.distributed.checkpoint: what training with FSDP, DTensor and their like saves.

Only the tensors of the model are taken: the state of optimizers, schedulers and data loaders beside them is counted,
and left out. A folder says nothing of the model: its config is ``crosswalk.yaml`` in it, or given.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from crosswalk.checkpoints.opened import Opened
from crosswalk.checkpoints.states import Known, counted, left_out, model_names, without_idle
from crosswalk.compiler.layout.model import Layout
from crosswalk.compiler.layout.scope import normalize
from crosswalk.compiler.layout.variants import idle
from crosswalk.compiler.notation.templates import Template
from crosswalk.runtime.checkpoint.output import OutputLayout
from crosswalk.runtime.dcp.folder import is_folder, locate, open_folder
from crosswalk.runtime.dcp.metadata import METADATA
from crosswalk.runtime.dcp.output import folder_layout
from crosswalk.runtime.errors import CrosswalkError, Position, fail
from crosswalk.runtime.plan.model import TensorSpec

from .beside import said_of, text_beside
from .kind import Contents, Given, Kind


def _open(path: Path, given: Given) -> Opened:
    said, layout = said_of(path, given, KIND.name)
    folder = open_folder(path)
    names, left = model_names(folder.entries.tensors, known_to(layout))
    if not names:
        text = f"no tensor of this folder is one of a model: {counted(left)}"
        raise fail("dcp/no-model", text, Position(str(path / METADATA)), "name the folder that holds the model")
    found, notes = locate(folder, names), left_out(left, folder.entries.objects)
    if said.config is not None:
        with suppress(CrosswalkError):  # of the config, or of what is no state: that is found out by those who use it
            kind = layout.types[layout.roots().get(said.root or "", layout.root)]
            found, note = without_idle(found, idle(layout, kind, normalize(layout, said.config, kind.name)))
            notes = (*notes, *note)
    return said.opened(path, KIND.name, layout, found, notes)


def known_to(layout: Layout) -> Known:
    """Of names of a layout, by the first parts of all that are not made of a config."""
    types = [layout.types[root] for root in layout.roots().values()]
    templates: list[Template] = [child.name for kind in types for child in kind.children]
    templates += [parameter.name for kind in types for parameter in kind.parameters]
    starts = [template.segments[0] for template in templates if template.segments]
    firsts = {start.partition(".")[0] for start in starts if isinstance(start, str)}
    return lambda first, names: first in firsts


def _lay_out(contents: Contents, size: int) -> OutputLayout:
    ties: Mapping[str, str] = contents.ties
    further = idle(contents.layout, contents.layout.types[contents.root], contents.config)
    zeros = [TensorSpec(name, shape, "F32") for name, shape in further.items()]
    return folder_layout(lambda written: text_beside(contents, written), size, ties, zeros=zeros)


KIND = Kind("dcp", METADATA, is_folder, _open, _lay_out, every=True, twice=True)
