"""Other values of a key of a config, or of a field of a native one, by what it holds."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crosswalk.compiler.text.values import same_value

Path = tuple[str, ...]

#: Keys of a file, not of a model; and those of layers that classes of transformers leave out.
APART = (
    "architectures", "model_type", "transformers_version", "dtype", "id2label", "label2id", "num_nextn_predict_layers",
)  # fmt: skip
#: Objects that say how positions are turned, which every class of transformers can compute.
_ROTARY: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "llama3", "factor": 3.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0,
     "original_max_position_embeddings": 11},
    # so long that pairs of a small head lie between the turns at which the ramp begins and ends, by default too
    {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 4096},
)  # fmt: skip
_ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "relu", "gelu")
_KINDS = ("full_attention", "sliding_attention")
#: What may stand where nothing is said: numbers, and a switch.
_INSTEAD_OF_NULL: tuple[Any, ...] = (5, 0.5, True)


def leaves(config: Mapping[str, Any], at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every key with its value, at every depth; an object that says how positions are turned is also a value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            if "rope_type" in value:
                yield (*at, key), value
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


def others(value: Any, known: Sequence[Any] = ()) -> list[Any]:
    """Other values than this one, the likeliest first. ``known``: texts that may stand there."""
    found = list(_others(value, known))
    return [other for n, other in enumerate(found) if not any(same_value(other, one) for one in (value, *found[:n]))]


def _others(value: Any, known: Sequence[Any]) -> Iterator[Any]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (number for number in (value + 1, 2 * value, value // 2, value - 1) if number > 0)
    elif isinstance(value, float):
        yield from (value / 2 or 0.125, 2 * value + 0.25, value / 1024)  # the last is felt where the others are rounded
    elif value is None:
        yield from (*known, *_INSTEAD_OF_NULL)
    elif isinstance(value, str):
        yield from known
        if value in _ACTIVATIONS:
            yield from _ACTIVATIONS
    elif isinstance(value, list):
        yield from _other_lists(value)
    elif isinstance(value, Mapping) and "rope_type" in value:
        for rotary in _ROTARY:
            yield {**{key: item for key, item in value.items() if key == "rope_theta"}, **rotary}


def _other_lists(value: list[Any]) -> Iterator[list[Any]]:
    if not value:
        yield [1]
    for item in dict.fromkeys(json.dumps(item) for item in [*value, *(_KINDS if value and value[0] in _KINDS else ())]):
        changed = [json.loads(item), *value[1:]]
        if value and json.dumps(value[0]) != item:
            yield changed
    if value and all(isinstance(item, (int, float)) for item in value):
        yield [others(value[0])[0], *value[1:]]


def changed(config: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with another value at a place, whose objects are there."""
    result: dict[str, Any] = copy.deepcopy(dict(config))
    place = result
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = copy.deepcopy(value)
    return result


def has(config: Mapping[str, Any], path: Path) -> bool:
    """Whether there is a key."""
    value: Any = config
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def without(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A copy without a key."""
    result: dict[str, Any] = copy.deepcopy(dict(config))
    place = result
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return result
