"""What the system refuses (memory, threads, long names) and pipes in place of files: one error, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small_checkpoints import make

import crosswalk
from crosswalk import CrosswalkError, check, convert, verify
from crosswalk.cli.commands import cli, run_command
from crosswalk.compiler.text.documents import load_document
from crosswalk.jobs import plans, train
from crosswalk.runtime import background
from crosswalk.runtime.files.convert import EngineOptions

LONG = "x" * 300

STARVED = """
import resource, sys
import torch
import crosswalk
from crosswalk.runtime.files.convert import EngineOptions

convert = crosswalk.convert
grown = [line for line in open("/proc/self/status") if line.startswith("VmSize")][0].split()[1]
limit = int(grown) * 1024 + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    convert("in", "out", options=EngineOptions(workers=4))
except crosswalk.CrosswalkError as error:
    print([problem.code for problem in error.diagnostics])
"""


@pytest.mark.parametrize(
    "call",
    [
        lambda source, home: check(home / LONG),
        lambda source, home: convert(source, home / LONG),
        lambda source, home: convert(home / LONG, home / "out"),
        lambda source, home: verify(source, home / LONG),
    ],
    ids=["check", "convert to", "convert from", "verify"],
)
def test_a_name_too_long_for_the_file_system(call: Callable[[Path, Path], object], tmp_path: Path) -> None:
    source = make(tmp_path / "in")
    with pytest.raises(CrosswalkError) as error:
        call(source, tmp_path)
    assert [problem.code for problem in error.value.diagnostics] == ["system/name"]
    assert sorted(os.listdir(tmp_path)) == ["in"]


@pytest.mark.parametrize("megabytes", [2, 20, 60])
def test_too_little_memory(megabytes: int, tmp_path: Path) -> None:
    make(tmp_path / "in")
    ran = subprocess.run(
        [sys.executable, "-c", STARVED, str(megabytes)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout.strip(), "Traceback" in ran.stderr) == (0, "['system/memory']", False), (
        ran.stderr
    )
    assert os.listdir(tmp_path) == ["in"]


def test_no_more_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "in")
    monkeypatch.setattr(threading.Thread, "start", _refused)
    with pytest.raises(CrosswalkError, match="0 of the 3 threads it needs: can't start new thread"):
        convert(source, tmp_path / "out", options=EngineOptions(workers=3))
    assert os.listdir(tmp_path) == ["in"]


def _refused(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_pipe_in_place_of_a_mapping_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(CrosswalkError, match=r"pipe.yaml: error: cannot read the file: it is not a regular file"):
        load_document(tmp_path / "pipe.yaml")


def test_the_command_line_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(cli, ["check", str(tmp_path / LONG)]) == 1
    assert "the file system takes no name as long as this" in capsys.readouterr().err


def test_no_memory_is_one_error_in_every_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "in")
    config = json.loads((source / "config.json").read_text())
    native = crosswalk.import_config(config)
    state = {t.name: torch.zeros(t.shape) for t in crosswalk.compile_plan(config).targets}

    def starved(*arguments: object, **named: object) -> None:
        raise MemoryError

    for module in (train, plans):
        for name in ("export_checkpoint", "open_import", "open_into", "import_model", "export_model", "chosen_format"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, starved)
    calls: dict[str, Callable[[], object]] = {
        "reader": lambda: crosswalk.reader(source),
        "stream": lambda: list(crosswalk.stream(state, native, "llama")),
        "save": lambda: crosswalk.save(state, native, tmp_path / "out", "llama"),
        "load": lambda: crosswalk.load(source, state),
        "import_config": lambda: crosswalk.import_config(config),
        "export_config": lambda: crosswalk.export_config(native, "llama"),
        "compile_plan": lambda: crosswalk.compile_plan(config),
    }
    for name, call in calls.items():
        with pytest.raises(CrosswalkError) as error:
            call()
        assert [found.code for found in error.value.diagnostics] == ["system/memory"], name


def test_memory_that_ends_between_two_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((make(tmp_path / "in") / "config.json").read_text())
    state = {t.name: torch.zeros(t.shape) for t in crosswalk.compile_plan(config).targets}
    buckets = crosswalk.stream(state, crosswalk.import_config(config), "llama", bucket_bytes=1000)
    assert next(buckets)

    def starved(*arguments: object, **named: object) -> None:
        raise MemoryError

    for name in ("empty", "zeros", "cat"):
        monkeypatch.setattr(torch, name, starved)
    with pytest.raises(CrosswalkError, match="there is not enough memory"):
        list(buckets)


def test_a_save_in_the_background_without_a_thread_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((make(tmp_path / "in") / "config.json").read_text())
    state = {t.name: torch.zeros(t.shape) for t in crosswalk.compile_plan(config).targets}
    monkeypatch.setattr(background, "_executor", ThreadPoolExecutor(1))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _refused)
        with pytest.raises(CrosswalkError) as error:
            crosswalk.save(state, crosswalk.import_config(config), tmp_path / "out", "llama", blocking=False)
    assert [found.code for found in error.value.diagnostics] == ["system/threads"]
    assert sorted(os.listdir(tmp_path)) == ["in"]
    later = crosswalk.save(state, crosswalk.import_config(config), tmp_path / "out", "llama", blocking=False)
    assert isinstance(later, Future)
    assert later.result().destination == tmp_path / "out"
