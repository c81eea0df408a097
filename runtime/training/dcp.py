"""torch.distributed.checkpoint plug-ins: ``dcp.load`` and ``dcp.save`` a native state dict from and to the files of
another layout. The planners and collectives are those of torch; only where the bytes lie is new."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from crosswalk.runtime.checkpoint.output import DataFile, check_names, lay_out
from crosswalk.runtime.checkpoint.source import Checkpoint, bind
from crosswalk.runtime.checkpoint.zeros import with_zeros
from crosswalk.runtime.dtypes import dtype_name, torch_dtype
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail, system_limits
from crosswalk.runtime.files.ties import compare_ties
from crosswalk.runtime.plan.algebra import Box
from crosswalk.runtime.plan.model import Plan, TensorSpec

from .copies import checksum, unequal
from .load import read_moves
from .moves import moves
from .placement import Part, place
from .ranks import share_out
from .save import CheckpointDraft, Output, Regions, natural_order, write_all

#: Makes the plan, and what goes beside the tensors, from the native tensors that are saved.
MakePlan = Callable[[Mapping[str, TensorSpec]], tuple[Plan, Output]]


class PlanReader(StorageReader):
    """Presents the targets of a plan to ``dcp.load`` as tensors stored whole; what is read comes from the files of
    ``checkpoint``, the sources of the plan. ``plans``: for each way in which the model may store its parameters, the
    likeliest first; what is loaded shows which it is. ``copies``: further parameters that a model may have, each with
    the target that it gets the values of. ``bytes_read`` counts on this rank."""

    def __init__(
        self, plans: Sequence[Plan], checkpoint: Checkpoint, copies: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        problems = [problem for plan in plans for problem in plan.verify().problems]
        if problems:
            raise CrosswalkError(problems)
        self._checkpoint, self._plans, self._copies = checkpoint, plans, copies
        self.bytes_read = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to do: the files are given with the plan."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """One chunk for every native tensor that there may be."""
        specs = {spec.name: spec for plan in reversed(self._plans) for spec in plan.targets}
        specs |= {name: specs[of] for name, of in self._copies.items() if of in specs}
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=torch_dtype(spec.dtype)),
                    torch.Size(spec.shape),
                    [ChunkStorageMetadata(torch.Size([0] * len(spec.shape)), torch.Size(spec.shape))],
                )
                for name, spec in specs.items()
            }
        )

    @system_limits()
    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """One rank compares what is tied. Raises ``CrosswalkError``, which torch raises on every rank."""
        if is_coordinator:
            compare_ties(self._plans[0], bind(self._plans[0], self._checkpoint), self._checkpoint)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As planned."""
        return plans

    @system_limits()
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the items need, all at once, into the tensors that the planner gives. Raises ``CrosswalkError``
        for what cannot be read."""
        parts: dict[str, list[tuple[Part, str]]] = defaultdict(list)
        items = []
        for item in plan.items:
            if item.type != LoadItemType.TENSOR:
                raise fail("dcp/bytes", f"`{item.storage_index.fqn}` is no tensor: the files hold tensors only")
            tensor = planner.resolve_tensor(item).detach()
            box = _box(item.storage_offsets, item.lengths)
            _check_box(planner, item.storage_index.fqn, box)
            target = self._copies.get(item.storage_index.fqn, item.storage_index.fqn)
            parts[target].append((Part(box, tensor), dtype_name(tensor.dtype)))
            items.append((item, tensor))
        chosen = next((p for p in self._plans if parts.keys() <= p.target_index.keys()), None)
        if chosen is None:
            raise fail("dcp/variants", "the tensors that are loaded are of several variants of the layout together")
        filled, stored = with_zeros(chosen, bind(chosen, self._checkpoint))
        names = [spec.name for spec in filled.sources]
        self.bytes_read += read_moves(moves(filled, parts, "target"), names, stored, self._checkpoint)
        for item, tensor in items:
            planner.commit_tensor(item, tensor)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Never chosen by itself."""
        return False


