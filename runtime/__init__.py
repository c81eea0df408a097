"""From a flat plan to bytes: files, live models and devices. Needs torch, numpy and safetensors, never the compiler.

What needs torch is imported on first use, so that plans can be read, proven and explained without it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .memory import execute

if os.name != "posix":  # files are read in place, and directories locked, by calls that others do not have
    raise ImportError("Crosswalk runs on Linux and macOS; on Windows, run it in WSL")

__all__ = ["execute"]

#: Public name -> the module of this package that defines it.
_LAZY = {"execute": "memory"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
