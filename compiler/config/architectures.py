"""The name of the class in config.json, where it is not written as the class writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from crosswalk.compiler.mapping.model import MappingFile


def class_name(wrappers: Iterable[str], name: Any) -> Any:
    """The name of a class without those of ``wrappers`` that training put before it; null if nothing is left."""
    while prefix := next((p for p in wrappers if isinstance(name, str) and name.startswith(p)), ""):
        name = name[len(prefix) :] or None
    return name


def right_architecture(mapping: MappingFile, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The config with ``architectures`` and ``model_type`` as the class of a mapping writes them where it says nothing,
    or names the class within a wrapper or in other cases of letters, and a note on each."""
    right: dict[str, Any] = {}
    said = config.get("architectures", ())
    if mapping.architecture is not None and (said is None or isinstance(said, list)):
        names = {str(name).casefold() for given in said or () if (name := class_name(mapping.wrappers, given))}
        if names <= {mapping.architecture.casefold()} and said not in ((), [mapping.architecture]):
            right["architectures"] = [mapping.architecture]
    if mapping.model_types and config.get("model_type", "") is None:
        right["model_type"] = mapping.model_types[0]
    notes = []
    for key, value in right.items():
        name = value[0] if isinstance(value, list) else value
        notes.append(f"`{key}` is {json.dumps(config[key], ensure_ascii=False)}: read, and written, as {name}")
    return {**config, **right}, notes


def other_head(mapping: MappingFile, config: Mapping[str, Any]) -> str | None:
    """What the class in a config has, as the mapping says of endings of class names; None if it says nothing."""
    said = config.get("architectures")
    names = [name for name in said if isinstance(name, str)] if isinstance(said, list) else []
    return next((text for name in names for end, text in mapping.unmapped.items() if name.endswith(end)), None)
