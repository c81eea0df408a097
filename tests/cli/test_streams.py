"""Standard streams that are closed, and an interrupt before anything has begun."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_checkpoints import make

from crosswalk.cli import entry

CALL = "import sys; sys.argv[0] = 'crosswalk'; from crosswalk.cli.entry import crosswalk; crosswalk()"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_files_of_a_checkpoint(closed: str, tmp_path: Path) -> None:
    source = make(tmp_path / "in")
    command = f'"{sys.executable}" -c "{CALL}" convert "{source}" "{tmp_path / "out"}" {closed}'
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "out" / "metadata.yaml").is_file()


def test_an_interrupt_while_modules_are_imported_is_one_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    with pytest.raises(SystemExit) as ended:
        entry.crosswalk()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
