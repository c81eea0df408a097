"""Encoded tensors moved as they are stored: decoding what arrives is what the plan that decodes makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from comparing import same_bytes
from hypothesis import assume, given
from hypothesis import strategies as st

from crosswalk.runtime import execute
from crosswalk.runtime.dtypes import dtype_name
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.encodings import KINDS
from crosswalk.runtime.plan.model import Encoding, Exemption, Plan, RawCopy, TensorSpec, make_plan

Tensors = dict[str, torch.Tensor]


def spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), dtype_name(tensor.dtype))


def encoded(name: str, shape: tuple[int, ...], kind: str, block: tuple[int, ...]) -> tuple[Encoding, Tensors]:
    """Random payload and scales of a tensor, named as the files name them."""
    if kind == "mxfp4":
        groups = (*shape[:-1], shape[-1] // 32)
        payload = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8)
        tensors = {f"{name}_blocks": payload, f"{name}_scales": torch.randint(100, 150, groups, dtype=torch.uint8)}
    else:
        codes = torch.randint(0, 120, shape, dtype=torch.uint8).view(torch.float8_e4m3fn)
        grid = KINDS[kind].grids(shape, block)[-1]
        tensors = {name: codes, f"{name}_scale_inv": torch.rand(grid) + 0.5}
    return Encoding(name, kind, tuple(spec(n, t) for n, t in tensors.items()), block), tensors


def plan_of(
    shapes: Mapping[str, tuple[int, ...]],
    build: Callable[[Tensors], Tensors],
    kind: str = "fp8_blocks",
    block: tuple[int, ...] = (8, 16),
) -> tuple[Plan, Tensors]:
    """A plan that decodes random tensors and rearranges them as ``build`` does; and what is stored."""
    numbers, start = {}, 0
    for name, shape in shapes.items():
        numbers[name] = torch.arange(start, start + math.prod(shape)).view(shape)
        start += math.prod(shape)
    homes = [(name, int(t.flatten()[0]), t.numel()) for name, t in numbers.items()]
    copies: list[RawCopy] = []
    targets = []
    for name, tensor in build(numbers).items():
        targets.append(TensorSpec(name, tuple(tensor.shape), "F32"))
        copies += _copies(name, tensor, homes)
    made = [encoded(name, shape, kind, block) for name, shape in shapes.items()]
    sources = [TensorSpec(name, shape, "F32") for name, shape in shapes.items()]
    stored = {name: tensor for _, tensors in made for name, tensor in tensors.items()}
    return make_plan(sources, targets, copies, encodings=[encoding for encoding, _ in made]), stored


def _copies(name: str, tensor: torch.Tensor, homes: list[tuple[str, int, int]]) -> list[RawCopy]:
    """A copy for each source that a tensor of numbers is made of: a box, whose strides are seen at its corner."""
    result = []
    for source, first, count in homes:
        inside = (tensor >= first) & (tensor < first + count)
        if not inside.any():
            continue
        places = inside.nonzero()
        low, high = places.min(0).values, places.max(0).values
        box = tensor[tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))]
        assert box.numel() == inside.sum(), "no box"
        corner = int(box.flatten()[0])
        steps = tuple(
            int(box.select(axis, 1).flatten()[0]) - corner if size > 1 else 0 for axis, size in enumerate(box.shape)
        )
        start = sum(int(at) * stride for at, stride in zip(low, tensor.contiguous().stride(), strict=True))
        result.append((source, name, tuple(box.shape), corner - first, steps, start, tensor.contiguous().stride(), 0))
    return result


def decode(payload: torch.Tensor, scales: torch.Tensor, block: tuple[int, ...]) -> torch.Tensor:
    """FP8 element by element, with blocks of these sizes along every dimension."""
    index = torch.meshgrid(
        *(torch.arange(size) // width for size, width in zip(payload.shape, block, strict=True)), indexing="ij"
    )
    return payload.float() * scales.view([-(-s // b) for s, b in zip(payload.shape, block, strict=True)])[index]


#: Shapes, what is made of them, and the blocks of the result along its dimensions.
CASES: dict[str, tuple[dict[str, tuple[int, ...]], Callable[[Tensors], Tensors], tuple[int, ...]]] = {
    "renamed": ({"a": (37, 53)}, lambda t: {"out": t["a"]}, (8, 16)),
    "transposed": ({"a": (37, 53)}, lambda t: {"out": t["a"].t()}, (16, 8)),
    "concatenated": ({"a": (40, 53), "b": (37, 53)}, lambda t: {"out": torch.cat([t["a"], t["b"]])}, (8, 16)),
    "side by side": ({"a": (37, 48), "b": (37, 5)}, lambda t: {"out": torch.cat([t["a"], t["b"]], 1)}, (8, 16)),
    "stacked": ({"a": (37, 53), "b": (37, 53)}, lambda t: {"out": torch.stack([t["a"], t["b"]])}, (1, 8, 16)),
    "stacked, transposed": (
        {"a": (37, 53), "b": (37, 53)},
        lambda t: {"out": torch.stack([t["a"].t(), t["b"].t()])},
        (1, 16, 8),
    ),
    "split": ({"a": (56, 53)}, lambda t: {"out": t["a"][:40], "rest": t["a"][40:]}, (8, 16)),
    "unstacked": ({"a": (3, 24, 53)}, lambda t: {"out": t["a"].reshape(72, 53)}, (8, 16)),
    "in heads": ({"a": (72, 53)}, lambda t: {"out": t["a"].view(3, 24, 53)}, (1, 8, 16)),
    "heads in turn": ({"a": (48, 53)}, lambda t: {"out": t["a"].view(2, 24, 53).transpose(0, 1)}, (8, 1, 16)),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_blocks_of_fp8_stay_whole(name: str) -> None:
    torch.manual_seed(0)
    shapes, build, block = CASES[name]
    plan, stored = plan_of(shapes, build)
    kept = plan.keep_encoded()
    assert kept.verify().bijective, kept.verify()
    expected, found = dict(execute(plan, stored)), dict(execute(kept, stored))
    assert found.keys() == {n for target in expected for n in (target, f"{target}_scale_inv")}
    for target, tensor in expected.items():
        assert found[target].dtype == torch.float8_e4m3fn
        assert same_bytes(decode(found[target], found[f"{target}_scale_inv"], block), tensor)
    back = dict(execute(kept.inverse(), found))
    assert back.keys() == stored.keys()
    assert all(same_bytes(back[part], tensor) for part, tensor in stored.items())


@pytest.mark.parametrize("transposed", [False, True])
def test_one_scale_for_each_tensor(transposed: bool) -> None:
    """Two of them side by side are two blocks."""
    plan, stored = plan_of(
        {"a": (7, 5), "b": (7, 5)},
        lambda t: {"out": torch.cat([t["a"].t() if transposed else t["a"], t["b"].t() if transposed else t["b"]])},
        block=(),
    )
    found = dict(execute(plan.keep_encoded(), stored))
    assert found["out_scale_inv"].shape == (2, 1)
    decoded = decode(found["out"], found["out_scale_inv"], (5, 7) if transposed else (7, 5))
    assert same_bytes(decoded, dict(execute(plan, stored))["out"])
    alone, stored = plan_of({"a": (7, 5)}, lambda t: {"out": t["a"].t()}, block=())
    assert dict(execute(alone.keep_encoded(), stored))["out_scale_inv"].shape == (1,)


def test_groups_of_mxfp4_stay_packed() -> None:
    """Experts of which the groups run along the rows, stacked beside others and with rows and groups exchanged."""
    shapes = {"a": (3, 7, 96), "b": (2, 7, 96)}
    plan, stored = plan_of(shapes, lambda t: {"out": torch.cat([t["a"], t["b"]])}, "mxfp4", ())
    found = dict(execute(plan.keep_encoded(), stored))
    assert same_bytes(found["out_blocks"], torch.cat([stored["a_blocks"], stored["b_blocks"]]))
    assert same_bytes(found["out_scales"], torch.cat([stored["a_scales"], stored["b_scales"]]))
    plan, stored = plan_of({"a": (3, 7, 96)}, lambda t: {"out": t["a"].transpose(1, 2)}, "mxfp4", ())
    found = dict(execute(plan.keep_encoded(), stored))
    assert same_bytes(found["out_blocks"], stored["a_blocks"].transpose(1, 2).contiguous())
    assert same_bytes(found["out_scales"], stored["a_scales"].transpose(1, 2).contiguous())


@given(data=st.data())
def test_any_cut_between_blocks(data: st.DataObject) -> None:
    """Rows of several tensors, one below the other and cut again: kept where cuts are between blocks, else refused."""
    heights = data.draw(st.lists(st.integers(2, 20), min_size=1, max_size=3))
    total = sum(heights)
    cut = data.draw(st.integers(0, total))
    shapes = {f"t{n}": (height, 21) for n, height in enumerate(heights)}

    def build(t: Tensors) -> Tensors:
        whole = torch.cat(list(t.values()))
        return {name: part for name, part in (("above", whole[:cut]), ("below", whole[cut:])) if len(part)}

    plan, stored = plan_of(shapes, build, block=(4, 5))
    # Where a tensor begins in a target, and where it is cut, must be the first row of a block on both ends.
    edges, start = [], 0
    for height in heights:
        top = start
        for low, high in ((top, min(top + height, cut)), (max(top, cut), top + height)):
            if low < high:
                assume(high - low > 1)  # of a single row nobody knows which dimension it lies in
                at = low if low < cut else low - cut
                last = (high == top + height) and high in (cut, total)
                edges.append(at % 4 == (low - top) % 4 == 0 and ((high - low) % 4 == 0 or last))
        start += height
    if all(edges):
        expected, found = dict(execute(plan, stored)), dict(execute(plan.keep_encoded(), stored))
        for name, tensor in expected.items():
            assert same_bytes(decode(found[name], found[f"{name}_scale_inv"], (4, 5)), tensor)
    else:
        with pytest.raises(CrosswalkError, match="whole blocks of 4 x 5"):
            plan.keep_encoded()


def test_everything_that_cannot_be_kept_is_said() -> None:
    first, _ = encoded("a", (24, 16), "fp8_blocks", (8, 16))
    second, _ = encoded("b", (24, 16), "fp8_blocks", (8, 8))
    flat: tuple[tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...], int] = ((384,), 0, (1,), 0, (1,), 0)
    lower = (*flat[:3], 384, *flat[4:])
    plan = make_plan(
        [TensorSpec(name, (24, 16), "F32") for name in ("a", "b", "p")] + [TensorSpec("q", (3,), "F32")],
        [
            TensorSpec("cast", (24, 16), "BF16"),
            TensorSpec("mixed", (48, 16), "F32"),
            TensorSpec("q", (3,), "F32"),
        ],
        [("a", "cast", *flat), ("b", "mixed", *flat), ("p", "mixed", *lower), ("q", "q", (3,), 0, (1,), 0, (1,), 0)],
        encodings=[first, second],
    )
    with pytest.raises(CrosswalkError) as caught:
        plan.keep_encoded()
    assert {diagnostic.code for diagnostic in caught.value.diagnostics} == {"plan/keep-encoded"}
    assert [diagnostic.message for diagnostic in caught.value.diagnostics] == [
        "`cast` cannot keep its encoding: it is cast to BF16",
        "`mixed` cannot keep its encoding: it is made of tensors that are stored in different ways",
    ]


def test_sources_that_cannot_be_kept_are_said() -> None:
    """A part of what is stored would be left behind, or compared with what is no such thing."""
    first, _ = encoded("a", (24, 16), "fp8_blocks", (8, 16))
    second, _ = encoded("b", (24, 16), "fp8_blocks", (8, 8))
    plan = make_plan(
        [TensorSpec(name, (24, 16), "F32") for name in ("a", "b", "c", "d")],
        [TensorSpec("out", (16, 16), "F32"), TensorSpec("c", (24, 16), "F32")],
        [("a", "out", (256,), 0, (1,), 0, (1,), 0), ("c", "c", (384,), 0, (1,), 0, (1,), 0)],
        exemptions=[Exemption("tied", "b", "c"), Exemption("tied", "d", "a")],
        truncated=[("a", (128,), 256, (1,), 0)],
        encodings=[first, second],
    )
    with pytest.raises(CrosswalkError) as caught:
        plan.keep_encoded()
    assert [diagnostic.message for diagnostic in caught.value.diagnostics] == [
        "`a` cannot keep its encoding: it is truncated",
        "`b` cannot keep its encoding: it is tied to `c`, which is stored in another way",
        "`d` cannot keep its encoding: it is tied to `a`, which is stored in another way",
    ]


def test_ties_and_other_tensors_stay() -> None:
    plan, stored = plan_of({"a": (24, 16), "b": (24, 16)}, lambda t: {"out": t["a"]})
    tied = make_plan(
        [*plan.sources, TensorSpec("norm", (3,), "F32")],
        [*plan.targets, TensorSpec("scale", (3,), "F32")],
        [
            ("a", "out", (384,), 0, (1,), 0, (1,), 0),
            ("norm", "scale", (3,), 0, (1,), 0, (1,), 0),
        ],
        exemptions=[Exemption("tied", "b", "a")],
        encodings=plan.encodings,
    )
    kept = tied.keep_encoded()
    assert kept.exemptions == (Exemption("tied", "b", "a"), Exemption("tied", "b_scale_inv", "a_scale_inv"))
    given = {**stored, "b": stored["a"], "b_scale_inv": stored["a_scale_inv"], "norm": torch.arange(3.0)}
    found = dict(execute(kept, given))
    assert found.keys() == {"out", "out_scale_inv", "scale"}
    assert same_bytes(found["scale"], given["norm"])
