"""The directory of a run of Megatron: which iteration of it is taken, and what its ranks have in common."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosswalk.runtime.checkpoint.opening import read_inside
from crosswalk.runtime.dcp.folder import Folder, is_folder
from crosswalk.runtime.dcp.metadata import METADATA
from crosswalk.runtime.errors import Position, fail, shorten
from crosswalk.runtime.torch_files.archives import MAX_PICKLE, ArchiveError, ReadPart, read_record, read_records
from crosswalk.runtime.torch_files.pickles import Made, PickleError, Table, read_pickle

LATEST, ABOUT, COMMON, RELEASE = "latest_checkpointed_iteration.txt", "metadata.json", "common.pt", "release"
#: The entry that holds what all ranks have in common, in folders without a file for it.
COMMON_ENTRY = re.compile(r"common_state/shard_\d+_\d+")
#: What archives of torch begin with.
ARCHIVE = b"PK"
_ITERATION = re.compile(r"iter_\d{7,}|release")
_PLAIN = (bool, int, float, str)


def is_run(path: Path) -> bool:
    """Whether a directory is a folder of an iteration, or holds some."""
    if (path / LATEST).is_file() or is_legacy(path) or (is_folder(path) and (path / ABOUT).is_file()):
        return True
    return path.is_dir() and bool(_iterations(path))


def is_legacy(path: Path) -> bool:
    """Whether a folder is of the old format, with a pickle for each rank."""
    return path.is_dir() and any(name.startswith("mp_rank_") for name in os.listdir(path))


def _iterations(path: Path) -> list[str]:
    names = (name for name in os.listdir(path) if _ITERATION.fullmatch(name))
    return sorted(name for name in names if (path / name / ABOUT).is_file() or is_legacy(path / name))


def iteration(path: Path) -> Path:
    """The folder of the last iteration in the directory of a run; a folder itself stays what it is. Raises
    ``CrosswalkError`` where it is not there, or nothing says which is the last of several."""
    latest = path / LATEST
    if not latest.is_file():
        found = [] if is_folder(path) or is_legacy(path) else _iterations(path)
        if len(found) > 1:
            text = f"there is no {LATEST} that says which of {', '.join(found)} is meant"
            raise fail("directory/latest", text, Position(str(path)), "name the folder of one of them")
        return path / found[0] if found else path
    try:
        text = read_inside(latest, path, 64).decode("ascii", "replace").strip()
    except OSError as error:
        raise fail("directory/latest", f"cannot be read: {error.strerror or error}", Position(str(latest))) from error
    folder = path / (f"iter_{int(text):07}" if text.isascii() and text.isdigit() else RELEASE)
    if not folder.is_dir():
        message = f"the last iteration is {shorten(text)}, and there is no {folder.name}"
        raise fail("directory/latest", message, Position(str(latest)), "copy that folder too, or name another one")
    return folder


def taken(home: Path, folder: Path) -> tuple[str, ...]:
    """A note that says which iteration of a run was taken."""
    if folder == home:
        return ()
    others = [name for name in _iterations(home) if name != folder.name]
    left = f"; {', '.join(others)} are not looked at" if others else ""
    return (f"`{folder.name}` is taken, the last iteration of this run{left}",)


def common(folder: Folder) -> tuple[Path, dict[str, Any]]:
    """The arguments of the run, from what its ranks have in common, and the file that holds it: one of its own, or the
    entry of a folder. Raises ``CrosswalkError``."""
    file = folder.path / COMMON
    name = next((name for name in folder.entries.objects if COMMON_ENTRY.fullmatch(name)), None)
    if not file.is_file() and name is None:
        return file, {}
    try:
        if file.is_file() or name is None:
            return file, dict(arguments(read_inside(file, folder.path, MAX_PICKLE + 1), file))
        file = folder.path / METADATA
        return file, dict(_arguments(*folder.read_object(name), file))
    except OSError as error:
        text = f"cannot be read: {error.strerror or error}"
        raise fail("directory/common", text, Position(str(file))) from error


def arguments(data: bytes, file: Path) -> Mapping[str, Any]:
    """The arguments of a run in such a file. Raises ``CrosswalkError``."""
    return _arguments(lambda offset, size: data[offset : offset + size], len(data), file)


def _arguments(read: ReadPart, length: int, file: Path) -> Mapping[str, Any]:
    """Nothing of the pickle is run, whatever it names: what is no plain value is left out."""
    try:
        value = read_pickle(read_record(read, read_records(read, length), "data.pkl", length), lambda name: True)
    except (ArchiveError, PickleError) as error:
        text = f"the state that ranks have in common: {shorten(str(error))}"
        raise fail("directory/common", text, Position(str(file))) from error
    if isinstance(value, list) and value:
        value = value[0]
    made = value.texts().get("args") if isinstance(value, Table) else None
    found = made.fields() if isinstance(made, Made) else {}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return (
        value is None or isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))
    )
