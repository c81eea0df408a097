"""What the generators of pages have in common: write a page, or say whether it is what would be written."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(target: Path, text: str, arguments: list[str]) -> int:
    """Write a page; with ``--check``, compare it instead, and return 1 if it is not up to date."""
    if "--check" not in arguments:
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return 0
    same = target.is_file() and target.read_text(encoding="utf-8") == text
    print(f"{target}: {'up to date' if same else f'run python docs/{Path(sys.argv[0]).name}'}")
    return 0 if same else 1
