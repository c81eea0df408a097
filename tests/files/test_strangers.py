"""What does not belong in a checkpoint: links that lead out of it, pipes, names that speak to the terminal."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from oracles import make_checkpoint
from small_checkpoints import LLAMA

import crosswalk
from crosswalk.cli.commands import cli, run_command
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import EngineOptions, verify_checkpoint, write_checkpoint
from crosswalk.runtime.plan.model import make_plan


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "hf"
    make_checkpoint(path, LLAMA)
    return path


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "source")
    return tmp_path / "source"


def codes(error: pytest.ExceptionInfo[CrosswalkError]) -> set[str]:
    return {problem.code for problem in error.value.diagnostics}


def test_a_link_beside_the_weights_is_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("not for publication")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "more.json").write_text("{}")
    (source / "README.txt").symlink_to("../secret.txt")
    (source / "folder").symlink_to("../folder")
    (source / "notes.txt").write_text("carried")
    (source / "same.txt").symlink_to("notes.txt")
    os.mkfifo(source / "pipe.json")
    report = crosswalk.convert(source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} & {"README.txt", "folder", "pipe.json"} == set()
    assert (tmp_path / "out" / "same.txt").read_text() == "carried"
    (note,) = [note for note in report.notes if "left out" in note]
    assert all(name in note for name in ("README.txt", "folder", "pipe.json"))
    assert "notes.txt" not in note


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("what", ["link", "pipe"])
def test_what_is_read_must_be_a_file_of_the_checkpoint(what: str, name: str, source: Path, tmp_path: Path) -> None:
    """It is refused at once: a pipe would never end."""
    os.rename(source / name, tmp_path / name)
    if what == "link":
        (source / name).symlink_to(tmp_path / name)
    else:
        os.mkfifo(source / name)
    with pytest.raises(CrosswalkError, match="leads out of the checkpoint" if what == "link" else "not a regular file"):
        crosswalk.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_cache_of_the_hub_is_made_of_links(source: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--somebody--model"
    snapshot = home / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(home / "blobs" / f"{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "notes.txt").symlink_to("../../blobs/0")
    crosswalk.convert(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_bytes() == (home / "blobs" / "0").read_bytes()


@pytest.mark.parametrize(
    "name", ["a[bold]c[dim]", "run[red]1", "x\x1b[31my", "\x9b2J", ":boom:", "a\nerror: b", "x\u200by"]
)
def test_names_are_printed_as_they_are(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No markup, and nothing that a terminal acts on."""
    (source / f"{name}.json").write_text("{}")
    assert run_command(cli, ["convert", str(source), str(tmp_path / name)]) == 0
    out = capsys.readouterr().out
    shown = name.encode("unicode_escape").decode()
    assert f"{shown}.json" in out
    assert str(tmp_path / shown) in out
    assert "\x1b" not in out
    assert "\x9b" not in out
    assert run_command(cli, ["check", str(tmp_path / name / "nothing")]) == 1
    assert f"{shown}/nothing" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(cli, ["check", os.fsdecode(os.fsencode(tmp_path) + b"/\xff")]) == 1
    assert "\\udcff" in capsys.readouterr().err


def test_a_source_whose_time_is_set_back_has_changed(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    specs = checkpoint.specs()
    plan = make_plan(specs, specs, [(s.name, s.name, (s.elements,), 0, (1,), 0, (1,), 0) for s in specs])
    path = source / "model.safetensors"
    status = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    for work in (
        lambda: write_checkpoint(plan, checkpoint, tmp_path / "out"),
        lambda: verify_checkpoint(plan, checkpoint, open_checkpoint(source)),
    ):
        with pytest.raises(CrosswalkError) as error:
            work()
        assert codes(error) == {"read/changed"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_threads_that_the_system_does_not_give(
    allowed: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(CrosswalkError) as error:
        crosswalk.convert(source, tmp_path / "out", options=EngineOptions(workers=3))
    assert codes(error) == {"options/workers"}
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
    assert not any(thread.is_alive() for thread in started)
