"""The output appears at once: with and without a system call that swaps, and whatever happens between two renames."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from staged import COLUMNS, COMPLETE, NAMES, ROWS, child, code, names, write

from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.staging import placing


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    torch.manual_seed(9)
    save_file({name: torch.randn(ROWS, COLUMNS) for name in NAMES}, directory / "model.safetensors")
    return directory


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
