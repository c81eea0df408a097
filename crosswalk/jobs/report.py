"""What a conversion, check or verification found, as data that prints well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosswalk.runtime.files.convert import Report as FileReport

from .prepare import Prepared


@dataclass(frozen=True)
class Report:
    """``verdict`` is the plan's; ``files`` data file -> bytes; ``checksums`` tensor -> checksum; sizes in bytes;
    ``notes`` say what a user should know, though nothing is wrong."""

    format: str
    to: str
    verdict: str
    digest: str
    sources: int
    targets: int
    copies: int
    bytes_read: int
    bytes_written: int
    destination: Path | None = None
    seconds: float = 0.0
    files: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(prepared: Prepared, done: FileReport | None = None, destination: Path | None = None) -> Report:
        summary: dict[str, Any] = prepared.plan.summary()
        return Report(
            format=prepared.mapping.name,
            to=prepared.to,
            destination=destination,
            seconds=done.seconds if done else 0.0,
            files=done.files if done else {},
            checksums=done.checksums if done else {},
            carried=tuple(prepared.files),
            notes=prepared.notes,
            **summary,
        )
