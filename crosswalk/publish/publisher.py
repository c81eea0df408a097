"""The publisher of a live model under the names of its Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from crosswalk.classes.live import Exporting
from crosswalk.compiler.pipeline import Sizes
from crosswalk.compiler.tensors.plan import check_dtype
from crosswalk.jobs.options import Options, OutputOptions, as_path, parse_size
from crosswalk.jobs.train import Config, Loaded, export_of
from crosswalk.runtime.dtypes import FLOATS
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail, system_limits
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.publishing.delta import Delta, Snapshot
from crosswalk.runtime.publishing.order import doubled
from crosswalk.runtime.publishing.publisher import Publisher
from crosswalk.runtime.records import replace
from crosswalk.runtime.training import save as saving
from crosswalk.runtime.training.parameters import Model, collect, of_all_ranks
from crosswalk.runtime.training.ranks import team
from crosswalk.runtime.training.save import SaveReport

#: Seconds that a rank waits for the others: a receiver may be busy for long between two buckets.
TIMEOUT = 1800.0
BUCKET = 512 << 20


@system_limits()
def publisher(
    model: Model,
    native_config: Config | Loaded,
    format: str | None = None,
    *,
    dialect: str | None = None,
    dtype: str | Mapping[str, str] | None = None,
    only: str | Iterable[str] | None = None,
    ties: str = "once",
    truncate: Sizes | None = None,
    carry_from: str | Path | None = None,
    group: dist.ProcessGroup | None = None,
    bucket_bytes: int | str = BUCKET,
    timeout: float = TIMEOUT,
    allow_lossy: bool = False,
) -> ModelPublisher:
    """A publisher of ``model`` under the names of its Hugging Face checkpoint: planned, proved and agreed on by the
    ranks once, and used after every step.

    ``dtype`` casts floats on the shard, before anything is sent or compared: all of them to one, or by pattern of their
    Hugging Face names, ``{"*.gate.weight": "float32", "*": "bfloat16"}``, the first that fits; what fits none stays as
    it is. ``only``: patterns of the names that are published, all by default. ``ties="both"``: tied tensors under every
    name that the class has for them, for receivers that keep them apart; by default once, as files have them.
    ``bucket_bytes``: most bytes of a bucket that holds more than one tensor, as a number or as ``"1GiB"``. The other
    arguments are those of :func:`crosswalk.save`.

    Raises ``CrosswalkError``, on every rank, with everything that can be refused.
    """
    ranks = team(group, timeout)
    there = of_all_ranks(partial(collect, model), ranks, "publishing")
    with ranks.step("planning what is published") as step:
        bucket_bytes = parse_size(bucket_bytes if isinstance(bucket_bytes, int) else str(bucket_bytes), "bucket_bytes")
        whole = None if isinstance(dtype, Mapping) else dtype
        policy = dtype if isinstance(dtype, Mapping) else {}
        patterns = [only] if isinstance(only, str) else None if only is None else list(only)
        options = Options(format=format, dialect=dialect, dtype=whole, allow_lossy=allow_lossy, truncate=truncate or {},
                          trusted=True, like=as_path(carry_from))  # fmt: skip
        export = export_of(native_config, options, OutputOptions(), model)
        step.agree |= {**export.asked, "dtype": dtype, "only": patterns, "ties": ties}
        if ties not in ("once", "both"):
            raise fail("publisher/ties", f"`ties` is `{ties}`", None, "pass `once` or `both`")
        exported = export.plan(there)
        plan = _cast(doubled(exported.plan, exported.copies if ties == "both" else {}), policy)
        kept = None if patterns is None else _matching(plan, patterns)
        once = plan.targets[: len(exported.plan.targets)]
        exported = replace(exported, plan=replace(exported.plan, targets=once))
    return ModelPublisher(model, export, exported, plan, there, kept, bucket_bytes, group, timeout)


class ModelPublisher(Publisher):
    """A :class:`~crosswalk.runtime.publishing.publisher.Publisher` that can also write what it publishes to files.
    ``export``: what :func:`~crosswalk.jobs.train.export_of` returns, ``exported`` what that has planned, and ``plan``
    what is published of it."""

    def __init__(
        self,
        model: Model,
        export: Exporting,
        exported: Any,
        plan: Plan,
        elsewhere: Mapping[str, TensorSpec],
        only: set[str] | None,
        bucket_bytes: int,
        group: dist.ProcessGroup | None,
        timeout: float,
    ) -> None:
        self._model, self._export, self._exported, self._elsewhere = model, export, exported, elsewhere
        self._timeout = timeout
        proved = exported.plan
        super().__init__(plan, model, team(group, timeout), bucket_bytes, group, elsewhere, only, proved=proved)

    def snapshot(self, device: torch.device | str = "cpu", *, pin: bool = False) -> Snapshot:
        """What is published now, as the receivers have it once they have been sent all: this rank's share of it, from
        which deltas are made. A collective."""
        return Snapshot(self, device, pin)

    def delta(self, snapshot: Snapshot, *, dense: str | Iterable[str] = ()) -> Delta:
        """What has changed since; see :meth:`Snapshot.delta`. Raises ``CrosswalkError`` (``publisher/snapshot``) for
        the snapshot of another publisher, whose tensors these need not be."""
        if snapshot.publisher is not self:
            text = "the snapshot is of another publisher"
            raise fail("publisher/snapshot", text, None, "take one of this publisher once all has been sent with it")
        return snapshot.delta(dense)

    def save(
        self,
        hf_dir: str | Path,
        *,
        blocking: bool = True,
        max_shard_size: int | str | None = None,
        overwrite: bool = False,
    ) -> SaveReport | Future[SaveReport]:
        """Write the whole checkpoint, in the dtypes that are published, as :func:`crosswalk.save` does."""
        self.begin("save")
        with self.team.step("planning the checkpoint"):
            written = OutputOptions(max_shard_size=parse_size(max_shard_size), overwrite=overwrite)
            output = self._export.writing(written).output(self._exported)
        background = None if blocking else (lambda: team(self._group, self._timeout, "background"))
        return saving.save(
            self._exported.plan, self._model, Path(hf_dir), self.team, background, output, elsewhere=self._elsewhere
        )


def _cast(plan: Plan, policy: Mapping[str, str]) -> Plan:
    """The plan with the dtypes of a policy. Raises ``CrosswalkError`` for what is no dtype, and for every pattern that
    no float fits."""
    dtypes = {pattern: check_dtype(dtype) for pattern, dtype in policy.items()}
    unused = set(dtypes)
    targets = []
    for spec in plan.targets:
        fitting = [p for p in dtypes if fnmatchcase(spec.name, str(p))] if spec.dtype in FLOATS else []
        unused -= set(fitting)
        found = dtypes[fitting[0]] if fitting else None
        targets.append(replace(spec, dtype=found) if found is not None else spec)
    _refuse("publisher/dtype", "no float that is published", unused)
    return replace(plan, targets=tuple(targets))


def _matching(plan: Plan, patterns: Iterable[str]) -> set[str]:
    """The targets that fit a pattern. Raises ``CrosswalkError`` for every pattern that none fits."""
    found: set[str] = set()
    unused = []
    for pattern in patterns:
        fitting = {spec.name for spec in plan.targets if fnmatchcase(spec.name, str(pattern))}
        found |= fitting
        if not fitting:
            unused.append(pattern)
    _refuse("publisher/only", "no tensor of the checkpoint", unused)
    return found


def _refuse(code: str, what: str, patterns: Iterable[Any]) -> None:
    problems = [
        Diagnostic(code, f"{what} fits `{pattern}`", None, "patterns are those of names, as `model.layers.*`")
        for pattern in sorted(patterns, key=str)
    ]
    if problems:
        raise CrosswalkError(problems)
