"""Whatever happens to a conversion, the destination is as it was or complete."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from crosswalk.runtime.checkpoint.output import hugging_face_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import Options, write_checkpoint
from crosswalk.runtime.files.workers import Progress
from crosswalk.runtime.plan.model import Plan, TensorSpec, make_plan
from crosswalk.runtime.staging import directory as staging
from crosswalk.runtime.staging import placing

#: Random kills; raise it to look for rare moments.
KILLS = int(os.environ.get("CROSSWALK_KILLS", "25"))
#: Calls that change a file system.
CHANGES = ("pwrite", "ftruncate", "fsync", "mkdir", "rmdir", "rename", "unlink")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A plan with ranges, transposes and casts, and the directory of its source."""
    torch.manual_seed(3)
    directory = tmp_path_factory.mktemp("model")
    rows, columns = 701, 907
    tensors = {
        f"{k}.{i:02}": torch.randn(rows, columns).bfloat16() for k in ("same", "turned", "cast") for i in range(8)
    }
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    size = rows * columns
    targets, copies = [], []
    for name in tensors:
        kind = name.split(".")[0]
        shape = (columns, rows) if kind == "turned" else (rows, columns)
        targets.append(TensorSpec(f"new.{name}", shape, "F32" if kind == "cast" else "BF16"))
        turned = (name, f"new.{name}", (columns, rows), 0, (1, columns), 0, (rows, 1), 0)
        copies.append(turned if kind == "turned" else (name, f"new.{name}", (size,), 0, (1,), 0, (1,), 0))
    specs = [TensorSpec(name, (rows, columns), "BF16") for name in tensors]
    return make_plan(specs, targets, copies), directory


def write(model: tuple[Plan, Path], destination: Path, on_progress: Progress | None = None, **options: Any) -> Any:
    plan, directory = model
    return write_checkpoint(
        plan,
        open_checkpoint(directory),
        destination,
        layout=hugging_face_layout(max_shard_bytes=8_000_000),
        extra={"config.json": b"{}"},
        carried={"carried.safetensors": directory / "model.safetensors"},
        options=Options(**{"workers": 2, **options}),
        on_progress=on_progress,
    )


def content(directory: Path) -> dict[str, str]:
    """File name -> hash of every file below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def expected(model: tuple[Plan, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a conversion that nothing disturbs writes."""
    destination = tmp_path_factory.mktemp("expected") / "out"
    write(model, destination)
    assert len(content(destination)) == 9
    return content(destination)


