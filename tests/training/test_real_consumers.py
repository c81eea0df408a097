"""Receivers' own code, as their packages have it: what they make of what a publisher gives is the checkpoint.

``CROSSWALK_CONSUMERS`` names a directory with the wheels of vllm 0.33.0, sglang 0.5.23, verl 0.9.1 and
checkpoint-engine 0.4.2, each unpacked (``pip install --no-deps --target``) into a directory of the package's name.
Where it has them, readers of folders are run too: ``slime/local_checkpoint.py``, which slime adds to SGLang
(docker/patch/latest/sglang-pull_weights.patch), and ``skyrl``, a checkout of SkyRL; they need zstandard and xxhash.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import real_consumers
from ranks import Failed, run_ranks

HOME = os.environ.get("CROSSWALK_CONSUMERS", "")


@pytest.mark.skipif(not HOME, reason="CROSSWALK_CONSUMERS names no packages of receivers")
def test_receivers_own_code_gets_the_checkpoint(tmp_path: Path) -> None:
    for found in run_ranks(2, real_consumers.on_ranks, Path(HOME), tmp_path, limit=300):
        assert not isinstance(found, Failed), found.text
        assert found == []
