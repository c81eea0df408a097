"""Crosswalk: one mapping file per architecture, compiled to a plan that converts model checkpoints both ways.

Functions are loaded when they are first used, so that ``import crosswalk`` imports neither torch nor a parser.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crosswalk.runtime.errors import CrosswalkError, Diagnostic

if TYPE_CHECKING:
    from crosswalk.jobs.check import check
    from crosswalk.jobs.convert import convert
    from crosswalk.jobs.plans import (
        compile_plan,
        export_config,
        formats,
        import_config,
        native_forms,
        normalize_native,
    )
    from crosswalk.jobs.shards import shards
    from crosswalk.jobs.train import load, reader, save, stream, writer
    from crosswalk.jobs.verify import verify
    from crosswalk.models.comparison import compare
    from crosswalk.proving.proof import prove
    from crosswalk.publish.publisher import publisher

__version__ = "0.1.0"

_HOMES = {
    "check": "jobs.check",
    "compare": "models.comparison",
    "compile_plan": "jobs.plans",
    "convert": "jobs.convert",
    "export_config": "jobs.plans",
    "formats": "jobs.plans",
    "import_config": "jobs.plans",
    "load": "jobs.train",
    "native_forms": "jobs.plans",
    "normalize_native": "jobs.plans",
    "prove": "proving.proof",
    "publisher": "publish.publisher",
    "reader": "jobs.train",
    "save": "jobs.train",
    "shards": "jobs.shards",
    "stream": "jobs.train",
    "verify": "jobs.verify",
    "writer": "jobs.train",
}

__all__ = [
    "CrosswalkError",
    "Diagnostic",
    "check",
    "compare",
    "compile_plan",
    "convert",
    "export_config",
    "formats",
    "import_config",
    "load",
    "native_forms",
    "normalize_native",
    "prove",
    "publisher",
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
