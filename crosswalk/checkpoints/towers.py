"""The text tower of a checkpoint of a model with other towers, as a checkpoint of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from crosswalk.compiler.config.dialects import rename
from crosswalk.compiler.config.dtypes import DTYPE_KEYS
from crosswalk.compiler.layout.model import MISSING
from crosswalk.compiler.mapping.model import MappingFile, Tower
from crosswalk.compiler.relations.keys import get
from crosswalk.runtime.errors import Position, fail, shown
from crosswalk.runtime.records import replace

from .huggingface import CONFIG, HuggingFaceCheckpoint, config_bytes

FLAG = "pass --text-only (in Python: text_only=True) to convert the text tower alone"


def formats_of_tower(mappings: Iterable[MappingFile], config: Mapping[str, Any]) -> list[MappingFile]:
    """Those that the text tower of a model is of, by the ``model_type`` of the tower; or, if none is, that it may be
    of."""
    kind = config.get("model_type")
    known = [mapping for mapping in mappings if kind in tuple(mapping.tower_of)]
    return [m for m in known if _kind(config, m.tower_of[str(kind)]) in m.model_types] or known


def text_tower(
    checkpoint: HuggingFaceCheckpoint, mappings: Iterable[MappingFile]
) -> tuple[HuggingFaceCheckpoint, tuple[str, ...]]:
    """The text tower of a checkpoint, with its own config.json and names, and the key that its config is under; its
    notes say what stays behind. The tower is one of ``mappings``.

    Raises ``CrosswalkError`` if none of them is declared as a tower of this model."""
    where = Position(str(checkpoint.path / CONFIG))
    kind = str(checkpoint.config.get("model_type"))
    asked = list(mappings)
    fitting = formats_of_tower(asked, checkpoint.config)
    mapping = next(iter(fitting), None)
    if mapping is None:
        listed = ", ".join(mapping.name for mapping in asked)
        text = f"model_type {shown(kind)} is no model of which one of these formats would be the text tower: {listed}"
        raise fail("usage/text-only", text, where, "leave out --text-only")
    tower = mapping.tower_of[kind]
    inner = get(checkpoint.config, tower.config)
    if not isinstance(inner, Mapping):
        text = f"`{'.'.join(tower.config)}`, the config of the text tower, is no object here"
        raise fail("config/type", text, where)
    stored = [key for key in (*DTYPE_KEYS, *mapping.encodings, *mapping.versions) if key in checkpoint.config]
    config = {key: checkpoint.config[key] for key in stored}  # said of the files as a whole
    config |= {key: value for key, value in inner.items() if key not in config or value is not None}
    if config.get("model_type") is None:
        config["model_type"] = tower.default
    if len(fitting) == 1 and mapping.architecture is not None and config["model_type"] in mapping.model_types:
        config["architectures"] = [mapping.architecture]  # a tower names no class, or that of the whole
    names = {name: rename(name, tower.tensors) for name in checkpoint.tensors.tensors if _is_in(name, tower)}
    note = _left_behind(checkpoint, {tower.config[0], "model_type", "architectures", *stored}, names)
    tensors = checkpoint.tensors.select(names)
    text = config_bytes(config).decode()
    taken = replace(checkpoint, text=text, config=config, tensors=tensors, notes=(*checkpoint.notes, note))
    return taken, tower.config


def _kind(config: Mapping[str, Any], tower: Tower) -> Any:
    """The ``model_type`` of the tower."""
    found = get(config, (*tower.config, "model_type"))
    return tower.default if found in (MISSING, None) else found


def _is_in(name: str, tower: Tower) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix, _ in tower.tensors)


def _left_behind(checkpoint: HuggingFaceCheckpoint, taken: set[str], names: Collection[str]) -> str:
    """What the text tower is not: groups of tensors with their numbers, and keys of config.json."""
    left = Counter(_group(name) for name in checkpoint.tensors.tensors if name not in names)
    tensors = ", ".join(f"`{group}` ({number})" for group, number in sorted(left.items())) or "none"
    keys = ", ".join(f"`{key}`" for key in sorted(checkpoint.config.keys() - taken)) or "none"
    return (
        f"only the text tower is converted, {len(names)} tensors of {len(checkpoint.tensors.tensors)}; left behind are "
        f"the tensors {tensors}, and of config.json {keys}"
    )


def _group(name: str) -> str:
    """The module of a model that a tensor belongs to, as a pattern."""
    parts = name.split(".")
    depth = 2 if parts[0] == "model" else 1
    return f"{'.'.join(parts[:depth])}.*" if len(parts) > depth else name
