"""Checks of ``tensors:`` before there is a config."""

from __future__ import annotations

from crosswalk.runtime.errors import Diagnostic

from .relations import CompiledMapping


def check_tensors(mapping: CompiledMapping) -> list[Diagnostic]:
    return []
