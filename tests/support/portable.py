"""What readers of both versions of YAML make of a text."""

from __future__ import annotations

import functools
from typing import Any

import yaml
from ruamel.yaml import YAML


def assert_read_as(text: str, document: Any) -> None:
    """PyYAML, which the trainer uses, and ruamel read the document, every value of the very type that it has."""
    by_trainer, by_ruamel = _read(text)
    assert by_trainer == by_ruamel == typed(document)


@functools.cache
def _read(text: str) -> tuple[Any, Any]:
    return typed(yaml.safe_load(text)), typed(YAML(typ="safe", pure=True).load(text))


def typed(value: Any) -> Any:
    """The value with the type of every part of it, such that nan equals itself and 0.0 is not -0.0."""
    match value:
        case dict():
            return {typed(key): typed(entry) for key, entry in value.items()}
        case list():
            return [typed(entry) for entry in value]
        case _:
            return type(value), repr(value)
