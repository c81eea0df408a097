"""What a user should do where tensors are not those of a config: what a wrapper, an adapter or another variant left."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.layout.variants import absent, described
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.errors import Diagnostic

#: Parts of the names that adapters of a model have, or that adapters give to what they are put on.
_ADAPTERS = ("lora_", "base_layer", "modules_to_save", "original_module", "base_model")


def of_adapter(name: str) -> str | None:
    """What to do about a tensor that an adapter has put into a model; None for any other."""
    if any(part.startswith(_ADAPTERS) for part in name.split(".")):
        return "it belongs to an adapter (LoRA): merge the adapters into the model first"
    return None


class Advice:
    """What a user should do about a parameter that is missing, not expected, or of another shape."""

    def __init__(self, mapping: CompiledMapping, config: Mapping[str, Any]) -> None:
        self._mapping, self._root = mapping, Scope(mapping.layout, mapping.root.type, config)

    def __call__(self, name: str) -> str | None:
        """None if there is nothing to say about it."""
        if (hint := of_adapter(name)) is not None:
            return hint
        if name in self._ties:
            return "it is a copy of the one that it is tied to, which must be passed too"
        if name in self._absent:
            said = f"the layout has it where {self._absent[name]}, which `{self._mapping.name}` says nothing of"
            return f"{said}: leave it out of what is passed, a dict of the other parameters"
        if self._variant:
            return f"the nearest variant of the layout has {self._variant}: give the model's own as native_config"
        return None

    @functools.cached_property
    def _ties(self) -> set[str]:
        return {tie.parameter for tie in self._root.kind.ties}

    @functools.cached_property
    def _absent(self) -> dict[str, str]:
        return absent(self._root)

    @functools.cached_property
    def _variant(self) -> str:
        return described(self._root)


def other_prefix(expected: Collection[str], found: Collection[str], who: str) -> Diagnostic | None:
    """What is to be said if hardly any name is right, and most would be with a prefix more, or one less."""
    if sum(name in found for name in expected) * 4 > len(expected) or len(expected) < 2:
        return None
    for prefix in _candidates(expected, found):
        taken = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        if len(taken & set(expected)) * 2 > len(expected):
            text = f"the names of the tensors begin with `{prefix}`, which {who} does not know"
            hint = "it is left by a wrapper of the model: save the model inside of it, or rename the tensors without it"
            return Diagnostic("tensors/prefix", text, hint=hint)
    for prefix in _candidates(found, expected):
        if len({prefix + name for name in found} & set(expected)) * 2 > len(expected):
            text = f"the names of the tensors lack `{prefix}`, with which those of {who} begin"
            hint = "this may be a base model without its head (AutoModel): save it with the class of config.json"
            return Diagnostic("tensors/prefix", text, hint=hint)
    return None


def _candidates(names: Collection[str], longer: Collection[str]) -> list[str]:
    """What could stand before ``names`` in ``longer``: found by the longest of the names, which is in few others."""
    probe = max(names, key=len, default="")
    return sorted({name[: -len(probe)] for name in longer if name.endswith(f".{probe}")}, key=len)
