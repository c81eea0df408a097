"""Run a function on several ranks, each a process with torch.distributed (gloo) initialised."""

from __future__ import annotations

import datetime
import multiprocessing
import multiprocessing.connection
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_context = multiprocessing.get_context("forkserver")
# Imported once, then forked for every rank. The last one is found where tests are run from the repository; elsewhere
# every rank reads the mappings by itself.
_context.set_forkserver_preload(
    ["crosswalk.jobs.train", "torch.distributed.fsdp", "torch.distributed.checkpoint", "tests.support.warm"]
)


@dataclass(frozen=True)
class Failed:
    """An exception of a rank: its text, and the codes of its diagnostics if it was a ``CrosswalkError``."""

    text: str
    codes: tuple[str, ...]


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, limit: float = 60.0) -> list[Any]:
    """``function(rank, *arguments)`` on every rank: its results, a ``Failed`` for each exception, None for each rank
    that died. Ranks that are still running after ``limit`` seconds fail the test."""
    with tempfile.TemporaryDirectory() as directory:
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_rank, args=(rank, size, f"{directory}/rendezvous", theirs, function, arguments), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        results: list[Any] = [None] * size
        deadline = time.monotonic() + limit
        waiting = dict(zip(pipes, range(size), strict=True))
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                for process in processes:
                    process.kill()
                raise AssertionError(f"ranks {sorted(waiting.values())} hang")
            for pipe in ready:
                rank = waiting.pop(pipe)  # type: ignore[arg-type]
                try:
                    results[rank] = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    results[rank] = None
        for process in processes:
            process.join(10)
            process.kill()
        return results


def _rank(
    rank: int, size: int, rendezvous: str, pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    from crosswalk.runtime.errors import CrosswalkError

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=40),
    )
    result: Any
    try:
        result = function(rank, *arguments)
    except CrosswalkError as error:
        result = Failed(str(error), tuple(sorted({d.code for d in error.diagnostics})))
    except BaseException as error:
        import traceback

        result = Failed(f"{type(error).__name__}: {error}\n{traceback.format_exc()}", ())
    pipe.send(result)
    pipe.close()
    if not isinstance(result, Failed):
        dist.destroy_process_group()


def results(size: int, function: Any, *arguments: Any) -> list[Any]:
    """What the function returned on each rank; a rank that failed fails the test."""
    found = run_ranks(size, function, *arguments)
    failures = [result.text for result in found if isinstance(result, Failed)]
    assert not failures, "\n".join(failures)
    return found
