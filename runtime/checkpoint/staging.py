"""A directory that appears at its destination complete, or not at all.

Files are written in a staging directory beside the destination, named after it and the plan; each is synced; one rename
makes it the destination. A process that is killed leaves at most the staging directory, which the next conversion of
the same plan to the same destination continues or replaces. A lock on the directory keeps two conversions apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosswalk.runtime.errors import Position, fail

from .writing import set_size, sync, sync_directory, write_at

#: Name of the file in a staging directory that lists what is complete.
JOURNAL = "journal.jsonl"
#: Bytes of a carried file that are copied together.
_STEP = 1 << 20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class Staging:
    """The directory in which the files of ``destination`` are written. ``records`` is what the journal of an
    interrupted conversion lists as complete."""

    def __init__(self, destination: Path, digest: str, identity: Mapping[str, Any], *, overwrite: bool, resume: bool):
        """Create or take over the staging directory. ``identity`` is plain JSON: an interrupted conversion is continued
        only if its own was equal. Raises ``CrosswalkError`` if the destination is taken or cannot be written beside."""
        self.destination = Path(os.path.abspath(destination))
        self.path = self.destination.parent / f".{self.destination.name}.crosswalk-{digest[:8]}"
        self.records: list[dict[str, Any]] = []
        self._overwrite, self._resume = overwrite, resume
        self._identity = json.loads(json.dumps(identity))
        self._check_destination()
        self._lock = -1
        self._writing, self._recorded = threading.Lock(), 0
        self._made: list[Path] = []
        with self.errors("created"):
            try:
                self._make_parents()
                self._lock = self._acquire()
            except BaseException:
                self._remove_parents()
                raise
            try:
                if resume:
                    self._read_journal()
                if not self._recorded:
                    for entry in os.scandir(self.path):
                        _remove(Path(entry.path))
                    self.record(self._identity)
            except BaseException:
                self.abandon()
                raise

    def _check_destination(self) -> None:
        """Raise unless the destination is free: absent, an empty directory, or to be overwritten."""
        if not os.path.lexists(self.destination):
            return
        where = Position(str(self.destination))
        if self.destination.is_symlink() or not self.destination.is_dir():
            raise fail("output/exists", "the destination exists and is not a directory", where)
        if not self._overwrite and any(self.destination.iterdir()):
            raise fail(
                "output/exists",
                "the destination exists and is not empty",
                where,
                "pass --overwrite (overwrite=True) to replace it",
            )

    def create(self, name: str) -> int:
        """A descriptor for reading and writing a new file, or one that an interrupted conversion left."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the journal; what it speaks of must have been synced before."""
        line = json.dumps(entry).encode() + b"\n"
        with self._writing:
            descriptor = self.create(JOURNAL)
            try:
                set_size(descriptor, self._recorded)  # of a line that was cut off
                write_at(descriptor, line, self._recorded)
                sync(descriptor)
            finally:
                os.close(descriptor)
            self._recorded += len(line)

    def commit(self) -> None:
        """Make the staging directory the destination. All files in it must have been synced."""
        with self.errors("put in place"):
            (self.path / JOURNAL).unlink(missing_ok=True)
            for directory, _, _ in os.walk(self.path):
                sync_directory(Path(directory))
            replaced = None
            try:
                # Onto nothing or an empty directory; the system refuses to replace anything else.
                os.rename(self.path, self.destination)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not self._overwrite:
                    raise
                replaced = _exchange(self.path, self.destination)
            try:
                sync_directory(self.destination.parent)
            except OSError:
                self._take_back(replaced)
                raise
            if replaced:
                shutil.rmtree(replaced, ignore_errors=True)
        self._release()

    def _take_back(self, replaced: Path | None) -> None:
        """Undo the rename: what could not be synced might be gone after a crash, so that an error has to be told, and
        with an error the destination is as it was."""
        if replaced == self.path:
            _exchange(self.path, self.destination)
            return
        os.rename(self.destination, self.path)
        if replaced is not None:
            os.rename(replaced, self.destination)

    def abandon(self) -> None:
        """Remove the staging directory and the directories made for it, or leave all for a later conversion to
        continue."""
        if not self._resume:
            shutil.rmtree(self.path, ignore_errors=True)
            self._remove_parents()
        self._release()

    def _make_parents(self) -> None:
        """The directories around the destination that are not there, innermost first, in ``_made``."""
        parent = self.destination.parent
        missing = list(itertools.takewhile(lambda path: not path.exists(), (parent, *parent.parents)))
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):  # somebody else made it just now
                path.mkdir()
                self._made.insert(0, path)
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is not a directory")

    def _remove_parents(self) -> None:
        """Remove the directories made for the destination, but for what others have put into them."""
        with contextlib.suppress(OSError):
            for path in self._made:
                path.rmdir()

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def errors(self, what: str) -> _Errors:
        """A context in which an OSError becomes a ``CrosswalkError``: the output cannot be ``what``."""
        return _Errors(self.destination, what)

    def _acquire(self) -> int:
        """Create the staging directory and lock it."""
        while True:
            self.path.mkdir(exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    os.close(descriptor)
                    where = Position(str(self.destination))
                    raise fail("output/busy", "another conversion is writing this destination", where) from error
                return descriptor  # a file system without locks
            try:
                if os.path.samestat(os.stat(self.path), os.fstat(descriptor)):
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)  # the other conversion moved or removed it just now

    def _read_journal(self) -> None:
        """Take over the records of an interrupted conversion with the same identity; a torn last line is left out."""
        try:
            lines = (self.path / JOURNAL).read_bytes().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            records = [json.loads(line) for line in whole]
        except (OSError, ValueError):
            return
        if records and records[0] == self._identity:
            self.records, self._recorded = records[1:], sum(map(len, whole))


