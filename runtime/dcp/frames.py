"""An archive of torch.save around a tensor whose bytes are written by others: what stands before and after them.

Like the archives that torch writes when it is told to compute no checksums, these have zeros for the CRC of a record:
torch does not look at it.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from typing import Any

from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.torch_files.archives import CENTRAL, END, END_64, LIMIT, LOCAL, LOCATOR_64, STORAGES, row_major
from crosswalk.runtime.torch_files.pickles import Persistent

#: Tensors begin at multiples of this in their archives, as torch has them.
ALIGNMENT = 64
_BY_DTYPE = {dtype: name for name, dtype in STORAGES.items()}
#: The kinds of extra fields of a record: numbers that are too large for theirs, and bytes that only fill.
_WIDE, _FILLING = 1, 0x4246


def frame(tensor: TensorSpec) -> tuple[bytes, bytes]:
    """What stands before and after the bytes of a tensor in its archive."""
    small = (
        ("data.pkl", _pickled(tensor)), (".format_version", b"1"), (".storage_alignment", str(ALIGNMENT).encode()),
        ("byteorder", b"little"),
    )  # fmt: skip
    archive = _Archive()
    before, after = bytearray(), bytearray()
    for name, content in small:
        before += archive.record(name, len(content)) + content
    before += archive.record("data/0", tensor.nbytes, ALIGNMENT)
    after += archive.record("version", 2) + b"3\n"
    after += archive.end()
    return bytes(before), bytes(after)


class _Archive:
    """The directory of an archive in the making. ``at``: bytes of the archive so far."""

    def __init__(self) -> None:
        self.at = 0
        self._entries: list[bytes] = []

    def record(self, name: str, size: int, alignment: int = 0) -> bytes:
        """The header of the next record, of ``size`` bytes, which are counted as written."""
        label, shown, start = f"archive/{name}".encode(), min(size, LIMIT), self.at
        extra = _wide(size, size) if size >= LIMIT else b""
        if alignment:
            fill = -(start + 30 + len(label) + len(extra) + 4) % alignment
            extra += struct.pack("<HH", _FILLING, fill) + b"Z" * fill
        version = 45 if size >= LIMIT or start >= LIMIT else 20
        sizes = struct.pack("<HHHHIIIH", 0x800, 0, 0, 0, 0, shown, shown, len(label))
        header = LOCAL + struct.pack("<H", version) + sizes + struct.pack("<H", len(extra)) + label + extra
        far = [*([size, size] if size >= LIMIT else []), *([start] if start >= LIMIT else [])]
        extra = _wide(*far) if far else b""
        places = struct.pack("<HHHHII", len(extra), 0, 0, 0, 0, min(start, LIMIT))
        self._entries.append(CENTRAL + struct.pack("<HH", 45, version) + sizes + places + label + extra)
        self.at += len(header) + size
        return header

    def end(self) -> bytes:
        """The directory, which ends the archive."""
        directory, number, place = b"".join(self._entries), len(self._entries), self.at
        result = directory
        if place >= LIMIT:
            result += END_64 + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, number, number, len(directory), place)
            result += LOCATOR_64 + struct.pack("<IQI", 0, place + len(directory), 1)
        return result + END + struct.pack("<HHHHIIH", 0, 0, number, number, len(directory), min(place, LIMIT), 0)


def _wide(*numbers: int) -> bytes:
    return struct.pack(f"<HH{len(numbers)}Q", _WIDE, 8 * len(numbers), *numbers)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.key if isinstance(obj, Persistent) else None


class _Rebuilt:
    """Stands for a tensor where it is pickled: as a call of torch, without a tensor."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call[0], self._call[1:]


def _pickled(tensor: TensorSpec) -> bytes:
    import torch

    rebuild: list[Any] = [0, tensor.shape, row_major(tensor.shape), False, OrderedDict()]
    if tensor.dtype in _BY_DTYPE:
        storage: Any = getattr(torch, _BY_DTYPE[tensor.dtype])
        call: Any = torch._utils._rebuild_tensor_v2
        count = tensor.elements
    else:
        storage, count = torch.storage.UntypedStorage, tensor.nbytes
        call = torch._utils._rebuild_tensor_v3
        rebuild.append(getattr(torch, DTYPES[tensor.dtype][1]))
    buffer = io.BytesIO()
    key = Persistent(("storage", storage, "0", "cpu", count))
    _Pickler(buffer, 2).dump(_Rebuilt(call, key, *rebuild))
    return buffer.getvalue()
