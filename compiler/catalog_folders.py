"""Folders of mappings: which files are in them, and what they are as one text that says whether any has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from crosswalk.runtime.errors import Position, fail

from .catalog_text import FILE, LANGUAGE, VERSION

ENDINGS = (".yaml", ".toml")

Folder = Path | Traversable


def shipped() -> Folder:
    """The folder of mappings that comes with the package."""
    return resources.files("crosswalk.mappings")


def sources(folder: Folder) -> dict[str, Traversable]:
    """Name -> file, of all mappings and layouts (``layouts/NAME``) of a folder, sorted. Raises ``CrosswalkError`` if it
    cannot be read."""
    found: dict[str, Traversable] = {}
    try:
        for prefix, place in (("", folder), ("layouts/", folder.joinpath("layouts"))):
            for entry in sorted(place.iterdir(), key=lambda entry: entry.name) if place.is_dir() else ():
                if entry.name.endswith(ENDINGS) and entry.is_file():
                    found.setdefault(prefix + entry.name.rsplit(".", 1)[0], entry)
    except OSError as error:
        raise fail("mapping/folder", f"cannot read it: {error.strerror or error}", Position(str(folder))) from None
    return dict(sorted(found.items()))


def compiled(folder: Folder) -> Traversable | None:
    """The catalog in a folder that has nothing else."""
    file = folder.joinpath(FILE)
    return file if file.is_file() and not sources(folder) else None


def digest(folders: Iterable[Folder]) -> str:
    """The sha256 of all that decides what folders mean: their files, in order, the schemas, and the versions of the
    language and of the text of a catalog."""
    total = hashlib.sha256(f"catalog {VERSION}, language {LANGUAGE}".encode())
    for name in ("layout", "mapping"):
        _add(total, name, resources.files("crosswalk.schema") / f"{name}.schema.json")
    for folder in folders:
        total.update(b"\nfolder")
        alone = compiled(folder)
        files: Mapping[str, Traversable] = {FILE: alone} if alone else sources(folder)
        for name, file in files.items():
            _add(total, f"{name} {file.name}", file)
    return total.hexdigest()


def _add(total: hashlib._Hash, name: str, file: Traversable) -> None:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise fail("document/read", f"cannot read the file: {error.strerror or error}", Position(str(file))) from None
    total.update(f"\n{name} {len(data)}\n".encode("utf-8", "surrogatepass"))
    total.update(data)
