"""Words of the header that hold more than names: versions, dialects and parts."""

from __future__ import annotations

from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.notation.expressions import KeyPath, compile_expression
from crosswalk.compiler.notation.versions import version_numbers
from crosswalk.compiler.text.positioned import Map

from .model import Dialect, MappingFile, Move, PartLine


def _path(text: str) -> KeyPath:
    return tuple(text.split("."))


def parse_versions(document: Map, base: MappingFile) -> dict[str, dict[str, tuple[int, ...]]]:
    """Which dialect a file of a version is in, by the key that says the version."""
    given = document.get("versions")
    if given is None:
        return {key: dict(firsts) for key, firsts in base.versions.items()}
    return {key: {name: version_numbers(first) for name, first in firsts.items()} for key, firsts in given.items()}


def parse_dialects(document: Map, base: MappingFile) -> dict[str, Dialect]:
    """The inherited dialects and those of the document; null removes one."""
    result = dict(base.dialects)
    for name, body in document.get("dialects", {}).items():
        if body is None:
            result.pop(name, None)
            continue
        moves = []
        config = body.get("config", Map())
        for old, new in config.items():
            at = config.key_position(old)
            if isinstance(new, Map):
                unset = (new["unset"],) if "unset" in new else ()
                legacy, yields = bool(new.get("legacy")), bool(new.get("yields"))
                when = compile_expression(new["when"], new.value_position("when")) if "when" in new else None
                default = new.get("default", MISSING)
                moves.append(Move(_path(old), _path(new["is"]), at, unset, legacy, yields, default, when))
            else:
                moves.append(Move(_path(old), _path(new), at))
        result[name] = Dialect(name, tuple(moves), tuple(body.get("tensors", {}).items()))
    return result


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
