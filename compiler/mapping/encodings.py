"""How a mapping declares that tensors are stored encoded: the object of config.json that says so, and the names of what
is stored for one."""

from __future__ import annotations

from collections.abc import Callable

from crosswalk.compiler.notation.templates import Template
from crosswalk.compiler.text.positioned import Map, did_you_mean
from crosswalk.runtime.errors import Position, fail
from crosswalk.runtime.plan.encodings import KINDS

from .model import EncodingCase, Encodings, Entry, MappingFile

#: What an entry of the config of an encoding may say; ``block`` is the only field.
_ENTRIES = ("field", "only", "drop")


def parse_encodings(
    document: Map, base: MappingFile, entries: Callable[[Map, tuple[str, ...]], list[Entry]]
) -> dict[str, Encodings]:
    """The encodings of a mapping, with those that it inherits; a case replaces the inherited one of the same value.
    Raises ``CrosswalkError`` at the first mistake."""
    result = dict(base.encodings)
    for key, body in document.get("encodings", Map()).items():
        cases = dict(result[key].cases) if key in result else {}
        for value, case in body["cases"].items():
            cases[value] = _parse_case(case, body["cases"].key_position(value), entries)
        result[key] = Encodings(key, body["by"], cases)
    return result


def parse_signs(document: Map, base: MappingFile) -> tuple[tuple[Template, tuple[str, ...]], ...]:
    """The names of tensors that say who quantised a file, with those that a mapping inherits. Raises
    ``CrosswalkError`` for what is none."""
    body = document.get("quantised", Map())
    own = []
    for name, tools in body.items():
        template = _parse_name(name, body.key_position(name))
        if not name.startswith("{name}"):
            raise fail("mapping/encoding", "such a name starts with `{name}`", body.key_position(name))
        own.append((template, tuple(tools)))
    return (*base.quantised, *own)


def _parse_case(body: Map, position: Position, entries: Callable[[Map, tuple[str, ...]], list[Entry]]) -> EncodingCase:
    kind = KINDS.get(body["is"])
    if kind is None:
        hint = did_you_mean(body["is"], KINDS) or f"there are {', '.join(KINDS)}"
        raise fail("mapping/encoding", f"`{body['is']}` is no kind of encoding", body.value_position("is"), hint)
    config = entries(body.get("config", Map()), ())
    for entry in config:
        if entry.kind not in _ENTRIES or len(entry.theirs) != 1:
            raise fail("mapping/encoding", "of an encoding this can be `block`, `only` or `~`", entry.position)
        if entry.kind == "field" and (entry.ours != ("block",) or len(kind.blocks) < 2):
            what = "`block`" if len(kind.blocks) > 1 else f"none in `{kind.name}`"
            raise fail("mapping/encoding", f"the only field of an encoding is {what}", entry.right)
    names = {word: _parse_name(body[word], body.value_position(word)) for word in ("tensor", "payload", "scales")}
    ignores = body.get("ignores", [])
    ignored = tuple(_parse_name(text, ignores.item_position(index)) for index, text in enumerate(ignores))
    return EncodingCase(kind.name, tuple(config), **names, ignores=ignored, position=position)


def _parse_name(text: str, position: Position) -> Template:
    template = Template.parse(text, position)
    if [str(hole) for hole in template.holes] != ["{name}"]:
        raise fail("mapping/encoding", "a name of an encoding has one hole, which is `{name}`", position)
    return template
