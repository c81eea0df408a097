"""What has changed of a live model, sent as patches: equal, bit for bit, to sending all of it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import publisher_cases as cases
import pytest
import torch
from native_llama import LLAMA, native_state
from oracles import make_checkpoint
from ranks import Failed, run_ranks

import crosswalk
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import TensorSpec, make_plan
from crosswalk.runtime.publishing.delta import Snapshot
from crosswalk.runtime.publishing.publisher import Publisher
from crosswalk.runtime.training.ranks import team

FORMATS = ("llama", "torchtitan_llama3", "megatron_llama")
PLACEMENTS = {1: ("one",), 4: ("rows", "fsdp-tp", "hybrid", "columns", "by hand", "stages")}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "hf"
    make_checkpoint(path, LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 23456.0}})
    return path


@pytest.mark.parametrize("size", PLACEMENTS)
def test_patches_equal_what_is_published(size: int, llama: Path) -> None:
    """For three layouts, and after steps that change nothing, one element, some, half of them, or all."""
    for found in run_ranks(size, cases.deltas, llama, FORMATS, PLACEMENTS[size], limit=300):
        assert not isinstance(found, Failed), found.text
        assert found == []


def test_a_process_that_is_killed_between_delta_and_commit(llama: Path) -> None:
    """Nobody commits; the job that comes back sends all of it once, whatever the receivers have taken by then."""
    first, second = run_ranks(2, cases.killed, llama)
    assert second is None
    assert not isinstance(first, Failed), first.text
    assert (first["codes"], first["kept"]) == (["distributed/lost"], True)
    assert run_ranks(2, cases.restarted, llama, first["engine"]) == [[], []]


def identity(state: dict[str, torch.Tensor], dtypes: dict[str, str]) -> Publisher:
    """A publisher of tensors under their own names."""
    specs = [TensorSpec(name, tuple(tensor.shape), dtypes[name]) for name, tensor in state.items()]
    copies = [(s.name, s.name, (s.elements,), 0, (1,), 0, (1,), 0) for s in specs]
    return Publisher(make_plan(specs, specs, copies), state, team(None, 60), 1 << 30)


def test_what_cannot_be_patched_is_sent_whole() -> None:
    state: dict[str, Any] = {
        "floats": torch.arange(100, dtype=torch.bfloat16),
        "nan": torch.arange(100, dtype=torch.bfloat16),
        "numbers": torch.arange(100),
        "many": torch.arange(99, dtype=torch.bfloat16),
        "composed.A_log": torch.arange(100, dtype=torch.float32),
        "zero": torch.zeros(100),
        "same": torch.full((100,), math.nan),
    }
    kinds = {torch.bfloat16: "BF16", torch.int64: "I64", torch.float32: "F32"}
    snapshot = Snapshot(identity(state, {name: kinds[tensor.dtype] for name, tensor in state.items()}))
    state["floats"][[3, 70]] = 0.5
    state["nan"][5] = math.nan
    state["numbers"][7] = -1
    state["many"][:33] = 0.25
    state["composed.A_log"][9] = 1.0
    state["zero"][4] = -0.0
    patches = {patch.name: patch for patch in snapshot.delta(dense="*.A_log").patches()}
    assert {name for name, patch in patches.items() if patch.indices is None} == {
        "nan", "numbers", "many", "composed.A_log"
    }  # fmt: skip
    assert set(patches) == set(state) - {"same"}
    assert patches["floats"].indices.tolist() == [3, 70]
    assert (patches["zero"].indices.tolist(), math.copysign(1, patches["zero"].values[0])) == ([4], -1)
    for name, patch in patches.items():
        if patch.indices is None:
            assert torch.equal(cases.bits(patch.values), cases.bits(state[name])), name


def test_elements_that_32_bits_cannot_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches have them whole; what can only be said element by element is refused."""
    monkeypatch.setattr("crosswalk.runtime.publishing.delta._NARROW", 100)
    state: dict[str, Any] = {"small": torch.zeros(99), "large": torch.zeros(100)}
    snapshot = Snapshot(identity(state, dict.fromkeys(state, "F32")))
    for tensor in state.values():
        tensor[7] = 1.0
    assert {p.name: p.indices is None for p in snapshot.delta().patches()} == {"small": False, "large": True}
    for method in ("rows", "replaced"):
        with pytest.raises(CrosswalkError, match="`large`") as caught:
            getattr(snapshot.delta(), method)()
        assert [d.code for d in caught.value.diagnostics] == ["delta/large"]


