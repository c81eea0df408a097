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


def worker(rank: int, size: int, directory: str, rounds: int, layers: int, results: Any) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=600)
    dist.init_process_group("gloo", init_method=f"file://{directory}/{size}", rank=rank, world_size=size, timeout=limit)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    import crosswalk

    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_hidden_layers=layers)).to(torch.bfloat16)
    if size > 1:
        mesh = init_device_mesh("cpu", (size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    parameters = [parameter.detach() for parameter in model.parameters()]
    made = timed(lambda: results_of.update(publisher=crosswalk.publisher(model, model.config)))
    publisher = results_of["publisher"]
    nbytes = sum(one.nbytes for one in publisher.metadata)
    kept = [torch.ones(one.shape, dtype=one.dtype) for one in publisher.metadata]
    snapshot = publisher.snapshot()
    local: list[Any] = [value.to_local() if size > 1 else value for value in parameters]  # type: ignore[attr-defined]
    touched = [torch.ones_like(tensor) for tensor in local]
    times: dict[str, list[tuple[float, float]]] = {}

    def dense() -> None:
        place = 0
        for bucket in publisher.buckets(to=0):
            for _, tensor in bucket:
                if size == 1:
                    kept[place].copy_(tensor)
                place += 1

    def change() -> None:
        for tensor in local:
            count = int(tensor.numel() * DENSITY)
            tensor.view(-1)[torch.randint(tensor.numel(), (max(1, count),))] += 1

    def delta() -> None:
        found = publisher.delta(snapshot)
        results_of["changed"] = sum(patch.values.numel() for patch in found.patches(to=0))
        found.commit()

    for _ in range(rounds + 1):
        times.setdefault("publish to=0", []).append(timed(dense))
        if size > 1:
            times.setdefault("full_tensor", []).append(timed(lambda: [p.full_tensor() for p in parameters]))  # type: ignore[attr-defined]
        change()
        times.setdefault("delta to=0", []).append(timed(delta))
        times.setdefault("copy of the shard", []).append(
            timed(lambda: [a.copy_(b) for a, b in zip(touched, local, strict=True)])
        )
    if rank == 0:
        results.put((size, nbytes, made, {name: found[1:] for name, found in times.items()}, results_of["changed"]))
    dist.destroy_process_group()


results_of: dict[str, Any] = {}


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
            "ranks": ranks, "GB": round(nbytes / 1e9, 2), "publisher made, s": round(made[0], 2),
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
