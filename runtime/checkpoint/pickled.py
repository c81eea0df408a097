"""Where the tensors of a ``torch.save`` file lie. torch's restricted unpickler reads the pickle; no data is read."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from crosswalk.runtime.dtypes import dtype_name
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail

from .header import SourceFile, StoredTensor, limited, shorten
from .opening import open_regular


def read_pickled(path: Path) -> tuple[SourceFile, dict[str, StoredTensor]]:
    """The file and its tensors in the order of their offsets, from a dict of tensors saved by ``torch.save`` (zip
    format). Raises ``CrosswalkError`` for anything else; no code in the file is run."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    where = Position(str(path))
    hint = "load it with torch and save it with safetensors.torch.save_file"
    try:
        descriptor = open_regular(path)
        with open(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            with zipfile.ZipFile(stream) as archive:
                records = archive.infolist()
                orders = [archive.read(r) for r in records if r.filename.endswith("/byteorder") and r.file_size < 16]
            if any(r.compress_type != zipfile.ZIP_STORED for r in records) or any(o != b"little" for o in orders):
                raise fail("pickle/encoding", "the tensors are compressed or not little endian", where, hint)
            stream.seek(0)
            with FakeTensorMode():
                document = torch.load(stream, weights_only=True, map_location="cpu")
    except CrosswalkError:
        raise
    except Exception as error:  # the unpickler raises every kind of exception for a malformed file
        reason = shorten(str(error).partition("\n")[0], 200) or type(error).__name__
        raise fail("pickle/unreadable", f"not a torch file of plain tensors: {reason}", where, hint) from error
    if not isinstance(document, dict):
        raise fail("pickle/content", f"holds a {type(document).__name__}, not a dict of tensors", where, hint)

    problems: list[Diagnostic] = []
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in document.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            text = f"entry {shorten(repr(name))} is a {type(tensor).__name__}, not a tensor with a name"
            problems.append(Diagnostic("pickle/content", text, where, hint))
            continue
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None or not tensor.is_contiguous():
            text = f"tensor `{shorten(name)}` is not stored row-major in this file"
            problems.append(Diagnostic("pickle/strided", text, where, hint))
            continue
        offset, nbytes = start + tensor.storage_offset() * tensor.element_size(), tensor.numel() * tensor.element_size()
        if not 0 <= offset <= offset + nbytes <= status.st_size:
            text = f"tensor `{shorten(name)}` lies outside of the file"
            problems.append(Diagnostic("pickle/offsets", text, where))
            continue
        try:
            dtype = dtype_name(tensor.dtype)
        except KeyError:
            text = f"tensor `{shorten(name)}` has the dtype {tensor.dtype}, which is not supported"
            problems.append(Diagnostic("pickle/dtype", text, where))
            continue
        tensors[name] = StoredTensor(path, offset, nbytes, dtype, tuple(tensor.shape))
    if problems:
        raise CrosswalkError(limited(problems, where))
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1].offset))
    return SourceFile.of(status, {}), ordered
