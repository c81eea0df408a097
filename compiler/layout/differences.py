"""Whether two configs mean the same model, and in what they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import shown

from .model import Field
from .scope import Scope


def same_config(left: Any, right: Any, also: Sequence[Field] = ()) -> bool:
    """Whether two effective values mean the same model; ``training`` fields do not count, but for those in ``also``."""
    if isinstance(left, Scope) and isinstance(right, Scope):
        return left.kind == right.kind and all(
            same_config(left.field(name), right.field(name), also)
            for name, declared in left.kind.fields.items()
            if _counts(declared, also)
        )
    return same_value(left, right)


def _counts(declared: Field, also: Sequence[Field]) -> bool:
    return declared.group != "training" or any(declared is other for other in also)


class Difference(NamedTuple):
    """The path of a field, and what it is in both configs, as it is shown. ``floats``: both are, so that no size and no
    kind of layer differs."""

    where: KeyPath
    first: str
    second: str
    floats: bool = False


def differing(first: Scope, second: Scope, also: Sequence[Field] = ()) -> Iterator[Difference]:
    """The fields in which two configs of one layout are different models; ``training`` fields do not count, but for
    those in ``also``. Layers are compared one by one, whatever type of sequence lists them."""
    if first.kind != second.kind:
        yield Difference(first.path, _shown(first), _shown(second))
        return
    for name, declared in first.kind.fields.items():
        one, other = first.field(name), second.field(name)
        if not _counts(declared, also) or same_config(one, other, also):
            continue
        family = first.layout.families.get(declared.of)
        if family is not None and family.sequence:
            yield from _differing_layers(first, second, name, also)
        elif isinstance(one, Scope) and isinstance(other, Scope):
            yield from differing(one, other, also)
        elif declared.kind == "dict" and one.keys() == other.keys():
            for key in one:
                yield from differing(first.entry(name, key), second.entry(name, key), also)
        else:
            floats = isinstance(one, float) and isinstance(other, float)
            yield Difference((*first.path, name), _shown(one), _shown(other), floats)


def _differing_layers(first: Scope, second: Scope, name: str, also: Sequence[Field]) -> Iterator[Difference]:
    layers = [[block for _, block in scope.blocks(name)] for scope in (first, second)]
    if len(layers[0]) != len(layers[1]):
        yield Difference((*first.path, name, "num_blocks"), str(len(layers[0])), str(len(layers[1])))
        return
    pairs = {(one.path, other.path): (one, other) for one, other in zip(*layers, strict=True)}
    yield from dict.fromkeys(found for one, other in pairs.values() for found in differing(one, other, also))


def _shown(value: object) -> str:
    return f"`{value.kind}`" if isinstance(value, Scope) else shown(value)
