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
from rank_cases import by_rows, refusal
from safetensors.torch import load_file

import crosswalk
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.training import meeting
from crosswalk.runtime.training.placement import Shards

HEAD = "head.output_weights"


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


def _stage(rank: int, checkpoint: Path) -> dict[str, torch.Tensor]:
    """What a rank of two has of a model: the embeddings and two layers, or the rest."""
    first = ("embeddings", "decoder.0", "decoder.1.")
    return {k: v for k, v in native_state(checkpoint).items() if k.startswith(first) == (rank == 0)}


def stages(rank: int, checkpoint: Path, home: Path) -> dict[str, Any]:
    """A pipeline of which one layer is mixed from both stages."""
    expected, mine = native_state(checkpoint), _stage(rank, checkpoint)
    shared = "decoder.1.mlp.layer_2.weight"
    half = expected[shared].chunk(2)[rank].clone()
    rows = half.shape[0]
    box = ((rank * rows, (rank + 1) * rows), (0, half.shape[1]))
    state: dict[str, Any] = {name: torch.full_like(tensor, float("nan")) for name, tensor in mine.items()}
    local = torch.full_like(half, float("nan"))
    state[shared] = Shards(expected[shared].shape, [(box, local)])
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


def tied_stages(rank: int, checkpoint: Path, home: Path) -> dict[str, Any]:
    """A pipeline whose last stage has a copy of the embeddings, cut in two, by every way in and out."""
    import torch.distributed.checkpoint as dcp

    expected = _stage(rank, checkpoint)
    rows = native_state(checkpoint)["embeddings.word_embeddings_weight"]
    cuts = [((0, 30), (0, rows.shape[1])), ((30, rows.shape[0]), (0, rows.shape[1]))]

    def blank() -> tuple[dict[str, Any], list[torch.Tensor]]:
        state: dict[str, Any] = {name: torch.full_like(tensor, float("nan")) for name, tensor in expected.items()}
        parts = [torch.full((stop - start, width), float("nan")) for (start, stop), (_, width) in cuts]
        if rank == 1:
            state[HEAD] = Shards(tuple(rows.shape), list(zip(cuts, parts, strict=True)))
        return state, parts

    state, parts = blank()
    loaded = crosswalk.load(checkpoint, state)
    wrong = [name for name, tensor in expected.items() if not torch.equal(state[name], tensor)]
    wrong += [HEAD] * (rank == 1 and not torch.equal(torch.cat(parts), rows))
    crosswalk.save(state, loaded.config, home / "save", "llama")
    streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, loaded.config, "llama", 20_000)))

    whole = {name: torch.full_like(tensor, float("nan")) for name, tensor in expected.items()}
    if rank == 1:
        whole[HEAD] = torch.full_like(rows, float("nan"))
    dcp.load(whole, storage_reader=crosswalk.reader(checkpoint))
    wrong += [
        name for name, tensor in (expected | {HEAD: rows}).items() if not torch.equal(whole.get(name, tensor), tensor)
    ]
    dcp.save(whole, storage_writer=crosswalk.writer(home / "dcp", loaded.config, "llama"))
    if rank == 1:
        parts[1][3, 5] += 1
        whole[HEAD][33, 5] += 1
    return {
        "wrong": wrong,
        "streamed": tensor_differences(streamed, load_file(checkpoint / "model.safetensors")),
        "save": error_of(lambda: crosswalk.save(state, loaded.config, home / "no", "llama")),
        "stream": error_of(lambda: list(crosswalk.stream(state, loaded.config, "llama"))),
        "dcp": refusal(lambda: dcp.save(whole, storage_writer=crosswalk.writer(home / "no", loaded.config, "llama"))),
    }
