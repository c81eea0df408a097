"""How a folder of torch.distributed.checkpoint is laid out here: each tensor is whole, and an archive of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.output import OutputLayout, Wrapping, Written
from crosswalk.runtime.plan.model import TensorSpec

from .folder import locate, open_folder
from .frames import frame
from .metadata import METADATA, Item, write_metadata

#: The file of entries that are no tensors.
_OBJECTS = "__1_0.distcp"


def folder_layout(
    finish: Callable[[Written], Mapping[str, bytes]],
    max_shard_bytes: int,
    ties: Mapping[str, str] = MappingProxyType({}),
    objects: Mapping[str, bytes] = MappingProxyType({}),
    inside: str = "",
) -> OutputLayout:
    """``__0_0.distcp`` and so on with ``.metadata``, as one process of torch writes them; ``finish`` makes what goes
    beside. ``ties``: further names of tensors, with the one whose bytes they have; ``objects``: entries that are no
    tensors, as torch.save makes them; ``inside``: a directory of the output (``NAME/``) that is the folder."""

    def complete(written: Written) -> Mapping[str, bytes]:
        files = written.files.items()
        places = [place for file, tensors in files for place in _places(file.removeprefix(inside), tensors)]
        found = {spec.name: (spec, item) for spec, item in places}
        places += [(replace(found[of][0], name=name), found[of][1]) for name, of in ties.items()]
        sizes = [0, *accumulate(map(len, objects.values()))]
        others = {name: Item(_OBJECTS, at, len(objects[name])) for name, at in zip(objects, sizes, strict=False)}
        made = {METADATA: write_metadata(places, others), **({_OBJECTS: b"".join(objects.values())} if objects else {})}
        return {**{inside + name: content for name, content in made.items()}, **finish(written)}

    return OutputLayout(
        lambda number, count: f"{inside}__0_{number}.distcp", max_shard_bytes=max_shard_bytes, finish=complete,
        wrap=_wrap, reopen=lambda directory: _reopen(directory / inside),
    )  # fmt: skip


def _wrap(tensors: Sequence[TensorSpec]) -> Wrapping:
    before, after = zip(*map(frame, tensors), strict=True) if tensors else ((b"",), (b"",))
    return before[0], [one + other for one, other in zip(after, (*before[1:], b""), strict=True)]


def _places(file: str, tensors: Sequence[TensorSpec]) -> Iterable[tuple[TensorSpec, Item]]:
    """Where the archive of each tensor of a file lies."""
    at = 0
    for tensor in tensors:
        before, after = frame(tensor)
        length = len(before) + tensor.nbytes + len(after)
        yield tensor, Item(file, at, length)
        at += length


def _reopen(directory: Path) -> Mapping[str, StoredTensor]:
    folder = open_folder(directory)
    return locate(folder, {name: name for name in folder.entries.tensors}).tensors