def test_a_delta_is_committed_when_all_of_it_was_used(llama: Path) -> None:
    state = native_state(llama)
    publisher = crosswalk.publisher(state, crosswalk.load(llama, state), bucket_bytes=20_000)
    snapshot = publisher.snapshot()
    state["head.final_norm.weight"][3] = 8.0
    state["embeddings.word_embeddings_weight"][0, 5] = 9.0
    delta = publisher.delta(snapshot)
    next(delta.patches())
    with pytest.raises(CrosswalkError) as caught:
        delta.commit()
    assert [d.code for d in caught.value.diagnostics] == ["delta/unfinished"]
    half = crosswalk.publisher(state, crosswalk.load(llama, native_state(llama))).snapshot().delta()
    state["head.final_norm.weight"][3] += 1
    state["embeddings.word_embeddings_weight"][0, 5] += 1
    next(half.patches())  # of two in one bucket
    with pytest.raises(CrosswalkError):
        half.commit()
    assert len(list(delta.patches())) == 2
    state["head.final_norm.weight"][3] = 7.0  # the next step, before the receivers have answered
    delta.commit()
    (patch,) = publisher.delta(snapshot).patches()
    assert (patch.name, patch.indices.tolist(), patch.values.tolist()) == ("model.norm.weight", [3], [7.0])


@pytest.mark.parametrize("format", FORMATS)
def test_elements_are_located(format: str, llama: Path) -> None:
    """Each element of each parameter is found in the tensor that has its value, in whatever order one asks."""
    _, state = cases.loaded_alone(llama, format)
    numbered = dict(
        zip(
            state,
            torch.arange(sum(t.numel() for t in state.values())).split([t.numel() for t in state.values()]),
            strict=True,
        )
    )
    model = {name: numbered[name].view(tensor.shape).float() for name, tensor in state.items()}
    publisher = crosswalk.publisher(model, crosswalk.load(llama, state, format))
    published = dict(itertools.chain.from_iterable(publisher.buckets()))
    for name, tensor in model.items():
        for indices in (
            torch.arange(tensor.numel()),
            torch.randperm(tensor.numel()),
            torch.tensor([3], dtype=torch.int32),
        ):
            seen = 0
            for target, positions, found in publisher.locate(name, indices):
                assert torch.equal(
                    published[target].reshape(-1)[found.long()], tensor.view(-1)[indices[positions].long()]
                )
                seen += found.numel()
            assert seen == indices.numel()
    with pytest.raises(CrosswalkError, match=r"no parameter `lm_haed`.*\[publisher/locate\]"):
        publisher.locate("lm_haed", torch.arange(3))


def test_only_elements_are_located(llama: Path) -> None:
    """Numbers that a rank does not hold, or that are no flat ones, are refused; narrow ones are made wide."""
    loaded, state = cases.loaded_alone(llama, FORMATS[0])
    publisher = crosswalk.publisher(state, loaded)
    name = next(name for name, tensor in state.items() if tensor.numel() > 300)
    count = state[name].numel()
    for wrong in (torch.tensor([2, -1]), torch.tensor([0, count]), [3], torch.tensor([1.5]), torch.ones(2, 3).long()):
        with pytest.raises(CrosswalkError, match=r"\[publisher/locate\]"):
            list(publisher.locate(name, wrong))
    for kind in (torch.uint8, torch.int16, torch.int64):
        (found,) = publisher.locate(name, torch.tensor([7, 100], dtype=kind))
        assert found.indices.tolist() == [7, 100]


def test_the_snapshot_of_another_publisher_is_refused(llama: Path) -> None:
    loaded, state = cases.loaded_alone(llama, FORMATS[0])
    publisher, other = crosswalk.publisher(state, loaded), crosswalk.publisher(state, loaded)
    with pytest.raises(CrosswalkError, match=r"\[publisher/snapshot\]"):
        publisher.delta(other.snapshot())
    with pytest.raises(CrosswalkError, match=r"making a snapshot: .*\[distributed/failed\]"):
        publisher.snapshot("no-device")
