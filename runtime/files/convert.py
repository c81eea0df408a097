"""Execute a plan from checkpoint files to checkpoint files, and check or checksum what was written."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crosswalk.runtime.checkpoint.checksum import KINDS, Checksums
from crosswalk.runtime.checkpoint.descriptors import Descriptors
from crosswalk.runtime.checkpoint.header import SourceFile, StoredTensor
from crosswalk.runtime.checkpoint.output import (
    DataFile,
    OutputLayout,
    check_names,
    hugging_face_layout,
    lay_out,
    stored,
)
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.checkpoint.source import Checkpoint, bind
from crosswalk.runtime.checkpoint.zeros import with_zeros
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.records import Record
from crosswalk.runtime.staging.directory import Staging, check_space
from crosswalk.runtime.staging.finishing import add_small_files, check_output
from crosswalk.runtime.staging.writing import set_size, sync, write_at

from .schedule import Lowering
from .sinks import CompareSink, HashSink, WriteSink, differences
from .tasks import Task
from .ties import compare_ties
from .turns import Turns
from .workers import Progress, Sink, Worker, fit_memory, one_torch_thread, peak_memory, run, whole


class EngineOptions(Record, frozen=True):
    """``workers``: threads, by default one per core and at most 4. ``memory``: most bytes to allocate; by default what
    ``engine.peak_memory(workers)`` states. ``checksum``: ``none``, ``xxh3`` or ``sha256``, per target tensor (see
    ``checkpoint.checksum``). ``overwrite``: replace an existing destination. ``resume``: continue an
    interrupted conversion, and leave one that can be continued if this is interrupted."""

    workers: int | None = None
    memory: int | None = None
    checksum: str = "xxh3"
    overwrite: bool = False
    resume: bool = False


class FileReport(Record, frozen=True):
    """What was done. ``files``: data file -> size in bytes. ``checksums``: target tensor -> checksum. ``resumed``: data
    files that an earlier conversion had completed. ``peak_memory``: bytes that the workers could allocate."""

    files: Mapping[str, int]
    checksums: Mapping[str, str]
    total_size: int
    seconds: float
    workers: int
    peak_memory: int
    resumed: tuple[str, ...] = ()


def write_checkpoint(
    plan: Plan,
    source: Checkpoint,
    destination: Path,
    *,
    layout: OutputLayout | None = None,
    extra: Mapping[str, bytes] | None = None,
    carried: Mapping[str, Path] | None = None,
    options: EngineOptions | None = None,
    on_progress: Progress | None = None,
) -> FileReport:
    """Convert ``source`` into the new directory ``destination``, which appears complete or not at all.

    ``layout`` is that of Hugging Face by default. ``extra`` (file name -> content) and ``carried`` (file name -> file
    to copy) are added. ``on_progress(bytes done, bytes in total, tensor)`` is called about ten times a second.

    Before anything is written: the plan is proved, the source and its ties are compared with it, and free space is
    checked. Raises ``CrosswalkError`` for whatever fails, naming file and tensor; the destination is then as it was.
    """
    started = time.monotonic()
    layout, options = layout or hugging_face_layout(), options or EngineOptions()
    extra, carried = extra or {}, carried or {}
    workers, panel = _resources(options)
    lowering = Lowering(*with_zeros(plan, _bind(plan, source)), panel)
    files = lay_out(plan.targets, _reading_order(lowering), layout, lowering.sources)
    check_names([file.name for file in files], extra, carried)
    _check_apart(source, destination)
    compare_ties(lowering.plan, lowering.sources, source, workers, panel)

    identity = _identity(plan, source, files, options.checksum)
    names = [file.name for file in files]
    stage = Staging(destination, identity, names, overwrite=options.overwrite, resume=options.resume)
    try:
        checksums = _completed(plan, stage, files, options.checksum, workers)
        pending = [file for file in files if file.name not in checksums]
        small = sum(map(len, extra.values())) + sum(path.stat().st_size for path in carried.values())
        check_space(stage, sum(file.size for file in pending) + small, (file.name for file in pending))
        resumed = tuple(checksums)
        checksums |= _write_data(lowering, source, stage, files, pending, options.checksum, workers, on_progress)
        tensors = {name: checksum for found in checksums.values() for name, checksum in found.items()}
        digests = add_small_files(stage, plan, files, layout, extra, carried, tensors)
        check_output(stage, plan, files, layout, digests)
        stage.commit()
    except BaseException:
        stage.abandon()
        raise
    return FileReport(
        {file.name: file.size for file in files},
        tensors,
        sum(target.nbytes for target in plan.targets),
        time.monotonic() - started,
        workers,
        peak_memory(workers, panel),
        resumed,
    )


def verify_checkpoint(
    plan: Plan,
    source: Checkpoint,
    output: Checkpoint,
    *,
    options: EngineOptions | None = None,
    on_progress: Progress | None = None,
) -> FileReport:
    """Prove, by reading both, that the tensors of ``output`` (named as the plan's targets) are the conversion of
    ``source``. Raises ``CrosswalkError`` with every tensor that is missing, unexpected, or differs."""
    started = time.monotonic()
    workers, panel = _resources(options or EngineOptions())
    lowering = Lowering(*with_zeros(plan, _bind(plan, source)), panel)
    found = output.match(plan.targets, "the plan makes")
    compare_ties(lowering.plan, lowering.sources, source, workers, panel)
    total = sum(target.nbytes for target in plan.targets)
    names = [target.name for target in plan.targets]
    with contextlib.closing(Reader(names, found, output.files)) as reader:
        sink = CompareSink(reader)
        _execute(lowering, source, lowering.tasks(_reading_order(lowering)), sink, workers, total, on_progress)
        reader.check()
    if sink.differing:
        text = "of the output is not the conversion of the source: it differs"
        raise CrosswalkError(differences(sink.differing, [f"`{name}`" for name in names], "verify/differs", text))
    sizes = {os.path.relpath(path, output.path): file.size for path, file in output.files.items()}
    return FileReport(sizes, {}, total, time.monotonic() - started, workers, peak_memory(workers, panel))


def checksum_checkpoint(
    checkpoint: Checkpoint,
    kind: str = "xxh3",
    *,
    options: EngineOptions | None = None,
    on_progress: Progress | None = None,
) -> dict[str, str]:
    """The checksum of every tensor of a checkpoint, as ``write_checkpoint`` reports them for what it writes."""
    workers, _ = _resources(options or EngineOptions())
    return _hash(checkpoint.tensors, checkpoint.files, kind, workers, on_progress)


def _resources(options: EngineOptions) -> tuple[int, int]:
    """Workers and bytes per panel; raises for options that make no sense."""
    problems = []
    if options.checksum not in KINDS:
        text = f"the checksum is one of {', '.join(KINDS)}, not `{options.checksum}`"
        problems.append(Diagnostic("options/checksum", text))
    if options.workers is not None and options.workers < 1:
        problems.append(Diagnostic("options/workers", f"{options.workers} workers cannot do anything"))
    if options.resume and options.checksum == "none":
        text = "a conversion cannot be continued without checksums: they prove what was completed"
        problems.append(Diagnostic("options/resume", text, None, "choose the checksum xxh3"))
    if problems:
        raise CrosswalkError(problems)
    return fit_memory(options.workers or min(4, os.cpu_count() or 1), options.memory)


def _bind(plan: Plan, source: Checkpoint) -> list[StoredTensor]:
    """Where the plan's sources are stored. Raises unless the plan is proved and the checkpoint is what it is for."""
    problems = plan.verify().problems
    if problems:
        raise CrosswalkError(problems)
    return bind(plan, source)


def _reading_order(lowering: Lowering) -> list[int]:
    """The targets, in the order in which what they are made of is stored: reading and writing are then sequential."""

    def first_read(target: int) -> tuple[str, int]:
        places = ((lowering.sources[copy.source], copy.source_offset) for copy in lowering.copies(target))
        return min(((str(s.file), s.offset + first * size_of(s.dtype)) for s, first in places), default=("", 0))

    return sorted(range(len(lowering.plan.targets)), key=first_read)


def check_ties(plan: Plan, source: Checkpoint, options: EngineOptions | None = None) -> None:
    """Compare tied duplicates of a checkpoint with what they are tied to, by reading both; nothing else is read.
    Raises ``CrosswalkError`` for every one that differs."""
    if plan.ties:
        workers, panel = _resources(options or EngineOptions())
        compare_ties(plan, _bind(plan, source), source, workers, panel)


def _check_apart(source: Checkpoint, destination: Path) -> None:
    """Raise if the destination holds a file of the source, which overwriting would remove."""
    home = Path(os.path.realpath(destination))
    if home == Path(os.path.realpath(source.path)) or any(
        home in Path(os.path.abspath(f)).parents for f in source.files
    ):
        raise fail("output/is-source", "the source is inside the destination", Position(str(destination)))


def _identity(plan: Plan, source: Checkpoint, files: Sequence[DataFile], checksum: str) -> dict[str, Any]:
    """What must be the same for an interrupted conversion to be continued."""
    read = {os.path.abspath(path): [f.size, f.mtime_ns, f.ctime_ns, f.inode] for path, f in source.files.items()}
    return {"plan": plan.digest, "checksum": checksum, "source": read, "files": [[f.name, f.size] for f in files]}


def _completed(
    plan: Plan, stage: Staging, files: Sequence[DataFile], kind: str, workers: int
) -> dict[str, dict[str, str]]:
    """The data files that the journal lists and that still are what it says: file -> checksum of each target."""
    recorded = {record["file"]: record["checksums"] for record in stage.records}
    result = {}
    for file in files:
        path = stage.path / file.name
        if file.name not in recorded or not path.is_file() or path.stat().st_size != file.size:
            continue
        with open(path, "rb") as stream:
            around = ((os.pread(stream.fileno(), len(part), at), part) for at, part in file.wrapping(plan.targets))
            if any(found != part for found, part in around):
                continue
        status = path.stat()
        tensors = {plan.targets[target].name: place for target, place in stored(file, plan.targets, stage.path).items()}
        files_now = {path: SourceFile.of(status, {})}
        found = _hash(tensors, files_now, kind, workers)
        if found == recorded[file.name]:
            result[file.name] = found
    return result


def _write_data(
    lowering: Lowering,
    source: Checkpoint,
    stage: Staging,
    files: Sequence[DataFile],
    pending: Sequence[DataFile],
    kind: str,
    workers: int,
    on_progress: Progress | None,
) -> dict[str, dict[str, str]]:
    """Write and sync the pending data files: file -> checksum of each of its targets."""
    targets = lowering.plan.targets
    sizes = [target.nbytes for target in targets]
    checksums = None if kind == "none" else Checksums(kind, sizes)
    result: dict[str, dict[str, str]] = {file.name: {} for file in pending}
    places = {target: place for file in pending for target, place in stored(file, targets, stage.path).items()}
    by_path = {stage.path / file.name: file for file in pending}
    # What is closed before it is complete is synced, so that no error of the disk is lost with the descriptor.
    descriptors = Descriptors(lambda path: stage.create(by_path[path].name), lambda path, descriptor: sync(descriptor))

    def completed(file: DataFile) -> None:
        with stage.errors("written"):
            with descriptors.opened(stage.path / file.name) as descriptor:
                sync(descriptor)
            if checksums:
                result[file.name] = {targets[target].name: checksums.pop(target) for target in file.targets}
            stage.record({"file": file.name, "checksums": result[file.name]})

    try:
        with stage.errors("written"):
            for path, file in by_path.items():
                with descriptors.opened(path) as descriptor:
                    set_size(descriptor, 0)
                    set_size(descriptor, file.size)
                    for at, part in file.wrapping(targets):
                        write_at(descriptor, part, at)
        names = [target.name for target in targets]
        sink = WriteSink(names, places, list(by_path), descriptors, checksums, lambda path: completed(by_path[path]))
        total, left = sum(sizes), sum(sizes[target] for target in places)
        tasks = Turns((lowering.tasks(file.targets) for file in pending), workers)
        _execute(lowering, source, tasks, sink, workers, total, on_progress, total - left)
    finally:
        descriptors.close()
    return result


def _execute(
    lowering: Lowering,
    source: Checkpoint,
    tasks: Iterator[Task],
    sink: Sink,
    workers: int,
    total: int,
    on_progress: Progress | None,
    done: int = 0,
) -> None:
    plan = lowering.plan
    with_torch = _needs_torch(plan)
    with (
        contextlib.closing(Reader([spec.name for spec in plan.sources], lowering.sources, source.files)) as reader,
        one_torch_thread() if with_torch else contextlib.nullcontext(),
    ):
        team = [Worker(reader, plan.sources, plan.targets, lowering.panel, with_torch) for _ in range(workers)]
        run(tasks, [spec.name for spec in plan.targets], sink, team, total, on_progress, done)
        reader.check()


def _hash(
    tensors: Mapping[str, StoredTensor],
    files: Mapping[Path, SourceFile],
    kind: str,
    workers: int,
    on_progress: Progress | None = None,
) -> dict[str, str]:
    names, places = list(tensors), list(tensors.values())
    sizes = [place.nbytes for place in places]
    checksums = Checksums(kind, sizes)
    with contextlib.closing(Reader(names, places, files)) as reader:
        team = [Worker(reader, (), (), 0) for _ in range(workers)]
        run(whole(places, checksums.in_chunks), names, HashSink(checksums), team, sum(sizes), on_progress)
        reader.check()
    return {name: checksums.pop(target) for target, name in enumerate(names)}


def _needs_torch(plan: Plan) -> bool:
    """Whether there is something to cast or decode, or torch is there anyway."""
    dtypes = {(plan.sources[c.source].dtype, plan.targets[c.target].dtype) for c in plan.copies}
    return bool(plan.encodings) or any(source != target for source, target in dtypes) or _has_torch()


def _has_torch() -> bool:
    return "torch" in sys.modules
