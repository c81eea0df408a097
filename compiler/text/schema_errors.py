"""JSON Schema validation whose errors point at the key or value that is wrong, and say what was expected there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crosswalk.runtime.errors import Diagnostic, Position, shorten

from .positioned import Map, Seq, describe, did_you_mean

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

# By identity: a schema is loaded once and not hashable. The entry keeps it alive, so that its id stays its own.
_validators: dict[int, tuple[Mapping[str, Any], Draft202012Validator]] = {}


def validate(document: Map, schema: Mapping[str, Any]) -> list[Diagnostic]:
    """Every violation of a JSON Schema (2020-12), in the order of the file, with codes ``schema/KEYWORD``.

    The first sentence of a ``description`` in the schema is what messages say was expected, so it is a noun phrase. The
    validator is made once per schema object; that the schema itself is valid is taken for granted.
    """
    diagnostics: dict[Diagnostic, None] = {}
    for error in _validator(schema).iter_errors(document):
        misspelt = _misspelt(error, document, schema)
        if misspelt:
            diagnostics[misspelt] = None
            continue
        for part in _expand(error):
            diagnostics.update(dict.fromkeys(_diagnose(part, document)))
    return sorted(
        diagnostics, key=lambda found: (found.position.line, found.position.column) if found.position else (0, 0)
    )


def _validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    if id(schema) not in _validators:
        from jsonschema import Draft202012Validator  # 80 ms, for the compiler only

        _validators[id(schema)] = schema, Draft202012Validator(schema)
    return _validators[id(schema)][1]


def _misspelt(error: ValidationError, document: Map, schema: Mapping[str, Any]) -> Diagnostic | None:
    """A diagnostic for a key that looks like one of the document's own, if the schema allows others beside them: what
    its value should be is then known by that key, not by the rule for the others."""
    path = error.absolute_path
    if not path or path[0] in schema.get("properties", {}) or error.absolute_schema_path[0] == "propertyNames":
        return None
    near = difflib.get_close_matches(str(path[0]), schema.get("properties", {}), 1, 0.8)
    if not near:
        return None
    position = document.key_position(str(path[0]))
    return Diagnostic("schema/additionalProperties", f"unknown key `{path[0]}`", position, f"did you mean `{near[0]}`?")


def _expand(error: ValidationError) -> Iterator[ValidationError]:
    """Replace "no alternative fits" by the errors of the alternative that was meant, if that can be told."""
    meant = [branch for branch in _branches(error) if not any(map(_excludes, branch))]
    if not meant:
        yield error
        return
    for part in min(meant, key=lambda branch: (sum(len(part.relative_path) == 0 for part in branch), len(branch))):
        yield from _expand(part)


def _branches(error: ValidationError) -> list[list[ValidationError]]:
    if error.validator not in ("anyOf", "oneOf"):
        return []
    branches: dict[Any, list[ValidationError]] = {}
    for part in error.context or ():
        branches.setdefault(part.relative_schema_path[0], []).append(part)
    return list(branches.values())


def _excludes(error: ValidationError) -> bool:
    """Whether the error says that the value as a whole is of another kind than the alternative is about."""
    if error.relative_path:
        return False
    branches = _branches(error)
    if branches:
        return all(any(map(_excludes, branch)) for branch in branches)
    return error.validator in ("type", "const", "enum")


def _diagnose(error: ValidationError, document: Map) -> Iterator[Diagnostic]:
    key_at, value_at = _locate(document, error.absolute_path)
    if "propertyNames" in error.absolute_schema_path:  # the path is that of the object, the value is the key
        key_at = value_at = _locate(document, (*error.absolute_path, str(error.instance)))[0]
    code, value, wanted, expected = f"schema/{error.validator}", error.instance, _wanted(error), _brief(_schema(error))
    match error.validator:
        case "not" if wanted == {}:
            yield Diagnostic(code, f"`{error.absolute_path[-1]}` is not allowed here", key_at, expected)
        case "additionalProperties" if isinstance(value, Map):
            yield from _unknown_keys(code, value, _schema(error))
        case "required" if isinstance(value, Map):
            hint = f"expected {expected}" if expected else None
            yield from (Diagnostic(code, f"key `{k}` is missing", key_at, hint) for k in wanted if k not in value)
        case "enum" | "const":
            yield _not_allowed(code, value, wanted if error.validator == "enum" else [wanted], expected, value_at)
        case "minLength":
            yield Diagnostic(code, f"expected {expected or 'text'}, found an empty text", value_at)
        case "type" | "anyOf" | "oneOf" | "pattern":
            yield _other_kind(code, error, expected or _kinds(error), value_at)
        case "minProperties" | "maxProperties" | "minItems" | "maxItems":
            size = len(value) if isinstance(value, Map | Seq) else 0
            count = f"{describe(value)} with {size or 'no'} entr{'y' if size == 1 else 'ies'}"
            yield Diagnostic(code, f"expected {expected or _kinds(error)}, found {count}", value_at)
        case _:
            yield Diagnostic(code, shorten(error.message, 200), value_at, f"expected {expected}" if expected else None)


def _unknown_keys(code: str, value: Map, schema: Mapping[str, Any]) -> Iterator[Diagnostic]:
    allowed = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    for key in value:
        if key not in allowed and not any(re.search(pattern, key) for pattern in patterns):
            hint = did_you_mean(key, allowed) or (f"allowed here: {_listed(allowed)}" if allowed else None)
            yield Diagnostic(code, f"unknown key `{shorten(key)}`", value.key_position(key), hint)


def _not_allowed(code: str, value: Any, allowed: Sequence[Any], expected: str | None, at: Position) -> Diagnostic:
    texts = [option for option in allowed if isinstance(option, str)]
    hint = did_you_mean(value, texts) if isinstance(value, str) else None
    if expected and not hint:
        hint = f"allowed here: {_listed(allowed)}"
    return Diagnostic(code, f"expected {expected or _one_of(allowed)}, found {describe(value)}", at, hint)


def _other_kind(code: str, error: ValidationError, kinds: str, at: Position) -> Diagnostic:
    value = error.instance
    hint = "if this is text, quote it" if isinstance(value, Map | Seq) and "text" in kinds else None
    words = _schema(error).get("x-words", ())  # of an object that is told apart by them, so they can be misspelt
    if error.absolute_path and (word := difflib.get_close_matches(str(error.absolute_path[-1]), words, 1, 0.8)):
        hint = f"`{error.absolute_path[-1]}` is read as a key: did you mean the word `{word[0]}`?"
    return Diagnostic(code, f"expected {kinds}, found {describe(value)}", at, hint)


_KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _kinds(error: ValidationError) -> str:
    """What an error of ``type``, ``pattern``, ``anyOf`` or ``oneOf`` wanted, in words."""
    if error.validator == "type":
        types = _wanted(error)
        return " or ".join(_KINDS[kind] for kind in ([types] if isinstance(types, str) else types))
    if error.validator == "pattern":
        return f"text like `{_wanted(error)}`"
    if error.validator in ("enum", "const"):
        return _one_of(_wanted(error) if error.validator == "enum" else [_wanted(error)])
    parts = [part for part in error.context or () if not part.relative_path]
    kinds = [_brief(_schema(part)) or _kinds(part) for part in parts]
    return " or ".join(dict.fromkeys(kinds)) or "exactly one of the alternatives"


def _brief(schema: Mapping[str, Any]) -> str | None:
    """The first sentence of the description, which says what is expected."""
    found = re.match(r"(.*?)(?:\.\s|\.?$)", str(schema.get("description", "")), re.DOTALL)
    return found[1] if found and found[1] else None


def _schema(error: ValidationError) -> Mapping[str, Any]:
    return error.schema if isinstance(error.schema, Mapping) else {}


def _wanted(error: ValidationError) -> Any:
    return error.validator_value


def _one_of(options: Sequence[Any]) -> str:
    return _listed(options) if len(options) == 1 else f"one of {_listed(options)}"


def _listed(options: Iterable[Any]) -> str:
    return ", ".join(f"`{option}`" if isinstance(option, str) else describe(option) for option in options)


def _locate(document: Map, path: Iterable[str | int]) -> tuple[Position, Position]:
    """Positions of the key and of the value at ``path``."""
    key_at = value_at = document.position
    container: Any = document
    current: Any = document
    for step in path:
        container = current
        if isinstance(container, Map):
            key_at, value_at = container.key_position(str(step)), container.value_position(str(step))
        elif isinstance(container, Seq):
            key_at = value_at = container.item_position(int(step))
        current = container[step]
    return key_at, value_at
