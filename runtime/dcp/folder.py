"""Opening a folder of torch.distributed.checkpoint: where every tensor lies in which file. No data is read."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from crosswalk.runtime.checkpoint.choosing import dangling
from crosswalk.runtime.checkpoint.header import SourceFile, StoredTensor, limited
from crosswalk.runtime.checkpoint.opening import leads_out, open_regular
from crosswalk.runtime.checkpoint.source import Checkpoint
from crosswalk.runtime.checkpoint.zeros import Zeros
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, shorten
from crosswalk.runtime.plan.affine import Piece
from crosswalk.runtime.records import Record
from crosswalk.runtime.torch_files.archives import ArchiveError, ReadPart, read_tensor
from crosswalk.runtime.torch_files.pickles import uncollected

from .metadata import METADATA, Item, StoredEntries, StoredEntry, read_metadata
from .parts import Parts, pieces_of, uncovered


class Folder(Record, frozen=True):
    """A folder by its metadata. ``entries``: all that it holds."""

    path: Path
    entries: StoredEntries

    def read_object(self, name: str) -> tuple[ReadPart, int]:
        """How to read an entry that is no tensor, and how many bytes it has. Raises ``CrosswalkError``."""
        item = self.entries.objects[name]
        path = inside(self.path, item.file)
        where = Position(str(path))
        try:
            descriptor = open_regular(path)
            try:
                if os.fstat(descriptor).st_size < item.offset + item.length:
                    raise fail("dcp/cut-off", f"it ends before entry `{shorten(name)}` does", where)
                data = os.pread(descriptor, min(item.length, _MAX_OBJECT + 1), item.offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise fail("dcp/unreadable", f"cannot be read: {error.strerror or error}", where) from error
        if len(data) > _MAX_OBJECT:
            raise fail("dcp/object", f"entry `{shorten(name)}` is larger than {_MAX_OBJECT >> 20} MiB", where)
        return (lambda offset, size: data[offset : offset + size]), len(data)


#: Largest entry that is read for what it says, in bytes.
_MAX_OBJECT = 64 << 20


def is_folder(path: Path) -> bool:
    """Whether there is a checkpoint of this kind in a directory, or one that was not finished."""
    return (path / METADATA).is_file() or (path.is_dir() and any(name.endswith(".distcp") for name in os.listdir(path)))


def open_folder(path: Path) -> Folder:
    """The folder, by its ``.metadata`` alone. Raises ``CrosswalkError`` with every problem of it."""
    return Folder(path, read_metadata(path))


def locate(folder: Folder, names: Mapping[str, str]) -> Checkpoint:
    """The tensors ``names`` (entry -> name in the result) of a folder. Raises ``CrosswalkError`` for every one whose
    parts do not make it, or are not in the files as the metadata says."""
    with uncollected():
        return _locate(folder, names)


def _locate(folder: Folder, names: Mapping[str, str]) -> Checkpoint:
    where = Position(str(folder.path / METADATA))
    problems: list[Diagnostic] = []
    wanted: list[StoredEntry] = []
    known: dict[str, list[Piece]] = {}
    for name in names:
        entry = folder.entries.tensors[name]
        pieces = pieces_of(entry)
        fault = "has a dtype that is not supported" if entry.dtype is None else uncovered(entry, pieces)
        if fault is None:
            wanted.append(entry)
            known[entry.name] = pieces
        else:
            problems.append(Diagnostic("dcp/parts", f"tensor `{shorten(name)}` {fault}", where))
    files: dict[Path, SourceFile] = {}
    places: dict[Item, int] = {}
    for file, parts in _by_file(wanted).items():
        try:
            path = inside(folder.path, file)
            with _opened(path) as (read, status):
                files[path] = SourceFile.of(status, {})
                for entry, index in parts:
                    item = entry.chunks[index].item
                    places[item] = item.offset + _start(read, status.st_size, entry, index, path)
        except CrosswalkError as error:
            problems += error.diagnostics
    if problems:
        raise CrosswalkError(limited(problems, where))
    paths = {item.file: folder.path / item.file for item in places}
    tensors = {
        names[entry.name]: stored_in_parts(folder.path, entry, known[entry.name], places, paths) for entry in wanted
    }
    return Checkpoint(folder.path, tensors, files)


def _by_file(entries: Iterable[StoredEntry]) -> dict[str, list[tuple[StoredEntry, int]]]:
    """The parts that hold anything by their files, each in the order of its bytes."""
    found: dict[str, list[tuple[StoredEntry, int]]] = {}
    for entry in entries:
        for index, chunk in enumerate(entry.chunks):
            if math.prod(chunk.sizes):
                found.setdefault(chunk.item.file, []).append((entry, index))
    for parts in found.values():
        parts.sort(key=lambda part: part[0].chunks[part[1]].item.offset)
    return found


def inside(directory: Path, file: str) -> Path:
    """The path of a file of a folder. Raises unless it is there, and in there."""
    path = directory / file
    link = dangling(path)
    if link is not None:
        raise CrosswalkError(link)
    if not path.exists():
        text, hint = f"the file {file}, which the metadata names, is missing", "copy the whole folder"
        raise fail("dcp/missing-file", text, Position(str(directory)), hint)
    outside = leads_out(path, directory)
    if outside is not None:
        raise fail("source/link", outside, Position(str(path)), "copy the file in its place")
    return path


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Callable[[int, int], bytes], os.stat_result]]:
    """A function that reads a file by position, and its status."""
    try:
        descriptor = open_regular(path)
        try:
            status = os.fstat(descriptor)
            yield (lambda offset, size: os.pread(descriptor, size, offset)), status
        finally:
            os.close(descriptor)
    except OSError as error:
        raise fail("dcp/unreadable", f"cannot be read: {error.strerror or error}", Position(str(path))) from error


def _start(read: ReadPart, size: int, entry: StoredEntry, index: int, path: Path) -> int:
    """Where the bytes of a part begin in its archive. Raises unless that holds what the metadata says."""
    chunk = entry.chunks[index]
    offset, length = chunk.item.offset, chunk.item.length

    def wrong(code: str, what: str, before: str = "", hint: str | None = None) -> CrosswalkError:
        label = f"the part of `{shorten(entry.name)}` at {list(chunk.offsets)}"
        return fail(code, f"{before}{label} {what}", Position(str(path)), hint)

    if offset + length > size:
        what = f"ends at byte {offset + length} of {size}"
        raise wrong("dcp/cut-off", what, "the file is cut off: ", "copy it again")
    try:
        found = read_tensor(lambda start, count: read(offset + start, min(count, length - start)), length)
    except ArchiveError as error:
        raise wrong("dcp/archive", f"cannot be read: {shorten(str(error))}") from error
    if (found.dtype, found.shape) != (entry.dtype, chunk.sizes):
        has, wanted = f"{found.dtype} {list(found.shape)}", f"{entry.dtype} {list(chunk.sizes)}"
        raise wrong("dcp/differs", f"is {has} where the metadata has {wanted}")
    return found.offset


def stored_in_parts(
    directory: Path,
    entry: StoredEntry,
    pieces: Sequence[Piece],
    places: Mapping[Item, int],
    paths: Mapping[str, Path],
) -> StoredTensor:
    """Where a tensor lies: in one place, or in its parts. ``paths``: of the files of a folder, by their names."""
    assert entry.dtype is not None
    nbytes = math.prod(entry.shape) * size_of(entry.dtype)
    filled = [index for index, chunk in enumerate(entry.chunks) if math.prod(chunk.sizes)]
    items = [entry.chunks[index].item for index in filled]
    where = [(paths[item.file], places[item]) for item in items]
    if not where:
        return StoredTensor(directory / METADATA, 0, nbytes, entry.dtype, entry.shape, Zeros())
    file, offset = where[0]
    if len(where) == 1:
        return StoredTensor(file, offset, nbytes, entry.dtype, entry.shape)
    content = Parts.of(entry.dtype, [pieces[index] for index in filled], where)
    return StoredTensor(file, offset, nbytes, entry.dtype, entry.shape, content)
