"""Another model of the class of a live one, made of its config alone: what the class says of itself."""

from __future__ import annotations

import copy
import json
import sys
import weakref
from collections.abc import Collection, Mapping
from typing import Any

import torch

from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.training.parameters import collect, same_memory

from .conversion import converting, kept_alias, tied_patterns

_CONFIGS = "transformers.configuration_utils"
#: Live models -> what their config said, and the model that was made of it: a layer takes a millisecond.
_twins: weakref.WeakKeyDictionary[Any, tuple[str, Any]] = weakref.WeakKeyDictionary()
#: Keys of a config about the files that a model came from or went to. Saving sets some, on the rank that saves.
_OF_FILES = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def model_config(model: Any) -> str:
    """What the config of a live model says of the model itself, as text."""
    return json.dumps(_of_the_model(json.loads(model.config.to_json_string(use_diff=False))), sort_keys=True)


def _of_the_model(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _of_the_model(inner) for key, inner in value.items() if key not in _OF_FILES}
    return [_of_the_model(inner) for inner in value] if isinstance(value, list) else value


def rules_of(model: Any, base: type) -> Any:
    """A model of the class itself: ``fully_shard`` makes classes of other names, by which no rule is found."""
    kinds = [type(module) for module in model.modules() if isinstance(module, base)]
    if not any(kind.__name__.startswith("FSDP") for kind in kinds):
        return model
    twin = twin_of(model)
    if (used := getattr(model, "_weight_conversions", None)) is not None:
        twin._weight_conversions = used
    return twin


def twin_of(model: Any) -> Any:
    """Another model of the class of a live one, whole and without memory. Raises ``CrosswalkError`` for a class that
    takes more than its config."""
    kind = next(kind for kind in type(model).__mro__ if not kind.__name__.startswith("FSDP"))
    config = model_config(model)
    made, twin = _twins.get(model, (None, None))
    if twin is None or made != config:
        with converting(model), torch.device("meta"):
            twin = kind(_of_any_dtype(model.config))
        _twins[model] = config, twin
    return twin


def tied_names(twin: Any) -> list[list[str]]:
    """The names of the tensors of a class, those of one tied tensor together."""
    groups: dict[str, list[str]] = {}
    for name, first in same_memory(collect(twin)).items():
        groups.setdefault(first, []).append(name)
    return list(groups.values())


def stage_copies(model: Any, memory: Collection[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Names of tied tensors of which stages of a pipeline have a copy of their own -> the name that the class saves.
    ``memory``: what any rank has; ``aliases``: the names on this rank, each with the first of the same memory. Where a
    rank has two with memory of their own, they are no longer tied."""
    if set(aliases.values()) == set(memory):
        return {}
    try:
        twin = twin_of(model)
    except CrosswalkError:
        return {}
    patterns, result = tied_patterns(twin), dict[str, str]()
    for names in tied_names(twin):
        there = [name for name in names if name in memory]
        if len(there) > 1 and len({aliases[name] for name in there if name in aliases}) < 2:
            kept = kept_alias(patterns, there)
            result |= {name: kept for name in there if name != kept}
    return result


def _of_any_dtype(config: Any) -> Any:
    """A copy of a config and of those in it, whose dtypes are the default: saving leaves them as texts, which not all
    classes read."""
    result = copy.deepcopy(config)
    todo = [result]
    while todo:
        one = todo.pop()
        if getattr(one, "dtype", None) is not None:
            one.dtype = None
        todo += [value for value in vars(one).values() if isinstance(value, sys.modules[_CONFIGS].PreTrainedConfig)]
    return result
