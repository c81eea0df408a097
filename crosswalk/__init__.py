"""Crosswalk: one mapping file per architecture, compiled to a plan that converts model checkpoints both ways.

Functions are loaded when they are first used, so that ``import crosswalk`` imports neither torch nor a parser.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crosswalk.runtime.errors import CrosswalkError, Diagnostic

if TYPE_CHECKING:
    from .api import compile_plan, export_config, formats, import_config, normalize_native
    from .checking import check
    from .conversion import convert
    from .sharding import shards
    from .training import load, reader, save, stream, writer
    from .verification import verify

_HOMES = {
    "check": "checking",
    "compile_plan": "api",
    "convert": "conversion",
    "export_config": "api",
    "formats": "api",
    "import_config": "api",
    "load": "training",
    "normalize_native": "api",
    "reader": "training",
    "save": "training",
    "shards": "sharding",
    "stream": "training",
    "verify": "verification",
    "writer": "training",
}

__all__ = [
    "CrosswalkError",
    "Diagnostic",
    "check",
    "compile_plan",
    "convert",
    "export_config",
    "formats",
    "import_config",
    "load",
    "normalize_native",
    "reader",
    "save",
    "shards",
    "stream",
    "verify",
    "writer",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
