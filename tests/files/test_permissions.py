"""What the system does not let a process read: each is one message. The system here is a stand-in, since whoever runs
the tests may have every right."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import make, shard

import crosswalk
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError


def denying(monkeypatch: pytest.MonkeyPatch, owner: Any, function: str, name: str) -> None:
    """Let a function of the system fail for files and folders of a name."""
    real: Callable[..., Any] = getattr(owner, function)

    def denied(path: Any, *arguments: Any, **options: Any) -> Any:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(owner, function, denied)


def test_a_file_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    denying(monkeypatch, os, "open", "tokenizer.json")
    with pytest.raises(CrosswalkError, match=r"tokenizer.json: error: cannot be read: Perm.*\[files/unreadable\]"):
        crosswalk.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "source")
    shard(source)
    denying(monkeypatch, Path, "iterdir", "source")
    denying(monkeypatch, os, "scandir", "source")
    with pytest.raises(CrosswalkError, match=r"source: error: cannot be read: Perm.*\[source/unreadable\]"):
        crosswalk.check(source)


def test_a_folder_of_mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("CROSSWALK_MAPPINGS", str(tmp_path / "mine"))
    denying(monkeypatch, Path, "iterdir", "mine")
    catalog.cache_clear()
    try:
        with pytest.raises(CrosswalkError, match=r"mine: error: cannot read it: Perm.*\[mapping/folder\]"):
            crosswalk.formats()
    finally:
        catalog.cache_clear()
