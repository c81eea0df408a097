"""Whether a directory is a checkpoint and nothing else, so that a new one may take its place."""

from __future__ import annotations

import os
from pathlib import Path

#: Files of which one at least is in every checkpoint.
_MARKS = (
    "config.json", "metadata.yaml", ".metadata", "model.safetensors.index.json", "latest_checkpointed_iteration.txt"
)  # fmt: skip
_ENDINGS = (".safetensors", ".bin", ".distcp")
#: Directories that belong to a checkpoint.
_FOLDERS = ("additional_chat_templates", "original", ".cache", "__pycache__", "release")


def foreign_entries(directory: Path) -> list[str]:
    """What would be lost if the directory was replaced as a checkpoint: every entry if it is none, else the directories
    in it that no checkpoint has. Raises ``OSError`` if it cannot be read."""
    entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    files = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    if not any(name in _MARKS or name.endswith(_ENDINGS) for name in files):
        return [entry.name for entry in entries]
    return [e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name not in _FOLDERS]
