"""Where mappings and layouts, all of which the tests compile and run, use each word of the schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: Longest example, in characters.
_LONGEST = 80
_NANO = "tests/project/nano_mappings/nano_mappings"
#: Schema -> the files that it describes.
_FILES = {
    "mapping": ("mappings/*.yaml", f"{_NANO}/*.yaml"),
    "layout": ("mappings/layouts/*.yaml", f"{_NANO}/layouts/*.yaml"),
}
Place = tuple[str, str]


@cache
def examples(name: str) -> Mapping[Place, str]:
    """The shortest example of each word: (definition, ``-`` for the document, and word) -> text, and the file."""
    from jsonschema import Draft202012Validator
    from ruamel.yaml import YAML

    schema = json.loads((ROOT / "schema" / f"{name}.schema.json").read_text(encoding="utf-8"))
    validator = Draft202012Validator(schema)
    found: dict[Place, tuple[bool, bool, int, str]] = {}
    for file in sorted(file for pattern in _FILES[name] for file in ROOT.glob(pattern)):
        document = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        for definition, word, value in _used(validator, schema, schema, "-", document):
            for text in _texts(word, value):
                ranked = (value in ([], {}, None), "…" in text, len(text), f"`{text}` in {file.stem}")
                if len(text) <= _LONGEST and ranked < found.get((definition, word), (True, True, _LONGEST + 1, "")):
                    found[definition, word] = ranked
    return {place: text for place, (*_, text) in found.items()}


def _texts(word: str, value: Any) -> Iterator[str]:
    """A word with its value, and with the beginning of it."""
    yield f"{word}: {_flow(value)}"
    if isinstance(value, Mapping) and len(value) > 1:
        yield from (f"{word}: {{{_flow({key: item})[1:-1]}, …}}" for key, item in value.items())
    if isinstance(value, Mapping):
        yield from (f"{word}: {{{_flow(key)}: …}}" for key in value)
    if isinstance(value, list) and len(value) > 1:
        first = value[0]
        yield f"{word}: [{_flow(first)}, …]"
        if isinstance(first, Mapping):
            yield from (f"{word}: [{{{_flow({key: item})[1:-1]}, …}}, …]" for key, item in first.items())


def _used(validator: Any, schema: Any, body: Any, name: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """Words with their values, and the definitions that they are of."""
    if not isinstance(body, Mapping):
        return
    if "$ref" in body:
        reference = str(body["$ref"])
        target = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        yield from _used(validator, schema, target, reference.rpartition("/")[2], value)
    for alternative in body.get("anyOf", ()):
        if validator.evolve(schema=alternative).is_valid(value):
            yield from _used(validator, schema, alternative, name, value)
            break
    if "if" in body:
        branch = "then" if validator.evolve(schema=body["if"]).is_valid(value) else "else"
        yield from _used(validator, schema, body.get(branch), name, value)
    if isinstance(value, list):
        for item in value:
            yield from _used(validator, schema, body.get("items"), name, item)
    if isinstance(value, Mapping):
        known = body.get("properties", {})
        for word, item in value.items():
            if word in known:
                yield name, str(word), item
                yield from _used(validator, schema, known[word], name, item)
            elif "patternProperties" in body and str(word)[:1].isupper():
                (further,) = body["patternProperties"].values()
                yield from _used(validator, schema, further, name, item)
            else:
                yield from _used(validator, schema, body.get("additionalProperties"), name, item)


def _flow(value: Any) -> str:
    """A value as one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        text = " ".join(value.split())
        return text if text and not set(text) & set(",:{}[]#\"'|") else json.dumps(text, ensure_ascii=False)
    return "~" if value is None else json.dumps(value)
