"""A Hugging Face checkpoint on disk: config.json, the tensors, and the small files that go along with them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crosswalk.compiler.text.positioned import MAX_DEPTH
from crosswalk.runtime.checkpoint.choosing import dangling, is_adapter, is_unfinished
from crosswalk.runtime.checkpoint.header import parse_json
from crosswalk.runtime.checkpoint.opening import leads_out, open_regular, read_inside
from crosswalk.runtime.checkpoint.source import Checkpoint, open_checkpoint
from crosswalk.runtime.dcp.folder import is_folder, locate, open_folder
from crosswalk.runtime.dcp.sharded import is_sharded, open_sharded
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.records import Record, replace

from .states import counted, known_to_hugging_face, left_out, model_names
from .wrappers import unwrapped

CONFIG = "config.json"
MAX_CONFIG = 64 << 20
#: Endings of files that hold weights or training state in one framework or another: never carried along.
WEIGHTS = (
    ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".gguf", ".ggml",
    ".h5", ".h5.index.json", ".msgpack", ".msgpack.index.json", ".onnx", ".onnx_data", ".npz", ".tflite", ".mlmodel",
    ".ot", ".distcp",
)  # fmt: skip


#: Folders whose files are carried along: where transformers keeps further chat templates.
CARRIED_FOLDERS = ("additional_chat_templates",)


class HuggingFaceCheckpoint(Record, frozen=True):
    """``text`` is config.json as it is in the file; ``files`` are the small files that are carried along, by name.
    ``notes`` say what else lies in the directory, and is left; ``path`` is where config.json was found."""

    path: Path
    text: str
    config: Mapping[str, Any]
    files: Mapping[str, Path]
    tensors: Checkpoint
    notes: tuple[str, ...] = ()


def open_hugging_face(path: Path, like: Path | None = None, unwrap: bool = True) -> HuggingFaceCheckpoint:
    """Open a checkpoint from config.json and headers. ``path``: its directory, or in there the index or the file of
    tensors that is meant; ``like``: another directory, which has what is not in this one: config.json, and the files
    that are carried along; ``unwrap``: names are read without what wrappers put in. Raises ``CrosswalkError`` with
    everything wrong with it."""
    problems: list[Diagnostic] = []
    meant, path = path, path if path.is_dir() else path.parent
    parts = is_in_parts(meant)
    home = path if like is None or (path / CONFIG).is_file() else like
    try:
        text = read_config_text(home / CONFIG)
        config = parse_config(text, home / CONFIG)
    except CrosswalkError as error:
        hint = "pass --layout hf, and --like DIR with the Hugging Face directory that the model came from"
        problems += [replace(d, hint=hint) if parts else d for d in error.diagnostics]
    try:
        tensors = open_parts(meant) if parts else open_checkpoint(meant)
    except CrosswalkError as error:
        problems += error.diagnostics
    carried = carried_files(home)
    problems += _not_fetched(carried)
    if problems:
        raise CrosswalkError(problems)
    left = folders_left_behind(path)
    names, wrapped = unwrapped(tensors.tensors) if unwrap else ({}, None)
    if wrapped:
        tensors = tensors.select(names)
    strangers = strangers_left_behind(path)
    folders = f"folders are not carried along: {', '.join(left)}" if left else None
    links = f"links that lead elsewhere and special files are left out: {', '.join(strangers)}" if strangers else None
    notes = tuple(note for note in (*tensors.notes, wrapped, folders, links) if note)
    return HuggingFaceCheckpoint(home, text, config, carried, tensors, notes)


def is_in_parts(path: Path) -> bool:
    """Whether torch.distributed.checkpoint saved a directory: as its own folder, or as safetensors files of parts."""
    try:
        return path.is_dir() and (is_folder(path) or is_sharded(path))
    except OSError:  # opening it says what is the matter
        return False


def open_parts(path: Path) -> Checkpoint:
    """The tensors of a model in a directory of such a kind, under names of Hugging Face. Raises ``CrosswalkError``."""
    if not is_folder(path):
        return open_sharded(path)
    folder = open_folder(path)
    names, left = model_names(folder.entries.tensors, known_to_hugging_face)
    if not names:
        text = f"no tensor of this folder is one of a model: {counted(left)}"
        raise fail("dcp/no-model", text, Position(str(path)), "name the folder that holds the model")
    return replace(locate(folder, names), notes=left_out(left, folder.entries.objects))


def _not_fetched(files: Mapping[str, Path]) -> list[Diagnostic]:
    """Problems of small files that Git LFS did not fetch, or that are no files."""
    problems: list[Diagnostic] = []
    for file in files.values():
        try:
            os.close(open_regular(file))
        except CrosswalkError as error:
            problems += error.diagnostics
        except OSError as error:
            problems.append(Diagnostic("files/unreadable", f"cannot be read: {error.strerror}", Position(str(file))))
    return problems


def read_config_text(file: Path) -> str:
    """The text of a config.json. Raises ``CrosswalkError`` for a file that cannot be read, or is too large to be
    one."""
    try:
        if (link := dangling(file)) is not None:
            raise CrosswalkError(link)
        data = read_inside(file, file.parent, MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise fail("config/size", f"larger than {MAX_CONFIG >> 20} MiB: this is no config", Position(str(file)))
        return data.decode()
    except UnicodeDecodeError as error:
        raise fail("config/encoding", "this is not UTF-8 text", Position(str(file))) from error
    except OSError as error:
        raise fail(
            "config/read", f"cannot read it: {error.strerror or error}", Position(str(file)),
            "a Hugging Face checkpoint is a directory with config.json and safetensors files",
        ) from error  # fmt: skip


def parse_config(text: str, file: Path) -> dict[str, Any]:
    """The object in the text of a config.json. Raises ``CrosswalkError`` at the place of what is no JSON."""
    try:
        config = parse_json(text.encode(), file, constants=True)
    except CrosswalkError as error:
        reason = error.__cause__
        if isinstance(reason, json.JSONDecodeError):
            where = Position(str(file), reason.lineno, reason.colno)
            raise fail("config/json", f"not valid JSON: {reason.msg}", where) from error
        from crosswalk.compiler.text.documents import parse_document

        parse_document(text, str(file))  # names both places of a key that stands twice
        raise
    if not isinstance(config, dict):
        raise fail("config/type", "config.json must be an object", Position(str(file)))
    if _levels(config) > MAX_DEPTH:
        raise fail("config/json", f"more than {MAX_DEPTH} levels of nesting", Position(str(file)))
    return config


def _levels(config: dict[str, Any]) -> int:
    """How many objects and lists of a JSON document stand in each other at most."""
    count = 0
    level: list[Iterable[Any]] = [config.values()]
    while level:
        inside = [value for values in level for value in values]
        level = [v.values() if isinstance(v, dict) else v for v in inside if isinstance(v, (dict, list))]
        count += 1
    return count


def carried_files(path: Path, beside: frozenset[str] = frozenset((CONFIG,))) -> dict[str, Path]:
    """Everything in a directory that is no weights: tokenizer, generation config, chat template, model code. Raises
    ``CrosswalkError`` for a directory that there is not."""
    if not path.is_dir():
        raise fail("files/not-a-directory", "there is no such directory", Position(str(path)))
    try:
        candidates = {file.name: file for file in sorted(path.iterdir())}
    except PermissionError as error:
        raise fail("source/unreadable", f"cannot be read: {error.strerror}", Position(str(path))) from error
    for folder in CARRIED_FOLDERS:
        if (path / folder).is_dir():
            candidates |= {f"{folder}/{file.name}": file for file in sorted((path / folder).iterdir())}
    return {
        name: file
        for name, file in candidates.items()
        if file.is_file()
        and leads_out(file, path) is None
        and name not in beside
        and not _is_weights(name)
        and not file.name.startswith(".")
        and name != "ok"
    }


def _is_weights(name: str) -> bool:
    """Whether a file holds weights, or is a copy of one that does (``model.safetensors.bak``), or belongs to an adapter
    or to a download that was not finished."""
    return any(f"{name}.".endswith(f"{end}.") or f"{end}." in name or f"{end}~" in name for end in WEIGHTS) or (
        is_adapter(name) or is_unfinished(name)
    )


def holds_weights(path: Path) -> bool:
    """Whether a directory holds files of weights that could be opened."""
    return any(file.name.endswith((".safetensors", ".bin")) and not is_adapter(file.name) for file in path.iterdir())


def folders_left_behind(path: Path) -> list[str]:
    """Folders of a checkpoint that are not carried along: earlier checkpoints of a run, logs."""
    return [
        entry.name
        for entry in sorted(path.iterdir())
        if entry.is_dir()
        and leads_out(entry, path) is None
        and not entry.name.startswith(".")
        and entry.name not in CARRIED_FOLDERS
    ]


def strangers_left_behind(path: Path) -> list[str]:
    """What lies in a checkpoint and is no file of it: links that lead out of it, pipes, sockets, devices."""
    folders = [path, *(path / name for name in CARRIED_FOLDERS if (path / name).is_dir())]
    return [
        str(entry.relative_to(path))
        for folder in folders
        for entry in sorted(folder.iterdir())
        if (leads_out(entry, path) is not None or not (entry.is_file() or entry.is_dir()))
        and not entry.name.startswith(".")
    ]


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """config.json as transformers writes it: sorted keys, two spaces, a final newline."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
