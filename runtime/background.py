"""Work that goes on while the caller does something else: a failure is logged when it happens, and told once."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from crosswalk.runtime.records import replace

from .errors import CrosswalkError, Diagnostic, system_limits

T = TypeVar("T")
#: What is done, and how often it has been begun in this process: equal on ranks that do the same.
Key = tuple[str, int]

#: One thread, so that work ends in the order in which it began, which is the same on every rank.
_executor = ThreadPoolExecutor(1, "crosswalk-background")
_log = logging.getLogger("crosswalk")
_lock = threading.Lock()
_begun: dict[str, Iterator[int]] = defaultdict(itertools.count)
_told: set[Key] = set()
_failed: dict[Key, tuple[Diagnostic, ...]] = {}


class Later(Future[T]):
    """A result that is not there yet. Who asks for it is told if the work fails."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        self._key = key

    def result(self, timeout: float | None = None) -> T:
        """The result, once it is there; raises what the work raised, or ``TimeoutError`` after ``timeout`` seconds."""
        try:
            return super().result(timeout)
        finally:
            if self.done():
                tell([self._key])

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the work raised, or None; raises ``TimeoutError`` after ``timeout`` seconds."""
        try:
            return super().exception(timeout)
        finally:
            if self.done():
                tell([self._key])


def ready() -> None:
    """Have the thread, so that what is submitted later cannot fail for want of one. Raises ``CrosswalkError``."""
    with system_limits():
        _executor.submit(int)


def submit(what: str, work: Callable[[], T]) -> Later[T]:
    """Do some work after what was submitted before. ``what`` says to a user what it is."""
    key = (what, next(_begun[what]))
    later: Later[T] = Later(key)

    def run() -> None:
        later.set_running_or_notify_cancel()
        try:
            found = work()
        except BaseException as error:
            _log.error("%s in the background failed: %s", what, error)
            problems = [Diagnostic("distributed/failed", f"{type(error).__name__}: {error}")]
            if isinstance(error, CrosswalkError):
                problems = list(error.diagnostics)
            said = f"{what} in the background failed: "
            with _lock:
                if key not in _told:
                    _failed[key] = tuple(replace(p, message=said + p.message) for p in problems)
            later.set_exception(error)
        else:
            later.set_result(found)

    _executor.submit(run)
    return later


def untold() -> dict[Key, tuple[Diagnostic, ...]]:
    """What has failed, and nobody has asked for."""
    with _lock:
        return dict(_failed)


def tell(keys: Iterable[Key]) -> None:
    """The user has been told how these ended, or will have been when they do."""
    with _lock:
        for key in keys:
            _told.add(key)
            _failed.pop(key, None)
