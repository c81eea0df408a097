"""``.metadata`` of a torch.distributed.checkpoint: which entries there are, and in which file each part of one lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from crosswalk.runtime.checkpoint.header import MAX_RANK, limited
from crosswalk.runtime.checkpoint.opening import read_inside
from crosswalk.runtime.checkpoint.source import is_plain
from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, shorten, shown
from crosswalk.runtime.records import Record
from crosswalk.runtime.torch_files.pickles import Global, Made, PickleError, Table, read_pickle, uncollected

METADATA = ".metadata"
#: Largest file of metadata that is read, in bytes.
MAX_METADATA = 512 << 20
VERSION = "1.0.0"

_HOME = "torch.distributed.checkpoint"
_CLASSES = frozenset(
    f"{_HOME}.{name}"
    for name in (
        "metadata.Metadata", "metadata.TensorStorageMetadata", "metadata.BytesStorageMetadata",
        "metadata.TensorProperties", "metadata.ChunkStorageMetadata", "metadata.MetadataIndex", "metadata.StorageMeta",
        "metadata._MEM_FORMAT_ENCODING", "filesystem._StorageInfo", "filesystem._StoragePrefix", "planner.SavePlan",
        "planner.WriteItem", "planner.WriteItemType", "planner.TensorWriteData", "planner.BytesIOWriteData",
    )
) | {
    "torch.Size", "torch.serialization._get_layout", "collections.OrderedDict", "pathlib.PosixPath", "pathlib.Path",
    "pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib.PureWindowsPath", "pathlib._local.PosixPath",
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
}  # fmt: skip
#: Attributes of torch that are dtypes, those that no tensor of a model has included.
_DTYPES = frozenset(f"torch.{attribute}" for _, attribute in DTYPES.values()) | {
    f"torch.{name}" for name in ("complex32", "complex64", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz",
                                 "float8_e8m0fnu", "float4_e2m1fn_x2")
}  # fmt: skip
_NAME_OF = {f"torch.{attribute}": name for name, (_, attribute) in DTYPES.items()}


class Item(NamedTuple):
    """Bytes ``[offset, offset + length)`` of a file of the folder."""

    file: str
    offset: int
    length: int


class Chunk(NamedTuple):
    """A box of a tensor, and the archive that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    item: Item


class StoredEntry(Record, frozen=True):
    """A tensor; ``dtype`` is None for one that safetensors has no name for."""

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class StoredEntries(Record, frozen=True):
    """What the folder holds: tensors, and everything else as bytes, by name."""

    tensors: Mapping[str, StoredEntry]
    objects: Mapping[str, Item]


def allowed_in_metadata(name: Global) -> bool:
    """Whether ``.metadata`` may name this: the classes that torch writes into it, and nothing else."""
    return str(name) in _CLASSES or str(name) in _DTYPES


def read_metadata(directory: Path) -> StoredEntries:
    """The entries of a folder. Raises ``CrosswalkError`` for what is not written by torch, with every problem found."""
    path = directory / METADATA
    where = Position(str(path))
    try:
        data = read_inside(path, directory, MAX_METADATA + 1)
    except FileNotFoundError as error:
        hint = "it is written last: let the save end, copy the whole folder, or take the checkpoint before"
        raise fail("dcp/metadata", "there is none here, only parts of tensors", where, hint) from error
    except OSError as error:
        raise fail("dcp/metadata", f"cannot be read: {error.strerror or error}", where) from error
    if len(data) > MAX_METADATA:
        raise fail("dcp/metadata", f"larger than {MAX_METADATA >> 20} MiB", where)
    with uncollected():
        return _read(data, where)


def _read(data: bytes, where: Position) -> StoredEntries:
    try:
        document = read_pickle(data, allowed_in_metadata)
    except PickleError as error:
        if error.named is not None:
            text = f"names `{shorten(str(error.named))}`, which torch.distributed.checkpoint never writes here"
            raise fail("dcp/global", text, where, "do not open this file with torch: it would run it") from error
        raise fail("dcp/metadata", f"not the metadata of a checkpoint: {shorten(str(error))}", where) from error
    if not _is(document, "Metadata"):
        raise fail("dcp/metadata", "not the metadata of a checkpoint: it holds something else", where)
    return _entries(document.fields(), where)


def _entries(fields: Mapping[str, Any], where: Position) -> StoredEntries:
    described, stored = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(described, Table) or not isinstance(stored, Table):
        raise fail("dcp/metadata", "it does not say what is stored, or where", where)
    problems: list[Diagnostic] = []
    items: dict[tuple[str, tuple[int, ...] | None], Item] = {}
    plain: dict[str, bool] = {}
    for index, info in stored.pairs:
        key, item, transformed = _index(index), *_item(info)
        if key is None or item is None:
            problems.append(Diagnostic("dcp/metadata", "a place of `storage_data` is not one", where))
            continue
        if item.file not in plain:
            plain[item.file] = is_plain(item.file)
        if not plain[item.file]:
            text = f"the file name {shown(item.file)} is not a plain path inside the checkpoint"
            problems.append(Diagnostic("dcp/file-name", text, where))
        elif transformed:
            problems.append(Diagnostic("dcp/transformed", f"entry `{shorten(key[0])}` is compressed", where))
        else:
            items[key] = item
    tensors: dict[str, StoredEntry] = {}
    objects: dict[str, Item] = {}
    # What stands in `storage_data` is missed only if that could be read.
    for name, entry in described.pairs if not problems else ():
        label = f"entry `{shorten(name)}`" if isinstance(name, str) else "an entry"
        if isinstance(name, str) and _is(entry, "BytesStorageMetadata"):
            if (name, None) in items:
                objects[name] = items[name, None]
            else:
                problems.append(Diagnostic("dcp/missing", f"{label} is nowhere stored", where))
            continue
        found = _tensor(name, entry, items) if isinstance(name, str) else "has no name"
        if isinstance(found, str):
            problems.append(Diagnostic("dcp/metadata", f"{label} {found}", where))
        else:
            tensors[name] = found
    if problems:
        raise CrosswalkError(limited(problems, where))
    return StoredEntries(tensors, objects)


