"""Opening a checkpoint: where every tensor lies in which file. Only headers are read.

File names come from an untrusted index: they must be plain relative paths that stay inside the checkpoint, and so must
what they lead to, if they are links; but for those in the cache of the Hugging Face hub.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail, shorten, shown
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.records import Record, replace

from .choosing import choose, dangling
from .decoding import stored_encoded
from .header import MAX_HEADER, SourceFile, StoredTensor, limited, parse_json, read_header
from .opening import leads_out, read_inside
from .pickled import read_pickled


class Checkpoint(Record, frozen=True):
    """Tensors by name and the files that hold them. Several names may share bytes (a tied tensor in a pickle).
    ``notes`` say what else lies in the directory."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    files: Mapping[Path, SourceFile]
    notes: tuple[str, ...] = ()

    def specs(self) -> list[TensorSpec]:
        """Name, shape and dtype of every tensor."""
        return [TensorSpec(name, stored.shape, stored.dtype) for name, stored in self.tensors.items()]

    def select(self, names: Mapping[str, str]) -> Checkpoint:
        """The checkpoint of only the tensors ``names`` (stored name -> name in the result). Raises ``CrosswalkError``
        for every one that is not stored."""
        missing = [name for name in names if name not in self.tensors]
        if missing:
            where = Position(str(self.path))
            raise CrosswalkError(
                limited(
                    (Diagnostic("source/missing-tensor", f"there is no tensor `{n}`", where) for n in missing), where
                )
            )
        return replace(self, tensors={new: self.tensors[old] for old, new in names.items()})

    def match(self, specs: Sequence[TensorSpec], what: str) -> list[StoredTensor]:
        """Where the tensors are stored, which must be all there are. ``what`` says who wants them, for messages.

        Raises ``CrosswalkError`` with all that are missing, unexpected, or of another shape or dtype."""
        where = Position(str(self.path))
        problems = []
        found = []
        for spec in specs:
            tensor = self.tensors.get(spec.name)
            if tensor is None:
                text = f"there is no tensor `{spec.name}`, which {what}"
                problems.append(Diagnostic("checkpoint/missing-tensor", text, where))
            elif (tensor.shape, tensor.dtype) != (spec.shape, spec.dtype):
                has, wanted = f"{tensor.dtype} {list(tensor.shape)}", f"{spec.dtype} {list(spec.shape)}"
                text = f"tensor `{spec.name}` is {has} where {what} {wanted}"
                problems.append(Diagnostic("checkpoint/tensor-differs", text, where))
            else:
                found.append(tensor)
        for name in self.tensors.keys() - {spec.name for spec in specs}:
            text = f"tensor `{name}` is not among what {what}"
            problems.append(Diagnostic("checkpoint/unexpected-tensor", text, where))
        if problems:
            raise CrosswalkError(problems)
        return found


def bind(plan: Plan, checkpoint: Checkpoint) -> list[StoredTensor]:
    """Where the sources of a plan are stored, in their order; encoded ones are decoded when they are read.

    Raises ``CrosswalkError`` with all that are missing, unexpected, or of another shape or dtype."""
    needed = [part for spec in plan.sources for part in plan.stored_for(spec)]
    found = {part.name: tensor for part, tensor in zip(needed, checkpoint.match(needed, "the plan reads"), strict=True)}
    return [
        stored_encoded(spec, encoding, tuple(found[part.name] for part in encoding.stored))
        if (encoding := plan.encoding_of.get(spec.name)) is not None
        else found[spec.name]
        for spec in plan.sources
    ]


def open_checkpoint(path: Path, index: Mapping[str, str] | None = None) -> Checkpoint:
    """The checkpoint at ``path``: a file, or a directory with, in this order of preference,

    * the files that ``index`` (tensor name -> file name) lists, when given;
    * ``model.safetensors``, or what ``model.safetensors.index.json`` lists;
    * ``pytorch_model.bin``, or what ``pytorch_model.bin.index.json`` lists;
    * what the only other index lists, or the only other ``*.safetensors``.

    An index must list exactly the tensors of its files; to leave some out, ``select`` the others from the result.
    Raises ``CrosswalkError`` with every problem of every file.
    """
    path = Path(path)
    where = Position(str(path))
    try:
        if index is not None:
            return _open_indexed(path, index, where)
        if not path.is_dir():
            if not path.exists():
                raise fail("source/not-found", "there is no such file or directory", where)
            if path.name.endswith(".index.json"):
                return _open_indexed(path.parent, _read_index(path), Position(str(path)))
            return _open_files(path.parent, [path], named=True)
        choice = choose(path)
        if choice.index is None:
            return replace(_open_files(path, choice.files), notes=choice.notes)
        opened = _open_indexed(path, _read_index(choice.index), Position(str(choice.index)))
        return replace(opened, notes=choice.notes)
    except OSError as error:
        raise fail("source/unreadable", f"cannot be read: {error.strerror or error}", where) from error


