"""Check a checkpoint against its mapping from config.json and headers alone; only tensors that are tied and stored
twice are read, and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crosswalk.compiler.pipeline import Sizes
from crosswalk.runtime.errors import CrosswalkError, system_limits
from crosswalk.runtime.files.convert import check_ties

from .options import Options, as_path, native
from .prepare import Prepared, prepare
from .report import Report


@system_limits()
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
    like: str | Path | None = None,
    keep: str | Iterable[str] = (),
    take_tied: bool = False,
    text_only: bool = False,
    kind: str | None = None,
    layout: str | None = None,
    native_config: str | Path | Mapping[str, Any] | None = None,
) -> Report:
    """Everything that a conversion would check before it reads data: the config key by key, every tensor's name and
    shape, and the plan's proof. All options are those of :func:`crosswalk.convert`.

    Raises ``CrosswalkError`` with all problems found."""
    options = Options(
        format=format, to=to, dialect=dialect, dtype=dtype, protect=protect, allow_lossy=allow_lossy,
        model_files=as_path(model_files), pad=pad or {}, truncate=truncate or {},
        like=as_path(like), keep=keep, take_tied=take_tied, text_only=text_only,
        kind=kind, layout=layout, **native(native_config),
    )  # fmt: skip
    return Report.of(checked(Path(src), options))


def checked(src: Path, options: Options) -> Prepared:
    """The conversion that :func:`check` has nothing to say against. Raises ``CrosswalkError`` with all problems."""
    prepared = prepare(src, options)
    problems = prepared.plan.verify().problems
    if problems:
        raise CrosswalkError(problems)
    check_ties(prepared.plan, prepared.source)
    return prepared
