"""Saves that are broken off or fail in the background: what is left of them, and who is told."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import native_llama
import pytest
import torch
from native_llama import blank, native_state
from safetensors.torch import load_file

import crosswalk
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.staging import endings, stale
from crosswalk.runtime.staging.directory import Staging

#: Where the modules that tests share are, for processes of their own.
SUPPORT = str(Path(native_llama.__file__).parent)


@pytest.fixture
def model(checkpoint: Path) -> tuple[dict[str, torch.Tensor], Any]:
    state = native_state(checkpoint)
    return state, crosswalk.load(checkpoint, blank(state)).config


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


# In the background.


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all writes in the background fail."""
    real = os.pwrite

    def pwrite(*arguments: Any) -> int:
        if threading.current_thread() is threading.main_thread():
            return real(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_a_failure_in_the_background_is_logged_and_raised_at_the_next_call_once(
    model: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state, config = model
    failing(monkeypatch)
    future = crosswalk.save(state, config, tmp_path / "step-1", "llama", blocking=False)
    assert isinstance(future, Future)
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(60)
    monkeypatch.undo()
    (record,) = [record for record in caplog.records if record.name == "crosswalk"]
    assert record.levelno == logging.ERROR
    assert f"saving {tmp_path / 'step-1'} in the background failed" in record.getMessage()
    assert "No space left on device" in record.getMessage()
    with pytest.raises(CrosswalkError, match=r"step-1 in the background failed: .*No space left"):
        crosswalk.save(state, config, tmp_path / "step-2", "llama")
    assert names(tmp_path) == []
    crosswalk.save(state, config, tmp_path / "step-2", "llama")
    assert crosswalk.load(tmp_path / "step-2", blank(state)).format == "llama"


def test_who_asks_the_future_is_told_and_nobody_else(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, config = model
    failing(monkeypatch)
    future = crosswalk.save(state, config, tmp_path / "step-1", "llama", blocking=False)
    with pytest.raises(CrosswalkError, match="No space left"):
        future.result(60)
    monkeypatch.undo()
    crosswalk.save(state, config, tmp_path / "step-2", "llama")
    assert "lm_head.weight" in dict(next(crosswalk.stream(state, config, "llama")))


# Killed.

SAVE = """
    import os, pathlib, signal, sys, threading
    sys.path.insert(0, {tests!r})
    from native_llama import native_state
    import crosswalk
    state = native_state(pathlib.Path({checkpoint!r}))
    config = crosswalk.load({checkpoint!r}, state).config
    {before}
    pwrite = os.pwrite
    def ending(descriptor, data, offset):
        if offset:
            {act}
        return pwrite(descriptor, data, offset)
    os.pwrite = ending
    {save}
"""


def killed(
    checkpoint: Path, out: Path, act: str, before: str = "", blocking: bool = True
) -> subprocess.CompletedProcess:
    """A process that does ``act`` when it has begun to write tensors."""
    call = f"crosswalk.save(state, config, {str(out)!r}, 'llama', blocking={blocking})"
    save = call if blocking else f"{call}; threading.Event().wait(60)"
    code = textwrap.dedent(SAVE).format(tests=SUPPORT, checkpoint=str(checkpoint), act=act, before=before, save=save)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_process_told_to_end_removes_what_it_was_saving(checkpoint: Path, tmp_path: Path, blocking: bool) -> None:
    done = killed(checkpoint, tmp_path / "step-1", "os.kill(os.getpid(), signal.SIGTERM); threading.Event().wait(60)"
                  if not blocking else "signal.raise_signal(signal.SIGTERM)", blocking=blocking)  # fmt: skip
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert names(tmp_path) == []


def test_a_handler_of_the_process_stays_its_own(checkpoint: Path, tmp_path: Path) -> None:
    """It may want to go on, and does."""
    before = "signal.signal(signal.SIGTERM, lambda *_: print('asked to end'))"
    done = killed(checkpoint, tmp_path / "step-1", "signal.raise_signal(signal.SIGTERM)", before)
    assert done.returncode == 0, done.stderr
    assert "asked to end" in done.stdout
    assert names(tmp_path) == ["step-1"]


def test_no_handler_is_left_after_a_save(model: Any, tmp_path: Path) -> None:
    state, config = model
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert signal.getsignal(number) is signal.SIG_DFL
    crosswalk.save(state, config, tmp_path / "one", "llama")
    crosswalk.save(state, config, tmp_path / "two", "llama", blocking=False).result()
    endings.restore()
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert signal.getsignal(number) is signal.SIG_DFL


def test_the_next_step_removes_what_a_killed_one_left(checkpoint: Path, model: Any, tmp_path: Path) -> None:
    state, config = model
    done = killed(checkpoint, tmp_path / "step-1", "os._exit(9)")
    assert done.returncode == 9, done.stderr
    assert names(tmp_path) == [".step-1.crosswalk"]
    # Not its own: another name, a conversion that can be continued, and a save that is under way.
    (tmp_path / ".other-1.crosswalk").mkdir()
    (tmp_path / ".other-1.crosswalk" / "journal.jsonl").write_text('{"owner": {}}\n')
    kept = Staging(tmp_path / "step-3", {"plan": "x"}, ["a"], overwrite=False, resume=True)
    kept.abandon()
    alive = Staging(tmp_path / "step-4", {"owner": stale.owner()}, ["a"], overwrite=False, resume=False)
    crosswalk.save(state, config, tmp_path / "step-20", "llama")
    assert names(tmp_path) == [".other-1.crosswalk", ".step-3.crosswalk", ".step-4.crosswalk", "step-20"]
    alive.abandon()


def test_a_killed_save_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    for name, owner in (
        ("step-1", {"host": "elsewhere", "boot": "x"}),
        ("step-2", {**stale.owner(), "boot": "before"}),
    ):
        left = Staging(tmp_path / name, {"owner": owner}, ["a"], overwrite=False, resume=True)
        left.abandon()
    stale.remove_stale(tmp_path / "step-3")
    assert names(tmp_path) == [".step-1.crosswalk"]


# Other processes of torch.


def test_a_writer_travels_to_another_process(model: Any, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    state, config = model
    writer = pickle.loads(pickle.dumps(crosswalk.writer(tmp_path / "out", config, "llama", max_shard_size="100KB")))
    dcp.save(state, storage_writer=writer, no_dist=True)
    crosswalk.save(state, config, tmp_path / "same", "llama", max_shard_size="100KB")
    assert names(tmp_path / "out") == names(tmp_path / "same")
    for name in names(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()


def test_async_save_in_a_process_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    code = f"""
        import pathlib, sys
        import torch.distributed as dist, torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
        sys.path.insert(0, {SUPPORT!r})
        from native_llama import native_state
        import crosswalk

        if __name__ == "__main__":
            dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", 0, 1, True), rank=0, world_size=1)
            state = native_state(pathlib.Path({str(checkpoint)!r}))
            config = crosswalk.load({str(checkpoint)!r}, state).config
            writer = crosswalk.writer({str(tmp_path / "out")!r}, config, "llama")
            kind = AsyncCheckpointerType.PROCESS
            dcp.async_save(state, storage_writer=writer, async_checkpointer_type=kind).result()
            dist.destroy_process_group()
    """
    (tmp_path / "job.py").write_text(textwrap.dedent(code))
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, tmp_path / "job.py"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    expected, found = (load_file(path / "model.safetensors") for path in (checkpoint, tmp_path / "out"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# Dtypes that nothing could load.


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "F8_E5M2", "torch.float8_e4m3fn", "int8"])
def test_dtypes_that_cannot_be_published_are_refused_by_name(model: Any, tmp_path: Path, dtype: str) -> None:
    state, config = model
    said = f"`{dtype}` (needs scales|is no float dtype)"
    for action in (
        lambda: crosswalk.save(state, config, tmp_path / "out", "llama", dtype=dtype),
        lambda: crosswalk.stream(state, config, "llama", dtype=dtype),
        lambda: crosswalk.writer(tmp_path / "out", config, "llama", dtype=dtype)._make_plan({}),
        lambda: crosswalk.compile_plan(config, "llama", "hf", dtype=dtype),
    ):
        with pytest.raises(CrosswalkError, match=said):
            action()
    assert names(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_parameters_that_cannot_be_published_are_refused_by_name(
    model: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    state, config = model
    for layer in range(3):
        name = f"decoder.{layer}.mlp.layer_2.weight"
        state[name] = state[name].to(dtype)
    for action in (
        lambda: crosswalk.save(state, config, tmp_path / "out", "llama"),
        lambda: crosswalk.stream(state, config, "llama"),
    ):
        with pytest.raises(CrosswalkError, match=r"`decoder\.\{0\.\.2\}\.mlp\.layer_2\.weight`"):
            action()
    assert names(tmp_path) == []
