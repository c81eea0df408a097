"""The zip archives that torch.save makes, also in the middle of a file: where the bytes of tensors stand in one.

A ``pytorch_model.bin`` is such an archive with a dict of tensors, an entry of a torch.distributed.checkpoint one with a
single tensor. It is read by its directory at the end and its pickle at the start, as data (see :mod:`.pickles`).
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from crosswalk.runtime.dtypes import DTYPES, size_of

from .pickles import Global, Made, Persistent, PickleError, Table, read_pickle

#: Reads so many bytes of an archive from an offset in it on.
ReadPart = Callable[[int, int], bytes]

#: Longest pickle of an archive that is read, in bytes.
MAX_PICKLE = 64 << 20
#: Most records of an archive with one tensor, and with the tensors of a model.
_MAX_RECORDS, _MAX_OF_MODEL = 10_000, 1_000_000
#: Read at once from the end, and from the start: of the archive of a tensor, all that is not the tensor.
_TAIL = 4 << 10
#: Headers of records: in the directory, and before the bytes.
_CENTRAL, _LOCAL = struct.Struct("<10xH8xIIHHH8xI"), struct.Struct("<26xHH")

#: What records, entries of the directory, and its end begin with.
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END_64, LOCATOR_64 = b"PK\x06\x06", b"PK\x06\x07"
#: Stands for a number that has its place in a wider field.
LIMIT = 0xFFFFFFFF
#: Classes of storages of torch, and the dtypes of their elements. One without a dtype is counted in bytes.
STORAGES = {
    "BoolStorage": "BOOL", "ByteStorage": "U8", "CharStorage": "I8", "ShortStorage": "I16", "IntStorage": "I32",
    "LongStorage": "I64", "HalfStorage": "F16", "BFloat16Storage": "BF16", "FloatStorage": "F32",
    "DoubleStorage": "F64",
}  # fmt: skip
#: Those whose tensors no checkpoint can hold, so that they are told by what they are.
_UNKNOWN = (
    *("ComplexFloatStorage", "ComplexDoubleStorage", "QInt8Storage", "QUInt8Storage", "QInt32Storage"),
    *("complex32", "complex64", "complex128", "uint16", "uint32", "uint64"),
)
_DTYPE_OF = {attribute: name for name, (_, attribute) in DTYPES.items()}
_REBUILD = ("_rebuild_tensor_v2", "_rebuild_tensor_v3")
_PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")


#: Dtype, shape, key of the storage, first element, and bytes of the storage of a tensor.
_Described = tuple[str, tuple[int, ...], str, int, int]


class ArchiveError(Exception):
    """What is wrong with an archive, or with a tensor of one; ``code``: of a file with the tensors of a model."""

    def __init__(self, message: str, code: str = "pickle/unreadable") -> None:
        super().__init__(message)
        self.code = code


class Record(NamedTuple):
    """One record of an archive: where its header begins, and how many bytes it has."""

    header: int
    size: int


class StoredStorage(NamedTuple):
    """A tensor of an archive: its dtype and shape, and where its bytes begin in it."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def allowed_in_tensors(name: Global) -> bool:
    """Whether a pickle of a tensor may name this: what torch.save writes for one."""
    if name.module == "torch":
        return name.name in STORAGES or name.name in _DTYPE_OF or name.name in _UNKNOWN
    return str(name) in (
        *(f"torch._utils.{rebuild}" for rebuild in (*_REBUILD, *_PARAMETERS)),
        "torch.storage.UntypedStorage", "torch.storage.TypedStorage", "collections.OrderedDict",
    )  # fmt: skip


