"""Measure conversions against ``cp`` and against what else people use, in interleaved rounds.

    python benchmarks/run.py --tmpfs /dev/shm --disk DIRECTORY --reflink DIRECTORY --rounds 5

Every conversion runs in a process of its own. Its clock starts after the imports, with the plan at hand and the source
not yet opened, and stops when the output is complete (on disk: synced). On disk the source is evicted from the page
cache first; where files can share extents (``--reflink``, a directory on XFS or btrfs) ``cp`` does not. Forward
conversions lay the data out in phase with the source, as those to the trainer's checkpoints do. ``--plot`` only draws
an existing result file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from media import evict, sync
from plot import draw, table
from workloads import Workload, workloads, write_random

from crosswalk.runtime.checkpoint.output import OutputLayout, hugging_face_layout
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.files import convert
from crosswalk.runtime.files.convert import EngineOptions, checksum_checkpoint, write_checkpoint
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.records import replace

WORKERS = 2
MODELS = ("Mixtral", "Qwen3")
MEDIA = ("tmpfs", "disk", "reflink")
PEERS = ("torch by hand", "safetensors load and save")


def status(key: str) -> int:
    """Bytes of a line in ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


@contextmanager
def measured(result: dict[str, Any]) -> Iterator[None]:
    """Fill in seconds, CPU seconds, and the most anonymous memory over what there was at the start."""

    def memory() -> int:
        return status("RssAnon") + status("RssShmem")

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], memory())

    stop, base = threading.Event(), memory()
    peak = [base]
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield
    result["seconds"] = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    result["cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    stop.set()
    watcher.join()
    result["peak"] = peak[0] - base


def child(name: str, variant: str, source: Path, target: Path, plan: Path, synced: bool) -> dict[str, Any]:
    """Run one variant in this process."""
    result: dict[str, Any] = {}
    if variant.startswith("crosswalk"):
        if variant.endswith("model"):
            with measured(result):
                convert_model(name, source, target)
            return result
        options = EngineOptions(workers=WORKERS, checksum="none" if variant.endswith("no checksum") else "xxh3")
        loaded = Plan.from_json(plan.read_text())
        # This process has torch, which a command line imports only to cast and to decode.
        has_torch = not variant.endswith("without torch")
        with patch.object(convert, "_has_torch", return_value=has_torch), measured(result):
            write_checkpoint(loaded, open_checkpoint(source), target, layout=layout(source), options=options)
        return result
    if variant == "transformers":
        from transformers import AutoModelForCausalLM

        with measured(result):
            model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
            model.save_pretrained(target)
            if synced:
                sync(target)
        return result
    from safetensors.torch import load_file, save_file

    by_hand: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict
    if variant == "torch by hand":
        by_hand = next(w for w in workloads() if w.name == name).by_hand
    target.mkdir()
    with measured(result):
        tensors = by_hand(load_file(source / "model.safetensors"))
        save_file(tensors, target / "model.safetensors")
        if synced:
            sync(target)
    return result


def run(name: str, variant: str, source: Path, target: Path, plan: Path, synced: bool) -> dict[str, Any]:
    """Run one variant, evicting the source first if it is on a disk."""
    shutil.rmtree(target, ignore_errors=True)
    if synced:
        evict(source)
    if variant == "cp":
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
        if synced:
            sync(target)
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"seconds": seconds, "cpu": cpu, "peak": 0}
    arguments = [name, variant, str(source), str(target), str(plan), str(int(synced))]
    command = [sys.executable, __file__, "--child", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def layout(source: Path) -> OutputLayout:
    """That of Hugging Face, with the data in phase unless it was converted before."""
    return replace(hugging_face_layout(), in_phase=source.name == "in")


def data_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def measure(workload: Workload, medium: str, home: Path, rounds: int, peers: int) -> Iterator[dict[str, Any]]:
    """All variants of one workload: one row for each."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    try:
        source, back_source, output = home / "in", home / "converted", home / "out"
        source.mkdir()
        write_random(workload.plan.sources, source / "model.safetensors")
        inverse = workload.plan.inverse()
        for plan, path in ((workload.plan, "forward.json"), (inverse, "back.json")):
            (home / path).write_text(plan.to_json())
        original = open_checkpoint(source)
        checksums = write_checkpoint(workload.plan, original, back_source, layout=layout(source)).checksums
        variants = [
            ("forward", "cp"),
            ("forward", "crosswalk"),
            ("forward", "crosswalk without torch"),
            ("forward", "crosswalk, no checksum"),
            ("forward", "torch by hand"),
            ("forward", "safetensors load and save"),
            ("back", "cp"),
            ("back", "crosswalk"),
            ("back", "crosswalk without torch"),
        ]
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {variant: [] for variant in variants}
        equal: dict[tuple[str, str], bool | None] = {}
        for number in range(rounds):
            for direction, variant in variants:
                if number >= peers and variant in PEERS:
                    continue
                origin = source if direction == "forward" else back_source
                found = run(workload.name, variant, origin, output, home / f"{direction}.json", medium != "tmpfs")
                # cp moves the bytes of the source, a conversion is judged by the bytes it writes.
                found["bytes"] = data_bytes(output)
                rows[direction, variant].append(found)
                if number == 0 and variant not in ("cp", "safetensors load and save"):
                    wanted = checksums if direction == "forward" else checksum_checkpoint(original)
                    equal[direction, variant] = checksum_checkpoint(open_checkpoint(output)) == wanted
                shutil.rmtree(output)
        for (direction, variant), runs in rows.items():
            if not runs:
                continue
            yield summarized(workload.name, workload.text, medium, direction, variant, runs, rows[direction, "cp"]) | {
                "equal": equal.get((direction, variant))
            }
    finally:
        shutil.rmtree(home)


def model_config(name: str) -> Any:
    """A mixture-of-experts model of real widths, cut to about 2.5 GB."""
    import transformers

    if name == "Mixtral":  # 8x7B, 7 experts of one layer
        return transformers.MixtralConfig(
            vocab_size=1024, hidden_size=4096, intermediate_size=14336, num_hidden_layers=1, num_attention_heads=32,
            num_key_value_heads=8, num_local_experts=7, num_experts_per_tok=2, sliding_window=None,
            architectures=["MixtralForCausalLM"], dtype="bfloat16",
        )  # fmt: skip
    return transformers.Qwen3MoeConfig(  # 30B-A3B, 2 layers of 128 experts
        vocab_size=1024, hidden_size=2048, moe_intermediate_size=768, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True,
        tie_word_embeddings=False, architectures=["Qwen3MoeForCausalLM"], dtype="bfloat16",
    )  # fmt: skip


def convert_model(name: str, source: Path, target: Path) -> None:
    """Mixtral to fast_llm, which stores experts stacked and their down projections transposed; Qwen3 to torchtitan,
    which stores experts stacked. Compiling the plan counts."""
    import crosswalk

    if name == "Mixtral":
        crosswalk.convert(source, target, "fast_llm", options=EngineOptions(workers=WORKERS))
        return
    plan = crosswalk.compile_plan(json.loads((source / "config.json").read_text()), to="torchtitan")
    write_checkpoint(
        plan, open_checkpoint(source), target, layout=layout(source), options=EngineOptions(workers=WORKERS)
    )


def measure_model(name: str, medium: str, home: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """A whole mixture-of-experts model through the mapping, against loading and saving it with transformers."""
    from transformers import AutoModelForCausalLM

    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    try:
        source, output = home / "in", home / "out"
        AutoModelForCausalLM.from_config(model_config(name), dtype=torch.bfloat16).save_pretrained(source)
        variants = ("cp", "crosswalk model", "transformers")
        rows: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
        for _ in range(rounds):
            for variant in variants:
                found = run(name, variant, source, output, source, medium != "tmpfs")
                rows[variant].append(found | {"bytes": data_bytes(output)})
                shutil.rmtree(output)
        for variant, runs in rows.items():
            yield summarized(name, f"{name}, config and all", medium, "forward", variant, runs, rows["cp"])
    finally:
        shutil.rmtree(home)


def summarized(
    name: str,
    text: str,
    medium: str,
    direction: str,
    variant: str,
    runs: list[dict[str, Any]],
    copies: list[dict[str, Any]],
) -> dict[str, Any]:
    """Medians over the rounds; ratios are to ``cp`` in the same round, of bytes written per second."""

    def rate(found: dict[str, Any]) -> float:
        return float(found["bytes"] / found["seconds"] / 1e9)

    ratios = [rate(mine) / rate(cp) for mine, cp in zip(runs, copies, strict=False)]
    return {
        "workload": name,
        "text": text,
        "medium": medium,
        "direction": direction,
        "variant": variant,
        "gb": runs[0]["bytes"] / 1e9,
        "gb_per_second": statistics.median(map(rate, runs)),
        "best_gb_per_second": max(map(rate, runs)),
        "ratio": statistics.median(ratios),
        "best_ratio": max(map(rate, runs)) / max(map(rate, copies)),
        "cpu_per_gb": statistics.median(found["cpu"] / found["bytes"] * 1e9 for found in runs),
        "peak_mib": max(found["peak"] for found in runs) / 2**20,
        "rounds": len(runs),
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "machine": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tmpfs", type=Path)
    parser.add_argument("--disk", type=Path)
    parser.add_argument("--reflink", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-rounds", type=int, help="rounds of the slow peers, by default all")
    parser.add_argument("--only", default="W1,W2,W3,W4,W5,W6,Mixtral,Qwen3", help="workloads, separated by commas")
    parser.add_argument("--results", type=Path, default=Path("results.json"))
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, variant, source, target, plan, synced = options.child
        print(json.dumps(child(name, variant, Path(source), Path(target), Path(plan), synced == "1")))
        return
    wanted = options.only.split(",")
    peers = options.rounds if options.peer_rounds is None else options.peer_rounds
    if not options.plot:
        results: dict[str, Any] = {"machine": machine(), "rows": []}
        for medium in MEDIA:
            place = getattr(options, medium)
            if place is None:
                continue
            home = place / f"crosswalk-benchmark-{os.getpid()}"
            jobs = [measure(w, medium, home, options.rounds, peers) for w in workloads() if w.name in wanted]
            jobs += [measure_model(name, medium, home, options.rounds) for name in MODELS if name in wanted]
            for job in jobs:
                for row in job:
                    results["rows"].append(row)
                    keys = ("workload", "medium", "direction", "variant")
                    numbers = (f"{key} {row[key]:.2f}" for key in ("gb_per_second", "ratio", "cpu_per_gb", "peak_mib"))
                    print(*(row[key] for key in keys), *numbers, row.get("equal", ""), sep="  ", flush=True)
                options.results.write_text(json.dumps(results, indent=1) + "\n")
    rows = json.loads(options.results.read_text())["rows"]
    options.results.with_suffix(".svg").write_text(draw(rows))
    options.results.with_suffix(".md").write_text("\n".join(table(rows, medium) for medium in MEDIA))


if __name__ == "__main__":
    main()
