"""A catalog as text: documents that are read and checked already, with the place of every key and value, the syntax
trees of their expressions, and an index of what each mapping is. Reading one needs the JSON parser of Python alone.

``["m", line, column, [key, line, column, line, column, value], ...]`` is a mapping: of each entry, where its key and
where its value stands; ``["s", line, column, [line, column, value], ...]`` is a list; anything else is a scalar.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from crosswalk.compiler.text.positioned import FORBIDDEN, MAX_DEPTH, Map, Seq
from crosswalk.runtime.errors import CrosswalkError, Position, fail
from crosswalk.runtime.records import Record, asdict

#: Of the mapping language, which is what files say in ``crosswalk: 1``.
LANGUAGE = 1
#: Of this text: another number for any change of its form, of what documents or syntax trees are made from a source.
VERSION = 1
FILE = "catalog.json"
MAX_BYTES = 16 << 20


class Listed(Record, frozen=True):
    """What is known of a mapping without reading it. ``is_format``: it is of whole models, not of parts of them."""

    name: str
    is_format: bool
    layout: str | None
    architecture: str | None
    model_types: tuple[str, ...]
    config_class: str | None
    wrappers: tuple[str, ...]

    @property
    def model_type(self) -> str | None:
        """The one that is written."""
        return self.model_types[0] if self.model_types else None


class Catalogued(Record, frozen=True):
    """The content of a catalog. ``sources`` is the digest of what it was made from; a document is (folder, file name,
    tree): the number of the folder that it is from, and what it is called there."""

    sources: str
    index: Mapping[str, Listed]
    expressions: Mapping[str, list[Any]]
    documents: Mapping[str, tuple[int, str, list[Any]]]

    def document(self, name: str, file: str) -> Map:
        """A document, which ``file`` is the name of in positions. Raises ``CrosswalkError`` if it is no document."""
        return _decode(self.documents[name][2], file)


def encode(value: Any) -> Any:
    """A positioned document as plain lists."""
    if isinstance(value, Map):
        entries = ((key, value.key_position(key), value.value_position(key), item) for key, item in value.items())
        listed = [[key, at.line, at.column, to.line, to.column, encode(item)] for key, at, to, item in entries]
        return ["m", value.position.line, value.position.column, *listed]
    if isinstance(value, Seq):
        places = map(value.item_position, range(len(value)))
        items = [[at.line, at.column, encode(item)] for at, item in zip(places, value, strict=True)]
        return ["s", value.position.line, value.position.column, *items]
    return value


def to_text(catalog: Catalogued) -> str:
    """The text of a catalog: the same for the same content, one line for each document and expression."""
    lines = [
        f'"crosswalk_catalog": {VERSION}',
        f'"language": {LANGUAGE}',
        f'"sources": "{catalog.sources}"',
        _block("index", {name: asdict(found) for name, found in catalog.index.items()}),
        _block("expressions", catalog.expressions),
        _block("documents", catalog.documents),
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _block(name: str, content: Mapping[str, Any]) -> str:
    lines = (f"{_compact(key)}: {_compact(content[key])}" for key in sorted(content))
    return f'"{name}": {{\n' + ",\n".join(lines) + "\n}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)


def from_text(data: bytes, file: str) -> Catalogued:
    """The content of ``data``. Documents and trees are checked when they are asked for. Raises ``CrosswalkError``."""
    if len(data) > MAX_BYTES:
        raise _refused(f"larger than {MAX_BYTES >> 20} MiB", file)
    try:
        content = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _refused(f"not valid JSON: {str(error)[:200]}", file) from None
    if not isinstance(content, dict) or content.get("crosswalk_catalog") != VERSION:
        raise _refused(f"not a catalog of version {VERSION}", file)
    if content.get("language") != LANGUAGE:
        raise _refused(f"not of version {LANGUAGE} of the mapping language", file)
    index, trees, documents = (content.get(name) for name in ("index", "expressions", "documents"))
    if not isinstance(content.get("sources"), str) or not all(isinstance(d, dict) for d in (index, trees, documents)):
        raise _refused("`sources`, `index`, `expressions` or `documents` is missing or of another kind", file)
    assert isinstance(index, dict)
    assert isinstance(trees, dict)
    assert isinstance(documents, dict)
    listed = {name: _listed(name, entry, file) for name, entry in index.items()}
    if not all(isinstance(tree, list) for tree in trees.values()):
        raise _refused("an expression is no tree", file)
    return Catalogued(content["sources"], listed, trees, {n: _entry(n, d, file) for n, d in documents.items()})


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _entry(name: str, entry: Any, file: str) -> tuple[int, str, list[Any]]:
    if not (isinstance(entry, list) and len(entry) == 3):
        raise _refused(f"document `{name}` is not [folder, file, tree]", file)
    folder, source, tree = entry
    if type(folder) is not int or folder < 0 or not isinstance(source, str) or not isinstance(tree, list):
        raise _refused(f"document `{name}` is not [folder, file, tree]", file)
    if source.rsplit(".", 1)[0] != name or not re.fullmatch(r"(layouts/)?[^/\\]+", source):
        raise _refused(f"document `{name}` is said to be from `{source}`", file)
    return folder, source, tree


def _listed(name: str, entry: Any, file: str) -> Listed:
    if not isinstance(entry, dict) or entry.keys() != {*Listed.__struct_fields__} or entry["name"] != name:
        raise _refused(f"the entry of `{name}` in the index is not what an entry is", file)
    texts = (entry["layout"], entry["architecture"], entry["config_class"])
    lists = (entry["model_types"], entry["wrappers"])
    if not all(text is None or isinstance(text, str) for text in texts) or not isinstance(entry["is_format"], bool):
        raise _refused(f"the entry of `{name}` in the index has a value of another kind", file)
    if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists):
        raise _refused(f"the entry of `{name}` in the index has a value of another kind", file)
    return Listed(**{**entry, "model_types": tuple(entry["model_types"]), "wrappers": tuple(entry["wrappers"])})


def _refused(what: str, file: str) -> CrosswalkError:
    return fail("catalog/content", what, Position(file), "make it again with compile-mappings -o DIR")


def _decode(tree: list[Any], file: str) -> Map:
    try:
        result = _value(tree, file, MAX_DEPTH)
    except (TypeError, ValueError, IndexError):
        raise _refused("a document is not what a document is", file) from None
    if not isinstance(result, Map):
        raise _refused("a document is no mapping", file)
    return result


def _value(tree: Any, file: str, depth: int) -> Any:
    """The value of a tree. Raises ``ValueError`` or ``TypeError`` for what is none."""
    if not isinstance(tree, list):
        return _scalar(tree)
    if not depth:
        raise ValueError
    kind, line, column, *entries = tree
    container = {"m": Map, "s": Seq}[kind](_at(file, line, column)) if kind in ("m", "s") else None
    if isinstance(container, Map):
        for key, key_line, key_column, value_line, value_column, item in entries:
            if not isinstance(key, str) or _scalar(key) in container:
                raise TypeError
            value = _value(item, file, depth - 1)
            container.put(key, value, _at(file, key_line, key_column), _at(file, value_line, value_column))
        return container
    if not isinstance(container, Seq):
        raise ValueError
    for line, column, item in entries:
        container.put(_value(item, file, depth - 1), _at(file, line, column))
    return container


def _scalar(value: Any) -> Any:
    """A value that a document can have. Raises ``ValueError`` or ``TypeError`` for any other."""
    if isinstance(value, str):
        if FORBIDDEN.search(value):
            raise ValueError
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError
    elif value is not None:
        raise TypeError
    return value


def _at(file: str, line: Any, column: Any) -> Position:
    if type(line) is not int or type(column) is not int or line < 0 or column < 0:
        raise TypeError
    return Position(file, line, column)