class _Errors:
    def __init__(self, destination: Path, what: str):
        self._destination, self._what = destination, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            text = f"the output cannot be {self._what}: {error.strerror or error}"
            raise fail("output/failed", text, Position(str(self._destination))) from error


def check_space(staging: Staging, needed: int) -> None:
    """Raise ``CrosswalkError`` unless ``needed`` bytes fit on the file system of the destination."""
    with staging.errors("created"):
        status = os.statvfs(staging.path)
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and free < needed:
        text = f"the output takes {needed:,} bytes, {free:,} are free on the file system"
        raise fail("output/space", text, Position(str(staging.destination)))


def write_file(staging: Staging, name: str, content: bytes) -> None:
    """Write and sync a small file."""
    descriptor = staging.create(name)
    try:
        set_size(descriptor, 0)
        write_at(descriptor, content, 0)
        sync(descriptor)
    finally:
        os.close(descriptor)


def copy_file(staging: Staging, name: str, origin: Path) -> None:
    """Copy the content of a file, following links, and sync it."""
    try:
        with open(origin, "rb") as source, open(staging.create(name), "r+b") as target:
            set_size(target.fileno(), 0)
            done = 0
            while block := source.read(_STEP):
                write_at(target.fileno(), block, done)
                done += len(block)
            sync(target.fileno())
    except OSError as error:
        text = f"copying {name}: {error.strerror or error}"
        raise fail("output/carry", text, Position(str(origin))) from error


def _exchange(staging: Path, destination: Path) -> Path:
    """Swap two directories in one step; where the old one is then. Without ``renameat2`` the old one is moved aside
    first: for a moment there is no destination, and a crash then leaves both complete under other names."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = os.fsencode(staging), os.fsencode(destination)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return staging
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    aside = staging.with_name(staging.name + "-replaced")
    if aside.exists():
        shutil.rmtree(aside)
    os.rename(destination, aside)
    try:
        os.rename(staging, destination)
    except OSError:
        os.rename(aside, destination)
        raise
    return aside


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
