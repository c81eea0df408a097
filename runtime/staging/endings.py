"""SIGTERM and SIGHUP end a process without a word to it: what it was writing is removed first, as after Ctrl-C.

Only where the program has not said otherwise: a handler of its own, or a signal that it ignores, stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Protocol


class Unfinished(Protocol):
    """An output that is not complete."""

    def abandon(self) -> None:
        """Remove what there is of it, or leave it for a later run to continue."""


#: With the process that makes it: one that is forked from it has the list, but nothing to remove.
_active: list[tuple[int, Unfinished]] = []
_later: list[Unfinished] = []
_waiting: list[int] = []


def watch(unfinished: Unfinished) -> None:
    """Let ``unfinished`` be abandoned when the process is told to end, until it is forgotten."""
    _active.append((os.getpid(), unfinished))
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)


def forget(unfinished: Unfinished) -> None:
    """It is complete, or gone."""
    _active[:] = [(process, other) for process, other in _active if other is not unfinished]
    restore()


def restore() -> None:
    """Leave no handler behind where nothing is unfinished. Only the main thread can: what ended in another one is left
    to the next call."""
    if threading.current_thread() is threading.main_thread() and not _active:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is _end:
                signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def later(unfinished: Unfinished) -> Iterator[None]:
    """A short part that is not to be broken off in the middle: the end waits for it."""
    _later.append(unfinished)
    try:
        yield
    finally:
        _later.remove(unfinished)
        if _waiting and not _later:
            signal.raise_signal(_waiting.pop())


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Tidying up, which another Ctrl-C is not to break off: who presses it twice means the same."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if is_main else None
    if before is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _end(number: int, frame: object) -> None:
    if any(process == os.getpid() and unfinished in _later for process, unfinished in _active):
        _waiting.append(number)
        return
    for process, unfinished in list(_active):
        if process == os.getpid():
            unfinished.abandon()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
