"""Runs of a file that are read in one call, and what is left of it when the file is cut or the system will not."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import pytest

from crosswalk.runtime import gathering
from crosswalk.runtime.checkpoint import reading
from crosswalk.runtime.checkpoint.header import SourceFile, StoredTensor
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.errors import CrosswalkError

CONTENT = bytes(itertools.islice(itertools.cycle(range(251)), 400_003))
#: Of 37 bytes, 1009 bytes apart: more than one call takes, some of them across pages.
STARTS, LENGTH = range(11, len(CONTENT) - 1046, 1009), 37
EXPECTED = b"".join(CONTENT[start : start + LENGTH] for start in STARTS)

available = pytest.mark.skipif(not gathering.AVAILABLE, reason="the system has no such call")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(CONTENT)
    return path


def read(path: Path) -> bytes:
    """The runs, by a reader that knows the file as it is now."""
    stored = StoredTensor(path, 3, len(CONTENT) - 3, "U8", (len(CONTENT) - 3,))
    found = bytearray(len(EXPECTED))
    with contextlib.closing(Reader(["w"], [stored], {path: SourceFile.of(path.stat(), {})})) as reader:
        reader.read_runs(0, iter(STARTS), LENGTH, memoryview(found))
        reader.check()
    return bytes(found)


@available
def test_runs_are_read_without_a_call_for_each(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "preadv", lambda *arguments: calls.append(1))
    monkeypatch.setattr(reading, "MOST", 132)  # 3 times 132 are all
    assert len(STARTS) == 396
    assert read(path) == EXPECTED
    assert calls == []


def test_a_system_that_will_not_is_asked_for_each_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "AVAILABLE", False)
    assert read(path) == EXPECTED


@available
def test_where_the_call_breaks_off_single_ones_go_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = gathering._copy
    monkeypatch.setattr(gathering, "_copy", lambda addresses, *rest: copy(addresses, *rest) // 2 - 5)
    assert read(path) == EXPECTED


@available
def test_only_places_that_the_call_reaches_count(path: Path) -> None:
    with open(path, "rb") as stream:
        found = bytearray(20 * 64)
        starts = [*range(0, 17 * 64, 64), 1 << 40, 0, 64]
        assert gathering.gather(stream.fileno(), starts, 64, memoryview(found)) == 0  # it ends before one of them
        starts[17] = 5
        assert gathering.gather(stream.fileno(), starts, 64, memoryview(found)) == 20
        assert found == CONTENT[: 17 * 64] + CONTENT[5:69] + CONTENT[:128]


@pytest.mark.parametrize("size", [STARTS[193], STARTS[391] + 36])
def test_a_file_that_is_cut_while_it_is_read_is_an_error(
    path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = reading.gather

    def cut(*arguments: object) -> int:
        os.truncate(path, size)
        return gather(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "gather", cut)
    with pytest.raises(CrosswalkError) as caught:
        read(path)
    assert caught.value.diagnostics[0].code == "read/failed"
    assert f"it ends at byte {size}" in caught.value.diagnostics[0].message
