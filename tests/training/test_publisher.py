"""Publishing a live model over and over: to all ranks, to some, packed, shared out; what is refused, and when."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import publisher_cases as cases
import pytest
import torch
from native_llama import LLAMA, Tree, native_state
from oracles import make_checkpoint
from ranks import Failed, run_ranks
from safetensors.torch import load_file
from small_checkpoints import MIXTRAL

import crosswalk
from crosswalk.jobs import train as jobs
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import Plan

PLACEMENTS = ("rows", "fsdp-tp", "hybrid", "columns", "by hand", "stages")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "hf"
    make_checkpoint(path, LLAMA)
    return path


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixtral") / "hf"
    make_checkpoint(path, MIXTRAL)
    return path


def results(size: int, function: Any, *arguments: Any) -> list[Any]:
    found = run_ranks(size, function, *arguments, limit=300)
    failures = [result.text for result in found if isinstance(result, Failed)]
    assert not failures, "\n".join(failures)
    return found


def test_every_way_to_publish_gives_the_checkpoint(mixtral: Path) -> None:
    """And to one rank go only the bytes that it lacks; the others receive nothing, and send no more than they have."""
    every = results(4, cases.ways, mixtral, PLACEMENTS)
    for kind in PLACEMENTS:
        found = [ranks[kind] for ranks in every]
        for result in found:
            assert result["wrong"] == [], kind
        if kind in ("rows", "hybrid"):
            assert found[0]["chunks"] > 10
        received = [result["bytes"][0] for result in found]
        assert received == [found[0]["model"] - found[0]["held"], 0, 0, 0], kind
        assert all(result["bytes"][1] <= result["held"] for result in found), kind


def test_a_group_publishes_to_its_own_first_rank(llama: Path) -> None:
    assert results(3, cases.in_a_group, llama) == [[], [], []]


def test_what_one_rank_finds_all_ranks_refuse(llama: Path) -> None:
    found = results(2, cases.refused, llama)
    stale, wrong, rank, dtype, again = found[0]
    assert found[0] == found[1]
    assert (stale, rank, dtype, again) == (["publisher/stale"], ["publisher/rank"], ["publisher/dtype"], [])
    assert wrong == ["live/differs"]


def test_moved_memory_is_followed_and_another_model_is_refused(llama: Path) -> None:
    expected = load_file(llama / "model.safetensors")
    model = Tree(native_state(llama))
    loaded = crosswalk.load(llama, model)
    publisher = crosswalk.publisher(model, loaded)
    before = publisher.digest
    parameter = model.decoder.get_submodule("1").norm_2.weight
    parameter.data = parameter.data.clone().mul_(3)
    found = dict(itertools.chain.from_iterable(publisher.buckets()))
    changed = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert changed == ["model.layers.1.post_attention_layernorm.weight"]
    assert torch.equal(found[changed[0]], expected[changed[0]] * 3)
    assert publisher.digest == before
    parameter.data = parameter.data.to(torch.float64)
    with pytest.raises(CrosswalkError, match=r"decoder.1.norm_2.weight.* another dtype") as caught:
        publisher.buckets()
    assert [d.code for d in caught.value.diagnostics] == ["publisher/stale"]


def test_dtypes_by_name_and_a_part_of_the_names(llama: Path) -> None:
    expected = load_file(llama / "model.safetensors")
    state = native_state(llama)
    loaded = crosswalk.load(llama, state)
    policy = {"*norm.weight": "float32", "model.layers.1.*": "float16", "*": "bfloat16"}
    publisher = crosswalk.publisher(state, loaded, dtype=policy, only=["model.layers.*", "model.norm.weight"])
    found = dict(itertools.chain.from_iterable(publisher.buckets()))
    assert sorted(found) == sorted(name for name in expected if name.startswith(("model.layers.", "model.norm.")))
    for name, tensor in found.items():
        dtype = torch.float16 if name.startswith("model.layers.1.") else torch.bfloat16
        dtype = torch.float32 if name == "model.norm.weight" or name.endswith("layernorm.weight") else dtype
        assert tensor.dtype == dtype, name
        assert torch.equal(tensor, expected[name].to(dtype)), name
    for options, code in (
        ({"only": "lm_haed.*"}, "publisher/only"),
        ({"only": [3]}, "publisher/only"),
        ({"dtype": {"*.bias": "float16"}}, "publisher/dtype"),
    ):
        with pytest.raises(CrosswalkError) as caught:
            crosswalk.publisher(state, loaded, **options)
        assert [d.code for d in caught.value.diagnostics] == [code]
    for align in (0, "256"):
        with pytest.raises(CrosswalkError, match=rf"`align` is {align} \[publisher/align\]"):
            publisher.packed(align=align)
    for to in ("0", [], [0, None], 1):
        with pytest.raises(CrosswalkError, match=r"\[publisher/rank\]"):
            publisher.buckets(to=to)
    with pytest.raises(CrosswalkError, match=r"`none` is no size \[usage/size\]"):
        crosswalk.publisher(state, loaded, bucket_bytes="none")


def test_tensors_can_be_cut_out_of_a_buffer_without_padding(llama: Path) -> None:
    """As vLLM and SGLang do: an odd number of 16-bit elements comes before nothing that is wider."""
    state = native_state(llama)
    loaded = crosswalk.load(llama, state)
    odd = "model.embed_tokens.weight"
    publisher = crosswalk.publisher(state, loaded, dtype={odd: "bfloat16", "*norm*": "float64"}, bucket_bytes=1 << 30)
    (bucket,) = publisher.packed()
    flat = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in bucket.named()])
    assert torch.equal(flat, bucket.buffer)
    start = 0
    for name, dtype, shape in publisher.metadata:
        stop = start + torch.Size(shape).numel() * dtype.itemsize
        assert flat[start:stop].view(dtype).view(shape).dtype == dtype, name
        start = stop
    layers = [name.split(".")[2] for name, _, _ in publisher.metadata if name.startswith("model.layers.")]
    assert layers == sorted(layers)
    (spread,) = publisher.packed(align=3)  # and a multiple of what each dtype needs
    assert all(start % math.lcm(3, one.dtype.itemsize) == 0 for one, start in zip(*spread[1:], strict=True))
    whole = dict(bucket.named())
    assert all(torch.equal(tensor, whole[name]) for name, tensor in spread.named())


def test_what_does_not_depend_on_values_is_found_once(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further round reads values, and proves and plans nothing anew."""
    state = native_state(llama)
    loaded = crosswalk.load(llama, state)
    publisher = crosswalk.publisher(state, loaded, bucket_bytes=20_000)

    def again(*arguments: object, **named: object) -> None:
        raise AssertionError("planned anew")

    for function in ("locate", "in_buckets", "publishing_order", "table"):
        monkeypatch.setattr(f"crosswalk.runtime.publishing.publisher.{function}", again)
    monkeypatch.setattr(Plan, "verify", again)
    monkeypatch.setattr(jobs, "export_checkpoint", again)
    expected = load_file(llama / "model.safetensors")
    for factor in (2, 3):
        for tensors in (state, expected):
            for tensor in tensors.values():
                tensor.mul_(factor)
        assert cases.differences(dict(itertools.chain.from_iterable(publisher.buckets())), expected) == []


