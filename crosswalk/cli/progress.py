"""What a terminal shows while a command works; nothing elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosswalk.runtime.files.workers import Progress

#: Seconds after which a command that has shown nothing says what it does.
_PATIENCE = 0.3
#: Seconds after which it says it again.
_AGAIN = 1.0


@contextmanager
def waiting(what: str) -> Iterator[Callable[[], None]]:
    """Say what is being done if it takes long, and for how many seconds already, until it ends or the function given is
    called."""
    said, ended = [""], threading.Event()
    started = time.monotonic()

    def say() -> None:
        patience = _PATIENCE
        while not ended.wait(patience):
            seconds = round(time.monotonic() - started)
            said[0] = f"{what} ... {seconds} s" if said[0] else f"{what} ..."
            sys.stderr.write(f"\r{said[0]}")
            sys.stderr.flush()
            patience = _AGAIN

    def end() -> None:
        if ended.is_set():
            return
        ended.set()
        if teller is not None:
            teller.join()
        if said[0]:
            sys.stderr.write(f"\r{' ' * len(said[0])}\r")  # any terminal understands this, TERM=dumb too
            sys.stderr.flush()

    teller = threading.Thread(target=say, daemon=True) if sys.stderr.isatty() else None
    if teller is not None:
        teller.start()
    try:
        yield end
    finally:
        end()


@contextmanager
def progress(quiet: bool, what: str) -> Iterator[Progress | None]:
    """A line while a conversion is planned, and a bar from the first bytes on."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as shown, waiting("planning") as planned:
        bars: list[Progress] = []

        def show(done: int, total: int, name: str) -> None:
            if not bars and done < total:  # what is done at once needs no bar, nor the library that draws it
                planned()
                bars.append(_bar(what, shown))
            for bar in bars:
                bar(done, total, name)

        yield show


def _bar(what: str, shown: ExitStack) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bars = shown.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    task = bars.add_task(what, total=None)
    return lambda done, total, name: bars.update(task, completed=done, total=total)
