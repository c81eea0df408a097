"""The catalog of mappings that a process uses: the shipped ones, those that installed packages bring, and those of the
folders in ``CROSSWALK_MAPPINGS``."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.catalog_build import stored
from crosswalk.compiler.catalog_folders import Folder
from crosswalk.compiler.catalog_packages import brought
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.errors import Position, fail

#: The layout of formats that are detected without one being named.
DEFAULT_LAYOUT = "fast_llm"


@functools.cache
def catalog() -> Catalog:
    """The mappings of this process: what was compiled of them before, if nothing changed since."""
    found = folders()
    return Catalog(found, stored=stored(found))


def folders() -> tuple[Folder, ...]:
    """Where mappings are, in order, before what is shipped: those of the environment (joined by ``os.pathsep``), then
    those of installed packages. Raises ``CrosswalkError`` for a folder that is not there: without it a format of the
    same name would be taken for the one that was meant."""
    listed = os.environ.get("CROSSWALK_MAPPINGS", "")
    named = [Path(folder) for folder in listed.split(os.pathsep) if folder]
    for folder in named:
        try:
            os.scandir(folder).close()
        except OSError as error:
            hint = "CROSSWALK_MAPPINGS or --mappings names it: correct the path, or take it out"
            text = f"cannot read the folder: {error.strerror}"
            raise fail("mapping/folder", text, Position(str(folder)), hint) from None
    return (*named, *brought())


def use_folders(found: Iterable[Path]) -> None:
    """Let this process find mappings in more folders, before those of the environment."""
    before = os.environ.get("CROSSWALK_MAPPINGS")
    os.environ["CROSSWALK_MAPPINGS"] = os.pathsep.join([*map(str, found), *([before] if before else [])])
    catalog.cache_clear()


def layouts_kept_as(kind: str) -> list[str]:
    """The layouts whose trainers keep their checkpoints in a kind of directory."""
    found = catalog()
    return [name for name in found.layout_names() if found.layout(name).directory == kind]


def format_named(name: str, layout: str | None = None) -> CompiledMapping:
    """The compiled mapping of a format: one of that name, which in ``layout`` may be the name of its file without that
    of the layout, or the model_type of one format only. Raises ``CrosswalkError``, with the formats, if there is
    none."""
    found = catalog()
    resolved = _resolved(name, layout)
    if resolved is None:
        from crosswalk.compiler.text.positioned import did_you_mean

        formats = found.formats()
        hint = did_you_mean(name, formats) or f"the formats are {', '.join(formats)}"
        raise fail("usage/format", f"there is no format `{name}`", None, hint)
    return found.compiled(resolved)


def _resolved(name: str, layout: str | None) -> str | None:
    listed = {known: catalog().listed(known) for known in catalog().formats()}
    here = {known: entry for known, entry in listed.items() if layout in (None, entry.layout)}
    named = [known for known, entry in here.items() if name in (known, name_in_layout(known, entry.layout))]
    if name in named:
        return name
    typed = [known for known, entry in here.items() if name in tuple(entry.model_types)]
    for candidates in (named, typed if layout is not None else []):
        if len(candidates) == 1:
            return candidates[0]
    return name if name in listed else None


def short_name(mapping: CompiledMapping) -> str:
    """What users call a format: in the file of one of several layouts, that of the layout stands before it."""
    return name_in_layout(mapping.name, mapping.layout.name)


def name_in_layout(name: str, layout: str | None) -> str:
    """The name of a mapping file without that of its layout; nothing is compiled to know it."""
    return name.removeprefix(f"{layout}_") or name
