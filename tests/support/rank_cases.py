"""What ranks do in the tests of sharded models. In a module of its own, since every rank imports it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from native_llama import Tree, assert_equal, blank, native_state
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard

import crosswalk
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.training import load as live
from crosswalk.runtime.training.placement import place
from crosswalk.runtime.training.ranks import team

#: Name -> ranks, mesh, and placements of matrices; vectors are sharded where they can be.
MESHES: dict[str, tuple[int, tuple[int, ...], tuple[Placement, ...]]] = {
    "one": (1, (1,), (Shard(0),)),
    "rows": (4, (4,), (Shard(0),)),
    "columns": (4, (4,), (Shard(1),)),
    "replicas": (2, (2,), (Replicate(),)),
    "hybrid": (4, (2, 2), (Replicate(), Shard(0))),
    "grid": (4, (2, 2), (Shard(0), Shard(1))),
    "fsdp-tp": (4, (2, 2), (_StridedShard(0, split_factor=2), Shard(0))),
    "interleaved": (2, (2,), (_StridedShard(0, split_factor=3),)),
    "eight": (8, (2, 4), (Shard(1), Shard(0))),
}


def sharded(tensor: torch.Tensor, mesh: Any, placements: tuple[Placement, ...]) -> DTensor:
    fitting = [p if p.is_replicate() or p.dim < tensor.dim() else Replicate() for p in placements]
    return distribute_tensor(tensor, mesh, fitting, src_data_rank=None)


def boxes_of_dtensors(rank: int) -> int:
    checked = 0
    choices = [Shard(0), Shard(1), Replicate(), _StridedShard(0, split_factor=2), _StridedShard(1, split_factor=3)]
    for mesh_shape in ((4,), (2, 2), (1, 4)):
        mesh = init_device_mesh("cpu", mesh_shape)
        for shape in ((8, 12, 2), (5, 7), (3, 1)):
            whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
            for placements in itertools.product(choices, repeat=len(mesh_shape)):
                tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
                placed = place(tensor)
                assert placed.shape == shape
                assert sum(part.tensor.numel() for part in placed.parts) == tensor.to_local().numel()
                for part in placed.parts:
                    assert torch.equal(part.tensor, whole[tuple(slice(a, b) for a, b in part.box)]), placements
                    assert not part.tensor.numel() or part.tensor.untyped_storage().data_ptr() == (
                        tensor.to_local().untyped_storage().data_ptr()
                    )
                checked += 1
    return checked


def boxes_of_fsdp_and_tensor_parallel(rank: int) -> list[Any]:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found = []
    for rows, columns in ((12, 20), (10, 6), (7, 9), (3, 5)):
        model = torch.nn.Sequential(torch.nn.Linear(rows, columns), torch.nn.Linear(columns, rows))
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) + 1000 * number)
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        fully_shard(model, mesh=mesh["dp"])
        for parameter in model.parameters():
            parts = [(part.box, part.tensor.tolist()) for part in place(parameter).parts]
            found.append((tuple(parameter.shape), parts))
    return found


def through(rank: int, size: int, checkpoint: Path, out: Path) -> dict[str, dict[str, int]]:
    expected = native_state(checkpoint)
    reports = {}
    for name, (_, mesh_shape, placements) in of_size(size).items():
        mesh = init_device_mesh("cpu", mesh_shape)
        state: dict[str, Any] = {key: sharded(tensor, mesh, placements) for key, tensor in blank(expected).items()}
        loaded = crosswalk.load(checkpoint, state, "llama")
        for key, tensor in state.items():
            for part in place(tensor).parts:
                assert torch.equal(part.tensor, expected[key][tuple(slice(a, b) for a, b in part.box)]), (name, key)
        assert_equal({key: tensor.full_tensor() for key, tensor in state.items()}, expected)
        options: dict[str, Any] = {"format": "llama", "max_shard_size": "100KB"}
        report = crosswalk.save(state, loaded.config, out / f"{name}-blocking", **options)
        future = crosswalk.save(state, loaded.config, out / f"{name}-later", blocking=False, **options)
        for tensor in state.values():
            tensor.to_local().zero_()
        assert future.result().bytes_written == report.bytes_written
        reports[name] = {
            "held": loaded.report.bytes_held,
            "read": loaded.report.bytes_read,
            "written": report.bytes_written,
            "size": sum(tensor.to_local().nbytes for tensor in state.values()),
        }
    return reports


def of_size(size: int) -> dict[str, tuple[int, tuple[int, ...], tuple[Placement, ...]]]:
    return {name: mesh for name, mesh in MESHES.items() if mesh[0] == size}


def bytes_of_rows(rank: int, checkpoint: Path) -> tuple[int, int]:
    mesh = init_device_mesh("cpu", (4,))
    state: dict[str, Any] = {}
    for key, tensor in blank(native_state(checkpoint)).items():
        # The rows of a transposed parameter are columns of the file.
        along = 1 if key.endswith("layer_2.weight") else 0
        state[key] = distribute_tensor(tensor, mesh, [Shard(along)], src_data_rank=None)
    report = crosswalk.load(checkpoint, state, "llama").report
    return report.bytes_read, sum(tensor.to_local().nbytes for tensor in state.values())


def fsdp_from_meta(rank: int, checkpoint: Path, out: Path) -> tuple[str, ...]:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    expected = native_state(checkpoint)
    model = Tree(blank(expected, device="meta"))
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.decoder.children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loaded = crosswalk.load(checkpoint, model, "llama")
    assert_equal({key: value.full_tensor() for key, value in model.state_dict().items()}, expected)
    model.unshard()
    assert torch.equal(model.head.output_weights, expected["head.output_weights"])
    model.reshard()
    streamed = dict(itertools.chain.from_iterable(crosswalk.stream(model, loaded.config, "llama", 20_000)))
    assert_equal(streamed, load_file(checkpoint / "model.safetensors"))
    crosswalk.save(model, loaded.config, out, "llama", max_shard_size="100KB")
    flat = FullyShardedDataParallel(Tree(blank(expected)), device_id=torch.device("cpu"))
    refused = refusal(lambda: crosswalk.load(checkpoint, flat, "llama"))
    assert "parts of flat ones: use fully_shard" in refused, refused
    assert "[live/not-owned]" in refused, refused
    return loaded.report.materialized


def dcp(rank: int, checkpoint: Path, out: Path) -> list[str]:
    import torch.distributed.checkpoint as dcp

    expected = native_state(checkpoint)
    mesh = init_device_mesh("cpu", (2, 2))
    state: dict[str, Any] = {key: sharded(t, mesh, (Shard(0), Shard(1))) for key, t in blank(expected).items()}
    dcp.load(state, storage_reader=crosswalk.reader(checkpoint, "llama"))
    assert_equal({key: tensor.full_tensor() for key, tensor in state.items()}, expected)
    config = crosswalk.load(checkpoint, state, "llama").config
    dcp.save(state, storage_writer=crosswalk.writer(out, config, "llama", max_shard_size="100KB"))
    # Of a shard in several boxes, the planners know only the first element.
    placements = (_StridedShard(0, split_factor=3), Replicate())
    name = "embeddings.word_embeddings_weight"
    state[name] = sharded(torch.zeros(97, 48), mesh, placements)
    terms = DTensor.from_local(torch.zeros(97, 48), mesh, [Partial(), Replicate()])
    return [
        refusal(lambda: crosswalk.load(checkpoint, {**state, name: terms}, "llama")),
        refusal(lambda: dcp.load(state, storage_reader=crosswalk.reader(checkpoint, "llama"))),
        refusal(lambda: dcp.save(state, storage_writer=crosswalk.writer(out.with_name("no"), config, "llama"))),
    ]


def refusal(action: Callable[[], Any]) -> str:
    try:
        action()
    except BaseException as error:  # what torch.distributed.checkpoint raises is no Exception
        return str(error)
    return "nothing was refused"


def by_rows(checkpoint: Path, size: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (size,))
    return {key: sharded(tensor, mesh, (Shard(0),)) for key, tensor in native_state(checkpoint).items()}


def disk_full(rank: int, checkpoint: Path, out: Path, blocking: bool) -> None:
    state = by_rows(checkpoint, 2)
    config = crosswalk.load(checkpoint, state, "llama").config
    if rank == 1:
        pwrite = os.pwrite
        calls = itertools.count()

        def failing(descriptor: int, data: Any, offset: int) -> int:
            if next(calls) == 5:
                raise OSError(28, "No space left on device")
            return pwrite(descriptor, data, offset)

        os.pwrite = failing
    done = crosswalk.save(state, config, out, "llama", blocking=blocking, timeout=20)
    if not blocking:
        done.result()


def dies(rank: int, checkpoint: Path, out: Path) -> tuple[str, float]:
    state = by_rows(checkpoint, 3)
    config = crosswalk.load(checkpoint, state, "llama", timeout=5).config
    if rank == 1:
        os.pwrite = lambda *_: os._exit(9)
    started = time.monotonic()
    try:
        crosswalk.save(state, config, out, "llama", timeout=5)
    except CrosswalkError as error:
        return error.diagnostics[0].code, time.monotonic() - started
    return "saved", 0.0


def absent(rank: int, checkpoint: Path) -> str:
    state = by_rows(checkpoint, 2)
    crosswalk.load(checkpoint, state, "llama", timeout=2)
    if rank == 1:
        time.sleep(4)
        return "elsewhere"
    try:
        crosswalk.load(checkpoint, state, "llama", timeout=2)
    except CrosswalkError as error:
        return error.diagnostics[0].code
    return "loaded"


def different(rank: int, checkpoint: Path, out: Path, what: str) -> None:
    state = by_rows(checkpoint, 2)
    config = dict(crosswalk.load(checkpoint, state, "llama").config)
    options: dict[str, Any] = {}
    if what == "config" and rank == 1:
        config["head"] = {**config["head"], "normalization": {**config["head"]["normalization"], "epsilon": 1e-6}}
    if what == "dtype" and rank == 1:
        options["dtype"] = "bfloat16"
    if what == "shard" and rank == 1:
        options["max_shard_size"] = "100KB"
    if what == "destination" and rank == 1:
        out = out.with_name("elsewhere")
    if what == "parameter" and rank == 1:
        del state["decoder.1.norm_2.weight"]
    if what == "mesh":
        # Sharded over ranks that do not all take part.
        group = torch.distributed.new_group([0])
        if rank == 0:
            crosswalk.save(state, config, out, "llama", group=group, timeout=10)
        raise CrosswalkError([])
    crosswalk.save(state, config, out, "llama", timeout=10, **options)


def loaded_as(rank: int, size: int, checkpoint: Path, plain: Path) -> list[str]:
    """Load ``checkpoint`` into every mesh of this size; it must be what stands in the files of ``plain``."""
    expected = native_state(plain)
    for name, (_, mesh_shape, placements) in of_size(size).items():
        mesh = init_device_mesh("cpu", mesh_shape)
        state: dict[str, Any] = {key: sharded(tensor, mesh, placements) for key, tensor in blank(expected).items()}
        crosswalk.load(checkpoint, state, "llama")
        for key, tensor in state.items():
            for part in place(tensor).parts:
                assert torch.equal(part.tensor, expected[key][tuple(slice(a, b) for a, b in part.box)]), (name, key)
    return list(of_size(size))


def ties_are_compared(rank: int, plan: str, checkpoint: Path) -> list[float]:
    """Load the only target of a plan, which is a vector."""
    read = Plan.from_json(plan)
    (target,) = read.targets
    state = {target.name: torch.zeros(target.shape)}
    live.load(read, open_checkpoint(checkpoint), state, team())
    return state[target.name].tolist()
