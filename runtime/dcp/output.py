"""How a folder of torch.distributed.checkpoint is laid out here: each tensor is whole, and an archive of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.output import OutputLayout, Wrapping, Written
from crosswalk.runtime.plan.model import TensorSpec

from .folder import locate, open_folder
from .frames import frame
from .metadata import METADATA, Item, write_metadata


def folder_layout(
    finish: Callable[[Written], Mapping[str, bytes]],
    max_shard_bytes: int,
    ties: Mapping[str, str] = MappingProxyType({}),
) -> OutputLayout:
    """``__0_0.distcp`` and so on with ``.metadata``, as one process of torch writes them; ``finish`` makes what goes
    beside. ``ties``: further names of tensors, with the one whose bytes they have."""

    def complete(written: Written) -> Mapping[str, bytes]:
        places = [place for file, tensors in written.files.items() for place in _places(file, tensors)]
        found = {spec.name: (spec, item) for spec, item in places}
        places += [(replace(found[of][0], name=name), found[of][1]) for name, of in ties.items()]
        return {METADATA: write_metadata(places), **finish(written)}

    return OutputLayout(
        lambda number, count: f"__0_{number}.distcp", max_shard_bytes=max_shard_bytes, finish=complete, wrap=_wrap,
        reopen=_reopen,
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
