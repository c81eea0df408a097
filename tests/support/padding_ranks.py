"""What ranks do in the tests of padded models. In a module of its own, since every rank imports it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from native_llama import assert_equal, blank, native_state
from rank_cases import of_size, refusal, sharded
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import crosswalk
from crosswalk.runtime.training.placement import Shards, place

#: Of a vocabulary of 97: the last of four ranks holds one row of it, or two ranks hold none.
MULTIPLES = (128, 200)
VOCABULARY = ("embeddings.word_embeddings_weight", "head.output_weights")


def padded_state(checkpoint: Path, size: int) -> dict[str, torch.Tensor]:
    """The native tensors, made by hand, with rows of zeros up to ``size``."""
    state = native_state(checkpoint)
    for name in VOCABULARY:
        if name in state:
            state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, size - state[name].shape[0]))
    return state


def spoiled(state: dict[str, Any]) -> dict[str, Any]:
    """The padding as training may leave it."""
    for name in VOCABULARY:
        if name in state:
            for part in place(state[name]).parts:
                start, _ = part.box[0]
                part.tensor[max(0, 97 - start) :] = torch.nan
    return state


def through(rank: int, size: int, checkpoint: Path, out: Path) -> dict[str, tuple[int, int, int]]:
    """Into every sharding and out of it, every way there is; what was held, read and written by mesh."""
    reports = {}
    for (name, (_, mesh_shape, placements)), multiple in itertools.product(of_size(size).items(), MULTIPLES):
        mesh = init_device_mesh("cpu", mesh_shape)
        expected = padded_state(checkpoint, multiple)
        state: dict[str, Any] = {key: sharded(tensor, mesh, placements) for key, tensor in blank(expected).items()}
        loaded = crosswalk.load(checkpoint, state, "llama", pad={"vocab": multiple})
        assert loaded.truncate == {"vocab": 97}
        for key, tensor in state.items():
            for part in place(tensor).parts:
                assert torch.equal(part.tensor, expected[key][tuple(slice(a, b) for a, b in part.box)]), (name, key)
        spoiled(state)
        options: dict[str, Any] = {"format": "llama", "truncate": loaded.truncate}
        written = crosswalk.save(state, loaded.config, out / f"{name}-{multiple}", max_shard_size="100KB", **options)
        future = crosswalk.save(
            state, loaded.config, out / f"{name}-{multiple}-later", max_shard_size="100KB", blocking=False, **options
        )
        streamed = dict(itertools.chain.from_iterable(crosswalk.stream(state, loaded.config, "llama", 20_000,
                                                                       truncate=loaded.truncate)))  # fmt: skip
        assert_equal(streamed, load_file(checkpoint / "model.safetensors"))
        assert future.result().bytes_written == written.bytes_written
        reports[f"{name}-{multiple}"] = (loaded.report.bytes_held, loaded.report.bytes_read, written.bytes_written)
    return reports


def plugged_in(rank: int, checkpoint: Path, out: Path) -> str:
    """The same through torch.distributed.checkpoint."""
    mesh = init_device_mesh("cpu", (2, 2))
    expected = padded_state(checkpoint, 128)
    state: dict[str, Any] = {key: sharded(t, mesh, (Shard(0), Shard(1))) for key, t in blank(expected).items()}
    dcp.load(state, storage_reader=crosswalk.reader(checkpoint, "llama", pad={"vocab": 128}))
    assert_equal({key: tensor.full_tensor() for key, tensor in state.items()}, expected)
    config = crosswalk.load(checkpoint, state, "llama", pad={"vocab": 128}).config
    spoiled(state)
    options: dict[str, Any] = {"max_shard_size": "100KB", "truncate": {"vocab": 97}}
    dcp.save(state, storage_writer=crosswalk.writer(out, config, "llama", **options))
    return refusal(lambda: dcp.load(state, storage_reader=crosswalk.reader(checkpoint, "llama")))


def in_two_intervals(rank: int, checkpoint: Path, out: Path) -> int:
    """Rows that are no ``DTensor``: every rank has some of both halves of the vocabulary."""
    expected = padded_state(checkpoint, 128)
    state: dict[str, Any] = blank(expected)
    for name in VOCABULARY:
        width = expected[name].shape[1]
        rows = [(16 * rank, 16 * rank + 16), (64 + 16 * rank, 80 + 16 * rank)]
        local = torch.full((32, width), torch.nan)
        state[name] = Shards.of_intervals((128, width), [rows, [(0, width)]], local)
    loaded = crosswalk.load(checkpoint, state, "llama", pad={"vocab": 128})
    for name in VOCABULARY:
        for box, part in state[name].parts:
            assert torch.equal(part, expected[name][tuple(slice(a, b) for a, b in box)])
    spoiled(state)
    streamed = crosswalk.stream(state, loaded.config, "llama", 20_000, truncate=loaded.truncate)
    assert_equal(dict(itertools.chain.from_iterable(streamed)), load_file(checkpoint / "model.safetensors"))
    options: dict[str, Any] = {"max_shard_size": "100KB", "truncate": loaded.truncate}
    return crosswalk.save(state, loaded.config, out, "llama", **options).bytes_written


def with_different_sizes(rank: int, checkpoint: Path, out: Path) -> None:
    state: dict[str, Any] = padded_state(checkpoint, 128)
    config = crosswalk.load(checkpoint, state, "llama", pad={"vocab": 128}).config
    crosswalk.save(state, config, out, "llama", timeout=10, truncate={"vocab": 97 + rank})