def child(work: Callable[[], object]) -> int:
    """Run in a child process; its id."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return process


def crash_at(number: int) -> None:
    """End this process in place of the ``number``-th change of a file system."""
    left, lock = [number], threading.Lock()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
            return function(*arguments, **named)

        return wrapper

    for name in CHANGES:
        setattr(os, name, wrap(getattr(os, name)))
    setattr(placing, "_exchange", wrap(placing._exchange))  # noqa: B010


@pytest.mark.parametrize("mode", ["new", "overwrite", "resume"])
def test_a_crash_at_any_step(mode: str, model: tuple[Plan, Path], expected: dict[str, str], tmp_path: Path) -> None:
    """The process ends before the n-th change of the file system: some early ones and every one of the last, which
    put the output in place. The next conversion cleans up, or continues, and completes."""
    options = {mode: True} if mode != "new" else {}
    old = {"config.json": hashlib.sha1(b"old").hexdigest()}
    allowed = (old, expected) if mode == "overwrite" else (None, expected)

    def attempt(number: int) -> tuple[int, dict[str, str] | None]:
        """Crash at a step, and what the destination is then; convert again."""
        home = tmp_path / str(number)
        destination = home / "out"
        home.mkdir()
        if mode == "overwrite":
            destination.mkdir()
            (destination / "config.json").write_text("old")

        def work() -> None:
            crash_at(number)
            write(model, destination, **options)

        code = os.waitstatus_to_exitcode(os.waitpid(child(work), 0)[1])
        found = content(destination) if destination.exists() else None
        assert code in (0, 9)
        assert found in allowed, number
        if code == 9:
            write(model, destination, **{**options, "overwrite": found is not None})
        assert content(destination) == expected
        assert [path.name for path in home.iterdir()] == ["out"]
        shutil.rmtree(home)
        return code, found

    low, high = 0, 2000
    while high - low > 1:  # the first step that does not exist
        middle = (low + high) // 2
        low, high = (middle, high) if attempt(middle)[0] == 9 else (low, middle)
    found = [attempt(step)[1] for step in [1, 2, 3, low // 3, low // 2, *range(max(low - 12, 4), low + 1)]]
    assert found[0] == allowed[0]
    assert found[-1] == expected
    assert found == sorted(found, key=allowed.index)


def test_kill_at_random_moments(model: tuple[Plan, Path], expected: dict[str, str], tmp_path: Path) -> None:
    generator = random.Random(11)
    started = time.monotonic()
    write(model, tmp_path / "timed")
    duration = time.monotonic() - started
    shutil.rmtree(tmp_path / "timed")
    complete = 0
    for number in range(KILLS):
        mode = generator.choice(["new", "overwrite", "resume"])
        destination = tmp_path / f"out{number % 3}"
        if mode != "overwrite":
            shutil.rmtree(destination, ignore_errors=True)
        existed = destination.exists()
        options = {mode: True} if mode != "new" else {}
        process = child(lambda to=destination, options=options: write(model, to, **options))
        time.sleep(generator.random() * duration * 1.3)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if destination.exists():
            assert content(destination) == expected
            complete += 1
        else:
            assert not existed
    print(f"{KILLS} kills, {complete} found a complete output")
    for number in range(3):
        write(model, tmp_path / f"out{number}", overwrite=True)
        assert content(tmp_path / f"out{number}") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out0", "out1", "out2"]


def failing(monkeypatch: pytest.MonkeyPatch, name: str, after: int, number: int) -> None:
    """Let the calls of ``os.name`` fail with an error number after the first few."""
    function, calls = getattr(os, name), [0]

    def wrapper(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(number, os.strerror(number))
        return function(*arguments)

    monkeypatch.setattr(os, name, wrapper)


@pytest.mark.parametrize(
    ("function", "after", "number", "code"),
    [
        ("pwrite", 13, errno.ENOSPC, "write/failed"),
        ("pwrite", 20, errno.EIO, "write/failed"),
        ("preadv", 5, errno.EIO, "read/failed"),
        ("fsync", 0, errno.EIO, "output/failed"),
        ("fsync", 3, errno.EIO, "output/failed"),
        ("ftruncate", 1, errno.EFBIG, "output/failed"),
        ("mkdir", 0, errno.EROFS, "output/failed"),
        ("rename", 0, errno.EACCES, "output/rename"),
        ("rename", 1, errno.EACCES, "output/failed"),
    ],
)
def test_errors_of_the_system(
    function: str,
    after: int,
    number: int,
    code: str,
    model: tuple[Plan, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(monkeypatch, function, after, number)
    with pytest.raises(CrosswalkError) as error:
        write(model, tmp_path / "out")
    assert [diagnostic.code for diagnostic in error.value.diagnostics] == [code]
    assert os.strerror(number) in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("beside", [False, True])
def test_directories_made_for_the_destination_go_with_it(
    beside: bool, model: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless somebody else has put something there by then."""
    (tmp_path / "there").mkdir()
    destination = tmp_path / "there" / "new" / "newer" / "out"

    def stop(done: int, total: int, name: str) -> None:
        if beside:
            (tmp_path / "there" / "new" / "notes.txt").write_text("mine")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, destination, on_progress=stop)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == ({"there", "there/new", "there/new/notes.txt"} if beside else {"there"})


