"""Plans with all that there is at once (regions, encodings, ties, casts, compositions) give the same tensors in memory,
through files and in a live model, also when every buffer is so small that tensors are cut everywhere."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from budgets import times
from hypothesis import given
from safetensors.torch import load_file, save_file
from small_buffers import shrink
from test_padding_laws import cut_chains
from test_plan_laws import random_box, slices

from crosswalk.runtime import execute
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.dtypes import torch_dtype
from crosswalk.runtime.files.convert import EngineOptions, checksum_checkpoint, verify_checkpoint, write_checkpoint
from crosswalk.runtime.plan.encodings import KINDS
from crosswalk.runtime.plan.model import Encoding, Exemption, Plan, RawCopy, TensorSpec, make_plan
from crosswalk.runtime.plan.parts import RawRegion, Region
from crosswalk.runtime.records import replace
from crosswalk.runtime.training import load as live
from crosswalk.runtime.training import save as saving
from crosswalk.runtime.training.ranks import team

Tensors = dict[str, torch.Tensor]
FLOATS = ("BF16", "F16", "F32")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield


def with_everything(random: random.Random, plan: Plan) -> tuple[Plan, Tensors]:
    """The plan with any floats, some sources encoded, and some of those tied; and what the files hold."""
    torch.manual_seed(random.randrange(1 << 30))
    sources = [replace(spec, dtype=random.choice(FLOATS)) for spec in plan.sources]
    targets = [replace(spec, dtype=random.choice(FLOATS)) for spec in plan.targets]
    stored: Tensors = {}
    encodings: list[Encoding] = []
    exemptions: list[Exemption] = []
    for spec in list(sources):
        if random.random() < 0.6:
            stored[spec.name] = torch.randn(spec.shape).to(torch_dtype(spec.dtype))
            continue
        block = (random.randint(1, 9), random.randint(1, 9)) if len(spec.shape) > 1 and random.random() < 0.7 else ()
        grid = KINDS["fp8_blocks"].grids(spec.shape, block)[-1]
        payload = torch.randint(0, 120, spec.shape, dtype=torch.uint8).view(torch.float8_e4m3fn)
        scales = torch.rand(grid) + 0.5
        names = [spec.name]
        if random.random() < 0.4:
            names.append(f"again.{spec.name}")
            exemptions.append(Exemption("tied", names[1], spec.name))
            sources.append(replace(spec, name=names[1]))
        for name in names:
            stored |= {name: payload.clone(), f"{name}_scales": scales.clone()}
            parts = TensorSpec(name, spec.shape, "F8_E4M3"), TensorSpec(f"{name}_scales", grid, "F32")
            encodings.append(Encoding(name, "fp8_blocks", parts, block))
    copies: list[RawCopy] = [
        (plan.sources[c.source].name, plan.targets[c.target].name, c.extents, c.source_offset, c.source_strides,
         c.target_offset, c.target_strides, c.rule)
        for c in plan.copies
    ]  # fmt: skip
    padded, truncated = raw(plan.padded, plan.targets), raw(plan.truncated, plan.sources)
    made = make_plan(sources, targets, copies, plan.rules, exemptions, {}, padded, truncated, encodings)
    return made, stored


def raw(regions: tuple[Region, ...], tensors: tuple[TensorSpec, ...]) -> list[RawRegion]:
    return [(tensors[r.tensor].name, r.extents, r.offset, r.strides, r.rule) for r in regions]


def equal(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(
        tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )


@times(2)
@given(chain=cut_chains(length=2) | cut_chains(length=3))
def test_memory_files_and_live_models_agree(chain: tuple[random.Random, list[Plan]]) -> None:
    random, plans = chain
    plan, stored = with_everything(random, plans[0] if len(plans) == 1 else plans[0].compose(plans[1]))
    assert plan.verify().problems == ()
    assert Plan.from_json(plan.to_json()) == plan
    expected = dict(execute(plan, stored))
    boxes = {spec.name: random_box(random, spec.shape) for spec in plan.targets}
    part = plan.restrict(targets=boxes)
    used = {piece.name: stored[piece.name] for spec in part.sources for piece in part.stored_for(spec)}
    assert equal(dict(execute(part, used)), {name: expected[name][slices(box)] for name, box in boxes.items()})
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        save_file(stored, directory / "in.safetensors")
        source = open_checkpoint(directory / "in.safetensors")
        for checksum in ("xxh3", "none"):
            options = EngineOptions(workers=3, checksum=checksum, overwrite=True)
            report = write_checkpoint(plan, source, directory / "out", options=options)
            assert equal(load_file(directory / "out" / "model.safetensors"), expected)
            if checksum != "none":
                assert report.checksums == checksum_checkpoint(open_checkpoint(directory / "out"))
        verify_checkpoint(plan, source, open_checkpoint(directory / "out"))
        state = {key: torch.full(tensor.shape, torch.nan, dtype=tensor.dtype) for key, tensor in expected.items()}
        live.load(plan, source, state, team(), bucket_bytes=random.choice([300, 2000]))
        assert equal(state, expected)
        back = replace(plan, exemptions=(), encodings=()).inverse()
        if back.verify().ok:  # duplicates are not made again
            saving.save(back, expected, directory / "back", team(), bucket_bytes=2000)
            assert equal(load_file(directory / "back" / "model.safetensors"), dict(execute(back, expected)))
