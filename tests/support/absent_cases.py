"""What two ranks do in the tests of ranks that do not come; functions of a module, so that processes find them."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comparing import tensor_differences
from native_llama import native_state
from rank_cases import by_rows
from safetensors.torch import load_file

import crosswalk
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.training import meeting


def wait_for(path: Path) -> None:
    """Until another rank has made a file."""
    while not path.exists():
        time.sleep(0.01)


def error_of(action: Callable[[], Any]) -> tuple[str, str]:
    try:
        action()
    except CrosswalkError as error:
        return error.diagnostics[0].code, error.diagnostics[0].message
    return "none", ""


class Logged(logging.Handler):
    """The messages of the product's logger."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        logging.getLogger("crosswalk").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def alone_then_together(rank: int, checkpoint: Path, home: Path) -> dict[str, Any]:
    """Each time rank 0 does something that rank 1 does not, then both do something together."""
    meeting.LOG_AFTER = 0.2
    logged = Logged()
    state = by_rows(checkpoint, 2)
    found: dict[str, Any] = {}

    def only_rank_0(name: str, action: Callable[[], Any]) -> None:
        if rank == 0:
            found[name] = error_of(action)
            (home / name).touch()
        wait_for(home / name)

    only_rank_0("load", lambda: crosswalk.load(checkpoint, state, "llama", timeout=0.5))
    found["logged at first"] = list(logged.messages)
    config = crosswalk.load(checkpoint, state, "llama").config
    logged.messages.clear()
    only_rank_0("save", lambda: crosswalk.save(state, config, home / "alone", "llama", timeout=1))
    found["logged"] = list(logged.messages)
    crosswalk.save(state, config, home / "out", "llama", timeout=30, max_shard_size="100KB")

    buckets = crosswalk.stream(state, config, "llama", 20_000, timeout=1)
    next(buckets)
    only_rank_0("stream", lambda: list(buckets))
    streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, config, "llama", 20_000, timeout=30)))
    found["streamed"] = sorted(streamed)

    # Different calls at the same time: nobody waits for long.
    if rank == 0:
        found["other call"] = error_of(lambda: crosswalk.load(checkpoint, state, "llama"))
    else:
        found["other call"] = error_of(lambda: list(crosswalk.stream(state, config, "llama")))
    if rank == 1:
        crosswalk.runtime.training.load.place_all = interrupted
        try:
            crosswalk.load(checkpoint, state, "llama")
        except KeyboardInterrupt:
            found["interrupted"] = ("none", "")
        return found
    found["interrupted"] = error_of(lambda: crosswalk.load(checkpoint, state, "llama"))
    return found


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


def a_rank_dies(rank: int, checkpoint: Path, home: Path) -> tuple[str, str]:
    """With the timeout as it is when nobody says one: the others do not wait for it."""
    state = by_rows(checkpoint, 2)
    config = crosswalk.load(checkpoint, state, "llama").config
    if rank == 1:
        (home / "pid").write_text(str(os.getpid()))
        os._exit(9)
    return error_of(lambda: crosswalk.save(state, config, home / "out", "llama"))


def large_messages(rank: int, checkpoint: Path, home: Path) -> list[tuple[str, str]]:
    """A group in which a message was lost is not used again."""
    from crosswalk.runtime.training import ranks

    team = ranks.team(timeout=30)
    assert team.gather("first", "x" * 100_000 if rank else "y") == ["y", "x" * 100_000]
    if rank == 0:
        # As after an error that only this rank has seen.
        ranks._large_groups.clear()
    found = team.gather("again", [rank] * 50_000)
    assert [len(found), found[0][0], found[1][0]] == [2, 0, 1]
    assert {number for number, _ in ranks._large_groups.values()} == {2}
    return []


def stages(rank: int, checkpoint: Path, home: Path) -> dict[str, Any]:
    """A pipeline: rank 0 has the embeddings and two layers, rank 1 the rest; one layer is mixed from both."""
    expected = native_state(checkpoint)
    first = ("embeddings", "decoder.0", "decoder.1.")
    mine = {k: v for k, v in expected.items() if k.startswith(first) == (rank == 0)}
    shared = "decoder.1.mlp.layer_2.weight"
    half = expected[shared].chunk(2)[rank].clone()
    rows = half.shape[0]
    box = ((rank * rows, (rank + 1) * rows), (0, half.shape[1]))
    state: dict[str, Any] = {name: torch.full_like(tensor, float("nan")) for name, tensor in mine.items()}
    local = torch.full_like(half, float("nan"))
    state[shared] = crosswalk.runtime.training.placement.Shards(expected[shared].shape, [(box, local)])
    loaded = crosswalk.load(checkpoint, state, "llama")
    for name, tensor in mine.items():
        if name != shared:
            assert torch.equal(state[name], tensor), name
    assert torch.equal(local, half)
    crosswalk.save(state, loaded.config, home / "out", "llama", max_shard_size="100KB")
    streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, loaded.config, "llama", 20_000)))
    state.pop("decoder.1.norm_2.weight", None)
    if rank == 1:
        state["head.final_norm.weight"] = torch.zeros(7)
    return {
        "streamed": tensor_differences(streamed, load_file(checkpoint / "model.safetensors")),
        "load": error_of(lambda: crosswalk.load(checkpoint, state, "llama")),
        "save": error_of(lambda: crosswalk.save(state, loaded.config, home / "no", "llama")),
    }
