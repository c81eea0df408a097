"""In which order tensors are published, and which go together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.records import replace
from crosswalk.runtime.training.save import natural_order


def doubled(plan: Plan, copies: Mapping[str, str]) -> Plan:
    """The plan with further targets, each a copy of one that it has (``copies``: name -> that one): tied tensors, which
    files hold once. It reads their sources twice, so that its proof is that of ``plan``."""
    targets, moves, padded = list(plan.targets), list(plan.copies), list(plan.padded)
    for name, owner in copies.items():
        number = plan.target_index[owner]
        moves += [copy._replace(target=len(targets)) for copy in plan.copies if copy.target == number]
        padded += [replace(region, tensor=len(targets)) for region in plan.padded if region.tensor == number]
        targets.append(replace(plan.targets[number], name=name))
    return replace(plan, targets=tuple(targets), copies=tuple(moves), padded=tuple(padded))


def publishing_order(plan: Plan, kept: Sequence[int]) -> list[int]:
    """The targets ``kept``: by the first parameter that they need, so that little of the others is in flight, and the
    tensors of a layer together.

    Receivers cut tensors out of one buffer of bytes, without padding, and view them with their dtype. So no tensor may
    come at an offset that its dtype cannot have, wherever a receiver lets a buffer begin: those whose bytes are no
    multiple of the largest element come last, larger elements first.
    """
    first: dict[int, int] = {}
    rank = {source: place for place, source in enumerate(natural_order(plan.sources))}
    for copy in plan.copies:
        first[copy.target] = min(rank[copy.source], first.get(copy.target, len(rank)))
    found = set(kept)
    natural = [target for target in natural_order(plan.targets) if target in found]
    natural.sort(key=lambda target: first.get(target, 0))
    layers: dict[str, list[int]] = defaultdict(list)
    for target in natural:
        layers[_layer(plan.targets[target].name)].append(target)
    ordered = [target for layer in layers.values() for target in layer]
    widest = max((size_of(plan.targets[target].dtype) for target in ordered), default=1)
    # What is as wide as anything is aligned behind anything that is a multiple of it.
    uneven = {t for t in ordered if plan.targets[t].nbytes % widest}
    last = sorted(uneven, key=lambda target: (-size_of(plan.targets[target].dtype), ordered.index(target)))
    return [target for target in ordered if target not in uneven] + last


def _layer(name: str) -> str:
    """What the names of a layer have in common: all up to the first number that is a part of its own."""
    found = re.match(r"(.*?\.)?\d+(?=\.)", name)
    return found.group(0) if found else f"{name}."


def in_buckets(plan: Plan, targets: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Targets in buckets of at most ``size`` bytes, or of one larger tensor."""
    buckets: list[tuple[int, ...]] = []
    bucket: list[int] = []
    used = 0
    for target in targets:
        nbytes = plan.targets[target].nbytes
        if bucket and used + nbytes > size:
            buckets.append(tuple(bucket))
            bucket, used = [], 0
        bucket.append(target)
        used += nbytes
    if bucket:
        buckets.append(tuple(bucket))
    return buckets
