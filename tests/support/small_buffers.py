"""Buffers, tasks and chunks so small that small tensors meet every edge."""

from __future__ import annotations

import pytest

from crosswalk.runtime.checkpoint import decoding
from crosswalk.runtime.files import schedule as lowering
from crosswalk.runtime.files import workers as engine


def shrink(patch: pytest.MonkeyPatch) -> None:
    for module in (lowering, engine):
        patch.setattr(module, "TASK", 2800)  # whole chunks, as ever
        patch.setattr(module, "SMALLEST_PANEL", 256)
        patch.setattr(module, "STRIPE", 500)
    patch.setattr(lowering, "RANGE_RUN", 64)
    patch.setattr(lowering, "SEEK", 32)
    patch.setattr(lowering, "WRITE", 32)
    patch.setattr(engine, "PANEL", 1024)
    patch.setattr(decoding, "STRIP", 50)
    for name in ("crosswalk.runtime.files.workers.STEP", "crosswalk.runtime.files.sinks.STEP"):
        patch.setattr(name, 1300)  # longer than any step that is read together
    patch.setattr("crosswalk.runtime.checkpoint.checksum.CHUNK", 700)
    patch.setattr("crosswalk.runtime.files.sinks._LONG", 100)
    patch.setattr(
        "crosswalk.runtime.files.sinks.is_served", lambda descriptor: True
    )  # the system copies, without checksums
