"""verl's engines: what they give of their weights, whole or as what this rank has of the changes (verl 0.9.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from crosswalk.runtime.publishing.delta import Delta
from crosswalk.runtime.publishing.publisher import Publisher

#: Names and shapes, dtype, counts, indices, values, and the group that gathers.
Entry = tuple[list[tuple[str, tuple[int, ...]]], str, torch.Tensor, torch.Tensor, torch.Tensor, Any]


def per_tensor_param(publisher: Publisher) -> tuple[Iterator[tuple[str, torch.Tensor]], None]:
    """What ``BaseEngine.get_per_tensor_param`` returns: all tensors, on all ranks, and no adapter."""
    return (pair for bucket in publisher.buckets() for pair in bucket), None


def delta_shard(delta: Delta, group: Any = None) -> tuple[Iterator[Entry], None]:
    """What ``BaseEngine.get_per_tensor_param_delta_shard`` returns: this rank's changes in the coordinates of the
    checkpoint, in the same entries on all ranks. ``group``: that of the publisher. ``delta.commit()`` belongs after the
    sync."""

    def entries() -> Iterator[Entry]:
        for tensors, dtype, counts, indices, values in delta.rows():
            yield list(tensors), str(dtype).removeprefix("torch."), counts, indices, values, group

    return entries(), None
