"""Hugging Face checkpoints in training jobs: into a live model and out of it, sharded or not, without a stop between.

If torch.distributed is initialised, every function is a collective of the ranks of ``group`` (by default all): every
rank must call it, all agree before anything moves, and a problem of one rank is raised on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from crosswalk.checkpoints.huggingface import CONFIG, carried_files, config_bytes, parse_config, read_config_text
from crosswalk.checkpoints.model_files import derived_files
from crosswalk.compiler.config.coverage import restore_kept
from crosswalk.compiler.config.dialects import dialects_of, without_stale_versions
from crosswalk.compiler.layout.variants import variants
from crosswalk.compiler.pipeline import Exported, Sizes, export_checkpoint, main_dtype, state_dtype
from crosswalk.compiler.tensors.advice import Advice
from crosswalk.compiler.tensors.plan import check_published
from crosswalk.runtime.checkpoint.output import hugging_face_layout
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.training import load as live
from crosswalk.runtime.training import save as saving
from crosswalk.runtime.training import stream as streaming
from crosswalk.runtime.training.dcp import Reader, Writer
from crosswalk.runtime.training.load import LoadReport
from crosswalk.runtime.training.parameters import Model, collect, of_all_ranks, own
from crosswalk.runtime.training.ranks import TIMEOUT, team
from crosswalk.runtime.training.save import Output, SaveReport

from .formats import format_named
from .options import Options, OutputOptions, as_path, parse_size
from .prepare import open_import

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """What :func:`load` found and did: the native config, complete, the name of the format, and this rank's report.
    ``truncate``: what :func:`save` and :func:`stream` need to cut off what was padded, empty if nothing was."""

    config: Config
    format: str
    report: LoadReport
    truncate: Sizes = field(default_factory=dict)


def load(
    hf_dir: str | Path,
    model: Model,
    format: str | None = None,
    *,
    native_config: Config | None = None,
    device: torch.device | str | None = None,
    group: dist.ProcessGroup | None = None,
    timeout: float = TIMEOUT,
    allow_lossy: bool = False,
    layout: str | None = None,
    pad: Sizes | None = None,
    keep: str | Iterable[str] = (),
    take_tied: bool = False,
    text_only: bool = False,
) -> Loaded:
    """Fill a model's parameters with a Hugging Face checkpoint, in place.

    ``model`` is a module or a state dict whose names and shapes are those of the native layout; its parameters may be
    on any device, sharded as ``DTensor`` in any way, or ``Shards``. Parameters on the meta device get memory: where
    their mesh is, or on ``device``. Floats are cast to the dtype of the parameter. Each rank reads only the bytes of
    its shards.

    Without a ``format``, the one of ``layout`` (by default ``fast_llm``) that the checkpoint has is found. ``pad``:
    axis -> multiple that its size in the model is rounded up to, as ``{"vocab": 128}``; what is new becomes zeros. The
    model is the one of ``native_config``, by default the one that the checkpoint is imported as. They may differ in
    ``training`` fields, which can decide how parameters are stored (queries, keys and values fused or not). ``keep``:
    keys of config.json that the format does not know and the model does not depend on, nested ones with dots.

    Raises ``CrosswalkError``, on every rank and before anything is changed, with every field of ``native_config`` that
    is not the checkpoint's, or every parameter that is missing, unexpected or has another shape; and within ``timeout``
    seconds if a rank is gone.
    """
    ranks = team(group, timeout)
    there = of_all_ranks(own(model), ranks, "loading")
    with ranks.step("reading the checkpoint's headers") as step:
        options = Options(format=format, to=layout, allow_lossy=allow_lossy, pad=pad or {},
                          native_config=native_config, keep=keep, take_tied=take_tied, text_only=text_only,
                          parameters={name: spec.shape for name, spec in there.items()})  # fmt: skip
        checkpoint, imported = open_import(Path(hf_dir), options)
        name, config = imported.mapping.name, imported.config
        step.agree |= {"format": name, "config": config}
    where = torch.device(device) if device is not None else None
    advice = Advice(imported.mapping, config)
    report = live.load(imported.plan, checkpoint.tensors, model, ranks, where, elsewhere=there, advice=advice)
    return Loaded(config, name, report, imported.lengths)


def save(
    model: Model,
    native_config: Config,
    hf_dir: str | Path,
    format: str,
    dialect: str | None = None,
    dtype: str | None = None,
    blocking: bool = True,
    *,
    carry_from: str | Path | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
    group: dist.ProcessGroup | None = None,
    timeout: float = TIMEOUT,
    allow_lossy: bool = False,
    truncate: Sizes | None = None,
) -> SaveReport | Future[SaveReport]:
    """Write a model's parameters as the Hugging Face checkpoint ``hf_dir``, which appears complete or not at all.

    ``native_config`` is the model's base-model config, as :func:`load` returns it. Each rank writes only its own bytes;
    the files are the same for any number of ranks and any sharding. ``dtype`` casts all floats. ``carry_from`` is a
    Hugging Face checkpoint of the same model: its tokenizer and other small files are copied, and what its config says
    that means nothing to the trainer is kept. ``truncate``: axis -> size in the files, as ``Loaded.truncate`` has it
    for a padded model; what is beyond is taken for padding, unread.

    With ``blocking=False`` the parameters are copied to host memory and written in the background; they may change as
    soon as this returns. The future's result must be asked for before the process group is destroyed.

    Raises ``CrosswalkError``, on every rank, and leaves nothing at ``hf_dir`` then.
    """
    ranks = team(group, timeout)
    there = of_all_ranks(collect(model), ranks, "saving")
    with ranks.step("planning the checkpoint") as step:
        step.agree |= {"format": format, "dialect": dialect, "dtype": dtype, "native_config": native_config}
        step.agree["truncate"] = truncate
        options = Options(dialect=dialect, dtype=dtype, allow_lossy=allow_lossy, truncate=truncate or {})
        output = OutputOptions(carry_from=as_path(carry_from), max_shard_size=parse_size(max_shard_size),
                               overwrite=overwrite)  # fmt: skip
        export = _Export(native_config, format, options, output)
        exported = export.plan(there)
        files = export.output(exported)
    background = None if blocking else (lambda: team(group, timeout, "background"))
    return saving.save(exported.plan, model, Path(hf_dir), ranks, background, files, elsewhere=there)


def stream(
    model: Model,
    native_config: Config,
    format: str,
    bucket_bytes: int = 1 << 30,
    *,
    dialect: str | None = None,
    dtype: str | None = None,
    group: dist.ProcessGroup | None = None,
    timeout: float = TIMEOUT,
    allow_lossy: bool = False,
    truncate: Sizes | None = None,
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The tensors of a Hugging Face checkpoint, made from live parameters where they are: lists of ``(name, tensor)``
    of at most ``bucket_bytes`` bytes each, for an inference engine that runs beside the trainer.

    Tensors are whole on every rank; some are views of parameters. ``truncate``: see :func:`save`.
    See :func:`crosswalk.runtime.training.stream.stream`.
    """
    ranks = team(group, timeout)
    there = of_all_ranks(collect(model), ranks, "streaming")
    with ranks.step("planning the stream") as step:
        step.agree |= {"format": format, "dialect": dialect, "dtype": dtype, "native_config": native_config}
        step.agree["truncate"] = truncate
        options = Options(dialect=dialect, dtype=dtype, allow_lossy=allow_lossy, truncate=truncate or {})
        export = _Export(native_config, format, options, OutputOptions())
        plan = export.plan(there).plan
    return streaming.stream(plan, model, ranks, bucket_bytes, group, there)


