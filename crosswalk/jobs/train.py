"""Hugging Face checkpoints in training jobs: into a live model and out of it, sharded or not, without a stop between.

If torch.distributed is initialised, every function is a collective of the ranks of ``group`` (by default all): every
rank must call it, all agree before anything moves, and a problem of one rank is raised on every rank.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from crosswalk.checkpoints.huggingface import CONFIG, config_bytes
from crosswalk.checkpoints.model_files import derived_files, files_to_write
from crosswalk.classes.live import (
    ClassExport,
    ClassOrigin,
    Exporting,
    inner_model,
    live_class,
    read_class,
    recompute,
)
from crosswalk.classes.refusals import refuse_nameless, refuse_options, refuse_other_config, refuse_wrapped
from crosswalk.classes.twins import model_config
from crosswalk.compiler.config.origin import Origin
from crosswalk.compiler.layout.natives import copies_in, ties_of
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.layout.variants import variants
from crosswalk.compiler.pipeline import Exported, Sizes, export_checkpoint
from crosswalk.compiler.tensors.advice import Advice
from crosswalk.compiler.tensors.plan import check_dtype, check_published, with_copies
from crosswalk.runtime.checkpoint.output import hugging_face_layout
from crosswalk.runtime.errors import fail, system_limits
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.publishing import kept
from crosswalk.runtime.publishing.publisher import Publisher
from crosswalk.runtime.records import Record, replace
from crosswalk.runtime.training import load as live
from crosswalk.runtime.training import save as saving
from crosswalk.runtime.training.load import LoadReport
from crosswalk.runtime.training.parameters import Model, collect, of_all_ranks, own
from crosswalk.runtime.training.ranks import TIMEOUT, team
from crosswalk.runtime.training.save import Output, SaveReport

from .formats import format_named
from .options import Options, OutputOptions, as_path, parse_size
from .origin import origin_of, original
from .prepare import open_import, open_into

if TYPE_CHECKING:
    from crosswalk.runtime.training.dcp import PlanReader, Writer

Config = Mapping[str, Any]
#: What takes the place of a format where the class of a live model says what its files are.
CLASSES = "transformers"


class Loaded(Record, frozen=True):
    """What :func:`load` found and did: the native config, complete, the name of the format, and this rank's report.
    ``truncate``: axis -> its size without padding, empty if nothing was padded; ``source``: the directory that it was
    loaded from; ``origin``: what :func:`save` keeps of that."""

    config: Config
    format: str
    report: LoadReport
    truncate: Sizes
    source: Path
    origin: Origin | ClassOrigin


@system_limits()
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
    values = cache(partial(own, model))
    there = of_all_ranks(values, ranks, "loading")
    where = torch.device(device) if device is not None else None
    asked = {"format": format, "layout": layout, "native_config": native_config, "pad": pad, "text_only": text_only,
             "take_tied": take_tied, "keep": keep}  # fmt: skip
    with ranks.step("reading the checkpoint's headers") as step:
        kind = live_class(model)
        if kind is not None:
            refuse_options(kind.name, asked)
            checkpoint, found = read_class(kind, Path(hf_dir), there, allow_lossy, partial(kept.once, "class", model))
            step.agree |= {"format": kind.name, "config": checkpoint.config}
        else:
            if format is None and layout is None:
                refuse_wrapped(model)
            options = Options(format=format, to=layout, allow_lossy=allow_lossy, pad=pad or {},
                              native_config=native_config, keep=keep, take_tied=take_tied, text_only=text_only,
                              parameters={name: spec.shape for name, spec in there.items()})  # fmt: skip
            checkpoint, imported, copies = open_into(Path(hf_dir), options, there, partial(kept.once, "import", model))
            name, config = imported.mapping.name, imported.config
            step.agree |= {"format": name, "config": config}
    if kind is not None:
        report = live.load(
            found.plan, checkpoint.tensors, model, ranks, where,
            elsewhere=there, copies=kind.copies(there), values=values(),
        )  # fmt: skip
        with ranks.step("computing what no file holds"):
            recomputed = recompute(kind, where)
        report = replace(report, recomputed=recomputed, on_meta=())
        return Loaded(checkpoint.config, CLASSES, report, {}, checkpoint.path, found)
    advice = Advice(imported.mapping, config)
    report = live.load(
        imported.plan, checkpoint.tensors, model, ranks, where,
        elsewhere=there, advice=advice, copies=copies, values=values(),
    )  # fmt: skip
    origin = origin_of(checkpoint.path, checkpoint.text, imported.mapping, imported.read, checkpoint.tensors.specs())
    return Loaded(config, name, report, imported.lengths, checkpoint.path, origin)


@system_limits()
def save(
    model: Model,
    native_config: Config | Loaded,
    hf_dir: str | Path,
    format: str | None = None,
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
    keep: str | Iterable[str] = (),
) -> SaveReport | Future[SaveReport]:
    """Write a model's parameters as the Hugging Face checkpoint ``hf_dir``, which appears complete or not at all.

    ``native_config`` is what :func:`load` returned, or the model's base-model config and its ``format``. Each rank
    writes only its own bytes; the files are the same for any number of ranks and any sharding. ``dtype`` casts all
    floats. ``carry_from`` is a Hugging Face checkpoint of the same model, by default what was loaded: its tokenizer and
    other small files are copied, and kept is what its config says that means nothing to the trainer, its sizes, its
    dialect, and all of it if it still says what the model is. With a config alone, and no ``carry_from``, the report's
    ``defaults`` lists what is lost so. ``truncate``: axis -> size in the files, by default that of the original; what
    is beyond is taken for padding, unread. ``keep``: as for :func:`load`, of the config of ``carry_from``.

    With ``blocking=False`` the parameters are copied to host memory and written in the background; they may change as
    soon as this returns. The future's result must be asked for before the process group is destroyed.

    Raises ``CrosswalkError``, on every rank, and leaves nothing at ``hf_dir`` then.
    """
    ranks = team(group, timeout)
    values = cache(partial(collect, model))
    there = of_all_ranks(values, ranks, "saving")
    options = Options(format=format, dialect=dialect, dtype=dtype, allow_lossy=allow_lossy, keep=keep,
                      truncate=truncate or {}, trusted=True, like=as_path(carry_from))  # fmt: skip
    wanted = _asked(model, native_config, options, there, group)
    found = kept.find("plan", model, wanted, ranks)
    with ranks.step("planning the checkpoint") as step:
        output = OutputOptions(max_shard_size=parse_size(max_shard_size), overwrite=overwrite)
        export = export_of(native_config, options, output, model)
        step.agree |= export.asked
        exported = found or export.plan(there)
        files = export.output(exported)
    if found is None:
        kept.keep("plan", model, wanted, exported)
    background = None if blocking else (lambda: team(group, timeout, "background"))
    return saving.save(exported.plan, model, Path(hf_dir), ranks, background, files, elsewhere=there, values=values())


@system_limits()
def stream(
    model: Model,
    native_config: Config | Loaded,
    format: str | None = None,
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
    See :class:`crosswalk.runtime.publishing.publisher.Publisher`, which :func:`crosswalk.publisher` makes to be kept.
    """
    ranks = team(group, timeout)
    there = of_all_ranks(partial(collect, model), ranks, "streaming")
    options = Options(format=format, dialect=dialect, dtype=dtype, allow_lossy=allow_lossy,
                      truncate=truncate or {}, trusted=True)  # fmt: skip
    wanted = None  # a publisher would hold the dict that it is kept with
    if isinstance(model, torch.nn.Module):
        wanted = _asked(model, native_config, options, there, group, bucket_bytes, timeout)
    publisher = kept.find("stream", model, wanted, ranks)
    if publisher is None:
        with ranks.step("planning the stream") as step:
            export = export_of(native_config, options, OutputOptions(), model)
            step.agree |= export.asked
            plan = export.plan(there).plan
        publisher = Publisher(plan, kept.loosely(model), ranks, bucket_bytes, group, there, doing="stream")
        kept.keep("stream", model, wanted, publisher)
    return _limited(publisher.buckets(), model)


