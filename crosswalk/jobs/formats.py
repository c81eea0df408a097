"""The catalog of mappings that a process uses: the shipped ones, those that installed packages bring, and those of the
folders in ``CROSSWALK_MAPPINGS``."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.catalog_build import stored
from crosswalk.compiler.catalog_folders import Folder
from crosswalk.compiler.catalog_packages import brought
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.errors import fail

#: The layout of formats that are detected without one being named.
DEFAULT_LAYOUT = "fast_llm"


@functools.cache
def catalog() -> Catalog:
    """The mappings of this process: what was compiled of them before, if nothing changed since."""
    found = folders()
    return Catalog(found, stored=stored(found))


def folders() -> tuple[Folder, ...]:
    """Where mappings are, in order, before what is shipped: those of the environment (joined by ``os.pathsep``), then
    those of installed packages."""
    listed = os.environ.get("CROSSWALK_MAPPINGS", "")
    return (*(Path(folder) for folder in listed.split(os.pathsep) if folder), *brought())


def format_named(name: str) -> CompiledMapping:
    """The compiled mapping of a format; an error lists the formats."""
    found = catalog()
    if name not in found.formats():
        from crosswalk.compiler.text.positioned import did_you_mean

        formats = found.formats()
        hint = did_you_mean(name, formats) or f"the formats are {', '.join(formats)}"
        raise fail("usage/format", f"there is no format `{name}`", None, hint)
    return found.compiled(name)
