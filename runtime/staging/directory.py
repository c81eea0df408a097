"""A directory that appears at its destination complete, or not at all.

Files are written in a working directory beside the destination, hidden and named after it, so that there is one for
each destination; a lock on it keeps two conversions apart. Each file is synced; one rename makes the output the
destination. A process that is killed leaves at most the working directory, which the next conversion to the same
destination continues or replaces. A destination that cannot be renamed (a mount point) and is empty is filled from
inside: its working directory lies in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crosswalk.runtime.checkpoint.opening import open_regular
from crosswalk.runtime.errors import CrosswalkError, Position, fail

from . import endings, placing
from .replaceable import foreign_entries
from .writing import set_size, sync, sync_directory, write_at

#: Names in a working directory: what is complete, and the output as it will be.
JOURNAL, OUTPUT = "journal.jsonl", "output"
#: Bytes of a carried file that are copied together.
_STEP = 1 << 20


class Staging:
    """The files of ``destination`` in the making, below ``path``. ``records`` is what the journal of an interrupted
    conversion lists as complete."""

    def __init__(
        self, destination: Path, identity: Mapping[str, Any], names: Iterable[str], *, overwrite: bool, resume: bool
    ):
        """Create or take over the working directory. ``identity`` is plain JSON: an interrupted conversion is continued
        only if its own was equal; ``names`` are the files that it may have left. Raises ``CrosswalkError`` if the
        destination is taken, or if it is known that it could not be written or put in place."""
        self.destination = Path(os.path.abspath(destination))
        self._overwrite, self._resume = overwrite, resume
        self._inside = placing.is_filled_from_inside(self.destination)
        self._home = self.destination if self._inside else self.destination.parent
        self._work = self._home / (".crosswalk" if self._inside else f".{self.destination.name}.crosswalk")
        self.path = self._work / OUTPUT
        self.records: list[dict[str, Any]] = []
        self._names = dict.fromkeys(names)
        self._identity = json.loads(json.dumps(identity))
        if not (self._inside and self._work.exists()):  # else what is there may be to be taken back first
            self._check_destination()
        self._lock, self._is_new = -1, False
        self._writing, self._recorded = threading.Lock(), 0
        self._made: list[Path] = []
        with self.errors("created"):
            try:
                self._make_parents()
                self._lock = self._acquire()
                endings.watch(self)
                self._begin()
            except BaseException:
                if self._lock >= 0:
                    self.abandon()
                else:
                    self._remove_parents()
                raise

    def _check_destination(self) -> None:
        """Raise unless the destination is free: absent, an empty directory, or to be overwritten."""
        if not os.path.lexists(self.destination):
            return
        where = Position(str(self.destination))
        if self.destination.is_symlink() or not self.destination.is_dir():
            raise fail("output/exists", "the destination exists and is not a directory", where)
        with self.errors("created"):
            own = (self._work.name, "lost+found") if self._inside else ()
            empty = all(name in own for name in os.listdir(self.destination))
        if not empty and self._inside:
            text = "the destination is a mount point, or in a directory that cannot be written, and is not empty"
            raise fail("output/exists", text, where, "it cannot be replaced in one step: name a new directory in it")
        if not empty and self._overwrite:
            with self.errors("created"):
                foreign = foreign_entries(self.destination)
            if foreign:
                shown = ", ".join(f"`{name}`" for name in foreign[:5]) + (", ..." if len(foreign) > 5 else "")
                text = f"the destination holds what is no part of a checkpoint and would be lost: {shown}"
                raise fail("output/foreign", text, where, "name another destination, or move these away")
        if not empty and not self._overwrite:
            raise fail(
                "output/exists",
                "the destination exists and is not empty",
                where,
                "pass --overwrite (overwrite=True) to replace it",
            )

    def _begin(self) -> None:
        """Take over what an interrupted conversion left, or clear it, and see whether the output can be put in place
        at the end."""
        records = self._read_journal()
        placing.recover(self._work, self.destination, self._inside, records)
        self._check_destination()
        if self._resume and records and records[0] == self._identity:
            self.records = [record for record in records[1:] if placing.PLACING not in record]
            if len(self.records) < len(records) - 1:
                # It speaks of an output that is gone: the next one must not be taken for what that one replaced.
                self.record({placing.PLACING: None})
        keep = (JOURNAL, OUTPUT) if self.records else ()
        for entry in os.scandir(self._work):
            if entry.name not in keep:
                _remove(Path(entry.path))
        self.path.mkdir(exist_ok=True)
        if not self.records:
            self._recorded = 0
            self.record(self._identity)
        self.sweep()
        placing.check(self._work, self.destination, self._inside)

    def create(self, name: str) -> int:
        """A descriptor for reading and writing a new file, or one that an interrupted conversion left."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._names[name] = None
        return _open(path)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the journal; what it speaks of must have been synced before."""
        line = json.dumps(entry).encode() + b"\n"
        with self._writing:
            descriptor = _open(self._work / JOURNAL)
            try:
                set_size(descriptor, self._recorded)  # of a line that was cut off
                write_at(descriptor, line, self._recorded)
                sync(descriptor)
            finally:
                os.close(descriptor)
            self._recorded += len(line)

    def commit(self) -> None:
        """Make the output the destination, All files in it must have been synced."""
        with self.errors("put in place"), endings.later(self):
            for directory, _, _ in os.walk(self.path):
                sync_directory(Path(directory))
            entries = list(dict.fromkeys(name.partition("/")[0] for name in self._names))
            self.record({placing.PLACING: os.stat(self.path).st_ino, "entries": entries})
            if self._inside:
                placing.fill(self.path, self.destination, entries)
            else:
                placing.put(self._work, self.path, self.destination, self._overwrite)
            # The journal goes last: it tells a later run whose the rest is.
            with contextlib.suppress(OSError):
                for entry in os.scandir(self._work):
                    if entry.name != JOURNAL:
                        _remove(Path(entry.path))
                shutil.rmtree(self._work)
        self._release()

    def abandon(self) -> None:
        """Remove the working directory and the directories made for it, or leave all for a later conversion to
        continue."""
        with endings.uninterrupted():
            if not self._resume:
                with contextlib.suppress(OSError, CrosswalkError):
                    # Broken off while it was put in place, the only copy of what was there before may lie here.
                    placing.recover(self._work, self.destination, self._inside, self._read_journal())
                    shutil.rmtree(self._work, ignore_errors=True)
                    self._remove_parents()
            self._release()

    def sweep(self) -> None:
        """Remove from the output what was not created, and what somebody else has put in the place of a file."""
        folders = {parent for name in self._names for parent in Path(name).parents}
        for directory, below, files in os.walk(self.path):
            home = Path(directory).relative_to(self.path)
            for name in [*below, *files]:
                path, status = home / name, os.lstat(self.path / home / name)
                is_file = str(path) in self._names and stat.S_ISREG(status.st_mode) and status.st_nlink == 1
                if not is_file and not (path in folders and stat.S_ISDIR(status.st_mode)):
                    _remove(self.path / path)
            below[:] = [name for name in below if (self.path / home / name).is_dir()]

    def partial(self, names: Iterable[str]) -> int:
        """Bytes that files of these names, left by an interrupted conversion, take and will give back."""
        total = 0
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(self.path / name).st_blocks * 512
        return total

    def _make_parents(self) -> None:
        """The directories around the destination that are not there, innermost first, in ``_made``."""
        missing = list(itertools.takewhile(lambda path: not path.exists(), (self._home, *self._home.parents)))
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):  # somebody else made it just now
                path.mkdir()
                self._made.insert(0, path)
        if not self._home.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{self._home} is not a directory")

    def _remove_parents(self) -> None:
        """Remove the directories made for the destination, but for what others have put into them."""
        for path in [self._work, *self._made] if self._is_new else self._made:
            with contextlib.suppress(OSError):
                path.rmdir()

    def _release(self) -> None:
        endings.forget(self)
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def errors(self, what: str) -> _Errors:
        """A context in which an OSError becomes a ``CrosswalkError``: the output cannot be ``what``."""
        return _Errors(self.destination, what)

    def _acquire(self) -> int:
        """Create the working directory and lock it. One that somebody else could write in is not taken."""
        while True:
            self._is_new = True  # said before it is: an interrupt may come right after
            try:
                self._work.mkdir(0o700)
            except FileExistsError:
                self._is_new = False
            try:
                descriptor = os.open(self._work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # the other conversion removed it just now
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise self._not_ours("it is not a directory") from error
                raise
            status = os.fstat(descriptor)
            if not self._is_new and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
                os.close(descriptor)
                raise self._not_ours("others own it or may write in it")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    self._is_new = False  # somebody else has it
                    os.close(descriptor)
                    where = Position(str(self.destination))
                    raise fail("output/busy", "another conversion is writing this destination", where) from error
                return descriptor  # a file system without locks
            try:
                if os.path.samestat(os.lstat(self._work), os.fstat(descriptor)):
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)  # the other conversion removed it just now

    def _not_ours(self, reason: str) -> Exception:
        text = f"the output would be made in {self._work}, which was there before: {reason}"
        return fail("output/foreign", text, Position(str(self.destination)), "remove it")

    def _read_journal(self) -> list[dict[str, Any]]:
        records, self._recorded = read_journal(self._work)
        return records


class _Errors:
    def __init__(self, destination: Path, what: str):
        self._destination, self._what = destination, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            text = f"the output cannot be {self._what}: {error.strerror or error}"
            raise fail("output/failed", text, Position(str(self._destination))) from error


def read_journal(work: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of an interrupted conversion in a working directory, and the bytes that they take; a torn last line
    is left out."""
    try:
        descriptor = os.open(work / JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            whole = [line for line in stream if line.endswith(b"\n")]
        records = [json.loads(line) for line in whole]
    except (OSError, ValueError):
        return [], 0
    if not all(isinstance(record, dict) for record in records):
        return [], 0
    return records, sum(map(len, whole))


def check_space(staging: Staging, needed: int, names: Iterable[str] = ()) -> None:
    """Raise ``CrosswalkError`` unless ``needed`` bytes fit on the file system of the destination, to which the files
    ``names`` that an interrupted conversion left give back what they take."""
    with staging.errors("created"):
        status = os.statvfs(staging.path)
    free = status.f_bavail * status.f_frsize + staging.partial(names)
    if status.f_blocks and free < needed:
        text = f"the output takes {needed:,} bytes, {free:,} are free on the file system"
        raise fail("output/space", text, Position(str(staging.destination)))


def write_file(staging: Staging, name: str, content: bytes) -> bytes:
    """Write and sync a small file; the digest of what it is to hold."""
    descriptor = staging.create(name)
    try:
        set_size(descriptor, 0)
        write_at(descriptor, content, 0)
        sync(descriptor)
    finally:
        os.close(descriptor)
    return hashlib.blake2b(content).digest()


def copy_file(staging: Staging, name: str, origin: Path) -> bytes:
    """Copy the content of a file, following links, and sync it; the digest of what was read. Raises
    ``CrosswalkError`` for what cannot be read."""
    seen = hashlib.blake2b()
    try:
        with os.fdopen(open_regular(origin), "rb") as source, open(staging.create(name), "r+b") as target:
            set_size(target.fileno(), 0)
            done = 0
            while block := source.read(_STEP):
                write_at(target.fileno(), block, done)
                seen.update(block)
                done += len(block)
            sync(target.fileno())
    except OSError as error:
        text = f"copying {name}: {error.strerror or error}"
        raise fail("output/carry", text, Position(str(origin))) from error
    return seen.digest()


def digest_of(path: Path) -> bytes:
    """The digest of what the file system gives back of a file."""
    seen = hashlib.blake2b()
    with os.fdopen(open_regular(path), "rb") as stream:
        while block := stream.read(_STEP):
            seen.update(block)
    return seen.digest()


def _open(path: Path) -> int:
    """A regular file of our own, made if it is not there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EEXIST, f"{path.name} is not a regular file")
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
