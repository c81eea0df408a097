"""One working directory for each destination: what is in it, who may use it, and what becomes of it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from crosswalk.runtime.checkpoint.output import hugging_face_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import Options, write_checkpoint
from crosswalk.runtime.plan.model import Plan, TensorSpec, make_plan
from crosswalk.runtime.staging import directory as staging
from crosswalk.runtime.staging import placing
from crosswalk.runtime.training.ranks import Team
from crosswalk.runtime.training.save import Output, save

ROWS, COLUMNS = 1021, 307
NAMES = [f"t{i}" for i in range(6)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    torch.manual_seed(9)
    save_file({name: torch.randn(ROWS, COLUMNS) for name in NAMES}, directory / "model.safetensors")
    return directory


def plan_of(prefix: str) -> Plan:
    specs = [TensorSpec(name, (ROWS, COLUMNS), "F32") for name in NAMES]
    targets = [TensorSpec(f"{prefix}.{name}", (ROWS, COLUMNS), "F32") for name in NAMES]
    return make_plan(specs, targets, [(n, f"{prefix}.{n}", (ROWS * COLUMNS,), 0, (1,), 0, (1,), 0) for n in NAMES])


def write(source: Path, destination: Path, prefix: str = "new", stop: int | None = None, **options: Any) -> Any:
    """Three shards and some small files; with ``stop`` it is interrupted once that many bytes are done."""

    def progress(done: int, total: int, name: str) -> None:
        if stop is not None and done >= stop:
            raise KeyboardInterrupt

    return write_checkpoint(
        plan_of(prefix), open_checkpoint(source), destination,
        layout=hugging_face_layout(max_shard_bytes=2 * ROWS * COLUMNS * 4), extra={"config.json": b"{}"},
        carried=options.pop("carried", {}), options=Options(workers=1, **options), on_progress=progress,
    )  # fmt: skip


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


COMPLETE = ["config.json", *(f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)), "model.safetensors.index.json"]


def code(error: pytest.ExceptionInfo[CrosswalkError]) -> str:
    (problem,) = error.value.diagnostics
    return problem.code


def partial(source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, after: int = 4, **options: Any) -> Path:
    """An interrupted conversion that can be continued: the disk fails at the given sync."""
    calls = [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(CrosswalkError):
            write(source, destination, resume=True, **options)
    return destination.parent / f".{destination.name}.crosswalk"


def test_what_is_published_is_what_was_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what others put there, nor a carried file that the source no longer has."""
    (tmp_path / "gone.json").write_text("carried by the first attempt")
    output = partial(source, tmp_path / "out", monkeypatch) / staging.OUTPUT
    (output / "gone.json").write_text("carried by the first attempt")
    (output / "foreign" / "deep").mkdir(parents=True)
    (output / "foreign" / "deep" / "notes.txt").write_text("not ours")
    (output / "link").symlink_to("/etc/passwd")
    os.mkfifo(output / "pipe")
    first = output / "model-00001-of-00003.safetensors"
    outside = tmp_path / "outside"
    os.link(first, outside)
    before = outside.read_bytes()
    report = write(source, tmp_path / "out", resume=True)
    assert names(tmp_path / "out") == COMPLETE
    assert first.name not in report.resumed  # it had another name outside
    assert outside.read_bytes() == before


def test_what_appears_while_it_is_written_is_not_published(source: Path, tmp_path: Path) -> None:
    def meddle(done: int, total: int, name: str) -> None:
        output = tmp_path / ".out.crosswalk" / staging.OUTPUT
        (output / "thesis.tex").write_text("in the wrong place")
        (output / "dir").mkdir(exist_ok=True)

    write_checkpoint(plan_of("new"), open_checkpoint(source), tmp_path / "out", on_progress=meddle)
    assert names(tmp_path / "out") == ["model.safetensors"]


