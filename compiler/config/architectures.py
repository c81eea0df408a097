"""The name of the class in config.json, where it is not written as the class writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from crosswalk.compiler.mapping.model import MappingFile


def class_name(wrappers: Iterable[str], name: Any) -> Any:
    """The name of a class without the one of ``wrappers`` that training put before it; null if nothing is left."""
    prefix = next((p for p in wrappers if isinstance(name, str) and name.startswith(p)), "")
    return name[len(prefix) :] or None if prefix else name


def right_architecture(mapping: MappingFile, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The config with ``architectures`` as the class of a mapping writes it where it says nothing, or names the class
    within a wrapper, and a note on that."""
    said = config.get("architectures", ())
    if mapping.architecture is None or not (said is None or isinstance(said, list)):
        return config, []
    names = [class_name(mapping.wrappers, name) for name in said or ()]
    if any(name not in (None, mapping.architecture) for name in names) or (said and names == said):
        return config, []
    text = f"`architectures` is {said}: read, and written, as {mapping.architecture}".replace("None", "null")
    return {**config, "architectures": [mapping.architecture]}, [text]


def other_head(mapping: MappingFile, config: Mapping[str, Any]) -> str | None:
    """What the class in a config has, as the mapping says of endings of class names; None if it says nothing."""
    said = config.get("architectures")
    names = [name for name in said if isinstance(name, str)] if isinstance(said, list) else []
    return next((text for name in names for end, text in mapping.unmapped.items() if name.endswith(end)), None)
