"""What a conversion, check or verification found, as data that prints well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crosswalk.runtime.files.convert import FileReport
from crosswalk.runtime.records import Record, field

from .formats import short_name
from .prepare import Prepared


class Report(Record, frozen=True):
    """``verdict`` is the plan's: what is proved of the tensors, and ``config`` what is known of the config, of which
    ``lossy`` lists what is inexact, and why, and ``defaults`` the keys that config.json does not hold, with what the
    class takes for each (``unknown`` where nobody can say). ``files`` data file -> bytes; ``checksums`` tensor ->
    checksum; sizes in bytes; ``notes`` say what a user should know, though nothing is wrong."""

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
    lossy: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """What is known of the config, in one line."""
        return "; ".join([f"lossy: {', '.join(self.lossy)}" if self.lossy else "exact", *_defaults(self.defaults)])

    @staticmethod
    def of(prepared: Prepared, done: FileReport | None = None, destination: Path | None = None) -> Report:
        """The report of a conversion that is prepared, or done (``done``: what was written)."""
        summary: dict[str, Any] = prepared.plan.summary()
        return Report(
            format=short_name(prepared.mapping),
            to=prepared.to,
            destination=destination,
            seconds=done.seconds if done else 0.0,
            files=done.files if done else {},
            checksums=done.checksums if done else {},
            carried=tuple(prepared.files),
            notes=prepared.notes,
            lossy=prepared.lossy,
            defaults=prepared.defaults,
            **summary,
        )


def _defaults(defaults: Mapping[str, Any]) -> list[str]:
    if not defaults:
        return []
    taken = (f"{key}{'' if value == 'unknown' else f' = {json.dumps(value)}'}" for key, value in defaults.items())
    return [f"left to the defaults of the class: {', '.join(taken)} (--like DIR takes them from the original)"]
