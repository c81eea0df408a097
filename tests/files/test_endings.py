"""Told to end, a process cleans up what it was writing, and nothing that is not its own."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import staged
import torch
from safetensors.torch import save_file
from staged import COLUMNS, NAMES, ROWS, child, names, plan_of, write

from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.staging import endings
from crosswalk.runtime.staging.directory import Staging


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    torch.manual_seed(9)
    save_file({name: torch.randn(ROWS, COLUMNS) for name in NAMES}, directory / "model.safetensors")
    return directory


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
            options=EngineOptions(resume=what == "resume"), on_progress=hang,
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
from staged import COLUMNS, NAMES, ROWS, plan_of

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
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(staged.__file__).parent)
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


def test_a_second_interrupt_does_not_break_off_tidying_up() -> None:
    before = signal.getsignal(signal.SIGINT)
    with endings.uninterrupted():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_is_abandoned_goes_whole_though_interrupted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = Staging(tmp_path / "out", {}, [], overwrite=False, resume=False)
    remove = shutil.rmtree

    def interrupted(*arguments: object, **named: object) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    staging.abandon()
    assert list(tmp_path.iterdir()) == []
