"""What inference engines and trainers take of a publisher, in their own forms, is the checkpoint."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import consumers
import publisher_cases as cases
import pytest
import torch
from native_llama import LLAMA, native_state
from oracles import make_checkpoint

import crosswalk
from crosswalk.publish import checkpoint_engine, folders, sglang, verl, vllm
from crosswalk.publish.publisher import ModelPublisher
from crosswalk.runtime.errors import CrosswalkError

NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.fixture(autouse=True)
def packages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        consumers.install(patch)
        yield


@pytest.fixture
def state(tmp_path: Path) -> dict[str, torch.Tensor]:
    make_checkpoint(tmp_path / "hf", LLAMA)
    return native_state(tmp_path / "hf")


@pytest.fixture
def publisher(state: dict[str, torch.Tensor], tmp_path: Path) -> ModelPublisher:
    """Of two dtypes, in several buckets."""
    loaded = crosswalk.load(tmp_path / "hf", state)
    return crosswalk.publisher(state, loaded, dtype={"*norm*": "float32", "*": "bfloat16"}, bucket_bytes=20_000)


def published(publisher: ModelPublisher) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for bucket in publisher.buckets() for name, tensor in bucket}


def step(state: dict[str, torch.Tensor]) -> None:
    """A few elements change, one of them to no number, and all of one tensor."""
    for name, tensor in state.items():
        tensor.view(-1)[3] += 0.5
        if name.endswith("mlp.layer_1.weight"):
            tensor.mul_(2)
    state["decoder.1.norm_2.weight"][5] = math.nan


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.equal(cases.bits(found[name]), cases.bits(expected[name])) for name in expected)


def test_vllm(publisher: ModelPublisher, state: dict[str, torch.Tensor]) -> None:
    source = vllm.source(publisher)
    assert isinstance(source, consumers.WeightSource)
    assert source.implements_iter_full()
    assert source.metadata is source.metadata
    described = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata]
    assert [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source.iter_full()] == described
    engine, snapshot = published(publisher), publisher.snapshot()
    step(state)
    sparse, whole = vllm.patches(publisher.delta(snapshot))
    assert NORM in dict(whole)
    for patch in sparse:
        consumers.apply_sparse(engine, patch)
    engine |= {name: tensor.clone() for name, tensor in whole}
    assert same(engine, published(publisher))


def test_sglang(publisher: ModelPublisher) -> None:
    found: dict[str, torch.Tensor] = {}
    for bucket in publisher.packed():
        described = sglang.described(bucket)
        assert described["load_format"] == "flattened_bucket"
        found |= consumers.cut(described, bucket.buffer)
        flattened = sglang.flattened(bucket)
        for meta, (name, tensor) in zip(flattened["metadata"], bucket.named(), strict=True):
            piece = flattened["flattened_tensor"][meta.start_idx : meta.end_idx]
            assert (meta.name, meta.numel) == (name, piece.numel())
            assert torch.equal(piece.view(meta.dtype).reshape(meta.shape), tensor)
    assert same(found, published(publisher))


def test_checkpoint_engine(publisher: ModelPublisher) -> None:
    server = consumers.ParameterServer()
    checkpoint_engine.register(server, "step-3", publisher, use_shared_memory_pool=True)
    assert same(server.registered["step-3"], published(publisher))


def test_verl(publisher: ModelPublisher, state: dict[str, torch.Tensor]) -> None:
    pairs, adapter = verl.per_tensor_param(publisher)
    assert adapter is None
    engine, snapshot = {name: tensor.clone() for name, tensor in pairs}, publisher.snapshot()
    step(state)
    entries, _ = verl.delta_shard(publisher.delta(snapshot))
    seen: list[str] = []
    for slots, dtype, counts, indices, values, _ in entries:
        assert (counts.dtype, indices.dtype, str(values.dtype)) == (torch.int64, torch.int32, f"torch.{dtype}")
        seen += [name for name, _ in slots]
        for (name, _), places, new in zip(
            slots, indices.split(counts.tolist()), values.split(counts.tolist()), strict=True
        ):
            engine[name].view(-1)[places.long()] = new
    assert sorted(seen) == sorted(engine)
    assert same(engine, published(publisher))


@pytest.mark.parametrize("spelling", ["slime", "skyrl"])
def test_folders_of_changes(
    spelling: str, publisher: ModelPublisher, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """One after the other, onto the version before; a folder that no receiver took is not the base of the next."""
    write: Any = getattr(folders, spelling)
    apply = consumers.apply_slime if spelling == "slime" else consumers.apply_skyrl
    sum_ = "adler32" if spelling == "slime" else "sha256"
    engine, snapshot = published(publisher), publisher.snapshot()
    step(state)
    write(publisher.delta(snapshot), tmp_path / "refused", 1, sum_)
    state["head.final_norm.weight"][0] += 1
    for version in (1, 2, 3):
        delta = publisher.delta(snapshot)
        assert write(delta, tmp_path / "out", version, sum_).parent == tmp_path / "out"
        changed = apply(tmp_path / "out", engine, version)
        delta.commit()
        assert same(engine, published(publisher))
        state["head.final_norm.weight"][version] += 1
        assert (len(changed) > 10) == (version == 1)
    with pytest.raises(CrosswalkError) as caught:
        write(publisher.delta(snapshot), tmp_path / "out", 4, "crc32")
    assert [d.code for d in caught.value.diagnostics] == ["publisher/checksum"]


def test_adapters_are_as_short_as_documented() -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs" / "publishing.md").read_text()
    found = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| (\d+) \|", text, re.MULTILINE))
    modules = {path.stem: path for path in (root / "crosswalk" / "publish").glob("*.py")}
    assert found.keys() == modules.keys() - {"__init__", "publisher"}
    assert found == {name: str(len(modules[name].read_text().splitlines())) for name in found}
    assert max(map(int, found.values())) <= 80


def test_a_package_that_is_missing_is_named(publisher: ModelPublisher, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "zstandard", None)
        with pytest.raises(CrosswalkError, match="needs the package `zstandard`") as caught:
            folders.slime(publisher.delta(publisher.snapshot()), tmp_path, 1)
    assert [d.code for d in caught.value.diagnostics] == ["publisher/package"]
    assert list(itertools.islice(tmp_path.iterdir(), 1)) == [tmp_path / "hf"]
