"""Plans executed on tensors in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from toy_plans import interleaved_experts, spec, tied, whole

from crosswalk.runtime import execute
from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import make_plan

# --- execution ----------------------------------------------------------------------------------------------------


def test_execute_names_every_wrong_source_before_the_first_target() -> None:
    plan = make_plan(
        [spec("a", 3), spec("b", 5), spec("c", 7)],
        [spec("t", 15)],
        [
            ("a", "t", (3,), 0, (1,), 0, (1,), 0),
            ("b", "t", (5,), 0, (1,), 3, (1,), 0),
            ("c", "t", (7,), 0, (1,), 8, (1,), 0),
        ],
    )
    with pytest.raises(CrosswalkError) as caught:
        execute(plan, {"b": torch.zeros(1, 5), "c": torch.zeros(7, dtype=torch.complex64), "d": torch.zeros(1)})
    assert [problem.code for problem in caught.value.diagnostics] == [
        "execute/missing",
        "execute/shape",
        "execute/dtype",
        "execute/unexpected",
    ]
    assert "`c` has dtype torch.complex64, the plan says F32" in str(caught.value)


def test_execute_refuses_a_plan_that_leaves_memory_unwritten() -> None:
    plan = make_plan([spec("a", 3)], [spec("t", 5)], [whole("a", "t", 3)])
    with pytest.raises(CrosswalkError, match=r"elements 3 to 4 of target tensor `t`"):
        execute(plan, {"a": torch.zeros(3)})


def test_tied_tensors_are_compared_bit_for_bit() -> None:
    embed = torch.arange(15.0).view(3, 5)
    embed[0, 0] = float("nan")
    inv_freq = torch.zeros(7)
    result = dict(execute(tied(), {"embed": embed, "head": embed.clone(), "inv_freq": inv_freq}))
    assert torch.equal(result["out"].view(torch.int32), embed.view(torch.int32))
    head = embed.clone()
    head[2, 4] = -head[2, 4]
    with pytest.raises(CrosswalkError, match="`head` differs from `embed`, which it is tied to"):
        execute(tied(), {"embed": embed, "head": head, "inv_freq": inv_freq})


def test_negative_zero_is_not_zero_for_a_tie() -> None:
    zeros = torch.zeros(3, 5, dtype=torch.bfloat16)
    with pytest.raises(CrosswalkError, match=r"tied.*\[execute/tie\]"):
        execute(tied("BF16"), {"embed": zeros, "head": -zeros, "inv_freq": torch.zeros(7)})


def test_sources_may_be_views_with_gradients() -> None:
    """Parameters, transposed and offset views of one storage: values count, memory does not."""
    storage = torch.arange(100.0, requires_grad=True)
    view, offset = storage[:70].view(7, 10).T, storage[3:38].view(5, 7)
    plan = make_plan(
        [spec("view", 10, 7), spec("offset", 5, 7)],
        [spec("even", 5, 7), spec("odd", 5, 7), spec("turned", 7, 5)],
        [
            ("view", "even", (5, 7), 0, (14, 1), 0, (7, 1), 0),
            ("view", "odd", (5, 7), 7, (14, 1), 0, (7, 1), 0),
            ("offset", "turned", (5, 7), 0, (7, 1), 0, (1, 5), 0),
        ],
    )
    result = dict(execute(plan, {"view": view, "offset": offset}))
    assert torch.equal(result["even"], view[0::2])
    assert torch.equal(result["odd"], view[1::2])
    assert torch.equal(result["turned"], offset.T)
    assert not any(tensor.requires_grad for tensor in result.values())
    assert all(tensor.is_contiguous() for tensor in result.values())


def test_casts_are_those_of_torch() -> None:
    plan = make_plan([spec("a", 5, 3)], [spec("t", 3, 5, dtype="BF16")], [("a", "t", (5, 3), 0, (3, 1), 0, (1, 5), 0)])
    a = torch.linspace(-1, 1, 15).view(5, 3)
    assert torch.equal(dict(execute(plan, {"a": a}))["t"], a.T.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_keeps_its_bytes(dtype: str) -> None:
    size, name = DTYPES[dtype]
    plan = make_plan(
        [spec("a", 3, 5, dtype=dtype)], [spec("t", 5, 3, dtype=dtype)], [("a", "t", (3, 5), 0, (5, 1), 0, (1, 3), 0)]
    )
    highest = 2 if dtype == "BOOL" else 120
    data = torch.randint(0, highest, (15 * size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tensor = data.view(getattr(torch, name)).view(3, 5)
    result = dict(execute(plan, {"a": tensor}))["t"]
    assert torch.equal(result.view(torch.uint8).view(5, 3, size), data.view(3, 5, size).transpose(0, 1))


def test_targets_come_one_at_a_time_on_the_device_asked_for() -> None:
    plan = interleaved_experts()
    stream = execute(plan, {"w": torch.zeros(3, 10, 7)}, device="meta")
    name, tensor = next(stream)
    assert (name, tensor.device.type, tuple(tensor.shape)) == ("experts.0.gate", "meta", (7, 5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_execution_on_a_gpu_is_the_same() -> None:
    w = torch.arange(3 * 10 * 7.0).view(3, 10, 7)
    expected = dict(execute(interleaved_experts(), {"w": w}))
    for source, device in ((w.cuda(), None), (w, "cuda"), (w.cuda(), "cpu")):
        for name, tensor in execute(interleaved_experts(), {"w": source}, device):
            assert tensor.device.type == (device or "cuda")
            assert torch.equal(tensor.cpu(), expected[name])


def test_importing_the_runtime_does_not_import_torch() -> None:
    code = (
        "import sys, crosswalk.runtime, crosswalk.runtime.plan.algebra, crosswalk.runtime.plan.proof; "
        "assert 'torch' not in sys.modules; assert 'crosswalk.runtime.memory' not in sys.modules; "
        "crosswalk.runtime.execute; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
