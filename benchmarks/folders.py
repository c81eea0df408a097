"""Measure conversions of folders of torch.distributed.checkpoint against ``cp``, in interleaved rounds; and how long a
sparse mixture of experts of 235B in such a folder takes to plan.

    python benchmarks/folders.py --home /dev/shm --rounds 5 --results folders.json

The model is a Llama of the widths of 8B, cut to about 2 GB. Folders are those of torch itself, saved by 1 process and
by 8, which hold an eighth of the rows each. Every conversion runs in a process of its own, whose clock starts after a
``check`` of the source, and stops when the output is complete. Each is beside a ``cp`` of its source in the same round;
``--disk`` evicts the source first and syncs the output.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from media import evict, sync
from planning import llama, write
from run import machine, measured
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo

from crosswalk.runtime.dcp.frames import frame
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.records import replace

LAYERS, VOCABULARY = 3, 48000
#: Name, source, and what it is converted to.
CASES = (
    ("Hugging Face -> folder", "hf", "torchtitan"),
    ("folder of 1 -> Hugging Face", "ranks-1", "hf"),
    ("folder of 8 -> Hugging Face", "ranks-8", "hf"),
    ("folder of 8 -> fast_llm", "ranks-8", "fast_llm"),
)
SPARSE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 4096,
    "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "intermediate_size": 12288, "norm_topk_prob": True,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu", "max_position_embeddings": 40960,
    "rope_theta": 1000000.0, "torch_dtype": "bfloat16",
}  # fmt: skip


def save_from(rank: int, ranks: int, source: str, target: str, address: str) -> None:
    """One process of those that read a folder and save it again, each its rows of every tensor."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, zeros

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    entries = dcp.FileSystemReader(source).read_metadata().state_dict_metadata
    state: dict[str, Any] = {
        name: zeros(tuple(entry.size), dtype=entry.properties.dtype, device_mesh=mesh, placements=[Shard(0)])
        for name, entry in entries.items()
    }
    if ranks == 1:
        state = {name: value.to_local() for name, value in state.items()}
    dcp.load(state, checkpoint_id=source)
    dcp.save(state, checkpoint_id=target)
    dist.destroy_process_group()


def save(ranks: int, source: Path, target: Path) -> None:
    import torch.multiprocessing as processes

    address = f"file://{target}.address"
    processes.spawn(save_from, (ranks, str(source), str(target), address), nprocs=ranks)
    shutil.copy(source / "crosswalk.yaml", target)


def child(source: Path, target: Path, to: str) -> dict[str, Any]:
    """One conversion in this process, by 2 workers."""
    import crosswalk
    from crosswalk.runtime.files.convert import EngineOptions

    result: dict[str, Any] = {}
    crosswalk.check(source, to=to)
    with measured(result):
        crosswalk.convert(source, target, to=to, options=EngineOptions(workers=2))
    return result


def run(source: Path, target: Path, to: str, synced: bool) -> dict[str, Any]:
    shutil.rmtree(target, ignore_errors=True)
    if synced:
        evict(source)
    if to == "cp":
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
        if synced:
            sync(target)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"seconds": seconds, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
    command = [sys.executable, __file__, "--child", str(source), str(target), to]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def measure(home: Path, rounds: int, synced: bool) -> list[dict[str, Any]]:
    write(home / "hf", *llama(LAYERS, vocab=VOCABULARY), filled=True)
    import crosswalk

    crosswalk.convert(home / "hf", home / "made", to="torchtitan")
    for ranks in (1, 8):
        save(ranks, home / "made", home / f"ranks-{ranks}")
    shutil.rmtree(home / "made")
    output, found = home / "out", dict[str, list[dict[str, float]]]()
    for number in range(rounds):
        for name, origin, to in CASES:
            copied = run(home / origin, output, "cp", synced)
            copied["bytes"] = size(output)
            mine = run(home / origin, output, to, synced)
            mine["bytes"] = size(output)
            if number == 0:
                crosswalk.verify(home / origin, output)
            ratio = mine["bytes"] / mine["seconds"] / (copied["bytes"] / copied["seconds"])
            mine |= {"ratio": ratio, "cp": copied["bytes"] / copied["seconds"] / 1e9}
            found.setdefault(name, []).append(mine | {"cp_cpu": copied["cpu"] / copied["bytes"] * 1e9})
    return [
        {
            "case": name,
            "gb": runs[0]["bytes"] / 1e9,
            "gb_per_second": statistics.median(one["bytes"] / one["seconds"] / 1e9 for one in runs),
            "cp_gb_per_second": statistics.median(one["cp"] for one in runs),
            "ratio": statistics.median(one["ratio"] for one in runs),
            "ratios": sorted(round(one["ratio"], 2) for one in runs),
            "cpu_per_gb": statistics.median(one["cpu"] / one["bytes"] * 1e9 for one in runs),
            "cp_cpu_per_gb": statistics.median(one["cp_cpu"] for one in runs),
            "peak_mib": max(one["peak"] for one in runs) / 2**20,
        }
        for name, runs in found.items()
    ]


