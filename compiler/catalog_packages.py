"""Folders of mappings that other installed packages bring, by an entry point of the group ``crosswalk.mappings``.

The entry point names a package, and the mappings and layouts lie in it as they do in the shipped folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail

from .catalog_folders import Folder, compiled, shipped, sources

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "crosswalk.mappings"


def brought() -> tuple[Folder, ...]:
    """The folders, sorted by the names of their entry points. Raises ``CrosswalkError`` for what cannot be imported or
    holds no mappings, and for two folders, or one and the shipped one, that have files of one name: installing a
    package must not change what another format means."""
    found = [(point, _folder(point)) for point in _entry_points()]
    owners = dict.fromkeys(sources(shipped()), "crosswalk itself")
    problems = []
    for point, folder in found:
        for name, file in sources(folder).items():
            if name in owners:
                text = f"`{name}` of package {_owner(point)} is also in {owners[name]}"
                hint = "give it another name in the package, or uninstall one of the two"
                problems.append(Diagnostic("mapping/package", text, Position(str(file)), hint))
            owners.setdefault(name, f"package {_owner(point)}")
    if problems:
        raise CrosswalkError(problems)
    return tuple(folder for _, folder in found)


def _folder(point: EntryPoint) -> Folder:
    what = f"the entry point `{point.name} = {point.value}` of package {_owner(point)}"
    hint = "install the package again, or uninstall it"
    try:
        folder = resources.files(point.module)
    except (Exception, SystemExit) as error:  # the package is somebody's: it may fail in any way
        problem = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise fail("mapping/package", f"{what} cannot be imported: {problem}", None, hint) from error
    if not sources(folder):
        alone = " but a catalog, which would bring its own copy of shipped ones" if compiled(folder) else ""
        raise fail("mapping/package", f"{what} leads to no mappings{alone}", Position(str(folder)), hint)
    # The path, where there is one: it is what a catalog in the cache is named after.
    return Path(folder) if isinstance(folder, os.PathLike) else folder


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module


def _entry_points() -> list[EntryPoint]:
    if not any(map(_may_bring, sys.path)):
        return []
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def _may_bring(place: str) -> bool:
    """Whether a place where packages are installed has the group at all. Nearly none does, and importing
    ``importlib.metadata`` to learn that takes longer than reading these files."""
    try:
        entries: Iterable[os.DirEntry[str]] = [*os.scandir(place or ".")]
    except NotADirectoryError:
        return True  # an archive
    except OSError:
        return False
    for entry in entries:
        if entry.name.endswith((".dist-info", ".egg-info")):
            try:
                with open(os.path.join(entry.path, "entry_points.txt"), "rb") as file:
                    if GROUP.encode() in file.read():
                        return True
            except OSError:
                continue
    return False
