"""The safetensors header: parsed as hostile input, built for output.

A file is ``u64 length (little endian) | JSON header, space padded | data``. The JSON maps tensor names to
``{"dtype", "shape", "data_offsets": [begin, end]}``, offsets counted from the start of the data, which they cover
without holes or overlap; ``__metadata__`` maps strings to strings. No torch import.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, shorten, shown
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.records import Record

from .extents import BLOCK
from .opening import open_regular

#: Longest header that the format allows, in bytes.
MAX_HEADER = 100_000_000
#: Most dimensions a torch tensor can have.
MAX_RANK = 64
#: Problems shown for one file; a hostile header could have a million.
MAX_PROBLEMS = 50

_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_INTEGERS = frozenset((int,))

#: Dtype and shape.
_Form = tuple[str, tuple[int, ...]]


#: Fills a buffer with the bytes of a file from an offset on.
ReadFile = Callable[[Path, int, memoryview], None]


class Content(Protocol):
    """The bytes of a tensor that no file holds as they are: made when they are read."""

    def fill(self, start: int, view: memoryview, read: ReadFile) -> None:
        """Fill ``view`` with the bytes of the tensor from byte ``start`` on, in whole elements. Called by several
        threads at once."""


@runtime_checkable
class ContentOfRuns(Content, Protocol):
    """One for which many short runs are less work together."""

    def fill_runs(self, starts: Iterable[int], nbytes: int, view: memoryview, read: ReadFile) -> None:
        """Fill ``view`` with runs of ``nbytes`` bytes that begin at the bytes ``starts``, one after the other."""


@runtime_checkable
class ContentInFiles(Content, Protocol):
    """One that files hold as it is, in more than one place."""

    def runs_in_files(self, starts: Iterable[int], nbytes: int) -> Iterator[tuple[Path | None, list[int]]]:
        """Where runs of ``nbytes`` bytes are that begin at the bytes ``starts``, in their order: those that follow each
        other in one file, by where they begin in it; without a file, those that are in several places, by where they
        begin in the tensor."""


class StoredTensor(NamedTuple):
    """A row-major tensor in a file: ``nbytes`` bytes from byte ``offset`` of ``file``. With ``content`` the bytes are
    made when they are read; offsets then only say in which order."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    content: Content | None = None

    @property
    def is_in_files(self) -> bool:
        """Whether files hold the bytes as they are, so that reading what is between two takes no longer than it."""
        return self.content is None or isinstance(self.content, ContentInFiles)


class SourceFile(Record, frozen=True):
    """A file as it was when its header was read: what must not change until its data is read."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, status: os.stat_result, metadata: Mapping[str, str]) -> SourceFile:
        """From what ``stat`` says. Unlike the time of the content, that of the last change cannot be set back."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, metadata)


def read_header(path: Path) -> tuple[SourceFile, dict[str, StoredTensor]]:
    """The file and its tensors in the order of their offsets. Raises ``CrosswalkError`` with every problem found."""
    where = Position(str(path))
    try:
        descriptor = open_regular(path)
        try:
            status = os.fstat(descriptor)
            length = int.from_bytes(os.pread(descriptor, 8, 0), "little") if status.st_size >= 8 else -1
            if length < 2 or length > min(MAX_HEADER, status.st_size - 8):
                raise fail(
                    "header/length",
                    f"not a safetensors file: it has {status.st_size} bytes and "
                    + ("no header" if length < 0 else f"states a header of {length} bytes"),
                    where,
                    "the download may be incomplete",
                )
            raw = os.pread(descriptor, length, 8)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise fail("header/unreadable", f"cannot be read: {error.strerror or error}", where) from error
    if len(raw) != length:
        raise fail("header/length", f"the file ended inside its header, at byte {8 + len(raw)}", where)
    tensors, metadata = parse_header(raw, status.st_size - 8 - length, path)
    return SourceFile.of(status, metadata), tensors


