"""Loading into, and streaming from, a model on one accelerator, as ratios to plain copies of the same bytes.

    python benchmarks/device.py [--device cuda] [--directory /dev/shm] [--layers 8] [--rounds 7]

A Llama in bf16 with random weights, in the fast_llm layout. Loading is compared with a copy of as many bytes from
pinned host memory to the device; refitting (every tensor of ``crosswalk.stream`` copied to where an inference engine
would have it) with a copy on the device. Goals: 0.9 and 0.8. Memory is the most that the device held over what the
parameters take. Rounds are interleaved; the first is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from live import make_checkpoint

import crosswalk


def timed(action: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device is done."""
    wait = (lambda: None) if device.type == "cpu" else torch.get_device_module(device).synchronize
    wait()
    started = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - started


def measure(source: Path, device: torch.device, rounds: int) -> dict[str, list[float]]:
    config = json.loads((source / "config.json").read_text())
    plan = crosswalk.compile_plan(config, "llama")
    native = {s.name: torch.zeros(s.shape, dtype=torch.bfloat16, device=device) for s in plan.targets}
    engine = {s.name: torch.zeros(s.shape, dtype=torch.bfloat16, device=device) for s in plan.sources}
    pinned = {n: torch.zeros(t.shape, dtype=t.dtype, pin_memory=device.type != "cpu") for n, t in native.items()}
    native_config = crosswalk.import_config(config, "llama")

    def to_device() -> None:
        for name, tensor in native.items():
            tensor.copy_(pinned[name], non_blocking=True)

    def on_device() -> None:
        for one, other in zip(native.values(), copies, strict=True):
            other.copy_(one)

    def refit() -> None:
        for bucket in crosswalk.stream(native, native_config, "llama", 256 << 20):
            for name, tensor in bucket:
                engine[name].copy_(tensor)

    found: dict[str, list[float]] = {}
    copies = [torch.zeros_like(tensor) for tensor in native.values()]
    actions: dict[str, Callable[[], Any]] = {
        "copy to the device": to_device,
        "load": lambda: crosswalk.load(source, native, "llama"),
        "copy on the device": on_device,
        "refit": refit,
    }
    for _ in range(rounds + 1):
        for name, action in actions.items():
            if device.type != "cpu":
                torch.get_device_module(device).reset_peak_memory_stats(device)
                held = torch.get_device_module(device).memory_allocated(device)
            found.setdefault(name, []).append(timed(action, device))
            if device.type != "cpu":
                peak = torch.get_device_module(device).max_memory_allocated(device) - held
                found.setdefault(f"{name}, MiB", []).append(peak / 2**20)
    return {name: values[1:] for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where the files are")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        source = Path(directory) / "hf"
        make_checkpoint(source, options.layers)
        total = (source / "model.safetensors").stat().st_size / 1e9
        found = measure(source, options.device, options.rounds)
    name = "the CPU" if options.device.type == "cpu" else torch.get_device_module(options.device).get_device_name()
    print(f"{total:.2f} GB on {name}, torch {torch.__version__}\n")
    print("| what | GB/s, median | ratio to the copy, median | MiB of the device, most |\n|---|---|---|---|")
    for what, base in (("load", "copy to the device"), ("refit", "copy on the device")):
        for row in (base, what):
            ratio = statistics.median(b / t for t, b in zip(found[row], found[base], strict=True))
            memory = max(found.get(f"{row}, MiB", [0.0]))
            print(f"| {row} | {total / statistics.median(found[row]):.2f} | {ratio:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