def test_one_conversion_at_a_time_whatever_its_plan(source: Path, tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def wait(done: int, total: int, name: str) -> None:
        started.set()
        go_on.wait(60)

    def first() -> None:
        write_checkpoint(plan_of("one"), open_checkpoint(source), tmp_path / "out", on_progress=wait)

    thread = threading.Thread(target=first)
    thread.start()
    started.wait(60)
    try:
        with pytest.raises(CrosswalkError) as error:
            write(source, tmp_path / "out", "two")
        assert code(error) == "output/busy"
        tensors = {name: torch.zeros(ROWS, COLUMNS) for name in NAMES}
        with pytest.raises(CrosswalkError, match="another conversion is writing"):
            save(plan_of("new"), tensors, tmp_path / "out", Team(None, 1.0), output=Output())
    finally:
        go_on.set()
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_attempt_with_other_options_leaves_nothing_for_ever(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial(source, tmp_path / "out", monkeypatch)
    write(source, tmp_path / "out", "other", checksum="sha256")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_resume_counts_its_own_files_as_room(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file is complete, two are partly there: the file system needs room for what is missing only."""
    output = partial(source, tmp_path / "out", monkeypatch) / staging.OUTPUT
    done = {path.name: path.stat().st_blocks * 512 for path in output.glob("*.safetensors")}
    report = None
    real = os.statvfs(tmp_path)
    for spare, fits in ((200_000, True), (-200_000, False)):
        kept = 2 * ROWS * COLUMNS * 4  # the completed shard
        free = 3 * kept - kept - (sum(done.values()) - done["model-00001-of-00003.safetensors"]) + spare
        full = os.statvfs_result([1, 1, *real[2:4], max(free, 0), *real[5:]])
        if free < 0:
            pytest.skip("everything was written before the fault")
        copy = tmp_path / ("fits" if fits else "not")
        copy.mkdir()
        shutil.copytree(output.parent, copy / ".out.crosswalk", copy_function=_sparse)
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda _, full=full: full)
            if fits:
                report = write(source, copy / "out", resume=True)
            else:
                with pytest.raises(CrosswalkError) as error:
                    write(source, copy / "out", resume=True)
                assert code(error) == "output/space"
    assert report is not None


def _sparse(one: str, other: str) -> str:
    subprocess.run(["cp", "--sparse=always", one, other], check=True)
    return other


def child(work: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("convert", signal.SIGTERM),
        ("convert", signal.SIGHUP),
        ("resume", signal.SIGTERM),
    ],
)
def test_told_to_end_it_cleans_up(what: str, number: signal.Signals, source: Path, tmp_path: Path) -> None:
    """As after Ctrl-C; and the process still ends by the signal, as whoever sent it expects."""
    home = tmp_path / "new"
    reached, told = os.pipe()

    def hang(*_: object) -> None:
        os.write(told, b"x")
        time.sleep(60)

    def work() -> None:
        signal.signal(number, signal.SIG_DFL)
        write_checkpoint(
            plan_of("new"), open_checkpoint(source), home / "out",
            options=Options(resume=what == "resume"), on_progress=hang,
        )  # fmt: skip

    process = child(work)
    assert select.select([reached], [], [], 60)[0]
    os.kill(process, number)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -number
    left = names(tmp_path)
    assert left == [] if what != "resume" else ".out.crosswalk" in left[1]


SAVING = """
import sys, time, torch
from pathlib import Path
from crosswalk.runtime.training import save as saving
from crosswalk.runtime.training.ranks import Team
from test_staging import COLUMNS, NAMES, ROWS, plan_of

def hang(*_):
    print("reached", flush=True)
    time.sleep(60)

saving.start_writeback = hang
team = Team(None, 1.0)
tensors = {name: torch.zeros(ROWS, COLUMNS) for name in NAMES}
saving.save(plan_of("new"), tensors, Path(sys.argv[1]), team, lambda: team, saving.Output())
time.sleep(60)
"""


def test_told_to_end_during_a_save_in_the_background_it_cleans_up(tmp_path: Path) -> None:
    """In a process of its own: one that is forked from this one would wait for threads that it does not have."""
    command = [sys.executable, "-c", SAVING, str(tmp_path / "new" / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    assert process.stdout
    assert process.stdout.readline() == "reached\n"
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    assert names(tmp_path) == []


def test_a_handler_of_the_program_is_left_alone(source: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        write(source, tmp_path / "out")
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_forked_child_does_not_remove_what_its_parent_writes(source: Path, tmp_path: Path) -> None:
    """Workers of a data loader are ended by SIGTERM."""

    def fork(done: int, total: int, name: str) -> None:
        if done:
            return
        process = child(lambda: time.sleep(60))
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)

    write_checkpoint(plan_of("new"), open_checkpoint(source), tmp_path / "out", on_progress=fork)
    assert names(tmp_path / "out") == ["model.safetensors"]


# A working directory that somebody else has made


@pytest.mark.parametrize("trick", ["open to all", "link", "file", "of another user"])
def test_only_a_directory_of_our_own_is_used(trick: str, source: Path, tmp_path: Path) -> None:
    work, theirs = tmp_path / ".out.crosswalk", tmp_path / "theirs"
    theirs.mkdir()
    if trick == "link":
        work.symlink_to(theirs)
    elif trick == "file":
        work.write_text("")
    else:
        work.mkdir()
        work.chmod(0o777 if trick == "open to all" else 0o755)
    if trick == "of another user":
        if os.geteuid():
            pytest.skip("needs root")
        os.chown(work, 12345, 12345)
    with pytest.raises(CrosswalkError) as error:
        write(source, tmp_path / "out")
    assert code(error) == "output/foreign"
    assert str(work) in str(error.value)
    assert names(theirs) == []
    assert os.path.lexists(work)


def test_nobody_else_can_look_into_it_and_the_output_is_as_open_as_any(source: Path, tmp_path: Path) -> None:
    modes = []

    def look(done: int, total: int, name: str) -> None:
        modes.append((tmp_path / ".out.crosswalk").stat().st_mode & 0o777)

    before = os.umask(0o027)
    try:
        write_checkpoint(plan_of("new"), open_checkpoint(source), tmp_path / "out", on_progress=look)
    finally:
        os.umask(before)
    assert set(modes) == {0o700}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


# Without renameat2


def old_checkpoint(directory: Path) -> None:
    directory.mkdir()
    (directory / "config.json").write_text("old")


def without_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing.ctypes, "CDLL", lambda *_, **__: object())


@pytest.mark.parametrize("stuck", [False, True])
def test_an_error_between_the_two_renames(
    stuck: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old checkpoint is put back; if it cannot be, the error says where it is, and later runs keep it."""
    old_checkpoint(tmp_path / "out")
    without_renameat2(monkeypatch)
    rename, work = os.rename, tmp_path / ".out.crosswalk"

    def failing(one: Any, other: Any) -> None:
        if Path(other) == tmp_path / "out" and not (tmp_path / "out").exists() and (stuck or Path(one).name != "old"):
            raise OSError(errno.EIO, "broken")
        rename(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(CrosswalkError) as error:
            write(source, tmp_path / "out", overwrite=True)
        if stuck:
            assert code(error) == "output/old"
            assert str(work / "old") in str(error.value)
            assert (work / "old" / "config.json").read_text() == "old"
            with pytest.raises(CrosswalkError, match=r"\.out\.crosswalk/old"):
                write(source, tmp_path / "out")
            assert (work / "old" / "config.json").read_text() == "old"
    if stuck:
        with pytest.raises(CrosswalkError, match="exists and is not empty"):
            write(source, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out", "out/config.json"]


@pytest.mark.parametrize("taken", [False, True])
def test_killed_between_the_two_renames(
    taken: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only copy of the old checkpoint survives every later run."""
    old_checkpoint(tmp_path / "out")
    rename = os.rename

    def work() -> None:
        without_renameat2(monkeypatch)

        def killed(one: Any, other: Any) -> None:
            if Path(one).name == "output" and not (tmp_path / "out").exists():
                os._exit(9)
            rename(one, other)

        os.rename = killed
        write(source, tmp_path / "out", overwrite=True)

    assert os.waitstatus_to_exitcode(os.waitpid(child(work), 0)[1]) == 9
    assert not (tmp_path / "out").exists()
    if taken:  # somebody has made another in the meantime
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("mine")
        with pytest.raises(CrosswalkError) as error:
            write(source, tmp_path / "out", overwrite=True)
        assert code(error) == "output/old"
        assert (tmp_path / ".out.crosswalk" / "old" / "config.json").read_text() == "old"
        assert (tmp_path / "out" / "config.json").read_text() == "mine"
    else:
        with pytest.raises(CrosswalkError, match="exists and is not empty"):
            write(source, tmp_path / "out")
        assert names(tmp_path) == ["out", "out/config.json"]
        write(source, tmp_path / "out", overwrite=True)
        assert names(tmp_path / "out") == COMPLETE


def test_a_file_system_without_renames_is_known_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def refused(one: Any, other: Any) -> None:
        written.extend(path for path in tmp_path.rglob("*.safetensors"))
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(CrosswalkError) as error:
        write(source, tmp_path / "out")
    assert code(error) == "output/rename"
    assert written == []
    assert list(tmp_path.iterdir()) == []


# Mounts, in a mount namespace of their own


def mounted(work: Callable[[], object]) -> None:
    """Run in a child that may mount; skip the test where that is not permitted."""

    def apart() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x20000) or subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode:
            os._exit(77)
        work()

    result = os.waitstatus_to_exitcode(os.waitpid(child(apart), 0)[1])
    if result == 77:
        pytest.skip("mounts are not permitted here")
    assert result == 0


def mount(*arguments: str | Path) -> None:
    if subprocess.run(["mount", *map(str, arguments)], check=False).returncode:
        os._exit(77)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("fault", ["none", "error", "kill"])
def test_an_empty_mount_point_is_filled_from_inside(fault: str, bound: bool, source: Path, tmp_path: Path) -> None:
    """Data first, then what makes it a checkpoint; with an error nothing stays, after a kill the next run tidies up."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()

    def work() -> None:
        mount("--bind", tmp_path / "elsewhere", out) if bound else mount("-t", "tmpfs", "none", out)
        rename, moved = os.rename, []

        def disturbed(one: Any, other: Any) -> None:
            if Path(other).parent == out:
                moved.append(Path(other).name)
                if len(moved) == 3 and fault == "kill":
                    os._exit(9)
                if len(moved) == 3 and fault == "error":
                    raise OSError(errno.EIO, "broken")
            rename(one, other)

        os.rename = disturbed
        if fault == "none":
            write(source, out)
            assert moved == [*COMPLETE[1:4], "config.json", "model.safetensors.index.json"]
        elif fault == "error":
            with pytest.raises(CrosswalkError, match="broken"):
                write(source, out)
            assert list(out.iterdir()) == []
        else:
            process = child(lambda: write(source, out))
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
            os.rename = rename
            assert len(list(out.iterdir())) == 3
            write(source, out)
        if fault != "error":
            assert names(out) == COMPLETE
            with pytest.raises(CrosswalkError) as error:
                write(source, out, overwrite=True)
            assert code(error) == "output/exists"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]

    mounted(work)


def test_the_space_that_counts_is_that_of_the_mount(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    def work() -> None:
        mount("-t", "tmpfs", "-o", "size=1m", "none", tmp_path / "out")
        with pytest.raises(CrosswalkError) as error:
            write(source, tmp_path / "out")
        assert code(error) == "output/space"
        assert list((tmp_path / "out").iterdir()) == []

    mounted(work)


def test_a_parent_that_is_closed(source: Path, tmp_path: Path) -> None:
    """A read-only root with a directory that can be written, as in containers."""
    home = tmp_path / "home"
    (home / "out").mkdir(parents=True)

    def work() -> None:
        mount("--bind", home, home)
        mount("-t", "tmpfs", "none", home / "out")
        mount("-o", "remount,bind,ro", home)
        write(source, home / "out")
        assert names(home / "out") == COMPLETE

    mounted(work)


def test_the_lower_layer_of_an_overlay(source: Path, tmp_path: Path) -> None:
    """It cannot be renamed, which is known before a byte is written; an empty directory of it can be replaced."""

    def work() -> None:
        mount("-t", "tmpfs", "none", tmp_path)
        for name in ("lower/full", "lower/empty", "upper", "work", "merged"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "lower" / "full" / "config.json").write_text("old")
        layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work,redirect_dir=off"
        mount("-t", "overlay", "-o", layers, "overlay", tmp_path / "merged")
        merged = tmp_path / "merged"
        seen: list[Path] = []
        pwrite = os.pwrite

        def writing(descriptor: int, data: Any, offset: int) -> int:
            seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
            return pwrite(descriptor, data, offset)

        os.pwrite = writing
        with pytest.raises(CrosswalkError) as error:
            write(source, merged / "full", overwrite=True)
        assert code(error) == "output/rename"
        assert {path.name for path in seen} <= {staging.JOURNAL}
        assert names(merged) == ["empty", "full", "full/config.json"]
        write(source, merged / "empty")
        assert names(merged / "empty") == COMPLETE

    mounted(work)


def test_a_destination_that_is_replaced_while_it_is_written(source: Path, tmp_path: Path) -> None:
    """Somebody else puts something there: it is not touched."""

    def meddle(done: int, total: int, name: str) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(CrosswalkError), contextlib.suppress(KeyboardInterrupt):
        write_checkpoint(plan_of("new"), open_checkpoint(source), tmp_path / "out", on_progress=meddle)
    assert names(tmp_path) == ["out", "out/mine.txt"]
