"""Ranks that act together: they agree before anything moves, fail together, and share out what is written.

They meet through the store of torch.distributed (:mod:`.meeting`), which needs no device and does not mix with the
collectives of the training loop, even from a background thread. What is too large for the store goes through a gloo
group, once all have come. Every wait ends after the timeout.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail, system_limits
from crosswalk.runtime.plan.affine import make_piece, tiling_faults
from crosswalk.runtime.plan.algebra import Box
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.records import Record, field, replace

from .meeting import Channel, channel
from .placement import Placed, subtract, volume

#: Seconds that a rank waits for the others.
TIMEOUT = 600.0
#: Most bytes of a message that go through the store.
_SMALL = 8 << 10

#: Boxes that a rank holds, by parameter.
Table = Mapping[str, Sequence[Box]]


class Team:
    """The ranks of a process group for one thing that they do together, or this process alone. ``rank`` counts inside
    the group."""

    def __init__(self, group: dist.ProcessGroup | None, timeout: float, purpose: str = "foreground"):
        self._group, self.timeout = group, timeout
        self._channel: Channel | None = None
        self._purpose, self._new = purpose, True
        self.rank = dist.get_rank(group) if group is not None else 0
        self.size = dist.get_world_size(group) if group is not None else 1

    def gather(self, what: str, value: Any) -> list[Any]:
        """The values of all ranks, by rank. ``what`` says in messages what is being done. Raises ``CrosswalkError``
        (``distributed/lost``) with the ranks that do not come in time or are gone, and (``distributed/differs``) if the
        ranks are doing different things."""
        if self._group is None:
            return [value]
        content = pickle.dumps(value)
        large = len(content) > _SMALL and self._purpose == "foreground"
        known = _large_groups.get((self._group, self.timeout), (0, None))[0]
        message = pickle.dumps((what, known, None if large else content))
        try:
            messages = self._meetings().meet(what, message, self.timeout, self._new)
        finally:
            self._new = False
        brought = [pickle.loads(text) for text in messages]
        doing: dict[str, list[int]] = defaultdict(list)
        for rank, (theirs, _, _) in enumerate(brought):
            doing[theirs].append(rank)
        if len(doing) > 1:
            said = "; ".join(f"{_ranks(ranks)}: {theirs}" for theirs, ranks in doing.items())
            text = f"the ranks do not do the same thing: {said}"
            raise fail("distributed/differs", text, None, "every rank must make the same calls in the same order")
        if all(content is not None for _, _, content in brought):
            return [pickle.loads(content) for _, _, content in brought]
        return self._gather_large(what, value, [number for _, number, _ in brought])

    def _gather_large(self, what: str, value: Any, known: Sequence[int]) -> list[Any]:
        """The values of all ranks, which are all here, through a gloo group. ``known``: the numbers of the groups that
        the ranks have; one of which a message was lost is not used again."""
        assert self._group is not None
        key = (self._group, self.timeout)
        values: list[Any] = [None] * self.size
        try:
            if known[0] == 0 or len(set(known)) > 1:
                made = dist.new_group(
                    dist.get_process_group_ranks(self._group),
                    timeout=datetime.timedelta(seconds=self.timeout),
                    backend="gloo",
                    use_local_synchronization=self._group is not dist.group.WORLD,
                )
                assert isinstance(made, dist.ProcessGroup)
                _large_groups[key] = (max(known) + 1, made)
            dist.all_gather_object(values, value, group=_large_groups[key][1])
        except (RuntimeError, ValueError) as error:
            _large_groups.pop(key, None)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise fail(
                "distributed/lost",
                f"rank {self.rank} was left alone while {what}: a rank is gone, or stopped in the middle ({reason})",
                hint="the first error of the rank that failed says why",
            ) from error
        return values

    def _meetings(self) -> Channel:
        assert self._group is not None
        if self._channel is None:
            self._channel = channel(self._group, self._purpose)
        return self._channel

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Step]:
        """A part that every rank does; if one fails, all raise ``CrosswalkError`` with the problems of all. What is put
        into the step's ``agree`` must be equal on all ranks, and they learn of each other's ``value``."""
        step = Step()
        problems: tuple[Diagnostic, ...] = ()
        cause: Exception | None = None
        try:
            with system_limits():
                yield step
        except CrosswalkError as error:
            problems, cause = error.diagnostics, error
            if any(problem.code == "distributed/lost" for problem in problems):
                raise  # known to the others, or out of their reach
        except Exception as error:
            problems = (Diagnostic("distributed/failed", f"{what}: {type(error).__name__}: {error}"),)
            cause = error
        except BaseException:
            if self._group is not None:
                self._meetings().leave(what, self._new)
            raise
        texts = {key: json.dumps(value, sort_keys=True, default=str) for key, value in step.agree.items()}
        digests = {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}
        found = self.gather(what, (problems, digests, step.value))
        step.values = [value for _, _, value in found]
        failed = _merged([problems for problems, _, _ in found])
        # A rank that failed early has fewer fields to compare.
        keys = sorted({key for _, seen, _ in found for key in seen})
        different = [key for key in keys if len({seen[key] for _, seen, _ in found if key in seen}) > 1]
        if different:
            failed += _disagreements(self.gather(what, {key: texts.get(key) for key in different}))
        if failed:
            raise CrosswalkError(failed) from cause


class Step(Record):
    """What a rank brings to a step: ``agree``, plain JSON that must be equal on all ranks, and a ``value``. ``values``
    are those of all ranks, by rank, once the step is done."""

    agree: dict[str, Any] = field(default_factory=dict)
    value: Any = None
    values: list[Any] = field(default_factory=list)


def _disagreements(every: Sequence[Mapping[str, str | None]]) -> list[Diagnostic]:
    """A problem for each field that differs, down to the entry of a nested one; None where a rank has no such field."""
    problems = []
    for key in every[0]:
        groups: dict[str, list[int]] = defaultdict(list)
        for rank, other in enumerate(every):
            text = other[key]
            if text is not None:
                groups[text].append(rank)
        for path, texts in _compare(key, [json.loads(text) for text in groups]):
            said = "; ".join(
                f"{_ranks(ranks)} {'have' if len(ranks) > 1 else 'has'} {text}"
                for ranks, text in zip(groups.values(), texts, strict=True)
            )
            problems.append(Diagnostic("distributed/differs", f"the ranks do not agree on `{path}`: {said}"))
    return problems


def _merged(found: Sequence[Sequence[Diagnostic]]) -> list[Diagnostic]:
    """The problems of all ranks, each once, with the ranks that have it."""
    ranks: dict[Diagnostic, list[int]] = defaultdict(list)
    for rank, problems in enumerate(found):
        for problem in problems:
            ranks[problem].append(rank)
    if len(found) == 1:
        return list(ranks)
    return [replace(p, message=f"{_ranks(where)}: {p.message}") for p, where in ranks.items()]


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks))}"


def _compare(path: str, values: Sequence[Any]) -> Iterator[tuple[str, list[str]]]:
    """The innermost entries in which JSON documents differ, with what each document has there."""
    if all(value == values[0] for value in values):
        return
    if all(isinstance(value, dict) for value in values):
        for key in sorted({key for value in values for key in value}):
            yield from _compare(f"{path}.{key}", [value.get(key) for value in values])
        return
    texts = [json.dumps(value) for value in values]
    # Long values are shown from shortly before where they part.
    parting = next((i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), 0)
    start = max(0, parting - 30) if max(map(len, texts)) > 80 else 0
    yield path, [f"{'…' if start else ''}{t[start : start + 80]}{'…' if len(t) > start + 80 else ''}" for t in texts]


#: Process group and timeout -> the number and the gloo group for what is too large for the store.
_large_groups: dict[tuple[dist.ProcessGroup, float], tuple[int, dist.ProcessGroup | None]] = {}


def team(group: dist.ProcessGroup | None = None, timeout: float = TIMEOUT, purpose: str = "foreground") -> Team:
    """The ranks of ``group`` (by default all), for one thing that they do together; what is done for another
    ``purpose`` may be done at the same time. Without torch.distributed, this process alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return Team(None, timeout)
    base = group if group is not None else dist.group.WORLD
    assert base is not None
    return Team(base, timeout, purpose)


