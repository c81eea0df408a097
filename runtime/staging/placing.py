"""Putting a finished output in place, finding out beforehand whether that will work, and tidying up where a process was
killed while it did.

In the working directory lies the output, and ``old``, for a moment, what it replaces. The journal says which directory
the new output is before anything is renamed, so that a later run can tell the new from the old.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosswalk.runtime.errors import Position, fail

from .writing import sync_directory

#: The key of the journal's record that an output is being put in place: the inode of its directory, or None where what
#: an earlier record says has been dealt with.
PLACING = "placing"
_OLD = "old"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def is_filled_from_inside(destination: Path) -> bool:
    """Whether a directory that exists cannot be replaced by a rename: a mount point, or one whose parent is closed."""
    if destination.is_symlink() or not destination.is_dir():
        return False
    return _is_mount(destination) or not os.access(destination.parent, os.W_OK | os.X_OK)


def _is_mount(directory: Path) -> bool:
    if os.path.ismount(directory):
        return True
    try:  # a part of the same file system that is mounted again has the same device
        with open("/proc/self/mountinfo", "rb") as mounts:
            points = [line.split()[4] for line in mounts]
    except OSError:
        return False
    # As the kernel writes it: spaces, tabs, line ends and backslashes as octal numbers.
    escapes = {ord(letter): f"\\{ord(letter):03o}" for letter in " \t\n\\"}
    return os.fsencode(os.path.realpath(directory)).decode("latin-1").translate(escapes).encode("latin-1") in points


def check(work: Path, destination: Path, inside: bool) -> None:
    """Raise unless directories can be renamed here, and the destination can be replaced. Nothing is changed."""
    where = Position(str(destination))
    one, other = work / "probe", work / "renamed"
    one.mkdir()
    try:
        os.rename(one, other)
    except OSError as error:
        one.rmdir()
        text = f"the file system cannot rename directories, so that no output could be put in place: {error.strerror}"
        raise fail("output/rename", text, where, "name a destination on another file system") from error
    other.rmdir()
    if inside or not destination.is_dir():
        return
    try:
        # The working directory is not empty, so that this fails; if it says so, there is no other obstacle.
        os.rename(destination, work)
    except OSError as error:
        movable = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
        # On the lower layer of an overlay an empty one cannot be moved, but replaced.
        if not movable and (error.errno != errno.EXDEV or os.listdir(destination)):
            text = f"the destination exists and the file system will not let go of it: {error.strerror}"
            hint = "it may lie on the lower layer of an overlay: name a new directory"
            raise fail("output/rename", text, where, hint) from error
        return
    os.rename(work, destination)
    raise fail("output/rename", "the file system renames directories onto others that are not empty", where)


def put(work: Path, output: Path, destination: Path, overwrite: bool) -> None:
    """Rename the output to the destination, in one step where the system can; with an error, all is as it was. What it
    replaced is left in ``work``."""
    aside: Path | None = None
    try:
        # Onto nothing or an empty directory; the system refuses to replace anything else.
        os.rename(output, destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not overwrite:
            raise
        aside = _exchange(output, destination, work / _OLD)
    try:
        sync_directory(destination.parent)
    except OSError:
        # It might be gone after a crash, so that an error has to be told.
        if aside == output:
            _exchange(output, destination, work / _OLD)
        else:
            os.rename(destination, output)
            if aside is not None:
                _put_back(aside, destination)
        raise


def fill(output: Path, destination: Path, entries: Sequence[str]) -> None:
    """Move the entries of the output into the destination, in this order; with an error, none of them is there."""
    moved: list[str] = []
    try:
        for name in entries:
            moved.append(name)
            os.rename(output / name, destination / name)
        sync_directory(destination)
    except BaseException:
        for name in reversed(moved):
            with contextlib.suppress(FileNotFoundError):
                os.rename(destination / name, output / name)
        raise


def recover(work: Path, destination: Path, inside: bool, records: Sequence[Mapping[str, Any]]) -> None:
    """Finish or undo what a process did not live to finish. The only copy of an old checkpoint is put back, or the
    error names it."""
    record: Mapping[str, Any] = next((record for record in reversed(records) if PLACING in record), {})
    output, new = work / "output", record.get(PLACING)
    if inside:
        entries = [str(name) for name in record.get("entries", ())]
        placed = [name for name in entries if os.path.lexists(destination / name)]
        if len(placed) < len(entries):
            output.mkdir(exist_ok=True)
            for name in placed:
                os.rename(destination / name, output / name)
        return
    old = work / _OLD
    if not old.exists():
        if new is None or not output.exists() or output.stat().st_ino == new:
            return
        old = output  # they were exchanged
    if destination.is_dir() and destination.stat().st_ino == new:
        shutil.rmtree(old)
        return
    _put_back(old, destination)


def _put_back(old: Path, destination: Path) -> None:
    try:
        os.rename(old, destination)
    except OSError as error:
        text = f"what was there before is in {old}, and cannot be put back: {error.strerror}"
        raise fail("output/old", text, Position(str(destination)), "move it to where it should be") from error


def _exchange(output: Path, destination: Path, aside: Path) -> Path:
    """Swap two directories in one step; where the old one is then. Without ``renameat2`` the old one is moved aside
    first: for a moment there is no destination, and a crash then leaves it for the next run to put back."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = os.fsencode(output), os.fsencode(destination)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return output
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.rename(destination, aside)
    try:
        os.rename(output, destination)
    except BaseException:
        _put_back(aside, destination)
        raise
    return aside