class Writer(StorageWriter):
    """Takes what ``dcp.save`` saves, and writes the targets of the plan that ``make_plan`` makes for it into the new
    directory ``destination``, which appears complete or not at all. Every rank writes its own regions."""

    def __init__(self, destination: Path, make_plan: MakePlan) -> None:
        self._destination, self._make_plan = Path(os.path.abspath(destination)), make_plan
        self._draft: CheckpointDraft | None = None
        self._undo: weakref.finalize[Any, Any] | None = None
        self.bytes_written = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Drop what an earlier, failed save left."""
        if self._undo is not None:
            self._undo()
        self._draft = self._undo = None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As planned; everything must be a tensor. Raises ``CrosswalkError`` for all that is not."""
        problems = [
            Diagnostic("dcp/bytes", f"`{item.index.fqn}` is no tensor: a model checkpoint holds tensors only")
            for item in plan.items
            if item.type == WriteItemType.BYTE_IO
        ]
        if problems:
            raise CrosswalkError(problems)
        return plan

    @system_limits()
    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: make the plan, prove that the ranks hold all of it, create the files. Raises
        ``CrosswalkError`` for what nobody holds."""
        specs: dict[str, TensorSpec] = {}
        tables: list[dict[str, list[Box]]] = []
        for plan in plans:
            held: dict[str, list[Box]] = defaultdict(list)
            for item in plan.items:
                assert item.tensor_data is not None
                data = item.tensor_data
                name = item.index.fqn
                specs[name] = TensorSpec(name, tuple(data.size), dtype_name(data.properties.dtype))
                held[name].append(_box(data.chunk.offsets, data.chunk.sizes))
            tables.append(held)
        made, output = self._make_plan(specs)
        problems = made.verify().problems
        if problems:
            raise CrosswalkError(problems)
        share_out(tables, made.sources)
        files = _files(made, output)
        check_names([file.name for file in files], output.extra, output.carried)
        self._draft = CheckpointDraft(made, files, output, self._destination)
        # If another rank fails, torch raises on all without a word to the writer: the draft ends with it.
        self._undo = weakref.finalize(self, self._draft.discard)
        try:
            self._draft.create()
        except BaseException:
            self.reset()
            raise
        storage = (str(self._draft.path), specs, made.digest)
        return [dataclasses.replace(plan, storage_data=storage) for plan in plans]

    @system_limits()
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and sync the regions that the items of this rank fill. Raises ``CrosswalkError`` for what cannot be
        written."""
        path, specs, digest = plan.storage_data
        made, output = self._make_plan(specs)
        if made.digest != digest:
            raise fail("distributed/differs", "this rank makes another plan than the coordinator from the same tensors")
        parts: dict[str, list[tuple[Part, str]]] = defaultdict(list)
        for item in plan.items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor)
            assert item.tensor_data is not None
            box = _box(item.tensor_data.chunk.offsets, item.tensor_data.chunk.sizes)
            _check_box(planner, item.index.fqn, box)
            parts[item.index.fqn].append((Part(box, tensor), specs[item.index.fqn].dtype))
        regions = Regions(made, _files(made, output), Path(path))
        try:
            with regions.writer() as write:
                self.bytes_written += write_all(moves(made, parts, "source"), regions, write)
        except BaseException:
            self.reset()
            raise
        copied = made.ties
        found = {
            name: checksum([part for part, _ in parts[name]], made, name)
            for name in parts
            if name in copied or name in copied.values()
        }
        done: Future[list[WriteResult]] = Future()
        # The checksum of a tensor goes with the first of its items.
        done.set_result(
            [WriteResult(item.index, _nbytes(item), found.pop(item.index.fqn, None)) for item in plan.items]
        )
        return done

    @system_limits()
    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: compare copies of tied tensors, add headers, index and small files, and put the directory
        in place. Raises ``CrosswalkError`` with every copy that differs."""
        assert self._draft is not None
        try:
            checksums = [{r.index.fqn: r.storage_data} for rank in results for r in rank if r.storage_data is not None]
            problems = unequal(self._draft.plan, checksums)
            if problems:
                raise CrosswalkError(problems)
            self._draft.complete()
        finally:
            self.reset()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Never chosen by itself."""
        return False


def _check_box(planner: LoadPlanner | SavePlanner, name: str, box: Box) -> None:
    """Raise if the planner takes a ``DTensor`` for one box that it is not: it knows only where the first element is."""
    value = getattr(planner, "state_dict", {}).get(name)
    if isinstance(value, DTensor) and [part.box for part in place(value).parts] != [box]:
        raise fail(
            "dcp/placement",
            f"the shard of `{name}` with placements {list(map(str, value.placements))} is not one box of the tensor, "
            "which is all that torch.distributed.checkpoint can say",
            hint="use crosswalk.load and crosswalk.save",
        )


def _box(offsets: Sequence[int], sizes: Sequence[int]) -> Box:
    return tuple((int(offset), int(offset + size)) for offset, size in zip(offsets, sizes, strict=True))


def _files(plan: Plan, output: Output) -> list[DataFile]:
    return lay_out(plan.targets, natural_order(plan.targets), output.layout)


def _nbytes(item: WriteItem) -> int:
    assert item.tensor_data is not None
    size = 1
    for extent in item.tensor_data.chunk.sizes:
        size *= extent
    return size * item.tensor_data.properties.dtype.itemsize
