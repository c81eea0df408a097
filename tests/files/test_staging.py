"""One working directory for each destination: what is in it, who may use it, and what becomes of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from staged import COLUMNS, COMPLETE, NAMES, ROWS, code, names, partial, plan_of, write

from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import write_checkpoint
from crosswalk.runtime.staging import directory as staging
from crosswalk.runtime.training.ranks import Team
from crosswalk.runtime.training.save import Output, save


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    torch.manual_seed(9)
    save_file({name: torch.randn(ROWS, COLUMNS) for name in NAMES}, directory / "model.safetensors")
    return directory


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
