"""Laws of plans with regions that are zeros and regions that are not read, against brute force on small tensors.

The plans are those of test_plan_laws with some copies, or halves of them, taken out: what such a copy wrote is padded,
what it read is truncated.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from pathlib import Path

import jsonschema
import torch
from budgets import times
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_plan_laws import (
    FAST,
    by_hand,
    chains,
    elements,
    equal,
    interlocks,
    mutate,
    numbered,
    random_box,
    relation,
    slices,
)

from crosswalk.runtime import execute
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.files.convert import EngineOptions, verify_checkpoint, write_checkpoint
from crosswalk.runtime.plan.model import Copy, Plan, RawCopy, Rule, TensorSpec, make_plan
from crosswalk.runtime.plan.parts import RawRegion, Region
from crosswalk.runtime.plan.proof import prove
from crosswalk.runtime.records import replace

SCHEMA = json.loads((Path(__file__).parents[2] / "schema" / "plan.schema.json").read_text())
Cell = tuple[str, int]


def halves(random: random.Random, copy: Copy) -> list[Copy]:
    """The copy in two parts along one of its axes, or whole."""
    if not copy.extents or random.random() < 0.4:
        return [copy]
    axis = random.randrange(len(copy.extents))
    cut = random.randrange(1, copy.extents[axis])
    parts = []
    for start, stop in ((0, cut), (cut, copy.extents[axis])):
        extents = (*copy.extents[:axis], stop - start, *copy.extents[axis + 1 :])
        source = copy.source_offset + start * copy.source_strides[axis]
        target = copy.target_offset + start * copy.target_strides[axis]
        parts.append(copy._replace(extents=extents, source_offset=source, target_offset=target))
    return parts


def without_some(random: random.Random, plan: Plan, likely: float = 0.3) -> Plan:
    copies: list[RawCopy] = []
    padded: list[RawRegion] = []
    truncated: list[RawRegion] = []
    for c in (part for copy in plan.copies for part in halves(random, copy)):
        source, target = plan.sources[c.source].name, plan.targets[c.target].name
        if random.random() < likely:
            padded.append((target, c.extents, c.target_offset, c.target_strides, c.rule))
            truncated.append((source, c.extents, c.source_offset, c.source_strides, c.rule))
        else:
            ends = (c.source_offset, c.source_strides, c.target_offset, c.target_strides)
            copies.append((source, target, c.extents, *ends, c.rule))
    return make_plan(plan.sources, plan.targets, copies, plan.rules, (), plan.metadata, padded, truncated)


@st.composite
def cut_chains(draw: st.DrawFn, length: int = 2) -> tuple[random.Random, list[Plan]]:
    random, plans = draw(chains(length=length))
    return random, [without_some(random, plan) for plan in plans]


def cells(regions: tuple[Region, ...], tensors: tuple[TensorSpec, ...]) -> Counter[Cell]:
    """Every element of the regions."""
    return Counter(
        (tensors[region.tensor].name, element)
        for region in regions
        for element, _ in elements(
            Copy(0, 0, region.extents, region.offset, region.strides, 0, (0,) * len(region.extents))
        )
    )


def padded_by_hand(plan: Plan, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = by_hand(plan, tensors)
    for name, element in cells(plan.padded, plan.targets):
        assert result[name].view(-1)[element] == -1
        result[name].view(-1)[element] = 0
    return result


@FAST
@given(cut_chains())
def test_what_is_padded_is_zero_and_what_is_truncated_is_not_read(chain: tuple[random.Random, list[Plan]]) -> None:
    (plan,) = chain[1]
    verdict = plan.verify()
    assert verdict.problems == ()
    assert verdict.bijective == (not plan.padded and not plan.truncated)
    assert verdict.reversible == (not plan.truncated)
    assert (verdict.padded.elements, verdict.truncated.elements) == (
        cells(plan.padded, plan.targets).total(),
        cells(plan.truncated, plan.sources).total(),
    )
    tensors = {name: tensor + 1 for name, tensor in numbered(plan.sources).items()}
    assert equal(dict(execute(plan, tensors)), padded_by_hand(plan, tensors))


@FAST
@given(cut_chains())
def test_the_inverse_swaps_the_regions_and_brings_the_rest_back(chain: tuple[random.Random, list[Plan]]) -> None:
    (plan,) = chain[1]
    back = plan.inverse()
    assert cells(back.padded, back.targets) == cells(plan.truncated, plan.sources)
    assert cells(back.truncated, back.sources) == cells(plan.padded, plan.targets)
    assert back.verify().problems == ()
    assert back.inverse() == plan
    assert back.inverse().digest == plan.digest
    assert (back.digest == replace(back, padded=()).digest) == (not back.padded)
    tensors = numbered(plan.sources)
    lost = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, element in cells(plan.truncated, plan.sources):
        lost[name].view(-1)[element] = 0
    assert equal(dict(execute(back, dict(execute(plan, tensors)))), lost)


@FAST
@given(cut_chains(length=3))
def test_composition_is_one_execution_after_the_other(chain: tuple[random.Random, list[Plan]]) -> None:
    first, second = chain[1]
    composed = first.compose(second)
    tensors = {name: tensor + 1 for name, tensor in numbered(first.sources).items()}
    assert equal(dict(execute(composed, tensors)), dict(execute(second, dict(execute(first, tensors)))))
    assert composed.verify().problems == ()


@FAST
@given(cut_chains(length=3))
def test_the_rule_of_a_composed_region_is_the_last_that_speaks_of_it(chain: tuple[random.Random, list[Plan]]) -> None:
    """What is padded and then not read is nothing; what is cut between was read from somewhere, or was padding."""
    first, second = (
        replace(plan, rules=tuple(replace(rule, mapping=name) for rule in plan.rules))
        for plan, name in zip(chain[1], ("first", "second"), strict=True)
    )
    composed = first.compose(second)

    def by_rule(plan: Plan, regions: tuple[Region, ...], tensors: tuple[TensorSpec, ...]) -> Counter[tuple[Rule, Cell]]:
        return Counter((plan.rules[r.rule], cell) for r in regions for cell in cells((r,), tensors))

    def of_rule(plan: Plan, end: int) -> dict[Cell, tuple[Rule, Cell]]:
        """Of each element of one end: the rule of its copy, and the element of the other end."""
        result = {}
        for copy in plan.copies:
            for pair in elements(copy):
                here = (plan.sources[copy.source].name, pair[0]), (plan.targets[copy.target].name, pair[1])
                result[here[end]] = plan.rules[copy.rule], here[1 - end]
        return result

    read, written = of_rule(second, 0), of_rule(first, 1)
    grown = Counter(read[cell] for cell in cells(first.padded, first.targets) if cell in read)
    kept = by_rule(second, second.padded, second.targets)
    assert by_rule(composed, composed.padded, composed.targets) == kept + grown
    cut = Counter(
        {(rule, written[cell][1]): 1 for rule, cell in by_rule(second, second.truncated, second.sources)
         if cell in written}
    )  # fmt: skip
    stayed = by_rule(first, first.truncated, first.sources)
    assert by_rule(composed, composed.truncated, composed.sources) == stayed + cut


@FAST
@given(cut_chains())
def test_restriction_is_slicing(chain: tuple[random.Random, list[Plan]]) -> None:
    random, (plan,) = chain
    tensors = {name: tensor + 1 for name, tensor in numbered(plan.sources).items()}
    full = dict(execute(plan, tensors))
    chosen = random.sample(plan.targets, random.randrange(len(plan.targets) + 1))
    boxes = {tensor.name: random_box(random, tensor.shape) for tensor in chosen}
    part = plan.restrict(targets=boxes)
    assert prove(part, ends=("target",)).problems == ()
    assert part.truncated == ()
    read = {tensor.name: tensors[tensor.name] for tensor in part.sources}
    assert equal(dict(execute(part, read)), {name: full[name][slices(box)] for name, box in boxes.items()})


@FAST
@given(cut_chains())
def test_restriction_of_the_sources_keeps_what_is_not_read(chain: tuple[random.Random, list[Plan]]) -> None:
    random, (plan,) = chain
    boxes = {tensor.name: random_box(random, tensor.shape) for tensor in plan.sources}
    part = plan.restrict(sources=boxes)
    assert prove(part, ends=("source",)).problems == ()
    assert part.padded == ()
    index = {t.name: torch.arange(t.elements).view(t.shape)[slices(boxes[t.name])].flatten().tolist()
             for t in plan.sources}  # fmt: skip
    inside = Counter({(name, index[name][element]): n for (name, element), n in
                      cells(part.truncated, part.sources).items()})  # fmt: skip
    whole = cells(plan.truncated, plan.sources)
    assert inside == Counter({cell: n for cell, n in whole.items() if cell[1] in set(index[cell[0]])})


@FAST
@given(cut_chains())
def test_without_boxes_all_stays(chain: tuple[random.Random, list[Plan]]) -> None:
    """Tensors that no copy and no region names are left out; those of regions alone are not."""
    (plan,) = chain[1]
    everything = plan.restrict()
    assert relation(everything) == relation(plan)
    assert cells(everything.padded, everything.targets) == cells(plan.padded, plan.targets)
    assert cells(everything.truncated, everything.sources) == cells(plan.truncated, plan.sources)
    whole = {tensor.name: tuple((0, size) for size in tensor.shape) for tensor in plan.targets}
    assert plan.restrict(targets=whole).padded == plan.padded


def wrong(random: random.Random, plan: Plan) -> Plan:
    """One small mistake in a region, or in a copy."""
    end = random.choice(["padded", "truncated"])
    regions = list(getattr(plan, end))
    if not regions or random.random() < 0.3:
        return mutate(random, plan) if plan.copies else plan
    number = random.randrange(len(regions))
    region = regions[number]
    kind = random.choice(["drop", "double", "shift", "tensor", "extent", "stride"])
    axis = random.randrange(max(1, len(region.extents)))
    if kind == "drop":
        del regions[number]
    elif kind == "double":
        regions.append(region)
    elif kind == "shift":
        regions[number] = replace(region, offset=max(0, region.offset + random.choice([-7, -1, 1, 2])))
    elif kind == "tensor":
        count = len(plan.targets if end == "padded" else plan.sources)
        regions[number] = replace(region, tensor=random.randrange(count))
    elif region.extents and kind == "extent":
        extents = [max(1, n + random.choice([-1, 1])) if i == axis else n for i, n in enumerate(region.extents)]
        regions[number] = replace(region, extents=tuple(extents))
    elif region.extents:
        strides = [max(0, n + random.choice([-1, 1, n])) if i == axis else n for i, n in enumerate(region.strides)]
        regions[number] = replace(region, strides=tuple(strides))
    if end == "padded":
        return replace(plan, padded=tuple(regions))
    return replace(plan, truncated=tuple(regions))


def is_covered(plan: Plan) -> bool:
    """What ``prove`` has to find, by counting elements."""
    pairs = relation(plan)
    read = sum((Counter({(s, e): n}) for (s, e, _, _), n in pairs.items()), cells(plan.truncated, plan.sources))
    written = sum((Counter({(t, e): n}) for (_, _, t, e), n in pairs.items()), cells(plan.padded, plan.targets))
    return all(
        counts == Counter((tensor.name, element) for tensor in tensors for element in range(tensor.elements))
        for counts, tensors in ((read, plan.sources), (written, plan.targets))
    )


def as_copies(plan: Plan) -> list[Copy]:
    regions = (*plan.padded, *plan.truncated)
    return [Copy(0, 0, r.extents, r.offset, r.strides, r.offset, r.strides) for r in regions]


@times(12)
@given(cut_chains())
def test_prove_agrees_with_counting(chain: tuple[random.Random, list[Plan]]) -> None:
    random, (plan,) = chain
    for _ in range(random.randrange(1, 3)):
        plan = wrong(random, plan)
    expected = is_covered(plan) and not any(map(interlocks, [*plan.copies, *as_copies(plan)]))
    assert plan.verify().ok == expected, plan.verify()


@FAST
@given(cut_chains())
def test_json_and_digest(chain: tuple[random.Random, list[Plan]]) -> None:
    random, (plan,) = chain
    jsonschema.validate(json.loads(plan.to_json()), SCHEMA)
    assert Plan.from_json(plan.to_json()) == plan
    assert ("padded" in json.loads(plan.to_json())) == bool(plan.padded)
    ends = ((plan.padded, plan.targets), (plan.truncated, plan.sources))
    raw: list[list[RawRegion]] = []
    for regions, tensors in ends:
        raw.append([])
        for r in random.sample(regions, len(regions)):
            order = random.sample(range(len(r.extents)), len(r.extents))
            extents, strides = (tuple(v[k] for k in order) for v in (r.extents, r.strides))
            raw[-1].append((tensors[r.tensor].name, extents, r.offset, strides, r.rule))
    copies: list[RawCopy] = [
        (plan.sources[c.source].name, plan.targets[c.target].name, c.extents, c.source_offset, c.source_strides,
         c.target_offset, c.target_strides, c.rule)
        for c in plan.copies
    ]  # fmt: skip
    again = make_plan(plan.sources, plan.targets, copies, plan.rules, (), plan.metadata, *raw)
    assert again == plan
    renamed = [[(*region[:-1], region[-1] + 1) for region in regions] for regions in raw]
    assert make_plan(plan.sources, plan.targets, copies, plan.rules, (), {}, *renamed).digest == plan.digest


@times(2)
@given(cut_chains(), st.sampled_from(["BF16", "F32", "I64"]))
def test_files_are_what_is_made_in_memory(chain: tuple[random.Random, list[Plan]], dtype: str) -> None:
    (plan,) = chain[1]
    plan = plan.with_dtypes({tensor.name: "I64" for tensor in plan.sources})
    numbers = {name: tensor + 1 for name, tensor in numbered(plan.sources).items()}
    if dtype != "I64":
        kind = {"BF16": torch.bfloat16, "F32": torch.float32}[dtype]
        numbers = {name: tensor.to(kind) for name, tensor in numbers.items()}
        specs = [[replace(t, dtype="F32" if end else dtype) for t in tensors]
                 for end, tensors in enumerate((plan.sources, plan.targets))]  # fmt: skip
        plan = replace(plan, sources=tuple(specs[0]), targets=tuple(specs[1]))
    expected = dict(execute(plan, numbers))
    with tempfile.TemporaryDirectory() as directory:
        source, out = Path(directory) / "source.safetensors", Path(directory) / "out"
        save_file(numbers, source)
        opened = open_checkpoint(source)
        for checksum in ("xxh3", "none"):
            write_checkpoint(plan, opened, out, options=EngineOptions(checksum=checksum, overwrite=True, workers=2))
            assert equal(load_file(out / "model.safetensors"), expected)
        verify_checkpoint(plan, opened, open_checkpoint(out))
