"""A small llama for all tests of training: read by them, never changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_llama import LLAMA, blank, native_state
from oracles import make_checkpoint

import crosswalk


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers writes it."""
    path = tmp_path_factory.mktemp("training") / "hf"
    make_checkpoint(path, LLAMA)
    return path


@pytest.fixture(scope="session")
def saved(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process without torch.distributed writes of it, in shards."""
    state = native_state(checkpoint)
    config = crosswalk.load(checkpoint, blank(state)).config
    path = tmp_path_factory.mktemp("saved") / "hf"
    crosswalk.save(state, config, path, "llama", max_shard_size="100KB")
    return path
