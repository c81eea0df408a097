"""Destinations that are mount points, on full or closed file systems, in a mount namespace of their own."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from staged import COLUMNS, COMPLETE, NAMES, ROWS, child, code, names, plan_of, write

from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.files.convert import write_checkpoint
from crosswalk.runtime.staging import directory as staging


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    torch.manual_seed(9)
    save_file({name: torch.randn(ROWS, COLUMNS) for name in NAMES}, directory / "model.safetensors")
    return directory


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
