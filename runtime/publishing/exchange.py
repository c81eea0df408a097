"""Bytes from the ranks that have them to the ranks that want them, with the collectives of the job's own group."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from crosswalk.runtime.errors import fail

#: Ranks of the group, ascending.
Ranks = tuple[int, ...]


def exchange(
    outgoing: Mapping[Ranks, torch.Tensor],
    incoming: Mapping[tuple[int, Ranks], int],
    what: str,
    group: dist.ProcessGroup | None = None,
) -> dict[tuple[int, Ranks], torch.Tensor]:
    """Send ``outgoing`` (receivers -> bytes), and receive ``incoming`` (sender and receivers -> number of bytes): both
    know the same of each other. What all ranks receive is broadcast, anything else goes from one to one.

    Every rank that has something to send or to receive must call this. Raises ``CrosswalkError`` (``distributed/lost``)
    if a rank is gone.
    """
    if not outgoing and not incoming:
        return {}
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    everyone = tuple(range(size))
    device = wire_device(group, next((buffer.device for buffer in outgoing.values()), None))
    sent = {ranks: buffer.to(device) for ranks, buffer in outgoing.items()}
    received = {key: torch.empty(count, dtype=torch.uint8, device=device) for key, count in incoming.items()}
    with together(what):
        pending = []
        for sender in everyone:
            buffer = sent.get(everyone) if sender == rank else received.get((sender, everyone))
            if buffer is not None and size > 1:
                pending.append(dist.broadcast(buffer, _global(group, sender), group=group, async_op=True))
        singles = []
        for (sender, ranks), buffer in sorted(received.items(), key=lambda item: item[0]):
            if ranks != everyone:
                singles.append(dist.P2POp(dist.irecv, buffer, _global(group, sender), group))
        for ranks, buffer in sorted(sent.items(), key=lambda item: item[0]):
            if ranks != everyone:
                singles += [dist.P2POp(dist.isend, buffer, _global(group, r), group) for r in ranks if r != rank]
        if singles:
            pending += dist.batch_isend_irecv(singles)
        for work in pending:
            if work is not None:
                work.wait()
    return received


def wire_device(group: dist.ProcessGroup | None, device: torch.device | None) -> torch.device:
    """The device that the group can send from, if ``device`` is where the bytes are."""
    base = group if group is not None else dist.group.WORLD
    assert base is not None
    kinds = [kind.type for kind in base._device_types]
    if device is not None and device.type in kinds:
        return device
    kind = "cpu" if "cpu" in kinds or not kinds else kinds[0]
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())


def _global(group: dist.ProcessGroup | None, rank: int) -> int:
    return rank if group is None else dist.get_global_rank(group, rank)


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Raise ``CrosswalkError`` if the collective inside of it breaks."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        text = f"rank {dist.get_rank()} was left alone while {what}: {reason}"
        raise fail("distributed/lost", text, hint="the first error of the rank that failed says why") from error
