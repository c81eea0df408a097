"""Loading into, and publishing from, a model on one accelerator, as ratios to plain copies of the same bytes.

    python benchmarks/device.py [--device cuda] [--directory /dev/shm] [--layers 8] [--rounds 7]

A Llama in bf16 with random weights, in the fast_llm layout. Loading is compared with a copy of as many bytes from
pinned host memory to the device; refitting (every tensor of ``crosswalk.stream`` copied to where an inference engine
would have it) with a copy on the device. Goals: 0.9 and 0.8. A delta, of which 2 % of the elements are new, is compared
with a copy on the device where its snapshot is there, and with a copy to the device where the snapshot is in pinned
memory of the host, from where all of it comes. Memory is the most that the device held over what the parameters and the
snapshots take. Last come the indices that ``locate`` finds a second, of rows and of a transposed matrix. Rounds are
interleaved; the first is left out.
"""

from __future__ import annotations

import argparse
import functools
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

#: The share of elements that a step changes.
DENSITY = 0.02
#: What is located in: rows that stay rows, and a matrix that is transposed.
LOCATED = {
    "locate in rows": "decoder.0.mlp.layer_1.weight",
    "locate in a transposed matrix": "decoder.0.mlp.layer_2.weight",
}


def timed(action: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device is done."""
    wait = (lambda: None) if device.type == "cpu" else torch.get_device_module(device).synchronize
    wait()
    started = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - started


class Job:
    """A model on the device, and what is done with it in every round."""

    def __init__(self, source: Path, device: torch.device) -> None:
        config = json.loads((source / "config.json").read_text())
        plan = crosswalk.compile_plan(config, "llama")
        self.source, self.config = source, crosswalk.import_config(config, "llama")
        self.native = {s.name: torch.zeros(s.shape, dtype=torch.bfloat16, device=device) for s in plan.targets}
        self.engine = {s.name: torch.zeros(s.shape, dtype=torch.bfloat16, device=device) for s in plan.sources}
        pin = device.type != "cpu"
        self.pinned = {n: torch.zeros(t.shape, dtype=t.dtype, pin_memory=pin) for n, t in self.native.items()}
        self.copies = {name: torch.zeros_like(tensor) for name, tensor in self.native.items()}
        self.publisher = crosswalk.publisher(self.native, self.config, "llama")
        self.snapshots = {"delta": self.publisher.snapshot(device)}
        self.snapshots["delta from the host"] = self.publisher.snapshot("cpu", pin=pin)
        self.indices = {
            name: torch.arange(self.native[parameter].numel(), dtype=torch.int32, device=device)
            for name, parameter in LOCATED.items()
        }

    def actions(self) -> dict[str, Callable[[], Any]]:
        return {
            "copy to the device": self.to_device,
            "load": lambda: crosswalk.load(self.source, self.native, "llama"),
            "copy on the device": self.on_device,
            "refit": self.refit,
            **{name: functools.partial(self.delta, name) for name in self.snapshots},
            **{name: functools.partial(self.locate, name) for name in LOCATED},
        }

    def to_device(self) -> None:
        for name, tensor in self.native.items():
            tensor.copy_(self.pinned[name], non_blocking=True)

    def on_device(self) -> None:
        for name, tensor in self.native.items():
            self.copies[name].copy_(tensor)

    def refit(self) -> None:
        for bucket in crosswalk.stream(self.native, self.config, "llama", 256 << 20):
            for name, tensor in bucket:
                self.engine[name].copy_(tensor)

    def change(self) -> None:
        for tensor in self.native.values():
            count = max(1, int(tensor.numel() * DENSITY))
            tensor.view(-1)[torch.randint(tensor.numel(), (count,), device=tensor.device)] += 1

    def delta(self, name: str) -> None:
        changes = self.publisher.delta(self.snapshots[name])
        for _ in changes.patches():
            pass
        changes.commit()

    def locate(self, name: str) -> None:
        for _ in self.publisher.locate(LOCATED[name], self.indices[name]):
            pass


def measure(job: Job, device: torch.device, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    module = None if device.type == "cpu" else torch.get_device_module(device)
    for _ in range(rounds + 1):
        for name, action in job.actions().items():
            if name in job.snapshots:
                job.change()
            if module is not None:
                module.reset_peak_memory_stats(device)
                held = module.memory_allocated(device)
            found.setdefault(name, []).append(timed(action, device))
            if module is not None:
                found.setdefault(f"{name}, MiB", []).append((module.max_memory_allocated(device) - held) / 2**20)
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
        job = Job(source, options.device)
        found = measure(job, options.device, options.rounds)
    name = "the CPU" if options.device.type == "cpu" else torch.get_device_module(options.device).get_device_name()
    print(f"{total:.2f} GB on {name}, torch {torch.__version__}\n")
    print("| what | GB/s, median | ratio to the copy, median | MiB of the device, most |\n|---|---|---|---|")
    pairs = {"copy to the device": ("load", "delta from the host"), "copy on the device": ("refit", "delta")}
    for base, others in pairs.items():
        for row in (base, *others):
            ratio = statistics.median(b / t for t, b in zip(found[row], found[base], strict=True))
            memory = max(found.get(f"{row}, MiB", [0.0]))
            print(f"| {row} | {total / statistics.median(found[row]):.2f} | {ratio:.2f} | {memory:.0f} |")
    for row in LOCATED:
        rate = job.indices[row].numel() / statistics.median(found[row])
        print(f"\n{row}: {rate / 1e6:.0f} million indices a second")


if __name__ == "__main__":
    main()