def write_sparse(folder: Path, tensors: Sequence[TensorSpec], ranks: int) -> int:
    """A folder as so many processes would save it, each with its rows of every tensor: metadata of torch, and archives
    of which only what stands around the bytes is there. The number of parts."""
    folder.mkdir()
    described: dict[str, Any] = {}
    stored: dict[Any, Any] = {}
    ends = [0] * ranks
    for tensor in tensors:
        first, *rest = tensor.shape
        step = -(-first // ranks)
        chunks = []
        for rank, start in enumerate(range(0, first, step)):
            part = replace(tensor, shape=(min(step, first - start), *rest))
            before, after = frame(part)
            name, offset = f"__{rank}_0.distcp", ends[rank]
            ends[rank] += len(before) + part.nbytes + len(after)
            with open(folder / name, "r+b" if offset else "wb") as stream:
                for at, content in ((offset, before), (ends[rank] - len(after), after)):
                    stream.seek(at)
                    stream.write(content)
            corner = torch.Size([start] + [0] * len(rest))
            item = _StorageInfo(name, offset, ends[rank] - offset)
            stored[metadata.MetadataIndex(tensor.name, corner, len(chunks))] = item
            chunks.append(metadata.ChunkStorageMetadata(corner, torch.Size(part.shape)))
        properties = metadata.TensorProperties(torch.bfloat16)
        described[tensor.name] = metadata.TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
    names = {name: (name,) for name in described}
    found = metadata.Metadata(described, names, stored, metadata.StorageMeta(), "1.0.0")
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    return len(stored)


def sparse(home: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds of ``crosswalk plan`` for a folder of a Qwen3 of 235B, by how many processes saved it."""
    import crosswalk

    plan = crosswalk.compile_plan(SPARSE, to="torchtitan")
    tensors = [replace(tensor, dtype="BF16") for tensor in plan.targets]
    like = home / "like"
    like.mkdir()
    (like / "config.json").write_text(json.dumps(SPARSE))
    rows = []
    for ranks in (1, 8, 64):
        folder = home / f"sparse-{ranks}"
        parts = write_sparse(folder, tensors, ranks)
        command = [Path(sys.executable).with_name("crosswalk"), "plan", folder, "--layout", "torchtitan"]
        runs = []
        for _ in range(rounds):
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([*command, "--like", like], check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            runs.append({"seconds": time.perf_counter() - started, "cpu": cpu})
        median = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu")}
        gb = sum(tensor.nbytes for tensor in tensors) / 1e9
        rows.append({"ranks": ranks, "tensors": len(tensors), "parts": parts, "gb": gb, **median})
        shutil.rmtree(folder)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--disk", action="store_true", help="evict sources and sync outputs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("folders.json"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        source, target, to = options.child
        print(json.dumps(child(Path(source), Path(target), to)))
        return
    home = options.home / f"crosswalk-folders-{os.getpid()}"
    home.mkdir(parents=True)
    try:
        planned = sparse(home, options.rounds)
        results = {"machine": machine(), "planned": planned, "rows": measure(home, options.rounds, options.disk)}
    finally:
        shutil.rmtree(home)
    options.results.write_text(json.dumps(results, indent=1) + "\n")
    for row in (*results["planned"], *results["rows"]):
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    main()
