"""How a checkpoint is laid out in files: their names, what each holds, and where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.plan.model import TensorSpec

from .extents import BLOCK
from .header import StoredTensor, build_header


@dataclass(frozen=True, slots=True)
class Written:
    """What the data files of an output hold: key -> file, key -> checksum (empty without), bytes of all tensors."""

    weight_map: Mapping[str, str]
    checksums: Mapping[str, str]
    total_size: int


def _nothing(written: Written) -> Mapping[str, bytes]:
    return {}


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """How a checkpoint is laid out in files.

    ``file_name(k, n)`` names data file ``k`` of ``n``, counted from 0; the key of a tensor is its name and
    ``key_suffix``; ``header_metadata`` goes into every data file. ``finish`` makes the files that are written last,
    once the data is on disk: file name -> content. ``in_phase``: the data lies in its blocks as that of the source does
    in its own, where files can share them; the order of the tensors is then free.
    """

    file_name: Callable[[int, int], str]
    key_suffix: str = ""
    header_metadata: Mapping[str, str] = field(default_factory=dict)
    max_shard_bytes: int = 5_000_000_000
    finish: Callable[[Written], Mapping[str, bytes]] = _nothing
    in_phase: bool = False


def hugging_face_layout(max_shard_bytes: int = 5_000_000_000) -> OutputLayout:
    """``model.safetensors``, or numbered shards with ``model.safetensors.index.json``."""

    def file_name(k: int, n: int) -> str:
        return "model.safetensors" if n == 1 else f"model-{k + 1:05}-of-{n:05}.safetensors"

    def finish(written: Written) -> Mapping[str, bytes]:
        if set(written.weight_map.values()) <= {file_name(0, 1)}:
            return {}
        index = {"metadata": {"total_size": written.total_size}, "weight_map": dict(sorted(written.weight_map.items()))}
        return {"model.safetensors.index.json": json.dumps(index, indent=2).encode() + b"\n"}

    return OutputLayout(file_name, "", {"format": "pt"}, max_shard_bytes, finish)


def native_layout(
    finish: Callable[[Written], Mapping[str, bytes]], max_shard_bytes: int = 5_000_000_000
) -> OutputLayout:
    """``model_0.safetensors`` and so on with keys ``NAME/weights``; ``finish`` makes the metadata."""
    return OutputLayout(lambda k, n: f"model_{k}.safetensors", "/weights", {}, max_shard_bytes, finish, in_phase=True)


_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to be written: its header, and the plan's targets in the order of their bytes."""

    name: str
    header: bytes
    targets: tuple[int, ...]
    size: int


def lay_out(
    targets: Sequence[TensorSpec], order: Iterable[int], layout: OutputLayout, sources: Iterable[StoredTensor] = ()
) -> list[DataFile]:
    """Cut the targets, taken in the given order, into files by bytes. ``sources``: what they are made from."""
    phase = _phase(sources) if layout.in_phase else None
    shards: list[list[int]] = [[]]
    size = 0
    for target in order:
        nbytes = targets[target].nbytes
        if shards[-1] and size + nbytes > layout.max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(target)
        size += nbytes
    files = []
    for number, shard in enumerate(shards):
        # The order of the safetensors library: larger elements first, so that every tensor is aligned to its elements,
        # then by name. A checkpoint that comes back in one file is then the same file. In phase, whole blocks come
        # before what would shift them.
        def place(target: int) -> tuple[bool, int, str]:
            shifts = phase is not None and targets[target].nbytes % BLOCK != 0
            return shifts, -_RANK[targets[target].dtype], targets[target].name

        shard.sort(key=place)
        specs = [targets[target] for target in shard]
        header = build_header(
            [TensorSpec(spec.name + layout.key_suffix, spec.shape, spec.dtype) for spec in specs],
            layout.header_metadata,
            phase,
        )
        size = len(header) + sum(spec.nbytes for spec in specs)
        files.append(DataFile(layout.file_name(number, len(shards)), header, tuple(shard), size))
    return files


def _phase(sources: Iterable[StoredTensor]) -> int | None:
    """Where in a block most bytes of the sources begin; None if data cannot be aligned to that."""
    found: Counter[int] = Counter()
    for tensor in sources:
        if tensor.content is None:
            found[tensor.offset % BLOCK] += tensor.nbytes
    phase = max(found, key=found.__getitem__, default=0)
    return phase if phase % 8 == 0 else None


def stored(file: DataFile, targets: Sequence[TensorSpec], directory: Path) -> dict[int, StoredTensor]:
    """Where each target of a file lies in it."""
    offset = len(file.header)
    result = {}
    for target in file.targets:
        spec = targets[target]
        result[target] = StoredTensor(directory / file.name, offset, spec.nbytes, spec.dtype, spec.shape)
        offset += spec.nbytes
    return result


def check_names(data: Iterable[str], extra: Iterable[str], carried: Mapping[str, Path]) -> None:
    """Raise unless all output files have different, plain relative names and the carried ones exist."""
    problems = []
    names = [*data, *extra, *carried]
    for name in names:
        path = PurePosixPath(name)
        if str(path) != name or name == "." or path.is_absolute() or ".." in path.parts:
            problems.append(Diagnostic("output/file-name", f"`{name}` cannot be the name of an output file"))
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Diagnostic("output/file-name", f"two output files would be named `{name}`"))
    for name, origin in carried.items():
        if not origin.is_file():
            text = f"the file to carry as `{name}` is missing"
            problems.append(Diagnostic("output/carry", text, Position(str(origin))))
    if problems:
        raise CrosswalkError(problems)
