"""Tensors that a config ties, and that files hold twice: compared wherever a checkpoint is opened."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import islice

from crosswalk.runtime.checkpoint.header import StoredTensor
from crosswalk.runtime.checkpoint.reading import Reader
from crosswalk.runtime.checkpoint.source import Checkpoint, tie_differs
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Plan

from .sinks import CompareSink
from .workers import PANEL, Worker, one_torch_thread, run, whole


def compare_ties(
    plan: Plan,
    stored: Sequence[StoredTensor],
    checkpoint: Checkpoint,
    workers: int = 1,
    panel: int = PANEL,
    rank: int = 0,
    ranks: int = 1,
) -> int:
    """Compare tied duplicates with what they are tied to, byte by byte: share ``rank`` of as many as there are
    ``ranks``. ``stored``: where the sources of the plan are; ``panel``: bytes that a worker may hold. Returns the bytes
    read. Raises ``CrosswalkError`` with every one that differs."""
    pairs = list(plan.ties.items())
    if not pairs:
        return 0
    names, owners = ([pair[end] for pair in pairs] for end in (0, 1))
    tied, others = ([stored[plan.source_index[name]] for name in end] for end in (names, owners))
    alone = plan.encodings and workers > 1
    with (
        contextlib.closing(Reader(names, tied, checkpoint.files)) as reader,
        contextlib.closing(Reader(names, others, checkpoint.files)) as other,
        one_torch_thread() if alone else contextlib.nullcontext(),
    ):
        sink, tasks = CompareSink(other), list(islice(whole(tied), rank, None, ranks))
        run(iter(tasks), names, sink, [Worker(reader, (), (), panel) for _ in range(workers)], 0)
    if sink.differing:
        raise CrosswalkError(tie_differs(*pairs[number]) for number in sorted(sink.differing))
    return 2 * sum(segment.nbytes for task in tasks for segment in task)
