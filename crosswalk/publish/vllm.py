"""vLLM's weight transfer: a publisher as its ``WeightSource``, and a delta as its sparse patches (vLLM 0.33)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from crosswalk.runtime.publishing.delta import Delta
from crosswalk.runtime.publishing.publisher import Publisher
from crosswalk.runtime.publishing.shards import Chunks


def source(publisher: Publisher, *, to: int | None = None) -> Any:
    """A ``WeightSource`` for the trainer's engines. Every rank passes its own to ``trainer_init``; the ranks of the
    publisher are those of the trainer. ``to``: the one rank that needs whole tensors, where only one sends them, as
    with NCCL (0); with IPC and RDT all do. M2N takes what each rank has: its chunk of a tensor that is cut regularly,
    and a gathered tensor otherwise."""
    from vllm.distributed.weight_transfer.base import ParamMeta, Replicate, Shard, WeightSource

    class PublishedWeights(WeightSource):
        @cached_property
        def metadata(self) -> list[Any]:
            """The same list at each sync, so that receivers are told once."""
            return [ParamMeta(*one, **self._placed(publisher.chunks[one.name])) for one in publisher.metadata]

        def _placed(self, way: Chunks | None) -> dict[str, Any]:
            if way is None:
                return {}
            places: list[Any] = [Replicate(), Replicate()]
            places[way.axis] = Shard(way.dim)
            ranks = tuple(range(publisher.team.size))
            return {"owners": ranks, "mesh_shape": way.mesh, "placements": tuple(places)}

        def iter_full(self) -> Iterator[tuple[str, torch.Tensor]]:
            for bucket in publisher.buckets(to=to):
                yield from bucket

        def iter_local(self) -> Iterator[tuple[str, torch.Tensor]]:
            return publisher.local()

    return PublishedWeights()


def patches(delta: Delta) -> tuple[list[Any], list[tuple[str, torch.Tensor]]]:
    """What has changed, on rank 0, which sends: ``SparseWeightPatch`` for ``send_weights``, and what has to go as whole
    tensors in an update of its own, since vLLM takes no mixture. Nothing on the other ranks. Keep every tensor that the
    engine computes something of (``A_log``) whole: ``publisher.delta(snapshot, dense=...)``."""
    from vllm.distributed.weight_transfer.sparse_nccl_engine import SparseWeightPatch

    sparse: list[Any] = []
    whole: list[tuple[str, torch.Tensor]] = []
    for name, shape, _, indices, values in delta.patches(to=0):
        if indices is None:
            whole.append((name, values))
        else:
            sparse.append(SparseWeightPatch(name, indices, values, shape))
    return sparse, whole
