"""How a checkpoint is laid out in files: their names, what each holds, and where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.records import Record, field

from .extents import BLOCK
from .header import StoredTensor, build_header


class Written(Record, frozen=True):
    """What the data files of an output hold: key -> file, key -> checksum (empty without), bytes of all tensors, and
    file -> its tensors in the order of their bytes."""

    weight_map: Mapping[str, str]
    checksums: Mapping[str, str]
    total_size: int
    files: Mapping[str, Sequence[TensorSpec]] = field(default_factory=dict)


#: What stands in a data file before the first of its tensors, and after each of them.
Wrapping = tuple[bytes, Sequence[bytes]]


def _nothing(written: Written) -> Mapping[str, bytes]:
    return {}


class OutputLayout(Record, frozen=True):
    """How a checkpoint is laid out in files.

    ``file_name(k, n)`` names data file ``k`` of ``n``, counted from 0; the key of a tensor is its name and
    ``key_suffix``; ``header_metadata`` goes into every data file. ``finish`` makes the files that are written last,
    once the data is on disk: file name -> content. ``in_phase``: the data lies in its blocks as that of the source does
    in its own, where files can share them; the order of the tensors is then free. ``wrap`` makes what is around the
    tensors of a data file, by default the header of a safetensors file; ``reopen`` finds the tensors in a directory
    that is complete, where they are not found in each data file.
    """

    file_name: Callable[[int, int], str]
    key_suffix: str = ""
    header_metadata: Mapping[str, str] = field(default_factory=dict)
    max_shard_bytes: int = 5_000_000_000
    finish: Callable[[Written], Mapping[str, bytes]] = _nothing
    in_phase: bool = False
    wrap: Callable[[Sequence[TensorSpec]], Wrapping] | None = None
    reopen: Callable[[Path], Mapping[str, StoredTensor]] | None = None


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


class DataFile(Record, frozen=True):
    """A file to be written: its header, and the plan's targets in the order of their bytes; ``between``: what stands
    after each of them, if anything does."""

    name: str
    header: bytes
    targets: tuple[int, ...]
    size: int
    between: tuple[bytes, ...] = ()

    def wrapping(self, targets: Sequence[TensorSpec]) -> Iterator[tuple[int, bytes]]:
        """All that is no tensor, and the byte at which it stands."""
        yield 0, self.header
        at = len(self.header)
        for target, after in zip(self.targets, self.between, strict=False):
            at += targets[target].nbytes
            yield at, after
            at += len(after)


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
        keyed = [TensorSpec(spec.name + layout.key_suffix, spec.shape, spec.dtype) for spec in specs]
        header, between = (
            layout.wrap(keyed) if layout.wrap else (build_header(keyed, layout.header_metadata, phase), ())
        )
        size = len(header) + sum(spec.nbytes for spec in specs) + sum(map(len, between))
        files.append(DataFile(layout.file_name(number, len(shards)), header, tuple(shard), size, tuple(between)))
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
    path, offset = directory / file.name, len(file.header)
    result = {}
    for number, target in enumerate(file.targets):
        spec = targets[target]
        result[target] = StoredTensor(path, offset, spec.nbytes, spec.dtype, spec.shape)
        offset += spec.nbytes + (len(file.between[number]) if file.between else 0)
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
