"""Publishing a live model, as ratios to plain copies and gathers of the same bytes in the same round.

    python benchmarks/publishing.py [--ranks 1 2 4] [--rounds 5] [--layers 4]

A mixture of experts of transformers in bf16, whose experts are one tensor in memory and one for each in files, is
published plain and sharded (``fully_shard``). Beside it, in the same round: ``copy_`` of the same bytes into memory
that has been touched before (one rank), or ``full_tensor()`` of every parameter, as trainers gather today (more ranks);
and a copy of the shard, beside a delta. Times are of the slowest rank; CPU seconds are of one rank.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.tensor import DTensor

SIZES: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 1536, "moe_intermediate_size": 768,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "num_experts": 32, "num_experts_per_tok": 2,
}  # fmt: skip
#: The share of elements that a step changes.
DENSITY = 0.02


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds until every rank is done, and CPU seconds of this one."""
    dist.barrier()
    started, cpu = time.perf_counter(), time.process_time()
    action()
    used = time.process_time() - cpu
    dist.barrier()
    return time.perf_counter() - started, used


def sharded(size: int, layers: int) -> torch.nn.Module:
    """A model of transformers, whole in one process or in the shards of several."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_hidden_layers=layers)).to(torch.bfloat16)
    if size > 1:
        mesh = init_device_mesh("cpu", (size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


class Job:
    """One rank of a run: its model, and what is done with it in every round."""

    def __init__(self, size: int, layers: int) -> None:
        import crosswalk

        model: Any = sharded(size, layers)
        self.parameters = [parameter.detach() for parameter in model.parameters()]
        self.local = [value.to_local() if isinstance(value, DTensor) else value for value in self.parameters]
        started = time.perf_counter()
        self.publisher = crosswalk.publisher(model, model.config)
        self.made = time.perf_counter() - started
        self.snapshot = self.publisher.snapshot()
        self.kept = [torch.ones(one.shape, dtype=one.dtype) for one in self.publisher.metadata] if size == 1 else []
        self.touched = [torch.ones_like(tensor) for tensor in self.local]
        self.changed = 0

    def publish(self) -> None:
        """All tensors to the first rank; alone, which has them already, they are copied."""
        kept = iter(self.kept)
        for bucket in self.publisher.buckets(to=0):
            for _, tensor in bucket:
                if self.kept:
                    next(kept).copy_(tensor)

    def gather(self) -> None:
        """As a trainer does by itself."""
        for value in self.parameters:
            if isinstance(value, DTensor):
                value.full_tensor()

    def change(self) -> None:
        for tensor in self.local:
            count = int(tensor.numel() * DENSITY)
            tensor.view(-1)[torch.randint(tensor.numel(), (max(1, count),))] += 1

    def delta(self) -> None:
        found = self.publisher.delta(self.snapshot)
        self.changed = sum(patch.values.numel() for patch in found.patches(to=0))
        found.commit()

    def copy(self) -> None:
        for one, other in zip(self.touched, self.local, strict=True):
            one.copy_(other)


def worker(rank: int, size: int, directory: str, rounds: int, layers: int, results: Any) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=600)
    dist.init_process_group("gloo", init_method=f"file://{directory}/{size}", rank=rank, world_size=size, timeout=limit)
    job = Job(size, layers)
    actions = {"publish to=0": job.publish, "full_tensor": job.gather, "delta to=0": job.delta}
    actions |= {"copy of the shard": job.copy}
    if size == 1:
        del actions["full_tensor"]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            if name == "delta to=0":
                job.change()
            times[name].append(timed(action))
    if rank == 0:
        nbytes = sum(one.nbytes for one in job.publisher.metadata)
        results.put((size, nbytes, job.made, {name: found[1:] for name, found in times.items()}, job.changed))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    for size in options.ranks:
        results = multiprocessing.get_context("spawn").SimpleQueue()
        with tempfile.TemporaryDirectory() as directory:
            multiprocessing.spawn(worker, (size, directory, options.rounds, options.layers, results), nprocs=size)
        ranks, nbytes, made, times, changed = results.get()
        middle = {name: statistics.median(wall for wall, _ in found) for name, found in times.items()}
        cpu = {name: statistics.median(used for _, used in found) for name, found in times.items()}
        plain = "full_tensor" if ranks > 1 else "copy of the shard"
        print(json.dumps({
            "ranks": ranks, "GB": round(nbytes / 1e9, 2), "publisher made, s": round(made, 2),
            "publish / plain": round(middle[plain] / middle["publish to=0"], 2),
            "publish GB/s": round(nbytes / middle["publish to=0"] / 1e9, 2),
            "publish CPU s": round(cpu["publish to=0"], 3), "plain CPU s": round(cpu[plain], 3),
            "delta / publish": round(middle["publish to=0"] / middle["delta to=0"], 2),
            "delta GB/s a rank": round(nbytes / ranks / middle["delta to=0"] / 1e9, 2),
            "copy GB/s a rank": round(nbytes / ranks / middle["copy of the shard"] / 1e9, 2),
            "elements sent": changed,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
