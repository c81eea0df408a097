"""Loading into and saving from sharded models, as ratios to plain reads and writes of the same bytes in the same round.

    python benchmarks/live.py [--directory /dev/shm] [--ranks 1 2 4] [--rounds 5] [--layers 6]

A Llama in bf16 with random weights is loaded into, and saved from, parameters of the fast_llm layout sharded by rows
over the ranks. Beside it, in the same round and with memory that has been touched before: plain ``preadv`` and
``pwrite`` of each rank's share; torch's ``HuggingFaceStorageReader`` and ``Writer`` with consolidation, which move the
same tensors under their Hugging Face names, without changing their layout; and, on one rank, transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import io
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

STEP = 1 << 20


def make_checkpoint(path: Path, layers: int) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)


def timed(action: Callable[[], Any]) -> float:
    """Seconds until every rank is done."""
    dist.barrier()
    started = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - started


def read_share(path: Path, buffer: memoryview, rank: int, size: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    share = os.fstat(descriptor).st_size // size
    for offset in range(0, share, STEP):
        os.preadv(descriptor, [buffer[offset : min(offset + STEP, share)]], rank * share + offset)
    os.close(descriptor)


def write_share(path: Path, buffer: memoryview, rank: int, size: int, total: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    share = total // size
    for offset in range(0, share, STEP):
        os.pwrite(descriptor, buffer[offset : min(offset + STEP, share)], rank * share + offset)
    os.fsync(descriptor)
    os.close(descriptor)


def start(rank: int, size: int, root: Path) -> None:
    """Join the other ranks, with a share of the cores."""
    warnings.simplefilter("ignore")
    os.environ["LOCAL_WORLD_SIZE"] = str(size)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    init = f"file://{root}/rendezvous-{size}"
    dist.init_process_group(
        "gloo", init_method=init, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=600)
    )


def cleared(root: Path, rank: int, name: str) -> Path:
    """The path of an output, once every rank knows that nothing is there."""
    path = root / name
    if rank == 0:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True) if path.is_file() else None
    dist.barrier()
    return path


def rows(mesh: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of which every rank has some rows."""
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(torch.zeros(shape, dtype=torch.bfloat16), mesh, [Shard(0)], src_data_rank=None)


def worker(rank: int, size: int, directory: str, rounds: int, results: Any) -> None:
    root = Path(directory)
    start(rank, size, root)
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh

    import crosswalk

    source = root / "hf"
    data = source / "model.safetensors"
    config = crosswalk.import_config(json.loads((source / "config.json").read_text()), "llama")
    mesh = init_device_mesh("cpu", (size,))

    plan = crosswalk.compile_plan(json.loads((source / "config.json").read_text()), "llama")
    native = {spec.name: rows(mesh, spec.shape) for spec in plan.targets}
    theirs = {spec.name: rows(mesh, spec.shape) for spec in plan.sources}
    total = data.stat().st_size
    buffer = memoryview(bytearray(total // size + STEP))
    found: dict[str, list[float]] = {}
    facts: dict[str, Any] = {}

    fresh = functools.partial(cleared, root, rank)

    def record(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    def save(blocking: bool) -> None:
        done = crosswalk.save(native, config, out, "llama", blocking=blocking)
        report = done if blocking else done.result()
        facts.update(written=report.bytes_written)
        if not blocking:
            record("save background, waited", report.blocked)

    for _ in range(rounds + 1):
        record("read plain", timed(lambda: read_share(data, buffer, rank, size)))
        record("load crosswalk", timed(lambda: facts.update(load=crosswalk.load(source, native, "llama").report)))
        with contextlib.redirect_stdout(io.StringIO()):
            reader = dcp.HuggingFaceStorageReader(str(source), thread_count=max(1, (os.cpu_count() or 1) // size))
            record("load DCP", timed(lambda reader=reader: dcp.load(theirs, storage_reader=reader)))
        out = fresh("plain")
        record("write plain", timed(lambda out=out: write_share(out, buffer, rank, size, total)))
        fresh("plain")
        out = fresh("saved")
        record("save crosswalk", timed(lambda: save(True)))
        out = fresh("saved")
        record("save background", timed(lambda: save(False)))
        fresh("saved")
        out = fresh("dcp")
        writer = dcp.HuggingFaceStorageWriter(str(out), save_distributed=True, enable_consolidation=True)
        record("save DCP", timed(lambda writer=writer: dcp.save(theirs, storage_writer=writer)))
        fresh("dcp")
        if size == 1:
            one_rank(root, source, native, config, crosswalk, record, fresh)
    report = facts["load"]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, (report.bytes_held, report.bytes_read, facts["written"]))
    if rank == 0:
        results.put((size, total, {name: times[1:] for name, times in found.items()}, gathered))
    dist.destroy_process_group()


def one_rank(
    root: Path, source: Path, native: dict[str, Any], config: Any, crosswalk: Any, record: Any, fresh: Any
) -> None:
    """What only makes sense on one rank: transformers, and streaming against copying in memory."""
    import transformers

    models: list[Any] = []

    def load() -> None:
        models.append(transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16))

    def touch() -> None:
        """It maps the file: the first touch of every page is a part of what loading costs."""
        for parameter in models[0].parameters():
            parameter.sum()

    loading = timed(load)
    record("load transformers", loading)
    record("load transformers, and touch", loading + timed(touch))
    out = fresh("transformers")
    record("save transformers", timed(lambda: models[0].save_pretrained(out)))
    fresh("transformers")
    local = {name: tensor.to_local() for name, tensor in native.items()}
    refit = {n: torch.zeros_like(t) for bucket in crosswalk.stream(local, config, "llama") for n, t in bucket}

    def stream() -> None:
        for bucket in crosswalk.stream(local, config, "llama", 256 << 20):
            for name, tensor in bucket:
                refit[name].copy_(tensor)

    record("refit crosswalk", timed(stream))
    copies = {name: torch.zeros_like(tensor) for name, tensor in local.items()}
    record("refit plain copy", timed(lambda: [copies[name].copy_(tensor) for name, tensor in local.items()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where the files are")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        make_checkpoint(Path(directory) / "hf", arguments.layers)
        results = multiprocessing.get_context("spawn").SimpleQueue()
        for size in arguments.ranks:
            multiprocessing.spawn(worker, (size, directory, arguments.rounds, results), size)
            show(*results.get())


def show(size: int, total: int, found: dict[str, list[float]], bytes_of_ranks: list[tuple[int, int, int]]) -> None:
    held, read, written = (sum(column) for column in zip(*bytes_of_ranks, strict=True))
    print(f"\n{size} ranks, {total / 1e9:.2f} GB: hold {held:,}, read {read:,}, write {written:,} bytes in all")
    print(
        f"most of one rank: read {max(r for _, r, _ in bytes_of_ranks):,}, write {max(w for *_, w in bytes_of_ranks):,}"
    )
    print("| what | GB/s, median | ratio to plain, median |\n|---|---|---|")
    plain = {"read": "read plain", "load": "read plain", "refit": "refit plain copy"}
    for name, times in sorted(found.items()):
        base = found[plain.get(name.split()[0], "write plain")]
        ratio = statistics.median(b / t for t, b in zip(times, base, strict=True))
        print(f"| {name} | {total / 1e9 / statistics.median(times):.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