def parse_header(raw: bytes, data_size: int, path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors in the order of their offsets, and the metadata, from the JSON bytes ``raw`` of a header that precedes
    ``data_size`` bytes of data. Raises ``CrosswalkError`` with every problem found (at most ``MAX_PROBLEMS``)."""
    where = Position(str(path))
    document = parse_json(raw, path)
    if not isinstance(document, dict):
        raise fail("header/json", "the header is not a JSON object", where)
    problems: list[Diagnostic] = []
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        problems.append(Diagnostic("header/metadata", "`__metadata__` does not map strings to strings", where))
        metadata = {}
    data_start = 8 + len(raw)
    tensors: list[tuple[int, int, str, StoredTensor]] = []
    forms: dict[_Form, tuple[int, _Form]] = {}
    for name, entry in document.items():
        problem, (dtype, shape), begin, end = _read_entry(entry, forms)
        if problem is not None:
            problems.append(Diagnostic(problem[0], f"tensor `{shorten(name)}` {problem[1]}", where))
            continue
        tensors.append((begin, end, name, StoredTensor(path, data_start + begin, end - begin, dtype, shape)))
    tensors.sort()  # no two have one name, so that what is stored is never compared
    beyond = sum(end > data_size for _, end, _, _ in tensors)
    if beyond:
        needed = max(end for _, end, _, _ in tensors)
        which = "a tensor is" if beyond == 1 else f"{beyond} tensors are"
        text = f"the file is cut off: it has {data_size} of {needed} bytes of data, {which} not complete"
        problems.append(Diagnostic("header/offsets", text, where, "the download may be incomplete"))
    # Holes and overlaps around an entry that is already reported would be noise.
    if not problems:
        position = 0
        for begin, end, name, _ in tensors:
            if begin != position:
                what = "leaves a hole of" if begin > position else "overlaps the one before by"
                text = f"tensor `{shorten(name)}` at byte {begin} {what} {abs(begin - position)} bytes"
                problems.append(Diagnostic("header/offsets", text, where))
            position = max(position, end)
        if position != data_size:
            text = f"{data_size - position} bytes after the last tensor belong to none"
            problems.append(Diagnostic("header/offsets", text, where))
    if problems:
        raise CrosswalkError(limited(problems, where))
    return {name: stored for _, _, name, stored in tensors}, metadata


def _read_entry(entry: Any, forms: dict[_Form, tuple[int, _Form]]) -> tuple[tuple[str, str] | None, _Form, int, int]:
    """Code and message of what is wrong with one tensor's entry; its dtype and shape, and where its data begins and
    ends. ``forms``: the dtypes and shapes that were right, with their sizes in bytes. Layers and experts repeat: each
    form is looked at once, and tensors of one share their shape."""
    try:
        form, (begin, end) = (entry["dtype"], tuple(entry["shape"])), entry["data_offsets"]
        size, known = forms.get(form, (-1, form))
        # Equal numbers may be of other types, as true is 1.
        plain = _INTEGERS.issuperset(map(type, (begin, end, *form[1])))
        if size == end - begin and plain and begin >= 0 and len(entry) == 3:
            return None, known, begin, end
        problem = _entry_problem(entry)
    except (TypeError, KeyError, ValueError):
        return _entry_problem(entry), ("", ()), 0, 0
    if problem is None:
        forms[form] = end - begin, known
    return problem, known, begin, end


def _entry_problem(entry: Any) -> tuple[str, str] | None:
    """Code and message of what is wrong with one tensor's entry."""
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        return "header/entry", "is not described by exactly `dtype`, `shape` and `data_offsets`"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return "header/dtype", f"has the dtype {shown(dtype)}, which is not supported"
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not _all_sizes(shape):
        return "header/shape", f"has the shape {shown(shape)}, which is not a list of at most {MAX_RANK} sizes"
    if not isinstance(offsets, list) or len(offsets) != 2 or not type(offsets[0]) is type(offsets[1]) is int:
        return "header/offsets", f"has the offsets {shown(offsets)}, which are not two integers"
    begin, end = offsets
    if not 0 <= begin <= end:
        return "header/offsets", f"lies at bytes {begin} to {end}"
    needed = math.prod(shape) * DTYPES[dtype][0]
    if needed != end - begin:
        return "header/size", f"of dtype {dtype} and shape {shape} needs {needed} bytes but has {end - begin}"
    return None


def _all_sizes(shape: list[Any]) -> bool:
    for size in shape:  # noqa: SIM110  # a generator takes several times as long, and this is done for every tensor
        if type(size) is not int or not 0 <= size < 2**63:
            return False
    return True


def build_header(tensors: Sequence[TensorSpec], metadata: Mapping[str, str], phase: int | None = None) -> bytes:
    """Everything that stands before the data of a file with ``tensors`` stored in the given order, without gaps. Its
    length is a multiple of 8, and with ``phase`` that many bytes more than a multiple of ``BLOCK``. Raises
    ``CrosswalkError`` for a repeated name or a header beyond the format's limit."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        if tensor.name in entries or tensor.name == "__metadata__":
            raise fail("output/name", f"the output would have two entries named `{shorten(tensor.name)}`")
        end = position + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    body = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-len(body) % 8 if phase is None else (phase - 8 - len(body)) % BLOCK)
    if len(body) > MAX_HEADER:
        raise fail("output/header", f"the header would have {len(body)} bytes; the format allows {MAX_HEADER}")
    return len(body).to_bytes(8, "little") + body


def parse_json(raw: bytes, path: Path, constants: bool = False) -> Any:
    """JSON in UTF-8 in which no object names a key twice. ``constants``: with ``NaN``, ``Infinity`` and ``-Infinity``
    among the numbers, as Python writes and reads them. Raises ``CrosswalkError``."""
    try:
        text = raw.decode("utf-8")
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=float if constants else _no_constant)
        if "\\u" in text:  # half of a surrogate pair has no UTF-8: it could not be printed or written again
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else shorten(str(error), 200)
        raise fail("header/json", f"not valid JSON: {reason}", Position(str(path))) from error


def limited(problems: Iterable[Diagnostic], where: Position) -> list[Diagnostic]:
    """At most ``MAX_PROBLEMS`` of the problems, and how many more there are."""
    every = list(problems)
    if len(every) <= MAX_PROBLEMS:
        return every
    more = Diagnostic("header/more", f"and {len(every) - MAX_PROBLEMS} more problems", where)
    return [*every[:MAX_PROBLEMS], more]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {shown(repeated)} stands twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
