"""Who takes which task next. A file is written under a lock of the file system, which is where most of the time goes if
workers share one: so each writes a file of its own as long as there are several."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from .tasks import Task


class Turns(Iterator[Task]):
    """The tasks of files, at most ``workers`` of which are begun at the same time, those of each in their order. The
    threads that ask for tasks are the workers; one that asks has done what it got before. To be asked by one at a
    time."""

    def __init__(self, files: Iterator[Iterator[Task]], workers: int):
        self._files, self._workers = files, workers
        self._open: list[Iterator[Task]] = []
        self._at: dict[int, Iterator[Task]] = {}

    def __next__(self) -> Task:
        worker = threading.get_ident()
        self._at.pop(worker, None)
        while True:
            while len(self._open) < self._workers and (tasks := next(self._files, None)) is not None:
                self._open.append(tasks)
            if not self._open:
                raise StopIteration
            file = min(self._open, key=lambda tasks: sum(at is tasks for at in self._at.values()))
            if (task := next(file, None)) is not None:
                self._at[worker] = file
                return task
            self._open.remove(file)
