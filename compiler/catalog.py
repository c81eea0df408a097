"""Find mapping and layout files by name, and compile each once.

Names are file names without their ending. Folders are searched in order, the shipped mappings last; a file of the same
name in an earlier folder takes the place of the shipped one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from crosswalk.compiler.layout.model import Layout, load_layout
from crosswalk.compiler.layout.values import unfit_defaults
from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.compiler.mapping.parse import parse_mapping
from crosswalk.compiler.notation.expressions import learn
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.positioned import Map, did_you_mean
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail

from .catalog_folders import ENDINGS, Folder, compiled, shipped, sources
from .catalog_text import MAX_BYTES, Catalogued, Listed, from_text
from .compile import expand, problems_of


def schema(name: str) -> Mapping[str, Any]:
    """A shipped JSON Schema: ``layout``, ``mapping`` or ``plan``."""
    return _schema(name)


@functools.cache
def _schema(name: str) -> Mapping[str, Any]:
    result: Mapping[str, Any] = json.loads(
        (resources.files("crosswalk.schema") / f"{name}.schema.json").read_text(encoding="utf-8")
    )
    return result


def _no_problems(mapping: CompiledMapping) -> Sequence[Diagnostic]:
    return ()


class Catalog:
    """The mappings and layouts of some folders. ``texts`` gives files by name that are not on disk (for editors and
    tests); they come first. ``stored`` is what was read of these very folders before, all of it or the shipped part, by
    one that can be relied on.
    ``inverses``: whether it is shown that `read` and `write` undo each other, which takes half of the time."""

    def __init__(
        self,
        folders: Iterable[Folder] = (),
        texts: Mapping[str, str] | None = None,
        stored: Catalogued | None = None,
        inverses: bool = True,
    ) -> None:
        self.folders: tuple[Folder, ...] = (*folders, shipped())
        self.texts = dict(texts or {})
        self.stored = stored
        self.inverses = inverses
        if stored:
            learn(stored.expressions)
        self._documents: dict[str, Map] = {}
        self._mappings: dict[str, MappingFile] = {}
        self._layouts: dict[str, Layout] = {}
        self._compiled: dict[str, CompiledMapping] = {}
        self._made: dict[str, dict[str, tuple[Catalogued, str]]] = {}

    def names(self) -> list[str]:
        """Every mapping there is, abstract ones included, sorted."""
        return sorted(self.texts.keys() | {name for name in self._files if "/" not in name})

    def layout_names(self) -> list[str]:
        """Every layout there is, sorted."""
        return sorted(name.removeprefix("layouts/") for name in self._files if "/" in name)

    @functools.cached_property
    def _files(self) -> set[str]:
        return self.own() | (self.stored.documents.keys() if self.stored else sources(self.folders[-1]).keys())

    def own(self) -> set[str]:
        """Every mapping and layout (``layouts/NAME``) of the folders that are not the shipped one."""
        folders = self.folders[:-1]
        return {name for folder in folders for name in (self._compiled_folder(folder) or sources(folder))}

    def listed(self, name: str) -> Listed:
        """What is known of a mapping without compiling it."""
        if self.stored and name in self.stored.index:
            return self.stored.index[name]
        found = self.mapping(name)
        return Listed(
            name, self._is_format(found), found.layout, found.architecture, found.model_types, found.config_class,
            found.wrappers,
        )  # fmt: skip

    def formats(self) -> list[str]:
        """The mappings of whole models: neither abstract, nor of a part such as a vision encoder, nor of another form
        of the config of a layout."""
        return [name for name in self.names() if self.listed(name).is_format]

    def documents(self) -> Mapping[str, Map]:
        """The documents that were needed until now, by name; those of layouts are ``layouts/NAME``."""
        return dict(sorted(self._documents.items()))

    def layouts(self) -> Mapping[str, Layout]:
        """The layouts that were needed until now, by name."""
        return self._layouts

    def _is_format(self, mapping: MappingFile) -> bool:
        if mapping.abstract or mapping.layout is None:
            return False
        layout = self.layout(mapping.layout, mapping.position)
        if mapping.name in (form["with"] for form in layout.forms):
            return False
        return mapping.root in (None, layout.root) or layout.types[mapping.root].model is not None

    def mapping(self, name: str, at: Position | None = None) -> MappingFile:
        """The mapping file of that name, ``extends`` resolved."""
        if name not in self._mappings:
            self._mappings[name] = self._parse(name, at, ())
        return self._mappings[name]

    def compiled(self, name: str, at: Position | None = None) -> CompiledMapping:
        """The mapping of that name, checked against its layout and compiled. Raises ``CrosswalkError`` with all that
        is wrong in either."""
        if name not in self._compiled:
            mapping = self.mapping(name, at)
            if mapping.layout is None:
                raise fail("mapping/layout", f"mapping `{name}` names no layout", mapping.position, "add `layout:`")
            layout = self.layout(mapping.layout, mapping.place("layout"))
            known = self.stored is not None and name in self.stored.index  # compiled and checked when that was made
            check = _no_problems if known else functools.partial(problems_of, inverses=self.inverses)
            compiled = self._compiled[name] = expand(mapping, layout, self.compiled, check)
            if not known:
                for dialect in compiled.spelled:
                    compiled.in_dialect(dialect)
        return self._compiled[name]

    def layout(self, name: str, at: Position | None = None) -> Layout:
        """The layout of that name, read and checked once. Raises ``CrosswalkError`` with all that is wrong in it."""
        if name not in self._layouts:
            document = self._document(f"layouts/{name}", "layout", at)
            layout = load_layout(document)
            if problems := [*unfit_defaults(layout)]:
                raise CrosswalkError(problems)
            self._layouts[name] = layout
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
            self._documents[name] = self._stored(name) or self._checked(name, kind, at)
        return self._documents[name]

    def _stored(self, name: str) -> Map | None:
        if self.stored is None or name not in self.stored.documents:
            return None
        number, file, _ = self.stored.documents[name]
        try:
            return self.stored.document(name, str(self.folders[number].joinpath(*file.split("/"))))
        except (IndexError, CrosswalkError):
            return None  # the source has it

    def _checked(self, name: str, kind: str, at: Position | None) -> Map:
        from crosswalk.compiler.text.documents import validate

        document = self._read(name, at)
        problems = validate(document, schema(kind))
        if problems:
            raise CrosswalkError(problems)
        return document

    def _read(self, name: str, at: Position | None) -> Map:
        from crosswalk.compiler.text.documents import load_document, parse_document

        if name in self.texts:
            return parse_document(self.texts[name], f"{name}.yaml")
        for folder in self.folders:
            made = self._compiled_folder(folder)
            if made and name in made:
                found, place = made[name]
                return found.document(name, place)
            for ending in ENDINGS:
                file = folder.joinpath(*f"{name}{ending}".split("/"))
                if file.is_file():
                    return load_document(file)
        what, short = ("layout", name.removeprefix("layouts/")) if "/" in name else ("mapping", name)
        known = self.layout_names() if what == "layout" else self.names()
        hint = did_you_mean(short, known) or f"there are {', '.join(known)}"
        raise fail("mapping/not-found", f"there is no {what} `{short}`", at, hint)

    def _compiled_folder(self, folder: Folder) -> Mapping[str, tuple[Catalogued, str]] | None:
        """The documents of a folder that has a catalog in place of sources, which may be anybody's: by name, what they
        are read from when they are needed, and what positions call them."""
        file = compiled(folder)
        if file is None:
            return None
        if str(file) not in self._made:
            try:
                with file.open("rb") as stream:
                    found = from_text(stream.read(MAX_BYTES + 1), str(file))
            except OSError as error:
                problem = f"cannot read the file: {error.strerror or error}"
                raise fail("document/read", problem, Position(str(file))) from None
            self._made[str(file)] = {name: (found, f"{folder}/{entry[1]}") for name, entry in found.documents.items()}
        return self._made[str(file)]
