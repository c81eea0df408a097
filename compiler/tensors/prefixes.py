"""Tensors that are called as they should be but for what stands before all of their names."""

from __future__ import annotations

from collections.abc import Collection

from crosswalk.runtime.errors import Diagnostic


def other_prefix(expected: Collection[str], found: Collection[str], who: str) -> Diagnostic | None:
    """What is to be said if hardly any name is right, and most would be with a prefix more, or one less."""
    if len(set(expected) & set(found)) * 4 > len(expected) or len(expected) < 2:
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
