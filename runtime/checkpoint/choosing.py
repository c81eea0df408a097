"""Which files of a directory are the checkpoint, and what a user should know of those that are not.

People's folders hold more than one: the original format beside the one of transformers, adapters that are merged
already, copies, downloads that are not finished.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from crosswalk.runtime.errors import Diagnostic, Position, fail
from crosswalk.runtime.records import Record

_INDEX = ".index.json"
#: In order of preference, as transformers has it: one file before an index, safetensors before pickles.
_NAMES = (
    "model.safetensors",
    "model.safetensors" + _INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin" + _INDEX,
)
#: Weights of an adapter (PEFT): what is added to a model, never the model.
_ADAPTER = re.compile(r"adapter_(model|config)\b.*|.*[._-]adapters?[._-].*\.(safetensors|bin)")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
#: Endings that browsers and download tools give to files that are not finished.
_UNFINISHED = (".incomplete", ".part", ".partial", ".aria2", ".crdownload", ".download", ".filepart")


class ChosenFiles(Record, frozen=True):
    """``index``: the file that lists the others, or else ``files``. ``notes``: what was left, in words."""

    index: Path | None
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def is_adapter(name: str) -> bool:
    """Whether a file of this name belongs to an adapter, such as ``adapter_config.json``."""
    return _ADAPTER.fullmatch(name) is not None


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is a download that was not finished."""
    return name.endswith(_UNFINISHED)


def choose(directory: Path) -> ChosenFiles:
    """The checkpoint of a directory: what transformers would load, or else the only one there is.

    Raises ``CrosswalkError`` if there is none, or several that nothing tells apart; ``OSError`` if it cannot be read.
    """
    entries = sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    weights = [e for e in entries if e.name.endswith((".safetensors", ".bin")) and not is_adapter(e.name)]
    weights = [e for e in weights if e.suffix == ".safetensors" or e.name.startswith("pytorch_model")]
    indexes = [
        e for e in entries if e.name.endswith((".safetensors" + _INDEX, ".bin" + _INDEX)) and not is_adapter(e.name)
    ]
    there = {entry.name: entry for entry in entries}
    named = next((there[name] for name in _NAMES if name in there), None)
    if named is None:
        named = _only(directory, weights, indexes, entries)
    is_index = named.name.endswith(_INDEX)
    left = [e.name for e in indexes if e != named]
    if is_index:
        stem = named.name.removesuffix(_INDEX).rpartition(".")[0]
        left += [e.name for e in weights if not (_SHARD.fullmatch(e.name) and e.name.startswith(f"{stem}-"))]
    else:
        left += [e.name for e in weights if e != named]
    notes = [f"the checkpoint is `{named.name}`; left out: {_listed(left)}"] if left else []
    adapters = [e.name for e in entries if is_adapter(e.name)]
    if adapters:
        notes.append(f"files of an adapter are left out, as if it was merged: {_listed(adapters)}")
    unfinished = [e.name for e in entries if is_unfinished(e.name)]
    if unfinished:
        notes.append(f"downloads that are not finished are left out: {_listed(unfinished)}")
    return ChosenFiles(named if is_index else None, () if is_index else (named,), tuple(notes))


def _only(directory: Path, weights: Sequence[Path], indexes: Sequence[Path], entries: Sequence[Path]) -> Path:
    where = Position(str(directory))
    if len(indexes) == 1:
        return indexes[0]
    tensors = [e for e in weights if e.suffix == ".safetensors"]
    if len(tensors) == 1 and not indexes and not _SHARD.fullmatch(tensors[0].name):
        return tensors[0]
    if indexes:
        text = f"several indexes could be the checkpoint: {_listed([e.name for e in indexes])}"
        raise fail("source/ambiguous", text, where, "name one of these files in place of the directory")
    if any(_SHARD.fullmatch(e.name) for e in weights):
        shards = [e.name for e in weights if _SHARD.fullmatch(e.name)]
        text = f"there are shards and no index that says which tensors are where: {_listed(shards)}"
        hint = "download the *.index.json of the checkpoint too"
        raise fail("source/no-index", text, where, hint)
    if tensors:
        text = f"several files could be the checkpoint: {_listed([e.name for e in tensors])}"
        raise fail("source/ambiguous", text, where, "name one of these files in place of the directory")
    adapters = [e.name for e in entries if is_adapter(e.name)]
    if adapters:
        text = f"the directory holds an adapter and no model: {_listed(adapters)}"
        raise fail("source/adapter", text, where, "merge it into its base model first (merge_and_unload of PEFT)")
    unfinished = [e.name for e in entries if is_unfinished(e.name)]
    if unfinished:
        text = f"there are only downloads that are not finished: {_listed(unfinished)}"
        raise fail("source/unfinished", text, where, "download the checkpoint again")
    text = "there is no *.safetensors or pytorch_model.bin in the directory"
    raise fail("source/not-found", text, where, _other_frameworks(entries))


def _other_frameworks(entries: Sequence[Path]) -> str | None:
    """What a directory without a checkpoint holds that could be taken for one."""
    kinds = {".gguf": "GGUF", ".pth": "torch", ".pt": "torch", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX"}
    found = [e.name for e in entries if e.suffix in kinds]
    if not found:
        return None
    kind = kinds[Path(found[0]).suffix]
    return f"`{found[0]}` is a file of {kind}, which is not read: get the safetensors files of the model"


def dangling(path: Path) -> Diagnostic | None:
    """What is wrong with a link to a file that is not there, as in a cache of the hub that was cleaned."""
    if not path.is_symlink() or path.exists():
        return None
    text = f"`{path.name}` is a link to a file that is not there"
    return Diagnostic("source/dangling", text, Position(str(path)), "the download is incomplete: fetch it again")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
