"""Check a checkpoint against its mapping from config.json and headers alone; no weights are read."""

from __future__ import annotations

from pathlib import Path

from crosswalk.runtime.errors import CrosswalkError

from .prepare import prepare
from .report import Report
from .sizes import Sizes


def check(
    src: str | Path,
    format: str | None = None,
    to: str | None = None,
    dialect: str | None = None,
    dtype: str | None = None,
    *,
    protect: tuple[str, ...] = (),
    allow_lossy: bool = False,
    model_files: str | Path | None = None,
    pad: Sizes | None = None,
    truncate: Sizes | None = None,
) -> Report:
    """Everything that a conversion would check before it reads data: the config key by key, every tensor's name and
    shape, and the plan's proof. ``pad`` and ``truncate``: see :func:`crosswalk.convert`. Raises ``CrosswalkError`` with
    all problems found."""
    files = Path(model_files) if model_files else None
    prepared = prepare(Path(src), to, format, dialect, dtype, protect, allow_lossy, files, pad, truncate)
    problems = prepared.plan.verify().problems
    if problems:
        raise CrosswalkError(problems)
    return Report.of(prepared)
