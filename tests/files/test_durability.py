"""Whatever happens to a conversion, the destination is as it was or complete."""

from __future__ import annotations

import errno
import hashlib
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
from crashes import child, content, failing, write

from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.staging import placing

#: Random kills; raise it to look for rare moments.
KILLS = int(os.environ.get("CROSSWALK_KILLS", "25"))
#: Calls that change a file system.
CHANGES = ("pwrite", "ftruncate", "fsync", "mkdir", "rmdir", "rename", "unlink")


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
    """With one worker, so that it is always the same call that fails: data and journal have errors of their own."""
    failing(monkeypatch, function, after, number)
    with pytest.raises(CrosswalkError) as error:
        write(model, tmp_path / "out", workers=1)
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
    for options in (EngineOptions(), EngineOptions(resume=True)):
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