def read_records(read: ReadPart, length: int, most: int = _MAX_RECORDS) -> Mapping[str, Record]:
    """The records of an archive of ``length`` bytes by their names without the folder that all are in, ``most`` at
    most. Raises ``ArchiveError``."""
    start = max(0, length - _TAIL)
    tail = read(start, length - start)
    end = tail.rfind(END)
    if end < 0 or len(tail) - end < 22:
        raise ArchiveError("it is no archive of torch.save")
    number, size, offset = struct.unpack_from("<HII", tail, end + 10)
    if LIMIT in (size, offset) or number == 0xFFFF:
        number, size, offset = _read_end_64(read, tail, end, length)
    if number > most or size > most * 1024 or offset + size > length:
        raise ArchiveError("its directory is damaged")
    directory = tail[offset - start : offset - start + size] if offset >= start else read(offset, size)
    records: dict[str, Record] = {}
    at = 0
    for _ in range(number):
        if directory[at : at + 4] != CENTRAL or len(directory) - at < 46:
            raise ArchiveError("its directory is damaged")
        method, stored, real, names, extras, comments, header = _CENTRAL.unpack_from(directory, at)
        name = directory[at + 46 : at + 46 + names].decode("utf-8", "replace")
        if LIMIT in (real, stored, header):
            extra = directory[at + 46 + names : at + 46 + names + extras]
            real, stored, header = _wide(extra, [real, stored, header])
        if method or stored != real:
            raise ArchiveError("it is compressed", "pickle/encoding")
        records[name.partition("/")[2]] = Record(header, real)
        at += 46 + names + extras + comments
    return records