def reader(
    hf_dir: str | Path,
    format: str | None = None,
    *,
    native_config: Config | None = None,
    allow_lossy: bool = False,
    layout: str | None = None,
    pad: Sizes | None = None,
    keep: str | Iterable[str] = (),
    take_tied: bool = False,
    text_only: bool = False,
) -> Reader:
    """A storage reader with which ``torch.distributed.checkpoint.load`` fills a native state dict from Hugging Face
    files. Options are those of :func:`load`."""
    options = Options(format=format, to=layout, allow_lossy=allow_lossy, pad=pad or {}, native_config=native_config,
                      keep=keep, take_tied=take_tied, text_only=text_only)  # fmt: skip
    checkpoint, imported = open_import(Path(hf_dir), options)
    mapping, plans = imported.mapping, [imported.plan]
    if native_config is None:
        for other in variants(mapping.layout, mapping.root.type, imported.config):
            plans.append(open_import(Path(hf_dir), replace(options, native_config=other))[1].plan)
    return Reader(plans, checkpoint.tensors)


def writer(
    hf_dir: str | Path,
    native_config: Config,
    format: str,
    dialect: str | None = None,
    dtype: str | None = None,
    *,
    carry_from: str | Path | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
    allow_lossy: bool = False,
    truncate: Sizes | None = None,
) -> Writer:
    """A storage writer with which ``torch.distributed.checkpoint.save`` writes a native state dict as Hugging Face
    files. Options are those of :func:`save`."""
    options = Options(dialect=dialect, dtype=dtype, allow_lossy=allow_lossy, truncate=truncate or {})
    output = OutputOptions(carry_from=as_path(carry_from), max_shard_size=parse_size(max_shard_size),
                           overwrite=overwrite)  # fmt: skip
    export = _Export(native_config, format, options, output)
    return Writer(Path(hf_dir), export)


@dataclass(frozen=True)
class _Export:
    """From a native config to a plan, once the parameters are known, and to the files beside the tensors. It goes to
    other processes, which compile the format anew."""

    native_config: Config
    format: str
    options: Options
    written: OutputOptions

    def __call__(self, specs: Mapping[str, TensorSpec]) -> tuple[Plan, Output]:
        exported = self.plan(specs)
        return exported.plan, self.output(exported)

    def _old(self) -> dict[str, Any] | None:
        """The config.json of the checkpoint that the model came from."""
        if self.written.carry_from is None:
            return None
        file = self.written.carry_from / CONFIG
        return parse_config(read_config_text(file), file)

    def plan(self, specs: Mapping[str, TensorSpec]) -> Exported:
        mapping, options, old = format_named(self.format), self.options, self._old()
        if old is not None and options.dialect is None:
            options = replace(options, dialect=dialects_of(mapping, old) or None)
        check_published(specs.values(), options.dtype)
        return export_checkpoint(mapping, self.native_config, dict(specs), options)

    def output(self, exported: Exported) -> Output:
        mapping = exported.mapping
        config: dict[str, Any] = dict(exported.config)
        carried: dict[str, Path] = {}
        old = self._old()
        if self.written.carry_from is not None and old is not None:
            carried = carried_files(self.written.carry_from)
            restore_kept(mapping, config, old)
            config = without_stale_versions(mapping, config, exported.dialects)
        state_dtype(config, main_dtype(exported.plan.targets))
        made = {CONFIG: config_bytes(config), **derived_files(mapping.source, config, carried)}
        return Output(hugging_face_layout(self.written.max_shard_size), made, carried, self.written.overwrite)