def table(placed: Mapping[str, Placed]) -> Table:
    """What a rank tells the others about its boxes."""
    return {name: [part.box for part in value.parts if volume(part.box)] for name, value in placed.items()}


def share_out(tables: Sequence[Table], specs: Iterable[TensorSpec]) -> list[dict[str, list[Box]]]:
    """Which boxes each rank writes, by rank: every element of every tensor once, by one of the ranks that hold it, and
    replicas evenly. The same on every rank. Raises ``CrosswalkError`` for every tensor of which a part is held by no
    rank."""
    load = [0] * len(tables)
    result: list[dict[str, list[Box]]] = [{} for _ in tables]
    problems = []
    for spec in specs:
        holders: dict[Box, list[int]] = defaultdict(list)
        for rank, held in enumerate(tables):
            for box in held.get(spec.name, ()):
                holders[box].append(rank)
        width = size_of(spec.dtype)
        disjoint = _tile(tuple(holders), spec.shape)
        taken: list[Box] = []
        covered = 0
        # Large boxes first: what overlaps them is cut, and stays in fewer pieces.
        for box in sorted(holders, key=lambda box: (-volume(box), box)):
            parts = [box] if disjoint else subtract(box, taken)
            taken.append(box)
            rank = min(holders[box], key=lambda rank: (load[rank], rank))
            for part in parts:
                covered += volume(part)
                load[rank] += volume(part) * width
                result[rank].setdefault(spec.name, []).append(part)
        if covered != spec.elements:
            problems.append(
                Diagnostic(
                    "distributed/uncovered",
                    f"{spec.elements - covered} of {spec.elements} elements of `{spec.name}` {list(spec.shape)} are "
                    f"held by none of the {len(tables)} ranks",
                    hint="every rank of the model's mesh must take part",
                )
            )
    if problems:
        raise CrosswalkError(problems)
    return result


@functools.lru_cache(32)
def _tile(boxes: Sequence[Box], shape: Sequence[int]) -> bool:
    """Whether every element is in exactly one box. The layers of a model have parameters that are alike."""
    strides, size = [], 1
    for extent in reversed(shape):
        strides.append(size)
        size *= extent
    pieces = []
    for number, box in enumerate(boxes):
        corner = sum(start * stride for (start, _), stride in zip(box, reversed(strides), strict=True))
        extents = tuple(stop - start for start, stop in box)
        pieces.append(make_piece(corner, tuple(reversed(strides)), number, (0,) * len(box), extents))
    return next(tiling_faults(pieces, 0, size), None) is None