def _tensor(name: str, entry: Any, items: Mapping[tuple[str, tuple[int, ...] | None], Item]) -> StoredEntry | str:
    """A tensor, or what is wrong with it."""
    fields = entry.fields() if _is(entry, "TensorStorageMetadata") else {}
    shape, listed, properties = _sizes(fields.get("size")), fields.get("chunks"), fields.get("properties")
    if shape is None or len(shape) > MAX_RANK or not isinstance(listed, list):
        return "is no tensor with a shape and parts"
    dtype = _dtype(properties)
    if dtype is None:
        return "has no dtype"
    chunks = []
    for part in listed:
        fields = part.fields() if _is(part, "ChunkStorageMetadata") else {}
        offsets, sizes = _sizes(fields.get("offsets")), _sizes(fields.get("sizes"))
        if offsets is None or sizes is None or not len(offsets) == len(sizes) == len(shape):
            return "has a part that is no box of it"
        if any(start + size > whole for start, size, whole in zip(offsets, sizes, shape, strict=True)):
            return f"has a part outside of its shape {list(shape)}"
        item = items.get((name, offsets))
        if item is None:
            return f"has a part at {list(offsets)} that is nowhere stored"
        chunks.append(Chunk(offsets, sizes, item))
    return StoredEntry(name, _NAME_OF.get(str(dtype)), shape, tuple(chunks))


def _dtype(properties: Any) -> Global | None:
    """The dtype in the properties of a tensor, which are a tuple, or attributes in old files."""
    if not _is(properties, "TensorProperties"):
        return None
    state = properties.state
    found = state[0] if isinstance(state, tuple) and state else properties.fields().get("dtype")
    return found if isinstance(found, Global) and str(found) in _DTYPES else None


def _index(value: Any) -> tuple[str, tuple[int, ...] | None] | None:
    fields = value.fields() if _is(value, "MetadataIndex") else {}
    name, offset = fields.get("fqn"), fields.get("offset")
    sizes = _sizes(offset)
    if not isinstance(name, str) or (offset is not None and sizes is None):
        return None
    return name, sizes


def _item(value: Any) -> tuple[Item | None, bool]:
    """Where an entry lies, None if it says that nowhere; and whether something was done to its bytes."""
    fields = value.fields() if _is(value, "_StorageInfo") else {}
    file, offset, length = fields.get("relative_path"), fields.get("offset"), fields.get("length")
    if isinstance(file, str) and is_natural(offset) and is_natural(length):
        return Item(file, offset, length), bool(fields.get("transform_descriptors"))
    return None, False


def _sizes(value: Any) -> tuple[int, ...] | None:
    """The numbers of a ``torch.Size``."""
    if isinstance(value, Made) and value.by.name == "Size" and value.by.module == "torch":
        value = value.arguments[0] if len(value.arguments) == 1 else None
        if isinstance(value, list):
            value = tuple(value)
    return value if isinstance(value, tuple) and all(map(is_natural, value)) else None


def is_natural(value: Any) -> TypeGuard[int]:
    """Whether a value is a number of elements or bytes, as files may have them."""
    return type(value) is int and 0 <= value < 1 << 62


def _is(value: Any, name: str) -> bool:
    return isinstance(value, Made) and value.by.name == name


def write_metadata(entries: Sequence[StoredEntry], objects: Mapping[str, Item]) -> bytes:
    """``.metadata`` for tensors and objects, as torch writes it for a flat dict of them."""
    import pickle

    import torch
    from torch.distributed.checkpoint import filesystem, metadata

    described: dict[str, Any] = {}
    stored = {}
    for entry in entries:
        assert entry.dtype is not None
        parts = [metadata.ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for at, sizes, _ in entry.chunks]
        properties = metadata.TensorProperties(getattr(torch, DTYPES[entry.dtype][1]))
        described[entry.name] = metadata.TensorStorageMetadata(properties, torch.Size(entry.shape), parts)
        for number, chunk in enumerate(entry.chunks):
            index = metadata.MetadataIndex(entry.name, torch.Size(chunk.offsets), number)
            stored[index] = filesystem._StorageInfo(*chunk.item)
    described |= {name: metadata.BytesStorageMetadata() for name in objects}
    stored |= {metadata.MetadataIndex(name): filesystem._StorageInfo(*item) for name, item in objects.items()}
    names = {name: (name,) for name in described}
    return pickle.dumps(metadata.Metadata(described, names, stored, metadata.StorageMeta(), VERSION))
