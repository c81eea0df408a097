"""Find mapping and layout files by name, and compile each once.

Names are file names without their ending. Folders are searched in order, the shipped mappings last; a file of the same
name in an earlier folder takes the place of the shipped one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from crosswalk.compiler.layout.model import Layout, load_layout
from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.compiler.mapping.parse import parse_mapping
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.documents import Map, did_you_mean, load_document, parse_document, validate
from crosswalk.runtime.errors import CrosswalkError, Position, fail

from .compile import expand

ENDINGS = (".yaml", ".toml")


def schema(name: str) -> Mapping[str, Any]:
    """A shipped JSON Schema: ``layout``, ``mapping`` or ``plan``."""
    return _schema(name)


@functools.cache
def _schema(name: str) -> Mapping[str, Any]:
    result: Mapping[str, Any] = json.loads(
        (resources.files("crosswalk.schema") / f"{name}.schema.json").read_text(encoding="utf-8")
    )
    return result


class Catalog:
    """The mappings and layouts of some folders. ``texts`` gives files by name that are not on disk (for editors and
    tests); they come first."""

    def __init__(self, folders: Iterable[Path] = (), texts: Mapping[str, str] | None = None) -> None:
        shipped = resources.files("crosswalk.mappings")
        self.folders: tuple[Path | Traversable, ...] = (*folders, shipped)
        self.texts = dict(texts or {})
        self._documents: dict[str, Map] = {}
        self._mappings: dict[str, MappingFile] = {}
        self._layouts: dict[str, Layout] = {}
        self._compiled: dict[str, CompiledMapping] = {}

    def names(self) -> list[str]:
        """Every mapping there is, abstract ones included, sorted."""
        found = set(self.texts)
        for folder in self.folders:
            found |= {
                entry.name.rsplit(".", 1)[0]
                for entry in folder.iterdir()
                if entry.name.endswith(ENDINGS) and entry.is_file()
            }
        return sorted(found)

    def formats(self) -> list[str]:
        """The mappings of whole models: neither abstract nor of a part, such as a vision encoder."""
        return [name for name in self.names() if self._is_format(self.mapping(name))]

    def _is_format(self, mapping: MappingFile) -> bool:
        if mapping.abstract or mapping.layout is None:
            return False
        layout = self.layout(mapping.layout, mapping.position)
        return mapping.root in (None, layout.root) or layout.types[mapping.root].model is not None

    def mapping(self, name: str, at: Position | None = None) -> MappingFile:
        """The mapping file of that name, ``extends`` resolved."""
        if name not in self._mappings:
            self._mappings[name] = self._parse(name, at, ())
        return self._mappings[name]

    def compiled(self, name: str, at: Position | None = None) -> CompiledMapping:
        """The mapping of that name, checked against its layout and compiled."""
        if name not in self._compiled:
            mapping = self.mapping(name, at)
            if mapping.layout is None:
                raise fail("mapping/layout", f"mapping `{name}` names no layout", mapping.position, "add `layout:`")
            layout = self.layout(mapping.layout, mapping.place("layout"))
            self._compiled[name] = expand(mapping, layout, self.compiled)
        return self._compiled[name]

    def layout(self, name: str, at: Position | None = None) -> Layout:
        if name not in self._layouts:
            document = self._document(f"layouts/{name}", "layout", at)
            self._layouts[name] = load_layout(document)
        return self._layouts[name]

    def _parse(self, name: str, at: Position | None, chain: tuple[str, ...]) -> MappingFile:
        document = self._document(name, "mapping", at)

        def load_base(base: str, position: Position) -> MappingFile:
            if base == name or base in chain:
                cycle = " -> ".join((*chain, name, base))
                raise fail("mapping/extends-cycle", f"`extends` goes round in a circle: {cycle}", position)
            if base not in self._mappings:
                self._mappings[base] = self._parse(base, position, (*chain, name))
            return self._mappings[base]

        return parse_mapping(name, document, load_base)

    def _document(self, name: str, kind: str, at: Position | None) -> Map:
        if name not in self._documents:
            document = self._read(name, at)
            problems = validate(document, schema(kind))
            if problems:
                raise CrosswalkError(problems)
            self._documents[name] = document
        return self._documents[name]

    def _read(self, name: str, at: Position | None) -> Map:
        if name in self.texts:
            return parse_document(self.texts[name], f"{name}.yaml")
        for folder in self.folders:
            for ending in ENDINGS:
                file = folder.joinpath(*f"{name}{ending}".split("/"))
                if file.is_file():
                    return load_document(file)
        what, short = ("layout", name.removeprefix("layouts/")) if "/" in name else ("mapping", name)
        known = self._layout_names() if what == "layout" else self.names()
        hint = did_you_mean(short, known) or f"there are {', '.join(known)}"
        raise fail("mapping/not-found", f"there is no {what} `{short}`", at, hint)

    def _layout_names(self) -> list[str]:
        folders = (folder.joinpath("layouts") for folder in self.folders)
        files = [entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()]
        return sorted(name.rsplit(".", 1)[0] for name in files if name.endswith(ENDINGS))
