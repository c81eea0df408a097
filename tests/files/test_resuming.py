"""A conversion that is taken up again, and destinations that exist, are taken, or are the source."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crashes import child, content, failing, write

from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.staging import directory as staging
from crosswalk.runtime.staging import placing


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


def test_an_output_that_was_taken_away_is_made_again_whole(
    model: tuple[Plan, Path], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after it was put in place, moved away, and killed again while it is resumed: what is there by then
    is part of an output, and not what the first one replaced."""
    destination = tmp_path / "out"

    def killed(**changes: Any) -> None:
        process = child(lambda: write(model, destination, resume=True, workers=1, **changes))
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9

    with monkeypatch.context() as patch:
        patch.setattr(staging.placing, "put", lambda work, output, to, _: (os.rename(output, to), os._exit(9)))
        killed()
    assert content(destination) == expected
    destination.rename(tmp_path / "kept")
    killed(on_progress=lambda done, total, name: os._exit(9) if done * 2 > total else None)
    write(model, destination)
    assert content(destination) == content(tmp_path / "kept") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "out"]


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
            write_checkpoint(plan, open_checkpoint(directory), destination, options=EngineOptions(overwrite=True))
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
