"""Where the tensors of a ``torch.save`` file lie. Its pickle is read as data; no tensor is read, and no code is run."""

from __future__ import annotations

import math
import os
from pathlib import Path

from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, shown
from crosswalk.runtime.torch_files.archives import ArchiveError, read_tensors

from .header import SourceFile, StoredTensor, limited
from .opening import open_regular

_HINT = "load it with torch and save it with safetensors.torch.save_file"


def read_pickled(path: Path) -> tuple[SourceFile, dict[str, StoredTensor]]:
    """The file and its tensors in the order of their offsets, from a dict of tensors saved by ``torch.save`` (zip
    format). Raises ``CrosswalkError`` for anything else."""
    where = Position(str(path))
    try:
        descriptor = open_regular(path)
        try:
            status = os.fstat(descriptor)
            entries = read_tensors(lambda offset, size: os.pread(descriptor, size, offset), status.st_size)
        finally:
            os.close(descriptor)
    except ArchiveError as error:
        raise fail(error.code, f"not a torch file of plain tensors: {error}", where, _HINT) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise fail("pickle/unreadable", f"not a torch file of plain tensors: {reason}", where, _HINT) from error
    problems: list[Diagnostic] = []
    tensors: dict[str, StoredTensor] = {}
    for name, found in entries:
        if isinstance(found, ArchiveError):
            text = f"entry {shown(name)}: {found}"
            problems.append(Diagnostic(found.code, text, where, _HINT))
        elif not isinstance(name, str):
            problems.append(Diagnostic("pickle/content", f"{shown(name)} is no name of a tensor", where, _HINT))
        else:
            nbytes = math.prod(found.shape) * size_of(found.dtype)
            tensors[name] = StoredTensor(path, found.offset, nbytes, found.dtype, found.shape)
    if problems:
        raise CrosswalkError(limited(problems, where))
    return SourceFile.of(status, {}), dict(sorted(tensors.items(), key=lambda item: item[1].offset))
