"""Where ranks meet: each brings a message, all take home the messages of all, through the store of torch.distributed.

Meetings are numbered. One is held when all ranks have come, or called off by the first rank that has waited too long or
sees that another has died; the store takes the first of these outcomes only, so that all ranks know the same one. A
rank that comes to something new passes over what was decided without it. So nothing is left of a meeting that failed,
and there is no thread and no group of processes that could be half gone.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from crosswalk.runtime.errors import CrosswalkError, fail
from crosswalk.runtime.records import Record

#: Seconds after which a rank says which others it is waiting for.
LOG_AFTER = 30.0
#: Seconds between two looks at the store: at first, and at most.
_SHORT, _LONG = 0.0005, 0.1

_log = logging.getLogger("crosswalk")


class Process(NamedTuple):
    """Where a rank runs. ``domain`` is equal for processes that can see each other, ``began`` tells apart two processes
    that had the same ``pid``."""

    host: str
    domain: str
    pid: int
    began: str


class _Brought(Record, frozen=True):
    """The messages of a meeting, each once, with the ranks that brought it."""

    brought: Sequence[tuple[bytes, Sequence[int]]]


class _CalledOff(Record, frozen=True):
    """Why a meeting was not held: ``rank`` did not wait on, ``missing`` had not come."""

    rank: int
    reason: str
    missing: Sequence[int]


class Channel:
    """The meetings of some ranks for one purpose, as one of them sees it. ``store`` is a ``Store`` of torch; its stubs
    say that it takes texts only, and it takes bytes."""

    def __init__(self, store: Any, name: str, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store, self._name = store, name
        self._number = 0
        self._processes: dict[int, Process] = {}

    def meet(self, what: str, message: bytes, timeout: float, new: bool) -> list[bytes]:
        """The messages of all ranks, by rank. ``what`` says to a user what is being done; ``new``: it does not continue
        anything, so that meetings decided by others meanwhile are passed over.

        Raises ``CrosswalkError`` (``distributed/lost``) naming the ranks that have not come within ``timeout`` seconds,
        or have died; on every rank that has come, or comes later to continue.
        """
        try:
            return self._meet(what, message, timeout, new)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            text = f"rank {self.rank} cannot reach the store of torch.distributed any more while {what}: {reason}"
            raise fail(
                "distributed/lost", text, hint="the process that keeps it is gone: see its last error"
            ) from error

    def leave(self, what: str, new: bool) -> None:
        """Call the next meeting off: this rank is ended by something else, and the others need not wait for it."""
        try:
            if new:
                self._pass_over()
            self._decide(self._number, _CalledOff(self.rank, f"rank {self.rank} was broken off while {what}", ()))
        except RuntimeError:
            return  # nobody is left to tell

    def _meet(self, what: str, message: bytes, timeout: float, new: bool) -> list[bytes]:
        if new:
            self._pass_over()
        brought = pickle.dumps((message, None if self._processes else _this_process()))
        self._store.set(self._key(f"from/{self.rank}"), brought)
        if self._store.add(self._key("count"), 1) == self.size:
            self._hold()
        outcome = self._wait(what, timeout)
        self._number += 1
        if isinstance(outcome, _CalledOff):
            self._store.delete_key(self._key(f"from/{self.rank}", self._number - 1))
            raise self._called_off(outcome, what)
        messages: list[bytes] = [b""] * self.size
        for content, ranks in outcome.brought:
            text, process = pickle.loads(content)
            for rank in ranks:
                messages[rank] = text
                if process is not None:
                    self._processes[rank] = process
        return messages

    def _pass_over(self) -> None:
        while self._store.check([self._key("outcome")]):
            self._number += 1

    def _key(self, name: str, number: int | None = None) -> str:
        return f"{self._name}/{self._number if number is None else number}/{name}"

    def _hold(self) -> None:
        """All have come: to be called by the last of them."""
        keys = [self._key(f"from/{rank}") for rank in range(self.size)]
        many = self._store.has_extended_api()
        contents = self._store.multi_get(keys) if many else [self._store.get(key) for key in keys]
        ranks: dict[bytes, list[int]] = {}
        for rank, content in enumerate(contents):
            ranks.setdefault(bytes(content), []).append(rank)
        self._decide(self._number, _Brought(list(ranks.items())))
        # Whoever is here has read the outcome of the meeting before.
        for key in (*keys, self._key("count")):
            self._store.delete_key(key)
        if self._number and self._store.check([self._key("outcome", self._number - 1)]):
            self._store.set(self._key("outcome", self._number - 1), pickle.dumps(None))

    def _decide(self, number: int, outcome: _Brought | _CalledOff) -> None:
        self._store.compare_set(self._key("outcome", number), b"", pickle.dumps(outcome))

    def _wait(self, what: str, timeout: float) -> _Brought | _CalledOff:
        began = time.monotonic()
        said, looked = False, began
        key = self._key("outcome")
        while not self._store.check([key]):
            now = time.monotonic()
            waited = now - began
            if waited >= timeout:
                missing = self._missing()
                reason = f"{self._named(missing)} did not come within {timeout:g} s"
                self._decide(self._number, _CalledOff(self.rank, reason, missing))
            elif waited >= LOG_AFTER and not said:
                said = True
                missing = self._missing()
                if missing:
                    who = self._named(missing)
                    _log.warning("rank %d has waited %d s for %s: %s", self.rank, waited, who, what)
            elif now - looked >= 1.0:
                looked = now
                dead = [rank for rank in self._dead() if not self._store.check([self._key(f"from/{rank}")])]
                if dead:
                    self._decide(self._number, _CalledOff(self.rank, f"{self._named(dead)} died", dead))
            time.sleep(max(_SHORT, min(_LONG, waited / 20, timeout - waited)))
        outcome = pickle.loads(self._store.get(key))
        assert isinstance(outcome, _Brought | _CalledOff)
        return outcome

    def _missing(self) -> list[int]:
        return [rank for rank in range(self.size) if not self._store.check([self._key(f"from/{rank}")])]

    def _dead(self) -> list[int]:
        """Ranks whose process this one could see, and does not."""
        here = _this_process()
        return [
            rank
            for rank, process in self._processes.items()
            if process.domain == here.domain and process.began and _began(process.pid) != process.began
        ]

    def _named(self, ranks: Sequence[int]) -> str:
        parts = [
            f"{rank} ({self._processes[rank].host}, process {self._processes[rank].pid})"
            if rank in self._processes and len(ranks) <= 8
            else str(rank)
            for rank in ranks[:64]
        ]
        more = f" and {len(ranks) - 64} more" if len(ranks) > 64 else ""
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(parts)}{more}"

    def _called_off(self, outcome: _CalledOff, what: str) -> CrosswalkError:
        text = f"rank {self.rank}, {what}: {outcome.reason}"
        if self.rank in outcome.missing:
            text = f"rank {self.rank} comes too late to {what}: rank {outcome.rank} has given up waiting for it"
        hint = "every rank must call this alike; the first error of the rank that failed says why"
        return fail("distributed/lost", text, hint=hint)


_channels: dict[tuple[str, str], Channel] = {}
_lock = threading.Lock()


def channel(group: dist.ProcessGroup, purpose: str) -> Channel:
    """The meetings of a process group for a purpose; one for each in a process. Nothing is sent."""
    store = dist.distributed_c10d._get_default_store()
    members = ",".join(map(str, dist.get_process_group_ranks(group)))
    name = f"crosswalk/{group.group_name}/{members}/{purpose}"
    # Another store begins anew, also where the names are those of groups that were destroyed.
    token = os.urandom(16).hex()
    era = bytes(store.compare_set(f"{name}/era", "", token)).decode()
    with _lock:
        if (name, era) not in _channels:
            _channels[name, era] = Channel(store, name, dist.get_rank(group), dist.get_world_size(group))
        found = _channels[name, era]
        found._store = store
        return found


def _this_process() -> Process:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        domain = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        domain = ""
    return Process(os.uname().nodename, domain, os.getpid(), _began(os.getpid()) if domain else "")


def _began(pid: int) -> str:
    """When a process began, in the units of its system; empty if there is none that runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
