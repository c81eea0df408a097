"""How a folder of torch.distributed.checkpoint is laid out here: each tensor is whole, and an archive of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.output import OutputLayout, Wrapping, Written
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.records import replace

from .folder import locate, open_folder
from .frames import frame
from .metadata import METADATA, Chunk, Item, StoredEntry, write_metadata
from .parts import slice_of

#: The file of entries that no plan writes.
_OBJECTS = "__1_0.distcp"


class Place(NamedTuple):
    """Where a tensor is in a folder: an entry, or the part of one ``at`` an index of its leading ``axes``."""

    entry: str
    at: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()

    def part(self, tensor: TensorSpec) -> TensorSpec:
        """The tensor with the dimensions of the entry."""
        return replace(tensor, shape=(*(1 for _ in self.axes), *tensor.shape))


def folder_layout(
    finish: Callable[[Written], Mapping[str, bytes]],
    max_shard_bytes: int,
    ties: Mapping[str, str] = MappingProxyType({}),
    objects: Mapping[str, bytes] = MappingProxyType({}),
    inside: str = "",
    stacks: Mapping[str, Place] = MappingProxyType({}),
    zeros: Sequence[TensorSpec] = (),
) -> OutputLayout:
    """``__0_0.distcp`` and so on with ``.metadata``, as one process of torch writes them; ``finish`` makes what goes
    beside. ``ties``: further names of tensors, with the one whose bytes they have; ``objects``: entries that are no
    tensors, as torch.save makes them; ``inside``: a directory of the output (``NAME/``) that is the folder; ``stacks``:
    where tensors are that are no entries of their own names; ``zeros``: small ones that no plan writes."""

    def place(tensor: TensorSpec) -> Place:
        return stacks.get(tensor.name) or Place(tensor.name)

    def wrap(tensors: Sequence[TensorSpec]) -> Wrapping:
        before, after = zip(*(frame(place(t).part(t)) for t in tensors), strict=True) if tensors else ((b"",), (b"",))
        return before[0], [one + other for one, other in zip(after, (*before[1:], b""), strict=True)]

    def complete(written: Written) -> Mapping[str, bytes]:
        parts: dict[str, list[tuple[TensorSpec, Place, Item]]] = {}
        for file, tensors in written.files.items():
            at = 0
            for tensor in tensors:
                where = place(tensor)
                before, after = frame(where.part(tensor))
                length = len(before) + tensor.nbytes + len(after)
                parts.setdefault(where.entry, []).append((tensor, where, Item(file.removeprefix(inside), at, length)))
                at += length
        entries = [_entry(name, found) for name, found in parts.items()]
        known = {entry.name: entry for entry in entries}
        entries += [replace(known[of], name=name) for name, of in ties.items()]
        data, others = _packed({**objects, **{tensor.name: _of_zeros(tensor) for tensor in zeros}})
        for tensor in zeros:
            chunk = Chunk((0,) * len(tensor.shape), tensor.shape, others.pop(tensor.name))
            entries.append(StoredEntry(tensor.name, tensor.dtype, tensor.shape, (chunk,)))
        made = {METADATA: write_metadata(entries, others), **({_OBJECTS: data} if data else {})}
        return {**{inside + name: content for name, content in made.items()}, **finish(written)}

    return OutputLayout(
        lambda number, count: f"{inside}__0_{number}.distcp", max_shard_bytes=max_shard_bytes, finish=complete,
        wrap=wrap, reopen=lambda directory: _reopen(directory / inside, stacks),
    )  # fmt: skip


def _entry(name: str, parts: Sequence[tuple[TensorSpec, Place, Item]]) -> StoredEntry:
    """An entry of the parts that are written of it."""
    tensor, place, _ = parts[0]
    chunks = tuple(
        Chunk((*where.at, *(0 for _ in spec.shape)), where.part(spec).shape, item) for spec, where, item in parts
    )
    return StoredEntry(name, tensor.dtype, (*place.axes, *tensor.shape), chunks)


def _of_zeros(tensor: TensorSpec) -> bytes:
    """An archive with a tensor of zeros."""
    before, after = frame(tensor)
    return b"".join((before, bytes(tensor.nbytes), after))


def _packed(objects: Mapping[str, bytes]) -> tuple[bytes, dict[str, Item]]:
    """One file of all archives, and where each is in it; equal ones are there once."""
    places: dict[bytes, Item] = {}
    at = 0
    for content in objects.values():
        if content not in places:
            places[content] = Item(_OBJECTS, at, len(content))
            at += len(content)
    return b"".join(places), {name: places[content] for name, content in objects.items()}


def _reopen(directory: Path, stacks: Mapping[str, Place]) -> Mapping[str, StoredTensor]:
    folder = open_folder(directory)
    found = dict(locate(folder, {name: name for name in folder.entries.tensors}).tensors)
    for name, place in stacks.items():
        if (stack := found.get(place.entry)) is not None and place.axes:
            shape, number = stack.shape[len(place.axes) :], 0
            for index, size in zip(place.at, place.axes, strict=True):
                number = number * size + index
            found[name] = slice_of(stack, number * math.prod(shape), shape)
        elif stack is not None:
            found[name] = stack
    return found
