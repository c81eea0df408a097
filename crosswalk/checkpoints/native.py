"""The trainer's own checkpoint on disk: ``metadata.yaml`` and data files with keys ``NAME/weights``.

The trainer's loader opens exactly the files that ``metadata.state_index`` names. What makes the checkpoint
self-describing is under ``metadata.crosswalk``, where the trainer allows further keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crosswalk.compiler.layout.model import Layout
from crosswalk.compiler.layout.scope import Scope, simple, stored_type
from crosswalk.runtime.checkpoint.opening import read_inside
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail

from . import yaml_text
from .huggingface import CONFIG
from .key_positions import locator
from .opened import Opened, Wanted, is_mapping, is_text, of_record, unmet

METADATA = "metadata.yaml"
SHARD = "weights"
#: What is written. A reader refuses versions newer than its own, so this is the oldest that has every field used here.
FAST_LLM_VERSION = "0.4.0"
MAX_METADATA = 256 << 20
_CONFIG, _ORIGIN = ("config", "base_model"), ("metadata", "crosswalk")


def is_native(path: Path) -> bool:
    """Whether a directory is a checkpoint of Fast-LLM: its metadata.yaml is there."""
    return (path / METADATA).is_file()


def require_checkpoint(path: Path) -> None:
    """Raise unless ``path`` is a directory that could hold a checkpoint, or an index or data file in one."""
    if path.is_dir() or (path.is_file() and path.name.endswith((".index.json", ".safetensors", ".bin"))):
        return
    hint = f"name the directory of a checkpoint, with {CONFIG} or {METADATA}"
    what = "this is a file" if path.exists() else "there is no such directory"
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        hint = "if this is the name of a model on the hub, download it first: nothing is downloaded here"
    raise fail("source/not-a-directory", what, Position(str(path)), hint)


def open_native(path: Path, layout: Layout) -> Opened:
    """Open a native checkpoint from its metadata and headers. Raises ``CrosswalkError`` with what is wrong with it."""
    text = _read_text(path / METADATA)
    document = _parse(text, path / METADATA)
    roots = layout.roots()
    if document.get("format") == "distributed":
        raise _distributed(path, document, text)
    problems = list(_problems(document, roots))
    if problems:
        locate = locator(text, str(path / METADATA))
        raise CrosswalkError(
            Diagnostic("native/metadata", f"`{'.'.join(keys)}` {what}", locate(keys)) for keys, what in problems
        )
    metadata = document["metadata"]
    stored = open_checkpoint(path, metadata["state_index"])
    suffix = f"/{SHARD}"
    # A training checkpoint holds optimizer shards beside the weights; they are no part of the model.
    names = {key: key.removesuffix(suffix) for key in stored.tensors if key.endswith(suffix)}
    origin = metadata.get("crosswalk") or {}
    return Opened(
        path, "fast_llm", layout, document["config"]["base_model"], roots[document["model"]], origin,
        stored.select(names), path / METADATA, text, _CONFIG, _ORIGIN,
    )  # fmt: skip


def _distributed(path: Path, document: Mapping[str, Any], text: str) -> CrosswalkError:
    """What training saves to go on from: ``rank_N.safetensors``, each of one flat vector for a part of all stages, in
    an order that follows from the classes of the trainer, its version and how the job was distributed."""
    message = (
        "this is a `distributed` checkpoint of the trainer: all parameters of a rank are one vector in its file, which"
        " only the trainer can take apart"
    )
    command = (
        f"fast-llm convert {document.get('model')} input.path={path} input.format=distributed"
        " output.path=OUT output.format=fast_llm use_cpu=True"
    )
    hint = f"let the trainer write what can be read, and name OUT here:\n{command}"
    where = locator(text, str(path / METADATA))(("format",))
    return fail("native/distributed", message, where, hint)


def _read_text(file: Path) -> str:
    where = Position(str(file))
    try:
        data = read_inside(file, file.parent, MAX_METADATA + 1)
        if len(data) > MAX_METADATA:
            raise fail("native/metadata", f"larger than {MAX_METADATA >> 20} MiB", where)
        return data.decode()
    except UnicodeDecodeError as error:
        raise fail("native/metadata", "this is not UTF-8 text", where) from error
    except OSError as error:
        raise fail("native/metadata", f"cannot read it: {error.strerror or error}", where) from error


def _parse(text: str, file: Path) -> Mapping[str, Any]:
    """The document, which may be large: it lists every tensor."""
    from .portable_yaml import load

    document = load(text, str(file))
    if not isinstance(document, Mapping):
        raise fail("native/metadata", "this is not a mapping of keys to values", Position(str(file)))
    return document


def _problems(document: Mapping[str, Any], roots: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is needed of the document and is not there or of the wrong kind: keys and what is the matter with them."""

    def index(value: Any) -> bool:
        return isinstance(value, Mapping) and bool(value) and all(map(is_text, (*value, *value.values())))

    wanted: tuple[Wanted, ...] = (
        (("model",), f"one of {', '.join(roots)}", lambda value: is_text(value) and value in roots),
        (("format",), "fast_llm: the trainer's other formats are not read", lambda value: value == "fast_llm"),
        (("config",), "a mapping", is_mapping),
        (_CONFIG, "a mapping", is_mapping),
        (("metadata",), "a mapping", is_mapping),
        (("metadata", "state_index"), "a mapping of tensors to files", index),
        *of_record(_ORIGIN),
    )
    yield from unmet(document, wanted, lambda keys: keys == ("format",) or keys[:2] == _ORIGIN)


def metadata_yaml(
    layout: Layout, config: Mapping[str, Any], root: str, weight_map: Mapping[str, str], origin: Mapping[str, Any]
) -> bytes:
    """The text of ``metadata.yaml`` for a complete native config. ``origin`` goes under ``metadata.crosswalk``."""
    kind = stored_type(layout, layout.types[root], config)
    document = {
        "fast_llm_version": FAST_LLM_VERSION,
        "model": kind.model,
        "format": "fast_llm",
        "config": {"type": kind.model, "base_model": stored_config(Scope(layout, kind, config))},
        "shards": [SHARD],
        "metadata": {"state_index": dict(sorted(weight_map.items())), "crosswalk": dict(origin)},
    }
    return yaml_text.dump(document).encode()


def stored_config(scope: Scope) -> dict[str, Any]:
    """A complete config as it is stored: with every field that decides what the model computes, so that none follows
    the defaults of its reader, and without what is at its default of the others. A null that stands for another value
    is stored as that value: the trainer's loader does not accept each such null, nor each default of the others.
    (``enabled: null`` stays: it says that the parameter is there if those of its layer are.)"""
    kind, config = scope.kind, scope.config
    result: dict[str, Any] = {"type": config["type"]} if "type" in config else {}
    for name, declared in kind.fields.items():
        value = config[name]
        if declared.is_config:
            value = None if value is None else stored_config(scope.sub(name))
        elif declared.kind == "dict":
            value = {key: stored_config(scope.entry(name, key)) for key in value}
        elif value is None and name != kind.stands_for:
            value = simple(scope.field(name))
        if declared.group != "training" or value != ({} if declared.kind == "type" else declared.default):
            result[name] = value
    return result