def _asked(
    model: Model,
    given: Any,
    options: Options,
    there: Mapping[str, TensorSpec],
    group: dist.ProcessGroup | None,
    *more: Any,
) -> kept.Asked | None:
    """What has to stay as it is for a plan to be right again; None where a checkpoint on the disk is asked."""
    if options.like is not None:
        return None
    inner = inner_model(model)
    config = getattr(given, "config", given) if inner is None else model_config(inner)
    if group is None and dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
    same = (getattr(given, "origin", None), getattr(inner, "_weight_conversions", None), group)
    return kept.Asked(same, (copy.deepcopy(config), copy.deepcopy(options), dict(there), *more))


def _limited(
    buckets: Iterator[list[tuple[str, torch.Tensor]]], model: Model
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The same, with what the system says as errors; it keeps the model for as long as it is used."""
    with system_limits():
        yield from buckets


@system_limits()
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
) -> PlanReader:
    """A storage reader with which ``torch.distributed.checkpoint.load`` fills a native state dict from Hugging Face
    files. Options are those of :func:`load`."""
    from crosswalk.runtime.training.dcp import PlanReader  # imports what takes 0.1 s and loads and saves do not need

    options = Options(format=format, to=layout, allow_lossy=allow_lossy, pad=pad or {}, native_config=native_config,
                      keep=keep, take_tied=take_tied, text_only=text_only)  # fmt: skip
    checkpoint, imported = open_import(Path(hf_dir), options)
    mapping, plans = imported.mapping, [imported.plan]
    if native_config is None:
        for other in variants(mapping.layout, mapping.root.type, imported.config):
            plans.append(open_import(Path(hf_dir), replace(options, native_config=other))[1].plan)
    return PlanReader(plans, checkpoint.tensors, ties_of(Scope(mapping.layout, mapping.root.type, imported.config)))


@system_limits()
def writer(
    hf_dir: str | Path,
    native_config: Config | Loaded,
    format: str | None = None,
    dialect: str | None = None,
    dtype: str | None = None,
    *,
    carry_from: str | Path | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
    allow_lossy: bool = False,
    truncate: Sizes | None = None,
    keep: str | Iterable[str] = (),
) -> Writer:
    """A storage writer with which ``torch.distributed.checkpoint.save`` writes a native state dict as Hugging Face
    files. Options are those of :func:`save`."""
    from crosswalk.runtime.training.dcp import Writer

    options = Options(format=format, dialect=dialect, dtype=dtype, allow_lossy=allow_lossy, keep=keep,
                      truncate=truncate or {}, trusted=True, like=as_path(carry_from))  # fmt: skip
    output = OutputOptions(max_shard_size=parse_size(max_shard_size), overwrite=overwrite)
    return Writer(Path(hf_dir), export_of(native_config, options, output))


class Export(Record, frozen=True):
    """From a native config to a plan, once the parameters are known, and to the files beside the tensors. It goes to
    other processes, which compile the format anew."""

    native_config: Config
    format: str
    options: Options
    written: OutputOptions
    origin: Origin | None

    def __call__(self, specs: Mapping[str, TensorSpec]) -> tuple[Plan, Output]:
        exported = self.plan(specs)
        return exported.plan, self.output(exported)

    @property
    def asked(self) -> dict[str, Any]:
        """What all ranks have to ask alike."""
        options = self.options
        return {
            "format": self.format, "dialect": options.dialect, "dtype": options.dtype,
            "native_config": self.native_config, "truncate": options.truncate,
        }  # fmt: skip

    def plan(self, specs: Mapping[str, TensorSpec]) -> Exported:
        """The plan and config for these parameters. Raises ``CrosswalkError`` for what the format cannot hold."""
        check_published(specs.values(), self.options.dtype)
        mapping = format_named(self.format)
        copies = copies_in(mapping.layout, mapping.root.type, self.native_config, specs)
        once = {name: spec for name, spec in specs.items() if name not in copies}
        exported = export_checkpoint(mapping, self.native_config, once, self.options, self.origin)
        return replace(exported, plan=with_copies(exported.plan, specs, copies))

    def writing(self, written: OutputOptions) -> Export:
        """The same with other files."""
        return replace(self, written=written)

    def output(self, exported: Exported) -> Output:
        """The files: config.json, and what is carried. Raises ``CrosswalkError`` if the format needs model files."""
        source, origin, written = exported.mapping.source, self.origin, self.written
        carried, text = dict[str, Path](), config_bytes(exported.config)
        if origin is not None:
            carried = files_to_write(source, origin.files, None, Path(origin.name))
            text = origin.text.encode() if exported.unchanged else text
        elif source.files:
            needed = ", ".join(source.files)
            what = f"format `{source.name}` needs its model files {needed}: it cannot be loaded without"
            hint = "pass carry_from: the checkpoint that the model came from, or a directory of its config and code"
            raise fail("files/model-code", what, None, hint)
        made = {CONFIG: text, **derived_files(source, exported.config, carried)}
        layout = hugging_face_layout(written.max_shard_size)
        return Output(layout, made, carried, written.overwrite, exported.defaults)


def export_of(given: Config | Loaded, options: Options, output: OutputOptions, model: Model | None = None) -> Exporting:
    """The way from what was loaded, or from a config alone, to the files; by its class, if the ``model`` is one of
    transformers. Raises ``CrosswalkError`` if neither says the format."""
    loaded = given if isinstance(given, Loaded) else None
    kind = live_class(model) if model is not None else None
    if kind is not None:
        asked = {"format": options.named_format, "dialect": options.dialect, "truncate": options.truncate,
                 "carry_from": options.like, "keep": options.keep}  # fmt: skip
        refuse_options(kind.name, asked)
        origin = loaded.origin if loaded is not None and isinstance(loaded.origin, ClassOrigin) else None
        if origin is None:
            refuse_other_config(kind.model, given)
        return ClassExport(kind, check_dtype(options.dtype), origin).writing(output)
    config: Config = given.config if isinstance(given, Loaded) else given
    name = options.named_format or (loaded.format if loaded is not None else None)
    if name is None:
        refuse_nameless(model, config)
    known = loaded.origin if loaded is not None and isinstance(loaded.origin, Origin) else None
    if (like := options.like) is not None:
        options = replace(options, format=format_named(name).name)
        known = original(like, options)
    return Export(config, name, options, output, known)
