"""Tensors that tell of a quantised file whose config does not say that it is one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.runtime.errors import Diagnostic
from crosswalk.runtime.folding import fold


def quantised_marks(mapping: MappingFile | None, unexpected: Iterable[str]) -> tuple[dict[str, set[str]], set[str]]:
    """Among tensors that nothing needs, those that stand beside quantised ones, with the tools that store such; and
    the modules that they belong to."""
    found: dict[str, set[str]] = {}
    modules = set()
    endings = [(str(name).removeprefix("{name}"), tools) for name, tools in mapping.quantised] if mapping else []
    for name in unexpected:
        for ending, tools in endings:
            if name.endswith(ending) and name != ending:
                found[name] = set(tools)
                modules.add(name.removesuffix(ending))
    return found, modules


def looks_quantised(marks: Mapping[str, set[str]]) -> Diagnostic:
    """One problem for all of them, tensors folded."""
    tools = set.intersection(*marks.values()) or set.union(*marks.values())
    lines = [f"`{pattern}` ({len(names)} in all)" for pattern, names in fold(list(marks))]
    text = f"the tensors look quantised, as by {' or '.join(sorted(tools))}, and config.json does not say how:"
    hint = "convert the release in floats, or dequantise this one first; without these tensors the weights are wrong"
    return Diagnostic("tensors/quantised", "\n".join((text, *lines)), None, hint)