def _read_end_64(read: ReadPart, tail: bytes, end: int, length: int) -> tuple[int, int, int]:
    locator = tail[max(0, end - 20) : end]
    if len(locator) < 20 or locator[:4] != LOCATOR_64:
        raise ArchiveError("its directory is damaged")
    place = struct.unpack_from("<Q", locator, 8)[0]
    if place + 56 > length:
        raise ArchiveError("its directory is damaged")
    found = read(place, 56)
    if found[:4] != END_64:
        raise ArchiveError("its directory is damaged")
    number, size, offset = struct.unpack_from("<32xQQQ", found)[:3]
    return number, size, offset


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """The sizes of a record, those that do not fit taken from the field for it."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{size // 8}Q", extra, at + 4) if at + 4 + size <= len(extra) else ())
            return [next(numbers, value) if value == LIMIT else value for value in values]
        at += 4 + size
    return values


def data_offset(read: ReadPart, record: Record, length: int) -> int:
    """Where the bytes of a record begin in its archive. Raises ``ArchiveError``."""
    header = read(record.header, 30) if record.header + 30 <= length else b""
    if header[:4] != LOCAL:
        raise ArchiveError("a record is not where its directory has it")
    names, extras = _LOCAL.unpack(header)
    start = int(record.header + 30 + names + extras)
    if start + record.size > length:
        raise ArchiveError("it is cut off")
    return start


def read_record(read: ReadPart, records: Mapping[str, Record], name: str, length: int) -> bytes:
    """The bytes of a small record. Raises ``ArchiveError``."""
    record = records.get(name)
    if record is None:
        raise ArchiveError(f"it has no record `{name}`")
    if record.size > MAX_PICKLE:
        raise ArchiveError(f"its record `{name}` has {record.size} bytes")
    return read(data_offset(read, record, length), record.size)


def read_tensor(read: ReadPart, length: int) -> StoredStorage:
    """The one tensor of an archive of ``length`` bytes. Raises ``ArchiveError``."""
    head = read(0, min(length, _TAIL))

    def cached(offset: int, size: int) -> bytes:
        return head[offset : offset + size] if offset + size <= len(head) else read(offset, size)

    records = read_records(cached, length)
    data = _pickle_of(cached, records, length)
    described = _described(data) if len(data) <= _TAIL else _described.__wrapped__(data)
    return _stored(cached, records, described, length)


def read_tensors(read: ReadPart, length: int) -> list[tuple[Any, StoredStorage | ArchiveError]]:
    """The entries of the dict that an archive of ``length`` bytes holds: each with its tensor, or with what is wrong
    with it. Raises ``ArchiveError`` if it holds no dict."""
    records = read_records(read, length, _MAX_OF_MODEL)
    value = _content(_pickle_of(read, records, length))
    if not isinstance(value, Table) and not (isinstance(value, Made) and value.by.name == "OrderedDict"):
        raise ArchiveError("it holds no dict of tensors", "pickle/content")
    found: list[tuple[Any, StoredStorage | ArchiveError]] = []
    for name, item in value.pairs:
        try:
            found.append((name, _stored(read, records, _tensor(item), length)))
        except ArchiveError as error:
            found.append((name, error))
    return found


def _pickle_of(read: ReadPart, records: Mapping[str, Record], length: int) -> bytes:
    """The pickle of an archive. Raises ``ArchiveError``."""
    if "byteorder" in records and read_record(read, records, "byteorder", length) != b"little":
        raise ArchiveError("its numbers are not little endian", "pickle/encoding")
    return read_record(read, records, "data.pkl", length)


def _content(data: bytes) -> Any:
    """What a pickle holds. Raises ``ArchiveError``."""
    try:
        return read_pickle(data, allowed_in_tensors)
    except PickleError as error:
        raise ArchiveError(str(error)) from error


def _stored(read: ReadPart, records: Mapping[str, Record], described: _Described, length: int) -> StoredStorage:
    """Where a tensor of a pickle stands. Raises ``ArchiveError``."""
    dtype, shape, key, start, elements = described
    record = records.get(f"data/{key}")
    if record is None:
        raise ArchiveError("it does not hold the bytes of its tensor", "pickle/offsets")
    end = (start + math.prod(shape)) * size_of(dtype)
    if record.size != elements or end > record.size:
        raise ArchiveError("its tensor has more elements than are stored", "pickle/offsets")
    return StoredStorage(dtype, shape, data_offset(read, record, length) + start * size_of(dtype))


@functools.lru_cache(maxsize=256)
def _described(data: bytes) -> _Described:
    """What a pickle says of a tensor: the parts that ranks save of one are alike in it."""
    return _tensor(_content(data))


def _tensor(value: Any) -> _Described:
    """Dtype, shape, key of the storage, first element, and bytes of the storage. Raises ``ArchiveError``."""
    if isinstance(value, Made) and value.by.name in _PARAMETERS:
        value = value.arguments[0] if value.arguments else None
    if not isinstance(value, Made) or value.by.name not in _REBUILD or len(value.arguments) < 4:
        raise ArchiveError("it holds no tensor", "pickle/content")
    storage, start, shape, strides, *others = value.arguments
    key = storage.key if isinstance(storage, Persistent) else None
    if not (isinstance(key, tuple) and len(key) == 5 and isinstance(key[1], Global) and isinstance(key[2], str)):
        raise ArchiveError("its storage is of an unknown kind", "pickle/content")
    dtype: str | None = STORAGES.get(key[1].name)
    if value.by.name == "_rebuild_tensor_v3" and len(others) > 2 and isinstance(others[2], Global):
        dtype = _DTYPE_OF.get(others[2].name)
    if dtype is None:
        raise ArchiveError("its dtype is not supported", "pickle/dtype")
    width = size_of(STORAGES.get(key[1].name, "U8"))
    if not _sizes(shape) or not _sizes((start, key[4])) or not _is_row_major(shape, strides):
        raise ArchiveError("its tensor is not stored row-major", "pickle/strided")
    return dtype, shape, key[2], start, key[4] * width


def _sizes(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _is_row_major(shape: tuple[int, ...], strides: Any) -> bool:
    """Whether elements stand row by row; along axes of one element it does not matter how far the next one is."""
    if not isinstance(strides, tuple) or len(strides) != len(shape):
        return False
    pairs = zip(shape, strides, row_major(shape), strict=True)
    return 0 in shape or all(size == 1 or found == expected for size, found, expected in pairs)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor that is stored row by row; those along axes of one or no element as torch has them."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
