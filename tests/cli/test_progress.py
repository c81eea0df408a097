"""What is shown on a terminal while a command works."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_checkpoints import make

from crosswalk.cli import progress


def shown(code: str) -> str:
    """All that a process writes to a terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=slave) as child:
        os.close(slave)
        found = b""
        try:
            while part := os.read(master, 1 << 16):
                found += part
        except OSError:  # the other end is closed
            pass
    os.close(master)
    assert child.returncode == 0, found
    return found.decode()


COMMAND = (
    "from crosswalk.cli import progress, commands; progress._PATIENCE, progress._AGAIN = {}, 60; commands.main({!r})"
)


def test_planning_that_takes_long_is_told_and_wiped(tmp_path: Path) -> None:
    source = make(tmp_path / "llama")
    assert shown(COMMAND.format(0, ["check", str(source)])) == f"\rchecking ...\r{12 * ' '}\r"
    found = shown(COMMAND.format(0, ["convert", str(source), str(tmp_path / "out")]))
    assert found.startswith(f"\rplanning ...\r{12 * ' '}\r")
    assert (tmp_path / "out" / "ok").exists()


def test_what_takes_very_long_says_for_how_long() -> None:
    code = (
        "import time\nfrom crosswalk.cli import progress\nprogress._PATIENCE, progress._AGAIN = 0, 0.4\n"
        "with progress.waiting('checking'):\n    time.sleep(1.5)"
    )
    assert re.fullmatch(r"\rchecking \.\.\.(\rchecking \.\.\. [0-9] s){2,}\r {16}\r", shown(code))


def test_what_is_quick_shows_nothing(tmp_path: Path) -> None:
    assert shown(COMMAND.format(60, ["check", str(make(tmp_path / "llama"))])) == ""


def test_a_bar_follows_the_planning() -> None:
    code = (
        "import time\nfrom crosswalk.cli import progress\nprogress._PATIENCE = 0\n"
        "with progress.progress(False, 'converting') as show:\n"
        "    time.sleep(0.3)\n    show(3, 10, 'a')\n    time.sleep(0.3)\n    show(10, 10, 'b')"
    )
    found = shown(code)
    assert found.startswith(f"\rplanning ...\r{12 * ' '}\r")
    assert "converting" in found
    assert "3/10 bytes" in found


def test_nothing_is_shown_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0)
    with progress.waiting("checking"), progress.progress(False, "converting") as show:
        time.sleep(0.05)
        assert show is None
    assert capsys.readouterr() == ("", "")
