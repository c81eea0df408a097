"""Loading into and saving from sharded models, as ratios to plain reads and writes of the same bytes in the same round.

    python benchmarks/live.py [--directory /dev/shm] [--ranks 1 2 4] [--rounds 5] [--layers 6] [--hidden 2048]

A Llama in bf16 with random weights is loaded into, and saved from, parameters sharded by rows over the ranks: those of
the fast_llm layout, of which a sixth is transposed on the way, and those of the live class of transformers under
``fully_shard``, which are as files have them ("same layout"). Beside it, in the same round and with memory that has
been touched before: plain ``preadv`` and ``pwrite`` of the share of a rank, in whole pages (a copy between places that
differ by a few bytes modulo 4096 is up to three times slower on some processors); torch's ``HuggingFaceStorageReader``
and ``Writer`` with consolidation, which move the same tensors without changing their layout; and, on one rank,
transformers. Seconds are those until the last rank is done, CPU seconds the mean of the ranks. The first load of a
process is shown by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import io
import json
import mmap
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
#: Seconds until all ranks were done, and CPU seconds of this rank.
Times = tuple[float, float]


def make_checkpoint(path: Path, layers: int, hidden: int = 2048) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, head_dim=hidden // 32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)


def write_shapes(root: Path) -> None:
    """The names and shapes of the trainer and of the files, so that ranks need no mapping to make parameters."""
    import crosswalk

    plan = crosswalk.compile_plan(json.loads((root / "hf/config.json").read_text()), "llama")
    shapes = [{spec.name: spec.shape for spec in specs} for specs in (plan.targets, plan.sources)]
    (root / "shapes.json").write_text(json.dumps(shapes))


def timed(action: Callable[[], Any]) -> Times:
    dist.barrier()
    started, spent = time.perf_counter(), time.process_time()
    action()
    spent = time.process_time() - spent
    dist.barrier()
    return time.perf_counter() - started, spent


def share_of(total: int, rank: int, size: int) -> range:
    """Where the share of a rank begins in each step, in whole pages."""
    share = -(-total // (size * mmap.PAGESIZE)) * mmap.PAGESIZE
    return range(rank * share, min((rank + 1) * share, total), STEP)


def read_share(path: Path, buffer: memoryview, rank: int, size: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    share = share_of(os.fstat(descriptor).st_size, rank, size)
    for offset in share:
        place = offset - share.start
        os.preadv(descriptor, [buffer[place : place + min(STEP, share.stop - offset)]], offset)
    os.close(descriptor)


def write_share(path: Path, buffer: memoryview, rank: int, size: int, total: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    share = share_of(total, rank, size)
    for offset in share:
        place = offset - share.start
        os.pwrite(descriptor, buffer[place : place + min(STEP, share.stop - offset)], offset)
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


def sharded_class(source: Path, mesh: Any) -> torch.nn.Module:
    """The class of transformers, without its weights, every layer sharded by rows."""
    import transformers
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


class Rank:
    """What one rank measures: the times of every round by name, and how many bytes it wrote."""

    def __init__(self, rank: int, root: Path) -> None:
        self.found: dict[str, list[Times]] = {}
        self.written = 0
        self.fresh = functools.partial(cleared, root, rank)

    def record(self, name: str, times: Times) -> None:
        self.found.setdefault(name, []).append(times)

    def save(self, what: Any, given: Any, blocking: bool, name: str) -> None:
        import crosswalk
        from crosswalk.runtime import kept

        out = self.fresh("saved")
        if blocking:
            kept.SNAPSHOT.free()  # what saves in the background have kept: freeing it is not a part of this save

        def action() -> None:
            done = crosswalk.save(what, given, out, blocking=blocking)
            report = done if blocking else done.result()
            self.written = report.bytes_written
            if not blocking:
                self.record(f"{name}, waited", (report.blocked, 0.0))

        self.record(name, timed(action))
        self.fresh("saved")

    def with_torch(self, source: Path, theirs: dict[str, Any], size: int) -> None:
        """Loading and saving by torch.distributed.checkpoint, which says what it does."""
        import torch.distributed.checkpoint as dcp

        with contextlib.redirect_stdout(io.StringIO()):
            reader = dcp.HuggingFaceStorageReader(str(source), thread_count=max(1, (os.cpu_count() or 1) // size))
            self.record("load DCP", timed(lambda: dcp.load(theirs, storage_reader=reader)))
            out = self.fresh("dcp")
            writer = dcp.HuggingFaceStorageWriter(str(out), save_distributed=True, enable_consolidation=True)
            self.record("save DCP", timed(lambda: dcp.save(theirs, storage_writer=writer)))
        self.fresh("dcp")


def worker(rank: int, size: int, directory: str, rounds: int, results: Any) -> None:
    root = Path(directory)
    start(rank, size, root)
    from torch.distributed.device_mesh import init_device_mesh

    import crosswalk

    source = root / "hf"
    data = source / "model.safetensors"
    mesh = init_device_mesh("cpu", (size,))
    shapes = json.loads((root / "shapes.json").read_text())
    native, theirs = ({name: rows(mesh, shape) for name, shape in side.items()} for side in shapes)
    first = timed(lambda: crosswalk.load(source, native, "llama"))
    model = sharded_class(source, mesh)
    total = data.stat().st_size
    buffer = memoryview(mmap.mmap(-1, len(share_of(total, 0, size)) * STEP))
    loaded: dict[str, Any] = {}
    mine = Rank(rank, root)
    for _ in range(rounds + 1):
        mine.record("read plain", timed(lambda: read_share(data, buffer, rank, size)))
        mine.record("load crosswalk", timed(lambda: loaded.update(native=crosswalk.load(source, native, "llama"))))
        mine.record("load crosswalk, same layout", timed(lambda: loaded.update(live=crosswalk.load(source, model))))
        out = mine.fresh("plain")
        mine.record("write plain", timed(lambda out=out: write_share(out, buffer, rank, size, total)))
        mine.fresh("plain")
        mine.save(native, loaded["native"], True, "save crosswalk")
        mine.save(model, loaded["live"], True, "save crosswalk, same layout")
        mine.save(native, loaded["native"], False, "save background, first")
        mine.save(native, loaded["native"], False, "save background")
        mine.with_torch(source, theirs, size)
        if size == 1:
            one_rank(root, source, native, loaded["native"].config, crosswalk, mine.record, mine.fresh)
    report = loaded["native"].report
    gathered: list[Any] = [None] * size
    cpu = {name: [seconds for _, seconds in times] for name, times in mine.found.items()}
    dist.all_gather_object(gathered, (report.bytes_held, report.bytes_read, mine.written, cpu, first))
    if rank == 0:
        results.put((size, total, {name: [wall for wall, _ in times] for name, times in mine.found.items()}, gathered))
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

    loading, touching = timed(load), timed(touch)
    record("load transformers", loading)
    record("load transformers, and touch", (loading[0] + touching[0], loading[1] + touching[1]))
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
    parser.add_argument("--hidden", type=int, default=2048, help="hidden size")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        make_checkpoint(Path(directory) / "hf", arguments.layers, arguments.hidden)
        write_shapes(Path(directory))
        results = multiprocessing.get_context("spawn").SimpleQueue()
        for size in arguments.ranks:
            multiprocessing.spawn(worker, (size, directory, arguments.rounds, results), size)
            show(*results.get())


def show(size: int, total: int, walls: dict[str, list[float]], ranks: list[Any]) -> None:
    held, read, written = (sum(column) for column in list(zip(*ranks, strict=True))[:3])
    print(f"\n{size} ranks, {total / 1e9:.2f} GB: hold {held:,}, read {read:,}, write {written:,} bytes in all")
    print(f"most of one rank: read {max(rank[1] for rank in ranks):,}, write {max(rank[2] for rank in ranks):,}")
    first, cpu = (statistics.fmean(column) for column in zip(*(rank[4] for rank in ranks), strict=True))
    print(f"first load: {first:.2f} s, {cpu:.2f} CPU seconds a rank\n")
    print("| what | GB/s, median | ratio to plain, median | CPU seconds a rank |\n|---|---|---|---|")
    plain = {"read": "read plain", "load": "read plain", "refit": "refit plain copy"}
    for name, every in sorted(walls.items()):
        times, base = every[1:], walls[plain.get(name.split()[0], "write plain")][1:]
        ratio = statistics.median(b / t for t, b in zip(times, base, strict=True))
        cpu = statistics.median(
            statistics.fmean(rank[3][name][number] for rank in ranks) for number in range(1, len(every))
        )
        print(f"| {name} | {total / 1e9 / statistics.median(times):.2f} | {ratio:.2f} | {cpu:.3f} |", flush=True)


if __name__ == "__main__":
    main()
