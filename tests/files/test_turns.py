"""Which task each worker gets: of a file of its own as long as there are several."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

from crosswalk.runtime.files.pool import work_through
from crosswalk.runtime.files.tasks import Task, consecutive
from crosswalk.runtime.files.turns import Turns


def tasks(file: int, count: int) -> Iterator[Task]:
    """Tasks that say of which file they are, and which of them they are."""
    return ([consecutive(file, number, 1, [])] for number in range(count))


def test_workers_write_files_of_their_own() -> None:
    """Two that ask in turn; the first finds its file done before the other."""
    turns = Turns((tasks(file, count) for file, count in enumerate((2, 4, 3))), 2)
    got: dict[str, list[tuple[int, int]]] = {"one": [], "two": []}
    turn = {"one": threading.Semaphore(1), "two": threading.Semaphore(0)}

    def work(name: str, other: str) -> None:
        more = True
        while more:
            turn[name].acquire()
            task = next(turns, None)
            more = task is not None
            got[name] += [(segment.target, segment.start) for segment in task or ()]
            turn[other].release()

    threads = [threading.Thread(target=work, args=names) for names in (("one", "two"), ("two", "one"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got["one"] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert got["two"] == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_the_last_file_is_everybodys_and_all_tasks_are_done_once() -> None:
    done: Counter[tuple[int, int]] = Counter()
    at_last: dict[int, int] = Counter()
    lock = threading.Lock()
    together = threading.Barrier(3)

    def work(task: Task) -> None:
        with lock:
            done.update((segment.target, segment.start) for segment in task)
        if task[0].target == 1:
            together.wait(60)  # three workers are at one file
            at_last[threading.get_ident()] += 1

    turns = Turns((tasks(file, count) for file, count in enumerate((0, 6))), 3)
    work_through(turns, [work] * 3, threading.Event())
    assert done == Counter({(1, number): 1 for number in range(6)})
    assert sum(at_last.values()) == 6
    assert len(at_last) == 3
