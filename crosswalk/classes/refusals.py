"""Why a live model of transformers cannot be read, filled or written as it is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.training.parameters import Model, collect, untied

from .conversion import ignored
from .twins import tied_names, twin_of


def _packed(model: Any) -> list[tuple[str, torch.Tensor]]:
    """What a state dict has that are no numbers as they stand: objects, bytes as parameters, and kinds of tensors that
    compute something when they are looked at."""
    plain, numbers = {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer, DTensor}, (torch.int8, torch.uint8)
    parameters = {name: value.dtype for name, value in model.named_parameters(remove_duplicate=False)}
    return [
        (name, value)
        for name, value in model.state_dict(keep_vars=True).items()
        if not name.endswith("_extra_state") and (type(value) not in plain or parameters.get(name) in numbers)
    ]


def refused(model: Any) -> list[Diagnostic]:
    """Why a model cannot be read or filled as it is."""
    problems = []
    name = type(model).__name__
    quantised = getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False)
    packed = _packed(model)
    if quantised or packed:
        where = "".join(f" (`{key}`, a `{type(value).__name__}`)" for key, value in packed[:1])
        text = f"the parameters of `{name}` are quantised: they are no tensors of its checkpoint{where}"
        problems.append(Diagnostic("class/quantised", text, None, "load the model without quantisation"))
    adapted = any(".base_layer." in key for key, _ in model.named_parameters())
    if adapted or getattr(model, "_hf_peft_config_loaded", False):
        text = f"`{name}` has adapters, which put names of their own into the model"
        problems.append(Diagnostic("class/adapter", text, None, "merge them first: merge_and_unload()"))
    if (hook := _offloading(model)) is not None:
        text = f"parts of `{name}` are moved in and out of memory by the hook `{hook}` of accelerate"
        problems.append(Diagnostic("class/hook", text, None, "load it without offloading (device_map)"))
    return problems


def _offloading(model: Any) -> str | None:
    """The name of a hook that keeps parameters elsewhere while they are not used; None if there is none."""
    found = (vars(module).get("_hf_hook") for module in model.modules())  # asking a module itself takes far longer
    todo = [hook for hook in found if hook is not None]
    while todo:
        hook = todo.pop()
        if getattr(hook, "offload", False):
            return type(hook).__name__
        todo += getattr(hook, "hooks", ())
    return None


def refuse_wrapped(model: Model) -> None:
    """Raise ``CrosswalkError`` (``class/wrapped``) for a module with a model of transformers somewhere in it, where
    nothing says what else it is."""
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is None or not isinstance(model, torch.nn.Module):
        return
    for path, module in model.named_modules():
        if isinstance(module, modeling.PreTrainedModel):
            text = f"`{type(model).__name__}` is a wrapper of `{type(module).__name__}`, at `{path}`"
            hint = "merge adapters into it, if it has any (merge_and_unload()), and pass the model itself"
            raise fail("class/wrapped", text, None, hint)


def refuse_nameless(model: Model | None, config: Any) -> NoReturn:
    """Raise ``CrosswalkError`` for a model of which nothing says what its tensors are: ``class/wrapped``, or
    ``format/needed``."""
    if model is not None:
        refuse_wrapped(model)
    text = "a native config does not say which format to write"
    hint = "pass `format`, or what `load` returned in place of the config"
    if _model_type(config) is not None:
        what = "a dict of tensors" if model is None or isinstance(model, Mapping) else f"a `{type(model).__name__}`"
        text = f"the config is one of Hugging Face, and {what} does not say of which class it is"
        hint = "pass the model of the class itself; or, for a layout, crosswalk.import_config(config) and `format`"
    raise fail("format/needed", text, None, hint)


def refuse_options(name: str, options: Mapping[str, object]) -> None:
    """Raise ``CrosswalkError`` (``class/option``) with every option that is given and says how a layout is mapped;
    ``name`` is that of the class."""
    problems = [
        Diagnostic("class/option", f"`{option}` is about layouts, and `{name}` is a class of transformers", None,
                   "leave it out: names and shapes are those of the class")
        for option, value in options.items()
        if value
    ]  # fmt: skip
    if problems:
        raise CrosswalkError(problems)


def refuse_other_config(model: Any, config: Any) -> None:
    """Raise ``CrosswalkError`` (``class/config``) for what is no config of the class of a live model: it would say
    nothing of the model, or of where it came from."""
    own, given = model.config.model_type, _model_type(config)
    if given == own:
        return
    what = f"one of `{given}`" if given is not None else f"of the type `{type(config).__name__}`"
    text = f"what is given as the config is {what}, and that of the model is one of `{own}`"
    raise fail("class/config", text, None, "pass what `load` returned, or model.config for a model from no files")


def _model_type(config: Any) -> Any:
    return config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)


def refuse_incomplete(model: Any, name: str, memory: Mapping[str, TensorSpec], aliases: Iterable[str]) -> None:
    """Raise ``CrosswalkError`` for all that the class ``name`` saves and no rank has under any of its names
    (``class/absent``, or ``class/replaced`` by what is in the same place), and for what is not of the shape that the
    class makes of its config (``class/shape``). Of a class that takes more than its config nothing is known."""
    there = {*memory, *aliases}
    try:
        twin = twin_of(model)
    except CrosswalkError:
        return
    specs, groups = untied(collect(twin)), tied_names(twin)
    problems = _absent(name, twin, groups, there)
    first = {one: names[0] for names in groups for one in names}
    shapes = {one: (spec.shape, specs[first[one]].shape) for one, spec in memory.items() if one in first}
    other = {one: both for one, both in shapes.items() if both[0] != both[1]}
    hint = "let the config say what the model is; and a part of a parameter be a DTensor, or gathered first"
    for pattern, names in fold(other, lambda one: other[one]):
        found, made = other[names[0]]
        text = f"`{pattern}` is {list(found)} in the model, and `{name}` makes it {list(made)} of the config"
        problems.append(Diagnostic("class/shape", text, None, hint))
    if problems:
        raise CrosswalkError(problems)


def _absent(name: str, twin: Any, groups: Iterable[list[str]], there: Iterable[str]) -> list[Diagnostic]:
    known = {one for names in groups for one in names}
    strange = {one for one in there if one not in known}
    absent = [names[0] for names in groups if not known.intersection(there).intersection(names)]
    absent = [one for one in absent if not ignored(twin, "_keys_to_ignore_on_save", one)]
    instead = {one: _in_place(one, strange) for one in absent}
    problems = []
    for pattern, names in fold(absent, lambda one: instead[one] is None):
        if instead[names[0]] is not None:
            text = f"`{name}` has `{pattern}`, and the model has `{instead[names[0]]}` in its place"
            hint = "undo what has replaced it (parametrisation, pruning, quantisation), or load the model without"
            problems.append(Diagnostic("class/replaced", text, None, hint))
            continue
        spread = dist.is_available() and dist.is_initialized()
        text = f"`{name}` has `{pattern}`, which {'is on no rank' if spread else 'the model lacks'}"
        hint = "let one of the ranks have it" if spread else "put it back, or let the config say that there is none"
        hint += ", or pass a model of the class that has none, as the base model"
        problems.append(Diagnostic("class/absent", text, None, hint))
    return problems


def _in_place(name: str, strange: Iterable[str]) -> str | None:
    """What a model has and its class has not, in the module of a tensor: of several, what begins like it."""
    module = name.rpartition(".")[0]
    found = [one for one in sorted(strange) if module and one.startswith(f"{module}.")]
    return next((one for one in found if one.startswith(name)), next(iter(found), None))
