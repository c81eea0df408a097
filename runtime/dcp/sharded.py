"""Safetensors files in which processes of torch.distributed.checkpoint saved their parts of all tensors.

Its HuggingFaceStorageWriter makes them (``shard-00001-model-00001-of-00001.safetensors``), where it is not told to put
the parts together: every file may have a part of every tensor, and says in its header where each begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crosswalk.runtime.checkpoint.header import SourceFile, limited, parse_json, read_header
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, shorten

from .folder import inside, stored_in_parts
from .metadata import Chunk, Item, StoredEntry, is_natural
from .parts import pieces_of, uncovered

_NAME = re.compile(r"shard-\d{5,}-model-\d{5,}-of-\d{5,}\.safetensors")
_OFFSETS = "DCP_SHARDING_INFO"


def is_sharded(directory: Path) -> bool:
    """Whether there are such files in a directory."""
    return directory.is_dir() and any(_files(directory))


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.iterdir()) if _NAME.fullmatch(path.name))


def open_sharded(directory: Path) -> Checkpoint:
    """The tensors that the parts in all such files make. Raises ``CrosswalkError`` for every one whose parts overlap,
    or leave some of it out, and for what is wrong with a file."""
    problems: list[Diagnostic] = []
    files: dict[Path, SourceFile] = {}
    parts: dict[str, list[tuple[str, Chunk]]] = {}
    for path in _files(directory):
        where = Position(str(path))
        try:
            files[path], tensors = read_header(inside(directory, path.name))
            begins = _begins(files[path].metadata, path)
        except CrosswalkError as error:
            problems += error.diagnostics
            continue
        for name, stored in tensors.items():
            begin = begins.get(name)
            if begin is None or len(begin) != len(stored.shape):
                text = f"the header does not say where in tensor `{shorten(name)}` its part begins"
                problems.append(Diagnostic("dcp/metadata", text, where))
                continue
            chunk = Chunk(begin, stored.shape, Item(path.name, stored.offset, stored.nbytes))
            parts.setdefault(name, []).append((stored.dtype, chunk))
    entries = []
    for name, found in parts.items() if not problems else ():
        entry, fault = _entry(name, found)
        if fault is not None:
            text = f"tensor `{shorten(name)}` {fault}"
            problems.append(Diagnostic("dcp/parts", text, Position(str(directory)), "copy the files of all ranks"))
        entries.append(entry)
    if problems:
        raise CrosswalkError(limited(problems, Position(str(directory))))
    places = {chunk.item: chunk.item.offset for entry in entries for chunk in entry.chunks}
    paths = {item.file: directory / item.file for item in places}
    tensors = {entry.name: stored_in_parts(directory, entry, pieces_of(entry), places, paths) for entry in entries}
    return Checkpoint(directory, tensors, files)


def _begins(metadata: Mapping[str, str], path: Path) -> Mapping[str, tuple[int, ...]]:
    """Where the parts of a file begin in their tensors, of those of which it is said. Raises ``CrosswalkError``."""
    document: Any = parse_json(metadata.get(_OFFSETS, "{}").encode(), path)
    found = {}
    for name, said in document.items() if isinstance(document, dict) else ():
        begin = said.get("saved_offsets") if isinstance(said, dict) else None
        if isinstance(begin, list) and all(map(is_natural, begin)):
            found[name] = tuple(begin)
    return found


def _entry(name: str, parts: list[tuple[str, Chunk]]) -> tuple[StoredEntry, str | None]:
    """A tensor by its parts, and what is wrong with them. How large it is, nothing says but the parts."""
    dtype, first = parts[0]
    chunks = tuple(chunk for _, chunk in parts)
    ranks = {len(chunk.sizes) for chunk in chunks}
    if len({found for found, _ in parts}) > 1 or len(ranks) > 1:
        return StoredEntry(name, dtype, first.sizes, chunks), "has parts of several dtypes, or of several ranks"
    ends = zip(*([a + b for a, b in zip(chunk.offsets, chunk.sizes, strict=True)] for chunk in chunks), strict=True)
    entry = StoredEntry(name, dtype, tuple(map(max, ends)), chunks)
    return entry, uncovered(entry, pieces_of(entry))
