"""Copies of one tied parameter, as the first and the last stage of a pipeline have them: each rank fills its own, and
they must be equal to be written as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from crosswalk.runtime.errors import CrosswalkError, Diagnostic
from crosswalk.runtime.plan.model import Plan

from .placement import Part
from .ranks import Team

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ELEMENTS = 1 << 20  # at a time: each takes some 30 bytes more
_FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47  # odd numbers of 64 bits


def compare_copies(plan: Plan, held: Mapping[str, Iterable[Part]], team: Team) -> None:
    """Compare what is tied, however the ranks hold it. Raises ``CrosswalkError`` (``tie/differs``) on every rank. A
    collective, if the plan has such copies. ``held``: what this rank counts for, every element on one rank."""
    names = {name for pair in plan.ties.items() for name in pair}
    if not names:
        return
    with team.step("comparing tied parameters") as step:
        step.value = {name: checksum(held[name], plan, name) for name in names if name in held}
    problems = unequal(plan, step.values)
    if problems:
        raise CrosswalkError(problems)


def unequal(plan: Plan, checksums: Iterable[Mapping[str, int]]) -> list[Diagnostic]:
    """The copies that are not equal, by the checksums of what each rank has of them, every element on one rank."""
    total: dict[str, int] = {}
    for found in checksums:
        for name, value in found.items():
            total[name] = (total.get(name, 0) + value) % (1 << 64)
    return [
        Diagnostic(
            "tie/differs",
            f"parameter `{name}` is not equal to `{of}`, which it is tied to",
            hint="pass the one that counts, and leave the other out of the dict; or say in native_config that they are"
            " two",
        )
        for name, of in plan.ties.items()
        if total.get(name, 0) != total.get(of, 0)
    ]


def checksum(parts: Iterable[Part], plan: Plan, name: str) -> int:
    """A sum over the elements of disjoint boxes of the source ``name`` that depends on their bits and on where each is:
    the sums of the parts of a tensor add up, modulo 2^64, to the same for all ways of cutting it."""
    shape = plan.sources[plan.source_index[name]].shape
    return sum(_checksum(piece, shape) for part in parts for piece in _pieces(part)) % (1 << 64)


def _checksum(part: Part, shape: Sequence[int]) -> int:
    index = torch.zeros((), dtype=torch.int64, device=part.tensor.device)
    for axis, (start, stop) in enumerate(part.box):
        index = index.unsqueeze(-1) * shape[axis] + torch.arange(start, stop, device=index.device)
    index *= _FIRST
    index ^= index >> 29
    index *= _SECOND
    index ^= index >> 32
    index |= 1  # odd: no single bit of an element is lost
    tensor = part.tensor.detach()
    bits = tensor.contiguous().view(_BITS[tensor.element_size()]).to(torch.int64)
    return int((bits * index).sum())


def _pieces(part: Part) -> Iterable[Part]:
    """The part in pieces along its first dimension that are not too large."""
    if not part.tensor.numel():
        return
    if not part.box:
        yield part
        return
    (start, stop), *others = part.box
    rows = max(1, _ELEMENTS * (stop - start) // part.tensor.numel())
    for first in range(start, stop, rows):
        last = min(first + rows, stop)
        yield Part(((first, last), *others), part.tensor[first - start : last - start])
