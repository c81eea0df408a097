"""Mutants of a mapping file: one entry dropped, renamed, or given the right side of its neighbour; and the catalog that
compiles them."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.layout.model import Layout
from crosswalk.compiler.text.positioned import Map

Path = tuple[Any, ...]

#: Words that make an object one entry; any other object below ``config:`` or ``tensors:`` only groups entries.
_WORDS = {
    *("alias", "axes", "by", "cases", "const", "default", "is", "legacy", "lossy", "of", "omit", "only", "optional"),
    *("read", "required", "tensors", "unset", "with", "write", "yields"),
}
_TABLES = ("config", "tensors", "sets", "enums", "dialects", "parts", "kinds", "cases", "checks")
_LISTS = ("same",)
_WORDS_OF_SECTIONS = ("count", "each", "overrides", "by")
#: Said about a mapping, not by it.
_HEADER = ("crosswalk", "extends", "layout", "root", "abstract", "architecture", "model_type", "config_class", "files",
           "derived_files", "auto_map", "newest", "write_dialects", "tower_of", "elsewhere", "keeps")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """``name`` says what was done where; ``text`` is the mapping with it done."""

    name: str
    text: str


def mutants(document: Mapping[str, Any]) -> Iterator[Mutant]:
    """Every mutant of a parsed mapping file."""
    for path in _entries(document, ()):
        name = ".".join(map(str, path))
        yield _mutant(f"drop {name}", document, lambda place, key: place.pop(key), path)
        if path[-2] in _LISTS or path[-1] in _WORDS_OF_SECTIONS:
            continue
        if path[0] != "enums" and "checks" not in path:
            yield _mutant(f"rename {name}", document, _rename, path)
        other = _neighbour(document, path)
        if other is not None:
            yield _mutant(f"swap {name} with {other}", document, lambda p, k, other=other: _swap(p, k, other), path)


def _entries(node: Any, path: Path, inside: bool = False) -> Iterator[Path]:
    """Paths of all entries: of the tables of sections, of their lists, and what is nested in them."""
    if isinstance(node, list):
        if path and path[-1] in _LISTS:
            yield from ((*path, index) for index in range(len(node)))
        return
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        here = (*path, key)
        if not path and key in _HEADER:
            continue
        if key in _TABLES and isinstance(value, Mapping):
            yield from _entries(value, here, inside=True)
        elif key in _LISTS:
            yield from _entries(value, here)
        elif inside:
            is_mapping_of_its_own = path[-1] in ("kinds", "cases", "dialects")
            is_group = isinstance(value, Mapping) and not set(value) & _WORDS
            if is_mapping_of_its_own or not is_group:
                yield here
            if is_mapping_of_its_own or is_group:
                yield from _entries(value, here, inside=not is_mapping_of_its_own)
        elif key in _WORDS_OF_SECTIONS:
            yield here
        else:
            yield from _entries(value, here)


def _neighbour(document: Mapping[str, Any], path: Path) -> Any:
    """The next entry of the same table whose right side is of the same kind, and differs."""
    table = _at(document, path[:-1])
    keys = list(table)
    value = table[path[-1]]
    for key in keys[keys.index(path[-1]) + 1 :]:
        if type(table[key]) is type(value) and table[key] != value and not isinstance(value, list):
            return key
    return None


def _rename(place: Any, key: Any) -> None:
    place[f"{key}_renamed"] = place.pop(key)


def _swap(place: Any, key: Any, other: Any) -> None:
    place[key], place[other] = place[other], place[key]


def _at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def _mutant(name: str, document: Mapping[str, Any], change: Any, path: Path) -> Mutant:
    mutated = copy.deepcopy(document)
    change(_at(mutated, path[:-1]), path[-1])
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(mutated, stream)
    return Mutant(name, stream.getvalue())


@functools.cache
def _layout(name: str) -> Layout:
    return Catalog().layout(name)


@functools.cache
def _unchanged(name: str, kind: str) -> Map:
    return Catalog()._checked(name, kind, None)


class MutantCatalog(Catalog):
    """With the layout, and the files that are not mutated, read once for all mutants."""

    def layout(self, name: str, at: Any = None) -> Layout:
        return _layout(name)

    def _checked(self, name: str, kind: str, at: Any) -> Map:
        return super()._checked(name, kind, at) if name in self.texts else _unchanged(name, kind)
