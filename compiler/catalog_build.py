"""The build step: every mapping and layout of some folders, compiled and checked, as one catalog; and the cache where
catalogs of folders of one's own are kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import Any

from crosswalk.compiler.layout.model import Layout
from crosswalk.compiler.notation.axes import conditions_of
from crosswalk.compiler.notation.expressions import compile_expression, recording, tree_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic
from crosswalk.runtime.records import replace

from .catalog import Catalog
from .catalog_folders import Folder, digest, shipped
from .catalog_text import FILE, MAX_BYTES, VERSION, Catalogued, encode, from_text, to_text

#: Catalogs in the cache.
_MOST_KEPT = 50


def build(folders: Iterable[Folder], names: Iterable[str] | None = None) -> Catalogued:
    """Compile ``names``, by default all there are, and what they need. Raises ``CrosswalkError`` with every problem of
    every mapping."""
    catalog = Catalog(folders)
    wanted = catalog.names() if names is None else names
    made, problems = _made(catalog, wanted, catalog.layout_names() if names is None else (), Catalogued("", {}, {}, {}))
    if problems:
        raise CrosswalkError(dict.fromkeys(problems))
    return made


def _build_own(folders: tuple[Folder, ...], shipped: Catalogued) -> Catalogued:
    """The same as ``build`` of all, without reading again what is ``shipped``, nor compiling it again if none of it is
    replaced. What has a mistake is left out, and read from its source by whoever asks for it."""
    own = Catalog(folders).own()
    known = _beside(own, len(folders), shipped)
    wanted = own if known.index else own | known.documents.keys()
    layouts = {name for name in wanted if "/" in name}
    short = sorted(name.removeprefix("layouts/") for name in layouts)
    return _made(Catalog(folders, stored=known), sorted(wanted - layouts), short, known)[0]


def _beside(own: Set[str], number: int, shipped: Catalogued) -> Catalogued:
    """What is left of the ``shipped`` catalog beside ``number`` folders with files of these names. If they replace any,
    its index is not: any other mapping may need what is replaced."""
    kept = {name: (number, file, tree) for name, (_, file, tree) in shipped.documents.items() if name not in own}
    return replace(shipped, documents=kept, index=shipped.index if len(kept) == len(shipped.documents) else {})


def _made(
    catalog: Catalog, names: Iterable[str], layouts: Iterable[str], known: Catalogued
) -> tuple[Catalogued, list[Diagnostic]]:
    """What is ``known`` already, with these mappings and layouts and all that they need; and what is wrong in those
    that are not in it for that."""
    problems: list[Diagnostic] = []
    wrong: set[str] = set()

    def attempt(name: str, make: Callable[[], object]) -> None:
        try:
            make()
        except CrosswalkError as error:
            problems.extend(error.diagnostics)
            wrong.add(name)

    with recording() as texts:
        for name in names:
            attempt(name, partial(_compile, catalog, name))
        for name in layouts:
            attempt(f"layouts/{name}", partial(catalog.layout, name))
        for name, layout in catalog.layouts().items():
            attempt(f"layouts/{name}", partial(_compile_later, layout))
    documents = {name: entry for name, entry in known.documents.items() if name not in wrong}
    for name, document in catalog.documents().items():
        if name not in documents and name not in wrong:
            number, file = _place(document.position.file, name, catalog.folders)
            documents[name] = (number, file, encode(document))
    index = {name: catalog.listed(name) for name in sorted(documents) if "/" not in name}
    trees = {text: known.expressions.get(text) or tree_of(text) for text in texts}
    if known.index:  # else all is compiled, and none is left of what was replaced
        trees = {**known.expressions, **trees}
    return Catalogued(digest(catalog.folders), index, trees, documents), problems


def _compile(catalog: Catalog, name: str) -> None:
    if not catalog.mapping(name).abstract:
        catalog.compiled(name)


def _compile_later(layout: Layout) -> None:
    for text in _later(layout):
        compile_expression(text)


def _later(layout: Layout) -> Iterator[str]:
    """Expressions of a layout that are compiled when there is a config."""
    for kind in layout.all_types():
        yield from (domain for domain in kind.holes.values() if domain not in kind.fields)
        for parameter in kind.parameters:
            yield from conditions_of(parameter.pattern.dims)


def _place(file: str, name: str, folders: tuple[Folder, ...]) -> tuple[int, str]:
    """The number of the folder that a file is from, and its name there."""
    short = f"{'layouts/' if '/' in name else ''}{Path(file).name}"
    return next((n, short) for n, folder in enumerate(folders) if str(folder.joinpath(*short.split("/"))) == file)


def write(catalog: Catalogued, folder: Path) -> Path:
    """Write ``catalog.json`` into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(to_text(catalog), encoding="utf-8")
    return folder / FILE


def stored(folders: tuple[Folder, ...]) -> Catalogued | None:
    """The catalog of these folders and what is shipped, which was made before or is made now, without what has a
    mistake. Where none can be kept, the part of it that is shipped; None if that was never made either.

    Files of the folders count as they are now: a catalog of other content is not used."""
    places = (*folders, shipped())
    now = digest(places)
    if not folders and (found := _read(shipped().joinpath(FILE), now)):
        return found
    cache = _cache_file(places)
    if cache is not None and _is_ours(cache) and (found := _read(cache, now)):
        return found
    known = stored(()) if folders else None
    if cache is not None and _can_keep(cache.parent):
        with contextlib.suppress(CrosswalkError):
            made = _build_own(folders, known) if known else build(folders)
            _replace(cache, to_text(made))
            return made
    return _beside(Catalog(folders).own(), len(folders), known) if known else None


def _read(file: Any, sources: str) -> Catalogued | None:
    try:
        with file.open("rb") as stream:
            found = from_text(stream.read(MAX_BYTES + 1), str(file))
    except (OSError, CrosswalkError):
        return None
    return found if found.sources == sources else None


def _cache_file(folders: tuple[Folder, ...]) -> Path | None:
    """One file for each list of folders, so that the cache does not grow with every change of one."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(home):
        return None
    places = "\n".join([str(VERSION), *map(os.path.abspath, map(str, folders))])
    name = hashlib.sha256(places.encode("utf-8", "surrogatepass")).hexdigest()
    return Path(home) / "crosswalk" / f"{name[:32]}.json"


def _is_ours(file: Path) -> bool:
    """Whether a file of the cache is one that only this user can have written."""
    try:
        found = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and not (
        hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o022)
    )


def _can_keep(home: Path) -> bool:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return os.access(home, os.W_OK)


def _replace(file: Path, text: str) -> None:
    """Keep a text, if there is room for it, and of the others in the cache the newest: there is one for each list of
    folders that was ever named, and a process that was killed leaves part of one."""
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.stem)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.replace(name, file)
        except OSError:
            os.unlink(name)
            raise
        others = [entry for entry in os.scandir(file.parent) if entry.path != str(file)]
        for entry in sorted(others, key=lambda entry: -entry.stat().st_mtime)[_MOST_KEPT - 1 :]:
            os.unlink(entry)
