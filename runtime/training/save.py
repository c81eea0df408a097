"""Write live parameters as the files of a checkpoint: each rank its own bytes, at offsets known from the plan.

Rank 0 makes a staging directory with files of their final sizes; every rank writes its regions; when all are on disk,
rank 0 writes the headers, the index and the small files, and one rename makes the directory the checkpoint. Until then
no file in it has a header, so that nothing a failure leaves looks like a checkpoint. Which rank writes a region does
not change a byte of the result.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from crosswalk.runtime import background as background_work
from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.output import (
    DataFile,
    OutputLayout,
    check_names,
    hugging_face_layout,
    lay_out,
    stored,
)
from crosswalk.runtime.errors import CrosswalkError, Position, fail
from crosswalk.runtime.files.runs import StridedRuns
from crosswalk.runtime.files.sinks import start_writeback
from crosswalk.runtime.kept import SNAPSHOT
from crosswalk.runtime.plan.algebra import Box
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.records import Record, field
from crosswalk.runtime.staging.directory import Staging, check_space
from crosswalk.runtime.staging.finishing import add_small_files, check_output
from crosswalk.runtime.staging.stale import owner, remove_stale
from crosswalk.runtime.staging.writing import set_size, sync, write_at, write_runs

from .copies import compare_copies
from .moves import Moves, moves
from .parameters import Model, Values, collect, place_all
from .placement import Part, Placed
from .ranks import Team, share_out, table
from .transfer import (
    BUCKET,
    Memory,
    Slot,
    TransferBucket,
    aligned,
    buckets,
    host_buffer,
    host_view,
    on_host,
    run,
    worker_count,
)

#: Regions of at least this many bytes are handed to the disk as soon as they are written.
_WRITEBACK = 1 << 20


class SaveReport(Record, frozen=True):
    """What this rank did. ``files``: data file -> size in bytes, of the whole checkpoint; ``bytes_written``: by this
    rank; ``seconds``: until the checkpoint was in place, of which ``blocked`` kept the caller waiting; ``defaults``: as
    in :class:`Output`."""

    rank: int
    destination: Path
    files: Mapping[str, int]
    bytes_written: int
    seconds: float
    blocked: float
    defaults: Mapping[str, Any] = field(default_factory=dict)


class Output(Record, frozen=True):
    """What goes into the checkpoint besides the tensors, and how. ``extra`` (file name -> content) and ``carried``
    (file name -> file to copy) are written by rank 0, and may be empty on the others. ``defaults``: keys that the
    config does not hold, with what the class takes for them."""

    layout: OutputLayout = field(default_factory=hugging_face_layout)
    extra: Mapping[str, bytes] = field(default_factory=dict)
    carried: Mapping[str, Path] = field(default_factory=dict)
    overwrite: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


def save(
    plan: Plan,
    model: Model,
    destination: Path,
    team: Team,
    background: Callable[[], Team] | None = None,
    output: Output | None = None,
    bucket_bytes: int = BUCKET,
    elsewhere: Mapping[str, TensorSpec] | None = None,
    values: Values | None = None,
) -> SaveReport | Future[SaveReport]:
    """Write the targets of ``plan``, whose sources ``model`` holds, into the new directory ``destination``.

    Every rank of the team must call this. With ``background``, which makes the team for another thread, the parameters
    are converted and copied to (pinned) host memory, and the rest happens while the caller goes on: the result is a
    future. ``elsewhere``: what other ranks have, which may be absent here; ``values``: what ``collect`` found, if
    asked. Raises ``CrosswalkError`` on every rank for what any of them finds, or lets the future raise it.
    """
    started = time.monotonic()
    output = output or Output()
    destination = Path(os.path.abspath(destination))
    with team.step("checking the model") as step:
        step.agree |= {"destination": str(destination), "overwrite": output.overwrite, "plan": plan.digest}
        step.agree |= {"background": background is not None, "metadata": plan.metadata}
        if problems := plan.verify().problems:
            raise CrosswalkError(problems)
        files = lay_out(plan.targets, natural_order(plan.targets), output.layout)
        check_names([file.name for file in files], output.extra, output.carried)
        step.agree["files"] = {file.name: file.size for file in files}
        placed = place_all(collect(model) if values is None else values, plan.sources, elsewhere=elsewhere)
        step.value = table(placed)
    mine = share_out(step.values, plan.sources)[team.rank]
    planned = moves(plan, counted(plan, placed, mine, team), "source")
    other = background() if background is not None else None
    draft = CheckpointDraft(plan, files, output, destination) if team.rank == 0 else None
    with _discarding(draft):
        with team.step("creating the output") as step:
            if other is not None:
                background_work.ready()
            if draft is not None:
                draft.create()
                step.value = str(draft.path)
        regions = Regions(plan, files, Path(step.values[0]))
        sizes = {file.name: file.size for file in files}
        if other is None:
            with team.step("writing"), regions.writer() as write:
                written = write_all(planned, regions, write, bucket_bytes)
            with team.step("completing the checkpoint"):
                if draft is not None:
                    draft.complete()
            seconds = time.monotonic() - started
            return SaveReport(team.rank, destination, sizes, written, seconds, seconds, output.defaults)
        with team.step("copying the parameters"):
            snapshot = _snapshot(planned, regions, bucket_bytes)
    blocked = time.monotonic() - started

    def finish() -> SaveReport:
        with _discarding(draft):
            with other.step("writing"), regions.writer() as write:
                total = snapshot.write(write)
            with other.step("completing the checkpoint"):
                if draft is not None:
                    draft.complete()
        seconds = time.monotonic() - started
        return SaveReport(other.rank, destination, sizes, total, seconds, blocked, output.defaults)

    return background_work.submit(f"saving {destination}", finish)


#: Writes the stretches of a bucket from a buffer, and its direct bytes from memories.
Write = Callable[[TransferBucket, torch.Tensor, Sequence[Memory]], None]


class CheckpointDraft(Record):
    """A checkpoint in the making, on the one rank that makes the directory. ``path`` is where the files are."""

    plan: Plan
    files: Sequence[DataFile]
    output: Output
    destination: Path
    path: Path = Path()
    _staging: Staging | None = None

    def create(self) -> None:
        """Make the staging directory, with data files of their final sizes and without headers. They are all zeros, so
        what the plan pads is there already."""
        sizes = {file.name: file.size for file in self.files}
        overwrite = self.output.overwrite
        identity = {"owner": owner(), "sizes": sizes}
        staging = Staging(self.destination, identity, sizes, overwrite=overwrite, resume=False)
        self._staging, self.path = staging, staging.path
        remove_stale(self.destination)
        check_space(staging, sum(sizes.values()))
        with staging.errors("created"):
            for file in self.files:
                descriptor = staging.create(file.name)
                try:
                    set_size(descriptor, file.size)
                finally:
                    os.close(descriptor)

    def complete(self) -> None:
        """Add what makes the directory a checkpoint, and put it in place. All regions must have been synced."""
        assert self._staging is not None
        staging, output, plan = self._staging, self.output, self.plan
        digests = add_small_files(staging, plan, self.files, output.layout, output.extra, output.carried, {})
        with staging.errors("written"):
            for file in self.files:
                descriptor = staging.create(file.name)
                try:
                    for at, part in file.wrapping(plan.targets):
                        write_at(descriptor, part, at)
                    sync(descriptor)
                finally:
                    os.close(descriptor)
        check_output(staging, plan, self.files, output.layout, digests)
        staging.commit()
        self._staging = None

    def discard(self) -> None:
        """Remove what was made, unless it is complete."""
        if self._staging is not None:
            self._staging.abandon()
            self._staging = None


@contextlib.contextmanager
def _discarding(draft: CheckpointDraft | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if draft is not None:
            draft.discard()
        raise


class Regions:
    """Where the targets of a plan lie in the data files below ``path``."""

    def __init__(self, plan: Plan, files: Sequence[DataFile], path: Path) -> None:
        found = {target: place for file in files for target, place in stored(file, plan.targets, path).items()}
        self.places: list[StoredTensor] = [found[target] for target in range(len(plan.targets))]
        self._names = [spec.name for spec in plan.targets]

    @contextlib.contextmanager
    def writer(self) -> Iterator[Write]:
        """A function that writes buckets, from any thread; at the end, what was written is synced. Raises
        ``CrosswalkError`` for what cannot be written."""
        descriptors: dict[Path, int] = {}
        lock = threading.Lock()

        def descriptor_of(path: Path) -> int:
            with lock:
                if path not in descriptors:
                    descriptors[path] = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                return descriptors[path]

        def write_region(tensor: int, runs: StridedRuns, view: memoryview) -> None:
            path = self.places[tensor].file
            try:
                descriptor = descriptor_of(path)
                write_runs(descriptor, view, runs.starts(), runs.length)
                for offset in runs.starts() if runs.length >= _WRITEBACK else ():
                    start_writeback(descriptor, offset, runs.length)
            except OSError as error:
                text = f"writing tensor `{self._names[tensor]}`: {error.strerror or error}"
                hint = "every rank must see the same file system" if error.errno == errno.ENOENT else None
                raise fail("write/failed", text, Position(str(path)), hint) from error

        def write(bucket: TransferBucket, host: torch.Tensor, memories: Sequence[Memory]) -> None:
            view = host_view(host)
            for block in bucket.blocks:
                write_region(block.source, block.runs, view[block.at : block.at + block.runs.nbytes])
            for tensor, offset, memory, start, nbytes in bucket.direct:
                runs = StridedRuns(offset, nbytes, ())
                write_region(tensor, runs, host_view(memories[memory].flat[start : start + nbytes]))

        try:
            yield write
            for path, descriptor in descriptors.items():
                try:
                    sync(descriptor)
                except OSError as error:
                    raise fail("write/failed", f"cannot be synced: {error.strerror}", Position(str(path))) from error
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)


def write_all(planned: Moves, regions: Regions, write: Write, bucket_bytes: int = BUCKET) -> int:
    """Write what the moves hold to its regions; the bytes written. Whoever waits for that needs no snapshots."""
    SNAPSHOT.free()
    total = 0
    for device, placements in planned.by_device():

        def work(slot: Slot, bucket: TransferBucket) -> int:
            slot.fill_buffer(bucket, regions.places, planned.memories, slot.host)
            slot.wait()
            write(bucket, slot.host, planned.memories)
            return bucket.moved

        slots = [Slot(device, bucket_bytes) for _ in range(worker_count(device))]
        total += run(buckets(regions.places, placements, planned.memories, exact=True, size=bucket_bytes), slots, work)
    return total


class SavedBuckets(Record, frozen=True):
    """The final bytes of all buckets in host memory, each with the slot to wait for until it is complete. ``memory``:
    what is kept for the next one."""

    buckets: Sequence[tuple[Slot, TransferBucket, torch.Tensor]]
    memory: Sequence[torch.Tensor]

    def write(self, write: Write) -> int:
        """Write the buckets and give back their memory; the bytes that they are."""
        for slot, bucket, host in self.buckets:
            slot.wait()
            write(bucket, host, ())
        for memory in self.memory:
            SNAPSHOT.give_back(memory)
        return sum(bucket.moved for _, bucket, _ in self.buckets)


def _snapshot(planned: Moves, regions: Regions, bucket_bytes: int) -> SavedBuckets:
    result: list[tuple[Slot, TransferBucket, torch.Tensor]] = []
    kept: list[torch.Tensor] = []
    for device, placements in planned.by_device():
        found = list(buckets(regions.places, placements, planned.memories, exact=True, size=bucket_bytes, direct=False))
        hosts: Iterator[torch.Tensor]
        if on_host(device):
            ends = list(accumulate(aligned(bucket.nbytes) for bucket in found))
            kept.append(SNAPSHOT.take(max(ends, default=0)))
            hosts = (kept[-1][end - aligned(bucket.nbytes) : end] for end, bucket in zip(ends, found, strict=True))
        else:
            hosts = (host_buffer(bucket.nbytes, device) for bucket in found)

        def work(slot: Slot, item: tuple[TransferBucket, torch.Tensor]) -> int:
            bucket, host = item
            slot.fill_buffer(bucket, regions.places, planned.memories, host)
            result.append((slot, bucket, host))
            return bucket.moved

        slots = [Slot(device, bucket_bytes, hosts=0) for _ in range(worker_count(device))]
        run(zip(found, hosts, strict=True), slots, work)
    return SavedBuckets(result, kept)


def owned(placed: Placed, boxes: Sequence[Box]) -> list[tuple[Part, str]]:
    """The given boxes, each inside a part that is held here, with the memory behind them."""
    whole = {part.box: part for part in placed.parts}
    result = []
    for box in boxes:
        part = whole.get(box)
        if part is None:
            around = next(
                p for p in placed.parts if all(a <= c and d <= b for (a, b), (c, d) in zip(p.box, box, strict=True))
            )
            view = around.tensor
            for axis, ((start, stop), (base, _)) in enumerate(zip(box, around.box, strict=True)):
                view = view.narrow(axis, start - base, stop - start)
            part = Part(box, view)
        result.append((part, placed.dtype))
    return result


def counted(
    plan: Plan, placed: Mapping[str, Placed], shares: Mapping[str, Sequence[Box]], team: Team
) -> dict[str, list[tuple[Part, str]]]:
    """What this rank stands for, of which every element is on one rank. Raises ``CrosswalkError``, on every rank, for
    copies of tied parameters that are not equal."""
    found = {name: owned(placed[name], boxes) for name, boxes in shares.items()}
    compare_copies(plan, {name: [part for part, _ in parts] for name, parts in found.items()}, team)
    return found


def natural_order(specs: Sequence[TensorSpec]) -> list[int]:
    """Tensors by name, with the numbers in names in the order of numbers."""
    return sorted(range(len(specs)), key=lambda i: [_part(text) for text in re.split(r"(\d+)", specs[i].name)])


def _part(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (0, text)