def tie_differs(tensor: str, of: str) -> Diagnostic:
    """What is said of a tensor that the config ties to another one, and that is stored with other values."""
    text = f"tensor `{tensor}` is not equal to `{of}`, which the config ties it to"
    hint = (
        "if the model is not tied, say so in config.json (tie_word_embeddings: false); to leave this tensor out, as"
        " transformers does when it loads the model, pass --take-tied (take_tied=True)"
    )
    return Diagnostic("tie/differs", text, None, hint)


def _read_index(path: Path) -> Mapping[str, str]:
    where = Position(str(path))
    try:
        raw = read_inside(path, path.parent, MAX_HEADER + 1)
    except OSError as error:
        raise fail("index/unreadable", f"cannot be read: {error.strerror or error}", where) from error
    if len(raw) > MAX_HEADER:
        raise fail("index/size", f"the index is larger than {MAX_HEADER} bytes", where)
    document: Any = parse_json(raw, path)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise fail("index/weight-map", "there is no `weight_map` from tensor names to file names", where)
    return weight_map


def _open_files(directory: Path, paths: Iterable[Path], named: bool = False) -> Checkpoint:
    """``named``: by the user, who may name a link to anywhere."""
    tensors: dict[str, StoredTensor] = {}
    files = {}
    for path in paths:
        if not named:
            _check_link(path, directory)
        files[path], found = read_file(path)
        tensors.update(found)
    return Checkpoint(directory, tensors, files)


def _check_link(path: Path, directory: Path) -> None:
    outside = leads_out(path, directory)
    if outside is not None:
        hint = "copy the file in its place, or name the directory that it leads to"
        raise fail("source/link", outside, Position(str(path)), hint)


def read_file(path: Path) -> tuple[SourceFile, dict[str, StoredTensor]]:
    """The tensors of one ``.safetensors`` file, or of a torch pickle if it ends in ``.bin``, ``.pt`` or ``.pth``."""
    return read_pickled(path) if path.suffix in (".bin", ".pt", ".pth") else read_header(path)


def _open_indexed(directory: Path, index: Mapping[str, str], where: Position) -> Checkpoint:
    """The tensors that ``index`` lists; ``where`` is the index in messages."""
    listed: dict[str, set[str]] = {}
    for tensor, file in index.items():
        listed.setdefault(file, set()).add(tensor)
    problems: list[Diagnostic] = []
    tensors: dict[str, StoredTensor] = {}
    files: dict[Path, SourceFile] = {}
    home: dict[str, str] = {}
    for name, wanted in sorted(listed.items()):
        if not is_plain(name):
            text = f"the file name {shown(name)} is not a plain path inside the checkpoint"
            problems.append(Diagnostic("index/file-name", text, where))
            continue
        path = directory / name
        if (absent := _absent(path, name, len(wanted), where)) is not None:
            problems.append(absent)
            continue
        try:
            _check_link(path, directory)
            files[path], found = read_file(path)
        except CrosswalkError as error:
            problems.extend(error.diagnostics)
            continue
        for tensor in sorted(wanted - found.keys()):
            text = f"tensor `{shorten(tensor)}` is not in {name}, where the index has it"
            problems.append(Diagnostic("index/missing-tensor", text, where))
        for tensor, stored in found.items():
            if tensor in home:
                text = f"tensor `{shorten(tensor)}` is in two files, {home[tensor]} and {name}"
                problems.append(Diagnostic("index/duplicate-tensor", text, where))
            elif tensor not in wanted and tensor not in index:
                text = f"tensor `{shorten(tensor)}` of {name} is not in the index"
                problems.append(Diagnostic("index/unlisted-tensor", text, where))
            home.setdefault(tensor, name)
            tensors[tensor] = stored
    if problems:
        raise CrosswalkError(limited(problems, where))
    return Checkpoint(directory, tensors, files)


def _absent(path: Path, name: str, tensors: int, where: Position) -> Diagnostic | None:
    """What is wrong with a file of the index, given with the number of its tensors, that is not there."""
    why = ""
    try:
        if (link := dangling(path)) is not None:
            return link
        if path.exists():
            return None
    except OSError as error:  # `exists` raises where the file system takes no name as long as this
        if error.errno != errno.ENAMETOOLONG:
            raise
        why = f": {error.strerror}"
    text = f"the file {shorten(name)} with {tensors} tensors is missing{why}"
    return Diagnostic("index/missing-file", text, where, "download the rest of the checkpoint")


def is_plain(name: str) -> bool:
    """Whether a file name stays inside its directory and is spelt in the one normal way."""
    path = PurePosixPath(name)
    plain = name not in ("", ".") and str(path) == name and not path.is_absolute() and ".." not in path.parts
    return plain and name.isprintable() and "\\" not in name
