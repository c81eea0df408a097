"""Check a checkpoint against its mapping from config.json and headers alone; only tensors that are tied and stored
twice are read, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from crosswalk.runtime.errors import CrosswalkError, system_limits
from crosswalk.runtime.files.convert import check_ties

from .options import AskedOptions, Options, options_of
from .prepare import Prepared, prepare
from .report import Report


@system_limits()
def check(
    src: str | Path,
    format: str | None = None,
    to: str | None = None,
    dialect: str | None = None,
    dtype: str | None = None,
    **asked: Unpack[AskedOptions],
) -> Report:
    """Everything that a conversion would check before it reads data: the config key by key, every tensor's name and
    shape, and the plan's proof. All options are those of :func:`crosswalk.convert`.

    Raises ``CrosswalkError`` with all problems found."""
    return Report.of(checked(Path(src), options_of(format, to, dialect, dtype, asked)))


def checked(src: Path, options: Options) -> Prepared:
    """The conversion that :func:`check` has nothing to say against. Raises ``CrosswalkError`` with all problems."""
    prepared = prepare(src, options)
    problems = prepared.plan.verify().problems
    if problems:
        raise CrosswalkError(problems)
    check_ties(prepared.plan, prepared.source)
    return prepared
