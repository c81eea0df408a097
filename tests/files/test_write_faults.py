"""Whatever any call that writes does, at any moment: the output is the one of an undisturbed run, or there is an error
and the destination is as it was."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from golden_cases import CASES
from random_checkpoints import write_checkpoint as write_files
from safetensors.torch import save_file

import crosswalk
from crosswalk.publish import folders
from crosswalk.runtime.checkpoint.output import hugging_face_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files import sinks
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.plan.model import Plan, TensorSpec, make_plan
from crosswalk.runtime.staging import placing
from crosswalk.runtime.training.dcp import Writer
from crosswalk.runtime.training.ranks import Team
from crosswalk.runtime.training.save import Output, save

#: Every call that changes a file or a name, and where the count of bytes stands in its arguments, if it has one.
CALLS = {
    "open": None, "pwrite": None, "pwritev": None, "write": None, "copy_file_range": 2, "sendfile": 3,
    "ftruncate": None, "truncate": None, "fsync": None, "fdatasync": None, "rename": None, "replace": None,
    "link": None, "symlink": None, "mkdir": None, "unlink": None, "rmdir": None,
}  # fmt: skip
#: Those that may do a part of what they are asked and say so in what they return.
PARTIAL = ("pwrite", "pwritev", "write", "copy_file_range", "sendfile")
SHAPES = {"a": (701, 131), "b": (233, 97), "c": (59, 311), "d": (17, 13)}

Write = Callable[[Path, bool], object]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    torch.manual_seed(5)
    save_file({name: torch.randn(shape) for name, shape in SHAPES.items()}, directory / "model.safetensors")
    (directory / "tokenizer.json").write_bytes(os.urandom(3001))
    return directory


def plan_of() -> Plan:
    """Ranges, and one transpose."""
    specs = [TensorSpec(name, shape, "F32") for name, shape in SHAPES.items()]
    targets, copies = [], []
    for name, (rows, columns) in SHAPES.items():
        turned = name == "b"
        targets.append(TensorSpec(f"new.{name}", (columns, rows) if turned else (rows, columns), "F32"))
        whole = (rows * columns,), 0, (1,), 0, (1,), 0
        copies.append(
            (name, f"new.{name}", *(((columns, rows), 0, (1, columns), 0, (rows, 1), 0) if turned else whole))
        )
    return make_plan(specs, targets, copies)


def output_of(source: Path, overwrite: bool) -> Output:
    layout = hugging_face_layout(max_shard_bytes=400_000)
    carried = {"tokenizer.json": source / "tokenizer.json"}
    return Output(layout, {"config.json": b'{"model_type": "small"}'}, carried, overwrite)


def converting(source: Path, checksum: str) -> Write:
    def write(destination: Path, overwrite: bool) -> object:
        output = output_of(source, overwrite)
        options = EngineOptions(workers=1, checksum=checksum, overwrite=overwrite)
        return write_checkpoint(
            plan_of(), open_checkpoint(source), destination,
            layout=output.layout, extra=output.extra, carried=output.carried, options=options,
        )  # fmt: skip

    return write


def saving(source: Path, by_dcp: bool) -> Write:
    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}

    def write(destination: Path, overwrite: bool) -> object:
        output = output_of(source, overwrite)
        if not by_dcp:
            return save(plan_of(), tensors, destination, Team(None, 1.0), output=output)
        return dcp.save(tensors, storage_writer=Writer(destination, lambda _: (plan_of(), output)), no_dist=True)

    return write


def content(directory: Path) -> dict[str, bytes] | None:
    if not directory.exists():
        return None
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


class Faults:
    """Counts the calls that change something, and disturbs the one of a given number."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.kind, self.at, self.calls, self.hit, self._full = "none", -1, 0, "", False
        for name in CALLS:
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))
        patch.setattr(placing, "_exchange", self._wrap("_exchange", placing._exchange))

    def arm(self, kind: str, at: int) -> None:
        self.kind, self.at, self.calls, self.hit, self._full = kind, at, 0, "", False

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return function(*arguments, **named)
            self.calls += 1
            if self._full:
                self._full = False
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self.calls != self.at:
                return None if name == "fsync" else function(*arguments, **named)  # nothing here loses power
            self.hit = name
            if self.kind in ("short", "full for a moment"):
                if name not in PARTIAL:
                    return function(*arguments, **named)
                self._full = self.kind == "full for a moment"
                return function(*self._part(name, arguments), **named)
            raise OSError(getattr(errno, self.kind), os.strerror(getattr(errno, self.kind)))

        return call

    @staticmethod
    def _part(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        place = CALLS[name] or 1
        whole = arguments[place]
        part = max(1, whole // 3) if isinstance(whole, int) else memoryview(whole)[: max(1, len(whole) // 3)]
        return (*arguments[:place], part, *arguments[place + 1 :])


@pytest.mark.parametrize("kind", ["short", "full for a moment", "ENOSPC", "EIO", "EINTR"])
@pytest.mark.parametrize("path", ["convert", "convert in the kernel", "save", "dcp"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # that torch.distributed is not initialized
def test_one_call_that_fails(
    path: str, kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = {
        "convert": converting(source, "xxh3"),
        "convert in the kernel": converting(source, "none"),
        "save": saving(source, False),
        "dcp": saving(source, True),
    }[path]
    if path == "convert in the kernel":
        monkeypatch.setattr(sinks, "is_served", lambda _: True)
    faults = Faults(monkeypatch)
    write(tmp_path / "expected", False)
    expected = content(tmp_path / "expected")
    assert expected is not None
    assert len(expected) == 5  # two shards, the index, the config, the tokenizer
    shutil.rmtree(tmp_path / "expected")
    failed, complete, hit = 0, 0, set()
    for overwrite in (False, True):
        number = 0
        while True:
            number += 1
            old = {"config.json": b"old"} if overwrite else None
            if overwrite:
                (tmp_path / "out").mkdir()
                (tmp_path / "out" / "config.json").write_bytes(b"old")
            faults.arm(kind, number)
            try:
                write(tmp_path / "out", overwrite)
                error = False
            except (CrosswalkError, dcp.api.CheckpointException):
                error = True
            name = faults.hit
            faults.arm("none", -1)
            assert content(tmp_path / "out") == (old if error else expected), (number, name)
            if name not in ("unlink", "rmdir"):  # what cannot be removed stays, hidden
                assert {p.name for p in tmp_path.iterdir()} <= {"out"}, (number, name)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            for left in tmp_path.iterdir():
                shutil.rmtree(left)
            if not name:
                break
            hit.add(name)
            failed, complete = failed + error, complete + (not error)
    assert {"pwrite", "ftruncate", "fsync", "rename", "open", "mkdir", "_exchange"} <= hit
    assert failed == 0 if kind == "short" else failed > 9
    assert complete > 9 or kind in ("ENOSPC", "EIO")


def changes(destination: Path) -> object:
    """A folder of what has changed, as a publisher writes it."""
    packed = {"a": (torch.arange(300, dtype=torch.uint8), {})}
    delta: Any = SimpleNamespace(publisher=SimpleNamespace(team=SimpleNamespace(rank=0)))
    return folders._written(delta, destination, "payload.safetensors", packed, {}, "manifest.json", {"version": 7})


@pytest.mark.parametrize("kind", ["short", "ENOSPC"])
@pytest.mark.parametrize("path", ["dcp", "megatron", "changes"])
def test_other_folders_are_whole_or_not_there(
    path: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of the calls of what writes folders of torch, of Megatron-core, and of changes."""
    if path != "changes":
        write_files(tmp_path / "source", CASES["llama_gqa"].hf_config(), CASES["llama_gqa"].hf_tensors())
    asked: dict[str, Any] = {"dcp": {"kind": "dcp"}, "megatron": {"to": "megatron"}}.get(path, {})

    def write(destination: Path) -> object:
        if path == "changes":
            return changes(destination)
        return crosswalk.convert(tmp_path / "source", destination, options=EngineOptions(workers=1), **asked)

    faults = Faults(monkeypatch)
    write(tmp_path / "expected")
    expected = content(tmp_path / "expected")
    total = faults.calls
    for number in range(1, total + 1, 3 if path == "changes" else 19):
        faults.arm(kind, number)
        try:
            write(tmp_path / "out")
        except CrosswalkError:
            assert not (tmp_path / "out").exists()
            assert kind != "short", (number, faults.hit)
        else:
            assert content(tmp_path / "out") == expected, (number, faults.hit)
        hit = faults.hit
        faults.arm("none", -1)
        for left in {found.name for found in tmp_path.iterdir()} - {"source", "expected"}:
            assert left == "out" or hit in ("unlink", "rmdir"), (number, hit)  # what cannot be removed stays, hidden
            shutil.rmtree(tmp_path / left)


def test_a_folder_of_changes_that_is_there_is_refused(tmp_path: Path) -> None:
    changes(tmp_path / "weight_v000007")
    before = content(tmp_path)
    with pytest.raises(CrosswalkError, match="the destination exists and is not empty"):
        changes(tmp_path / "weight_v000007")
    assert content(tmp_path) == before


def test_a_file_that_is_not_what_was_written_is_not_put_in_place(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that loses what it took: whichever file it is, the last look finds it."""
    pwrite = os.pwrite
    for victim in ("model-00001", "model-00002", "index.json", "config.json", "tokenizer.json"):

        def losing(descriptor: int, data: Any, offset: int, victim: str = victim) -> int:
            if offset == 0 and victim in os.readlink(f"/proc/self/fd/{descriptor}"):
                pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
                return len(data)
            return pwrite(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", losing)
        for write in (converting(source, "xxh3"), saving(source, False)):
            with pytest.raises(CrosswalkError) as error:
                write(tmp_path / "out", False)
            assert [problem.code for problem in error.value.diagnostics] == ["output/torn"]
            assert victim in str(error.value)
            assert list(tmp_path.iterdir()) == []
