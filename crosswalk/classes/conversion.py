"""What the class of transformers does between its files and its memory, as relations of elements.

The rules are those of the installed package (``transformers.conversion_mapping``), run by its own code on tensors
without memory: nothing is said here of any architecture.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from crosswalk.runtime.dtypes import torch_dtype
from crosswalk.runtime.errors import CrosswalkError, fail
from crosswalk.runtime.plan.model import TensorSpec

from .tracing import KnownNumbers, Moved, NotMoved, Tracing

#: Name of a tensor -> its shape, and where its elements come from.
Relations = dict[str, tuple[tuple[int, ...], list[Moved]]]


def of_files(model: Any, files: Iterable[TensorSpec], names: Iterable[str]) -> Relations:
    """What each tensor in memory is made of, of those that files hold: by the rules of the class, as it loads.
    ``names``: what the model has in memory. Names that come out and are none of those are of tensors that it does not
    use.

    Raises ``CrosswalkError`` (``class/conversion``) for what is more than moving elements.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    memory = dict.fromkeys(names, True)
    prefix = model.base_model_prefix
    tracing = Tracing()
    todo: dict[str, Any] = {}
    with converting(model), KnownNumbers(), tracing:
        for spec in sorted(files, key=lambda spec: dot_natural_key(spec.name)):
            tensor = tracing.root(spec.name, spec.shape, _followed(spec))
            name, pattern = rename_source_key(spec.name, renamings, converters, prefix, memory)
            if name not in memory and spec.name in memory:
                name, pattern = rename_source_key(spec.name, [], [], prefix, memory)
            if pattern is not None and name in memory:
                rule = todo.setdefault(name, copy.deepcopy(by_pattern[pattern]))
            else:
                rule, pattern = todo.setdefault(name, WeightRenaming(spec.name, name)), spec.name
            rule.add_tensor(name, spec.name, pattern, tensor)
        return _converted(todo, model, tracing)


def to_files(model: Any, memory: Iterable[TensorSpec]) -> Relations:
    """What each tensor of a file is made of, of those in memory, as the class saves it: by the rules that it was loaded
    with, if transformers has loaded it. Raises ``CrosswalkError`` as :func:`of_files` does."""
    from transformers.core_model_loading import revert_weight_conversion

    tracing = Tracing()
    with converting(model), KnownNumbers(), tracing:
        state = {spec.name: tracing.root(spec.name, spec.shape, _followed(spec)) for spec in memory}
        saved = revert_weight_conversion(model, state)
        return {name: (tuple(tensor.shape), tracing.moved(tensor)) for name, tensor in saved.items()}


def _followed(spec: TensorSpec) -> torch.dtype:
    """The dtype that is followed: floats are one, so that none is cast where tensors are joined."""
    dtype = torch_dtype(spec.dtype)
    return torch.float32 if dtype.is_floating_point else dtype


def _converted(todo: Mapping[str, Any], model: Any, tracing: Tracing) -> Relations:
    result: Relations = {}
    for name, rule in todo.items():
        for target, found in rule.convert(name, model=model, config=model.config).items():
            tensor = found[0] if isinstance(found, list) else found
            result[target] = (tuple(tensor.shape), tracing.moved(tensor))
    return result


@contextmanager
def converting(model: Any) -> Iterator[None]:
    """Whatever goes wrong in code that is not ours, as one message. Raises ``CrosswalkError``."""
    try:
        yield
    except CrosswalkError:
        raise
    except NotMoved as error:
        text = f"what `{type(model).__name__}` makes of its files is more than moving elements: {error}"
        raise fail("class/conversion", text, None, "convert the checkpoint with transformers first") from error
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        text = f"the conversion of `{type(model).__name__}` in transformers fails: {type(error).__name__}: {reason}"
        raise fail("class/conversion", text) from error


def kept_alias(patterns: Sequence[str], aliases: Sequence[str]) -> str:
    """Under which of the names of one tied tensor the class saves it; see :func:`tied_patterns`. Raises
    ``CrosswalkError`` (``class/shared``) for what the class does not know to be tied, and does not save either."""
    if len(aliases) == 1:
        return aliases[0]
    kept = [name for name in sorted(aliases) if not any(re.search(pattern, name) for pattern in patterns)]
    if len(kept) > 1:
        text = f"`{kept[0]}` and `{kept[1]}` are one tensor in memory, and the class knows nothing of that"
        raise fail("class/shared", text, None, "give each memory of its own: a clone")
    return kept[0] if kept else sorted(aliases)[-1]


def tied_patterns(model: Any) -> list[str]:
    """The names that classes declare to be copies of others, as patterns, for the model and the models in it."""
    found = []
    for prefix, module in model.named_modules():
        declared = getattr(module, "_tied_weights_keys", None) or {}
        found += [f"{prefix}.{pattern}" if prefix else pattern for pattern in declared]
    return found


def ignored(model: Any, attribute: str, name: str) -> bool:
    """Whether the class says of a name that it is not missed, or not to be saved."""
    return any(re.search(pattern, name) for pattern in getattr(model, attribute, None) or ())
