"""Threads that share work, for files and for live models: each takes the next item when it has done the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from crosswalk.runtime.errors import fail
from crosswalk.runtime.staging.endings import uninterrupted

Item = TypeVar("Item")
#: Seconds between two looks at what is going on.
_LOOK = 0.1


def work_through(
    items: Iterator[Item],
    workers: Sequence[Callable[[Item], object]],
    stopped: threading.Event,
    *,
    here: bool = False,
    watch: Callable[[], None] | None = None,
) -> None:
    """Let every worker take items, in a thread of its own, until there are none, or ``stopped`` is set. Items are made
    by one thread at a time. ``here``: the first worker is this thread; else it calls ``watch`` ten times a second. The
    first exception, of a worker, of ``items`` or of ``watch``, sets ``stopped``; it is raised when no worker runs any
    more."""
    lock, finished = threading.Lock(), threading.Event()
    errors: list[BaseException] = []
    running = [len(workers)]

    def take(worker: Callable[[Item], object]) -> None:
        try:
            while not stopped.is_set():
                with lock:
                    item = next(items, None)
                if item is None:
                    break
                worker(item)
        except BaseException as error:
            errors.append(error)
            stopped.set()
        finally:
            with lock:
                running[0] -= 1
                if not running[0]:
                    finished.set()

    threads = [threading.Thread(target=take, args=(worker,), daemon=True) for worker in workers[here:]]
    try:
        start_threads(threads)
        if here:
            take(workers[0])
        while not here and not finished.wait(_LOOK if watch else None):
            if watch:
                watch()
    except BaseException:
        stopped.set()
        raise
    finally:
        with uninterrupted():  # what is tidied up next must not be written to any more
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
    if errors:
        raise errors[0]


def start_threads(threads: Sequence[threading.Thread]) -> None:
    """Start them all. Raises ``CrosswalkError`` if the system gives this process no more; those before it then run."""
    for number, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError as error:
            text = f"the system gives this process {number} of the {len(threads)} threads it needs: {error}"
            hint = "ask for fewer workers, or raise the limit of processes"
            raise fail("options/workers", text, None, hint) from error
