"""What saves left that were killed, beside the destination of a later one: a job names each after its step, so that
none comes back to the directory of another."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import placing
from .directory import JOURNAL, read_journal

_NUMBER = re.compile(r"\d+")


def owner() -> dict[str, str]:
    """What tells whether a lock that can be had means that its owner is dead: the machine, and since when it runs."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return {"host": os.uname().nodename, "boot": boot}


def remove_stale(destination: Path) -> None:
    """Remove the working directories of saves to destinations whose names differ from this one's in numbers only, if
    nobody lives that could be writing them. What cannot be removed stays."""
    for work, name in _siblings(destination):
        with contextlib.suppress(OSError):
            descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                    continue
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                records, _ = read_journal(work)
                if _is_dead(records[0] if records else {}):
                    # Broken off while it was put in place, the only copy of what was there before may lie here.
                    placing.recover(work, destination.with_name(name), False, records)
                    shutil.rmtree(work)
            finally:
                os.close(descriptor)


def _siblings(destination: Path) -> Iterator[tuple[Path, str]]:
    """Working directories beside a destination with a number in its name, each with the name that it is for."""
    pattern = _NUMBER.sub("0", destination.name)
    if not _NUMBER.search(destination.name):
        return
    with contextlib.suppress(OSError):
        for entry in os.scandir(destination.parent):
            name = entry.name.removeprefix(".").removesuffix(".crosswalk")
            theirs = entry.name == f".{name}.crosswalk" and _NUMBER.sub("0", name) == pattern
            if theirs and name != destination.name and (Path(entry.path) / JOURNAL).is_file():
                yield Path(entry.path), name


def _is_dead(identity: Mapping[str, Any]) -> bool:
    """Whether the owner of a directory whose lock can be had is dead. A lock is sure on one machine, and nothing
    outlives a restart of it."""
    here, theirs = owner(), identity.get("owner", {})
    return bool(theirs) and (theirs["boot"] == here["boot"] != "" or theirs["host"] == here["host"])