def test_a_publisher_writes_what_it_publishes(llama: Path, tmp_path: Path) -> None:
    state = native_state(llama)
    loaded = crosswalk.load(llama, state)
    publisher = crosswalk.publisher(state, loaded, dtype={"*": "bfloat16"})
    publisher.save(tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert cases.differences(found, dict(itertools.chain.from_iterable(publisher.buckets()))) == []


def test_tied_tensors_under_every_name_that_the_class_has(tmp_path: Path) -> None:
    """For receivers that keep them apart; files have them once all the same."""
    make_checkpoint(tmp_path / "hf", {**LLAMA, "tie_word_embeddings": True})
    state = native_state(tmp_path / "hf")
    loaded = crosswalk.load(tmp_path / "hf", state)
    assert "lm_head.weight" not in {one.name for one in crosswalk.publisher(state, loaded).metadata}
    policy = {"lm_head.weight": "float32", "*": "bfloat16"}
    publisher = crosswalk.publisher(state, loaded, ties="both", dtype=policy)
    owner = "model.embed_tokens.weight"
    expected = load_file(tmp_path / "hf" / "model.safetensors")
    expected = {name: tensor.bfloat16() for name, tensor in expected.items()} | {"lm_head.weight": expected[owner]}
    assert cases.differences(dict(itertools.chain.from_iterable(publisher.buckets())), expected) == []
    assert [(one.name, one.dtype) for one in publisher.metadata if one.name == "lm_head.weight"] == [
        ("lm_head.weight", torch.float32)
    ]
    snapshot = publisher.snapshot()
    state["embeddings.word_embeddings_weight"][3, 5] = 8.0
    patches = {patch.name: patch for patch in publisher.delta(snapshot).patches()}
    assert {name: patch.values.tolist() for name, patch in patches.items()} == {owner: [8.0], "lm_head.weight": [8.0]}
    assert torch.equal(patches[owner].indices, patches["lm_head.weight"].indices)
    publisher.save(tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(expected) - {"lm_head.weight"}
    with pytest.raises(CrosswalkError, match=r"`ties` is `twice` \[publisher/ties\]"):
        crosswalk.publisher(state, loaded, ties="twice")