def test_no_space(model: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs(tmp_path)
    full = os.statvfs_result([*status[:4], 3, *status[5:]])
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(CrosswalkError, match="are free on the file system"):
        write(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_interrupt(model: tuple[Plan, Path], tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    plan, directory = model
    before = threading.active_count()  # saving in the background keeps a thread
    for options in (Options(), Options(resume=True)):
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(plan, open_checkpoint(directory), tmp_path / "out", options=options, on_progress=interrupt)
        assert not (tmp_path / "out").exists()
        assert len(list(tmp_path.iterdir())) == options.resume
    assert threading.active_count() == before


def test_source_that_changes(model: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, directory = model
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.safetensors"
    path.write_bytes((directory / "model.safetensors").read_bytes())
    checkpoint = open_checkpoint(tmp_path / "in")
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CrosswalkError, match="was changed"):
        write_checkpoint(plan, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("checksum", ["xxh3", "sha256"])
def test_resume_writes_only_what_is_missing(
    checksum: str, model: tuple[Plan, Path], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "out"
    with monkeypatch.context() as patch:
        failing(patch, "fsync", 5, errno.EIO)  # the journal's first line, then data and journal of two files
        with pytest.raises(CrosswalkError):
            write(model, destination, resume=True, workers=1, checksum=checksum)
    (stage,) = tmp_path.iterdir()
    times = {path.name: path.stat().st_mtime_ns for path in stage.glob("output/model-*")}
    report = write(model, destination, resume=True, checksum=checksum)
    assert len(report.resumed) == 2
    assert content(destination) == expected
    kept = {name for name, at in times.items() if (destination / name).stat().st_mtime_ns == at}
    assert kept == set(report.resumed)
    whole = write(model, tmp_path / "other", checksum=checksum)
    assert dict(sorted(whole.checksums.items())) == dict(sorted(report.checksums.items()))


@pytest.mark.parametrize("damage", ["data", "header", "size", "journal", "torn journal", "source"])
def test_resume_trusts_nothing_that_is_not_proved(
    damage: str, model: tuple[Plan, Path], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, directory = model
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    model = plan, tmp_path / "in"
    destination = tmp_path / "out"
    with monkeypatch.context() as patch:
        failing(patch, "fsync", 3, errno.EIO)
        with pytest.raises(CrosswalkError):
            write(model, destination, resume=True, workers=1)
    (stage,) = tmp_path.glob(".out.*")
    journal = stage / staging.JOURNAL
    first = stage / staging.OUTPUT / json_lines(journal)[1]["file"]
    if damage in ("data", "header"):
        raw = bytearray(first.read_bytes())
        raw[-1 if damage == "data" else 20] ^= 1
        first.write_bytes(raw)
    elif damage == "size":
        os.truncate(first, first.stat().st_size + 1)
    elif damage == "journal":
        journal.write_text("nonsense\n")
    elif damage == "torn journal":
        journal.write_bytes(journal.read_bytes()[:-5])
    else:
        os.utime(tmp_path / "in" / "model.safetensors", ns=(1, 1))
    report = write(model, destination, resume=True)
    assert report.resumed == ()
    assert content(destination) == expected


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_existing_destination(model: tuple[Plan, Path], expected: dict[str, str], tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    write(model, destination)  # an empty directory is free
    (destination / "mine.txt").write_text("mine")
    with pytest.raises(CrosswalkError, match="exists and is not empty"):
        write(model, destination)
    assert (destination / "mine.txt").exists()
    write(model, destination, overwrite=True)
    assert content(destination) == expected
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(destination)
    for name in ("file", "link"):
        with pytest.raises(CrosswalkError, match="is not a directory"):
            write(model, tmp_path / name, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "out"]


def test_swap_without_renameat2(
    model: tuple[Plan, Path], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    monkeypatch.setattr(placing.ctypes, "CDLL", lambda *_, **__: object())
    write(model, tmp_path / "out", overwrite=True)
    assert content(tmp_path / "out") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_source_is_never_the_destination(model: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, directory = model
    before = content(directory)
    for destination in (directory, directory.parent):
        with pytest.raises(CrosswalkError) as error:
            write_checkpoint(plan, open_checkpoint(directory), destination, options=Options(overwrite=True))
        assert error.value.diagnostics[0].code == "output/is-source"
    assert content(directory) == before


def test_two_conversions_to_one_destination(model: tuple[Plan, Path], tmp_path: Path) -> None:
    stage = tmp_path / ".out.crosswalk"
    stage.mkdir(0o700)
    other = os.open(stage, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(CrosswalkError, match="another conversion"):
        write(model, tmp_path / "out")
    os.close(other)
    (stage / "left over").write_text("by a process that was killed")
    write(model, tmp_path / "out")
    assert not (tmp_path / "out" / "left over").exists()


def test_everything_is_synced_before_it_appears(
    model: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is synced after its last write, every directory after that, then the rename, then the parent."""
    events: list[tuple[str, str]] = []

    def record(name: str, path_of: Callable[..., str]) -> None:
        function = getattr(os, name)

        def wrapper(*arguments: Any) -> Any:
            events.append((name, path_of(*arguments)))
            return function(*arguments)

        monkeypatch.setattr(os, name, wrapper)

    def of_descriptor(descriptor: int, *_: object) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    for name in ("pwrite", "fsync"):
        record(name, of_descriptor)
    record("rename", lambda one, other: str(one))
    write(model, tmp_path / "out")
    stage = tmp_path / ".out.crosswalk" / staging.OUTPUT
    renamed = events.index(("rename", str(stage)))
    last: dict[str, str] = {}
    for name, path in events[:renamed]:
        last[path] = name
    for file in content(tmp_path / "out"):
        assert last[str(stage / file)] == "fsync", file
    assert last[str(stage)] == "fsync"
    journal = str(stage.parent / staging.JOURNAL)
    assert events[renamed - 3 : renamed] == [("fsync", str(stage)), ("pwrite", journal), ("fsync", journal)]
    assert events[renamed + 1] == ("fsync", str(tmp_path))
