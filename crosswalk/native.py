"""The trainer's own checkpoint on disk: ``metadata.yaml`` and data files with keys ``NAME/weights``.

The trainer's loader opens exactly the files that ``metadata.state_index`` names. What makes the checkpoint
self-describing is under ``metadata.crosswalk``, where the trainer allows further keys.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from crosswalk.compiler.layout import Layout
from crosswalk.compiler.scope import config_type
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.source import Checkpoint, open_checkpoint

METADATA = "metadata.yaml"
SHARD = "weights"
#: What is written. A reader refuses versions newer than its own, so this is the oldest that has every field used here.
FAST_LLM_VERSION = "0.4.0"
MAX_METADATA = 256 << 20


@dataclass(frozen=True)
class NativeCheckpoint:
    """``config``: the base-model config as stored. ``root``: its type in the layout. ``origin``: what was recorded of
    the Hugging Face checkpoint that it came from, empty if it came from elsewhere. ``tensors``: without suffix."""

    path: Path
    config: Mapping[str, Any]
    root: str
    origin: Mapping[str, Any]
    tensors: Checkpoint


def is_native(path: Path) -> bool:
    return (path / METADATA).is_file()


def open_native(path: Path, layout: Layout) -> NativeCheckpoint:
    """Open a native checkpoint from its metadata and headers. Raises ``CrosswalkError`` with what is wrong with it."""
    where = Position(str(path / METADATA))
    document = _read_metadata(path / METADATA, where)
    problems = []
    for keys in (("config", "base_model"), ("metadata", "state_index"), ("model",)):
        value: Any = document
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            problems.append(Diagnostic("native/metadata", f"`{'.'.join(keys)}` is missing", where))
    if problems:
        raise CrosswalkError(problems)
    roots = layout.roots()
    if document["model"] not in roots:
        raise fail("native/model", f"`model` is {document['model']!r}, not one of {', '.join(roots)}", where)
    index = document["metadata"]["state_index"]
    stored = open_checkpoint(path, index)
    suffix = f"/{SHARD}"
    # A training checkpoint holds optimizer shards beside the weights; they are no part of the model.
    names = {key: key.removesuffix(suffix) for key in stored.tensors if key.endswith(suffix)}
    origin = document["metadata"].get("crosswalk", {})
    return NativeCheckpoint(
        path, document["config"]["base_model"], roots[document["model"]], origin, stored.select(names)
    )


def _read_metadata(file: Path, where: Position) -> Mapping[str, Any]:
    """The document, which lists every tensor and may be large. Aliases are refused: they can multiply its size."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_METADATA + 1)
        if len(data) > MAX_METADATA:
            raise fail("native/metadata", f"larger than {MAX_METADATA >> 20} MiB", where)
        text = data.decode()
        yaml = YAML(typ="safe", pure=True)
        if "*" in text and any(isinstance(event, AliasEvent) for event in yaml.parse(text)):
            raise fail("native/metadata", "aliases are not allowed here", where)
        document = yaml.load(text)
    except (YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise fail("native/metadata", f"not valid YAML: {str(error)[:300]}", where) from error
    except OSError as error:
        raise fail("native/metadata", f"cannot read it: {error.strerror or error}", where) from error
    if not isinstance(document, Mapping):
        raise fail("native/metadata", "not a mapping", where)
    return document


def metadata_yaml(
    layout: Layout, config: Mapping[str, Any], root: str, weight_map: Mapping[str, str], origin: Mapping[str, Any]
) -> bytes:
    """The text of ``metadata.yaml`` for a complete native config. ``origin`` goes under ``metadata.crosswalk``."""
    model = layout.types[root].model
    document = {
        "fast_llm_version": FAST_LLM_VERSION,
        "model": model,
        "format": "fast_llm",
        "config": {"type": model, "base_model": stored_config(layout, config, root)},
        "shards": [SHARD],
        "metadata": {"state_index": dict(sorted(weight_map.items())), "crosswalk": dict(origin)},
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 4096
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue().encode()


def stored_config(layout: Layout, config: Mapping[str, Any], root: str) -> dict[str, Any]:
    """A complete config without what is at its default and no part of the architecture's own fields, as the trainer
    stores it: some defaults of ``training`` fields are not values that its loader accepts when given."""
    result: dict[str, Any] = {}
    kind = config_type_of(layout, root, config)
    if "type" in config:
        result["type"] = config["type"]
    for name, declared in kind.fields.items():
        value = config[name]
        if declared.group != "fields" and value == declared.default and not declared.is_config:
            continue
        if declared.is_config and isinstance(value, Mapping):
            value = stored_config(layout, value, config_type(layout, declared, value).name)
            if declared.group != "fields" and not value:
                continue
        elif declared.kind == "dict":
            value = {k: stored_config(layout, v, config_type(layout, declared, v).name) for k, v in value.items()}
        result[name] = value
    return result


def config_type_of(layout: Layout, name: str, config: Mapping[str, Any]) -> Any:
    """The type called ``name``; where several families have one of that name, the one with the config's fields."""
    found = [t for t in layout.all_types() if t.name == name]
    return next(t for t in found if set(config) - {"type"} == set(t.fields))
