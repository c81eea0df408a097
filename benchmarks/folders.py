"""Measure conversions of folders of torch.distributed.checkpoint against ``cp``, in interleaved rounds; and how long a
sparse mixture of experts of 235B in such a folder takes to plan.

    python benchmarks/folders.py --home /dev/shm --rounds 5 --results folders.json

The model is a Llama of the widths of 8B, cut to about 2 GB. Folders are those of torch itself, saved by 1 process and by
8, which hold an eighth of the rows each. Every conversion runs in a process of its own, whose clock starts after the
imports. Each is beside a ``cp`` of its source in the same round; ``--disk`` evicts the source first and syncs the output.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from planning import llama, write
from run import evict, machine, measured, sync

LAYERS, VOCABULARY = 3, 48000
#: Name, source, what is written, and the directory that must have the same tensors then.
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
    import torch
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
    with measured(result):
        crosswalk.convert(source, target, to=to, options=EngineOptions(workers=2))
    return result


def run(source: Path, target: Path, to: str, synced: bool) -> dict[str, Any]:
    shutil.rmtree(target, ignore_errors=True)
    if synced:
        evict(source)
    if to == "cp":
        started = time.perf_counter()
        subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
        if synced:
            sync(target)
        return {"seconds": time.perf_counter() - started, "peak": 0}
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
            found.setdefault(name, []).append(mine | {"ratio": ratio, "cp": copied["bytes"] / copied["seconds"] / 1e9})
    return [
        {
            "case": name,
            "gb": runs[0]["bytes"] / 1e9,
            "gb_per_second": statistics.median(one["bytes"] / one["seconds"] / 1e9 for one in runs),
            "cp_gb_per_second": statistics.median(one["cp"] for one in runs),
            "ratio": statistics.median(one["ratio"] for one in runs),
            "ratios": sorted(round(one["ratio"], 2) for one in runs),
            "cpu_per_gb": statistics.median(one["cpu"] / one["bytes"] * 1e9 for one in runs),
            "peak_mib": max(one["peak"] for one in runs) / 2**20,
        }
        for name, runs in found.items()
    ]


def sparse(home: Path, ranks: int = 64) -> dict[str, Any]:
    """Seconds to check a folder of a Qwen3 of 235B, every tensor in as many chunks as there are ranks: the metadata is
    what torch writes, the files are holes behind the archives' ends."""
    import crosswalk
    from folders_sparse import write_sparse

    folder = home / "sparse"
    plan = crosswalk.compile_plan(SPARSE, to="torchtitan")
    chunks = write_sparse(folder, plan.targets, ranks)
    (home / "like").mkdir()
    (home / "like" / "config.json").write_text(json.dumps(SPARSE))
    command = [sys.executable, "-m", "crosswalk.cli.entry", "plan", str(folder), "--layout", "torchtitan"]
    started = time.perf_counter()
    subprocess.run([*command, "--like", str(home / "like")], check=True, stdout=subprocess.DEVNULL)
    return {"tensors": len(plan.targets), "chunks": chunks, "seconds": time.perf_counter() - started}


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
        results = {"machine": machine(), "rows": measure(home, options.rounds, options.disk)}
    finally:
        shutil.rmtree(home)
    options.results.write_text(json.dumps(results, indent=1) + "\n")
    for row in results["rows"]:
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    main()
