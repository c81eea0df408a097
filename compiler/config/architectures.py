"""``architectures`` of config.json: the name of a class, which people's tools leave out or decorate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crosswalk.compiler.relations.tree import CompiledMapping

KEY = "architectures"


def corrected(mapping: CompiledMapping, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """The config with the class of the format where it names none, or a wrapper of that class (``FSDPLlamaForCausalLM``
    is what a save under FSDP writes), and a note that says so. Another class stays: it is another model."""
    own = mapping.source.architecture
    if own is None or KEY not in config or config[KEY] == [own]:
        return config, None
    said = config[KEY]
    if said not in (None, []) and not (isinstance(said, list) and all(_wraps(name, own) for name in said)):
        return config, None
    return {**config, KEY: [own]}, f"`{KEY}` is {said!r} in config.json; it is taken as, and written as, {[own]!r}"


def _wraps(name: Any, own: str) -> bool:
    """Whether a class is called like another with a word before it."""
    return isinstance(name, str) and name.endswith(own)
