"""Live models of transformers: recognised, filled from the files of their class, and written as them."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from crosswalk.checkpoints.huggingface import CONFIG, HuggingFaceCheckpoint, config_bytes, open_hugging_face
from crosswalk.compiler.tensors.plan import check_published, with_copies
from crosswalk.runtime.checkpoint.output import OutputLayout, hugging_face_layout
from crosswalk.runtime.dtypes import torch_dtype
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.records import Record, field, replace
from crosswalk.runtime.training.parameters import Model, collect, same_memory, unwrapped
from crosswalk.runtime.training.save import Output

from .conversion import converting, ignored
from .plans import Aliases, export_plan, file_copies, import_plan, leads_back
from .refusals import refuse_incomplete, refused
from .twins import model_config, rules_of, stage_copies, tied_names, twin_of

GENERATION = "generation_config.json"


class ClassOrigin(Record, frozen=True):
    """The checkpoint that a live model came from: its config.json, the files that go along, and the plan that filled
    the model."""

    text: str
    files: Mapping[str, Path]
    plan: Plan
    name: str


class LiveClass(Record, frozen=True):
    """A live model of a class of transformers. ``rules`` is a model of the class itself, without memory where the live
    one has classes of its own around it (FSDP2); ``aliases``: by every name, the first of the same memory."""

    model: Any
    rules: Any
    aliases: Aliases

    @property
    def name(self) -> str:
        """The name of the class of transformers."""
        return type(self.rules).__name__

    def copies(self, memory: Mapping[str, TensorSpec]) -> dict[str, str]:
        """See :func:`~.twins.stage_copies`."""
        return stage_copies(self.model, memory, self.aliases)


def live_class(model: Model) -> LiveClass | None:
    """The live model, if it is one of transformers, inside of whatever is wrapped around it. Raises ``CrosswalkError``
    with every reason why it cannot be read or filled."""
    inner = inner_model(model)
    if inner is None:
        return None
    problems = refused(inner)
    if importlib.util.find_spec("transformers.conversion_mapping") is None:
        text = "this version of transformers does not say what its classes do with their files"
        problems.append(Diagnostic("class/version", text, None, "install transformers 5 or newer"))
    if problems:
        raise CrosswalkError(problems)
    base = sys.modules["transformers.modeling_utils"].PreTrainedModel
    return LiveClass(inner, rules_of(inner, base), same_memory(collect(model)))


def inner_model(model: Model) -> Any:
    """The model of transformers inside of whatever is wrapped around it; None if there is none."""
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is None or not isinstance(model, torch.nn.Module):
        return None
    inner: Any = unwrapped(model)
    while type(inner).__name__ == "FullyShardedDataParallel":  # whose state dict has the names of what is in it
        inner = unwrapped(inner.module)
    return inner if isinstance(inner, modeling.PreTrainedModel) else None


def read_class(
    live: LiveClass, hf_dir: Path, memory: Mapping[str, TensorSpec], allow_lossy: bool, once: Callable[..., Any]
) -> tuple[HuggingFaceCheckpoint, ClassOrigin]:
    """The checkpoint in a directory, and the way from it into the model: under the names that it has, or else without
    what wrappers put into them. ``once(same, equal, make)`` keeps what was made for the same. Raises
    ``CrosswalkError``."""
    checkpoint = open_hugging_face(hf_dir, unwrap=False)
    if "quantization_config" in checkpoint.config:
        text = f"`{hf_dir}` is quantised, and a live `{live.name}` takes what its class computes with"
        raise fail("class/quantised", text, None, "decode it first: crosswalk convert")
    # A pipeline stage has names that others have not, and of what is tied copies.
    copies = live.copies(memory)
    memory = {name: spec for name, spec in memory.items() if name not in copies}
    aliases = {**{name: name for name in memory}, **live.aliases, **copies}
    config = model_config(live.model)
    # What is kept with the model must not hold it.
    same = (None if live.rules is live.model else live.rules, getattr(live.rules, "_weight_conversions", None))

    def way() -> Plan:
        files = checkpoint.tensors.specs()
        plan: Plan = once(
            same,
            (config, files, dict(memory), aliases, allow_lossy),
            lambda: import_plan(live.rules, files, memory, aliases, allow_lossy),
        )
        return plan

    try:
        plan = way()
    except CrosswalkError:
        names = set(checkpoint.tensors.tensors)
        checkpoint = open_hugging_face(hf_dir)
        if set(checkpoint.tensors.tensors) == names:
            raise
        plan = way()
    return checkpoint, ClassOrigin(checkpoint.text, checkpoint.files, plan, str(checkpoint.path))


def recompute(live: LiveClass, device: torch.device | None) -> tuple[str, ...]:
    """Let the class compute its buffers that no file holds, where they have no memory, and the parameters that it does
    not save; their names."""
    found = [
        (f"{prefix}.{key}" if prefix else key, module, key)
        for prefix, module in live.model.named_modules()
        for key in (*module._parameters, *module._buffers)
    ]
    missing = [one for one in found if (value := one[1]._buffers.get(one[2])) is not None and value.is_meta]
    unsaved = [one for one in found if ignored(live.rules, "_keys_to_ignore_on_save", one[0])]
    if not missing and not unsaved:
        return ()
    for tensor in (*live.model.parameters(), *live.model.buffers()):
        tensor._is_hf_initialized = True
    filled = (parameter.device for parameter in live.model.parameters() if not parameter.is_meta)
    where = device if device is not None else next(filled, torch.get_default_device())
    for _, module, key in missing:
        module._buffers[key] = torch.empty_like(module._buffers[key], device=where)
    for _, module, key in unsaved:
        module._is_hf_initialized = getattr(module, key)._is_hf_initialized = False
    with converting(live.model), torch.no_grad():
        live.model.initialize_weights()
    return tuple(name for name, _, _ in (*missing, *unsaved))


class ClassExported(Record, frozen=True):
    """The way from memory to files, once the parameters are known (``memory``, without copies of tied ones)."""

    plan: Plan
    live: LiveClass
    memory: Mapping[str, TensorSpec]

    @property
    def copies(self) -> dict[str, str]:
        """Names of tied tensors that files do not hold -> what holds them. Raises ``CrosswalkError``
        (``publisher/ties``) where the files have other names than the class gives them."""
        groups = [names for names in tied_names(twin_of(self.live.model)) if len(names) > 1]
        return file_copies(self.live.rules, self.memory, groups, self.plan)


class Exporting(Protocol):
    """The way from a live model to files: by a format, or by the rules of its class."""

    @property
    def asked(self) -> dict[str, Any]:
        """What all ranks have to ask alike."""

    def plan(self, specs: Mapping[str, TensorSpec], /) -> Any:
        """The way of these parameters: with a ``plan``, and for :meth:`output`."""

    def output(self, exported: Any, /) -> Output:
        """The files beside the tensors."""

    def writing(self, written: Any, /) -> Exporting:
        """The same with other files (``OutputOptions``)."""

    def __call__(self, specs: Mapping[str, TensorSpec], /) -> tuple[Plan, Output]:
        """The plan and the files."""


class ClassExport(Record, frozen=True):
    """From a live model of a class to a plan, and to the files beside the tensors."""

    live: LiveClass
    dtype: str | None
    origin: ClassOrigin | None
    layout: OutputLayout = field(default_factory=hugging_face_layout)
    overwrite: bool = False

    @property
    def asked(self) -> dict[str, Any]:
        """What all ranks have to ask alike."""
        return {"class": self.live.name, "config": model_config(self.live.model), "dtype": self.dtype}

    def plan(self, memory: Mapping[str, TensorSpec]) -> ClassExported:
        """The plan for parameters of these shapes. Raises ``CrosswalkError`` for what the class cannot write."""
        check_published(memory.values(), self.dtype)
        loaded = self.origin.plan if self.origin is not None else None
        copies = self.live.copies(memory)
        once = {name: spec for name, spec in memory.items() if name not in copies}
        if loaded is None or not leads_back(loaded, once):
            refuse_incomplete(self.live.model, self.live.name, memory, self.live.aliases)
            loaded = None
        plan = export_plan(self.live.rules, once, self.live.aliases, self.dtype, loaded)
        return ClassExported(with_copies(plan, memory, copies), self.live, once)

    def __call__(self, specs: Mapping[str, TensorSpec]) -> tuple[Plan, Output]:
        exported = self.plan(specs)
        return exported.plan, self.output(exported)

    def writing(self, written: Any) -> ClassExport:
        """The same with other files (``OutputOptions``)."""
        layout = hugging_face_layout(written.max_shard_size)
        return replace(self, layout=layout, overwrite=written.overwrite)

    def output(self, exported: ClassExported) -> Output:
        """The files: the tensors that the plan makes, and what stands beside them."""
        bytes_of: dict[str, int] = {}
        for spec in exported.plan.targets:
            bytes_of[spec.dtype] = bytes_of.get(spec.dtype, 0) + spec.nbytes
        dtype = max(bytes_of, key=lambda name: bytes_of[name])
        config = copy.deepcopy(self.live.model.config)
        config.dtype = str(torch_dtype(dtype)).removeprefix("torch.")
        config.architectures = [self.live.name]
        made = {CONFIG: config_bytes(json.loads(config.to_json_string(use_diff=True)))}
        carried = dict(self.origin.files) if self.origin is not None else {}
        generation = getattr(self.live.model, "generation_config", None)
        if GENERATION not in carried and generation is not None and self.live.model.can_generate():
            made[GENERATION] = generation.to_json_string().encode()
        return Output(self.layout, made, carried, self.overwrite)
