"""Words of the header that hold more than names: versions and parts."""

from __future__ import annotations

from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.notation.versions import version_numbers
from crosswalk.compiler.text.positioned import Map

from .model import MappingFile, PartLine


def _path(text: str) -> KeyPath:
    return tuple(text.split("."))


def parse_versions(document: Map, base: MappingFile) -> dict[str, dict[str, tuple[int, ...]]]:
    """Which dialect a file of a version is in, by the key that says the version."""
    given = document.get("versions")
    if given is None:
        return {key: dict(firsts) for key, firsts in base.versions.items()}
    return {key: {name: version_numbers(first) for name, first in firsts.items()} for key, firsts in given.items()}


def parse_parts(document: Map) -> list[PartLine]:
    """The parts that the document itself names."""
    result = []
    for key, body in document.get("parts", {}).items():
        names = body["with"]
        result.append(
            PartLine(
                _path(key),
                () if body["is"] == "." else _path(body["is"]),
                (names,) if isinstance(names, str) else tuple(names),
                body.get("tensors", ""),
                body.get("default"),
                bool(body.get("optional", False)),
                document["parts"].key_position(key),
                body.value_position("is"),
                body.value_position("with"),
            )
        )
    return result
