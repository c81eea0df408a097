"""Laws of plans, against brute force on small tensors.

Plans are generated as mappings make them: families of elements with named axes, arranged on each end by nesting, by
concatenation and interleaving, by transposing, and by moving axes into tensor names. Tensor shapes are then drawn
independently of the axes, so that an axis may cut across dimensions and several may share one.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from budgets import times
from hypothesis import given
from hypothesis import strategies as st

from crosswalk.runtime import execute
from crosswalk.runtime.plan.model import Copy, Plan, RawCopy, Rule, TensorSpec, make_plan
from crosswalk.runtime.plan.proof import prove
from crosswalk.runtime.records import replace

Family = tuple[str, tuple[str, ...]]
Place = tuple[int, dict[str, int]]
SIZES = {"a": 3, "b": 2, "c": 5, "d": 4, "e": 3, "f": 7}
FAST = times(5)


@dataclass(frozen=True)
class Layout:
    """Where each family lies: the axes in its tensor name; name, offset and strides for each of their values."""

    tensors: tuple[TensorSpec, ...]
    named: dict[str, tuple[str, ...]]
    places: dict[tuple[str, tuple[int, ...]], tuple[str, int, dict[str, int]]]


def random_block(random: random.Random, families: list[Family]) -> tuple[int, dict[str, Place]]:
    """The size of a block that holds the families, and the offset and strides of each in it."""
    if len(families) == 1 and not families[0][1]:
        return 1, {families[0][0]: (0, {})}
    shared = set.intersection(*(set(axes) for _, axes in families))
    if shared and (len(families) == 1 or random.random() < 0.6):
        axis = random.choice(sorted(shared))
        inner = [(name, tuple(other for other in axes if other != axis)) for name, axes in families]
        size, places = random_block(random, inner)
        return size * SIZES[axis], {n: (offset, {**strides, axis: size}) for n, (offset, strides) in places.items()}
    families = random.sample(families, len(families))
    cut = random.randrange(1, len(families))
    size, places = random_block(random, families[:cut])
    more, others = random_block(random, families[cut:])
    return size + more, places | {name: (size + offset, strides) for name, (offset, strides) in others.items()}


def random_shape(random: random.Random, size: int) -> tuple[int, ...]:
    factors = [p for p in (2, 3, 5, 7) for _ in range(8) if size % p == 0]
    shape = [size]
    for factor in random.sample(factors, min(len(factors), 3)):
        index = random.randrange(len(shape))
        if shape[index] % factor == 0:
            shape[index : index + 1] = random.choice(
                [[factor, shape[index] // factor], [shape[index] // factor, factor]]
            )
    return tuple(shape)


def random_layout(random: random.Random, families: list[Family], prefix: str) -> Layout:
    families = random.sample(families, len(families))
    cuts = sorted(random.sample(range(1, len(families)), random.randrange(len(families))))
    tensors: list[TensorSpec] = []
    named: dict[str, tuple[str, ...]] = {}
    places: dict[tuple[str, tuple[int, ...]], tuple[str, int, dict[str, int]]] = {}
    for number, group in enumerate(families[i:j] for i, j in itertools.pairwise([0, *cuts, len(families)])):
        shared = sorted(set.intersection(*(set(axes) for _, axes in group)))
        names = tuple(axis for axis in shared if random.random() < 0.25)
        size, block = random_block(random, [(n, tuple(a for a in axes if a not in names)) for n, axes in group])
        shape = random_shape(random, size)
        for digits in itertools.product(*(range(SIZES[axis]) for axis in names)):
            name = ".".join([f"{prefix}{number}", *map(str, digits)])
            tensors.append(TensorSpec(name, shape, "I64"))
            for family, (offset, strides) in block.items():
                places[family, digits] = (name, offset, strides)
        named |= {family: names for family, _ in group}
    return Layout(tuple(tensors), named, places)


def connect(families: list[Family], one: Layout, other: Layout) -> Plan:
    copies: list[RawCopy] = []
    for rule, (family, axes) in enumerate(families):
        outer = [axis for axis in axes if axis in one.named[family] or axis in other.named[family]]
        inner = [axis for axis in axes if axis not in outer]
        for digits in itertools.product(*(range(SIZES[axis]) for axis in outer)):
            value = dict(zip(outer, digits, strict=True))
            ends = []
            for layout in (one, other):
                name, offset, strides = layout.places[family, tuple(value[axis] for axis in layout.named[family])]
                offset += sum(strides.get(axis, 0) * digit for axis, digit in value.items())
                ends.append((name, offset, tuple(strides[axis] for axis in inner)))
            (source, start, steps), (target, target_start, target_steps) = ends
            extents = tuple(SIZES[axis] for axis in inner)
            copies.append((source, target, extents, start, steps, target_start, target_steps, rule))
    rules = [Rule("laws", name, f"laws.yaml:{line}:1") for line, (name, _) in enumerate(families, 1)]
    return make_plan(one.tensors, other.tensors, copies, rules)


@st.composite
def chains(draw: st.DrawFn, length: int = 2) -> tuple[random.Random, list[Plan]]:
    """Plans that follow one another over ``length`` layouts of the same families."""
    random = draw(st.randoms(use_true_random=False))
    axes = random.sample(sorted(SIZES), 4)
    families = [
        (f"F{index}", tuple(sorted({axes[0], *random.sample(axes, random.randrange(1, 4))})))
        for index in range(random.randrange(1, 5))
    ]
    layouts = [random_layout(random, families, prefix) for prefix in "xyz"[:length]]
    return random, [connect(families, one, other) for one, other in itertools.pairwise(layouts)]


def elements(copy: Copy) -> Iterator[tuple[int, int]]:
    """Every pair of source and target element, one by one."""
    for digits in itertools.product(*map(range, copy.extents)):
        yield (
            copy.source_offset + sum(d * s for d, s in zip(digits, copy.source_strides, strict=True)),
            copy.target_offset + sum(d * s for d, s in zip(digits, copy.target_strides, strict=True)),
        )


def relation(plan: Plan) -> Counter[tuple[str, int, str, int]]:
    """The plan as a bag of element pairs."""
    return Counter(
        (plan.sources[copy.source].name, source, plan.targets[copy.target].name, target)
        for copy in plan.copies
        for source, target in elements(copy)
    )


def is_bijection(plan: Plan) -> bool:
    """What ``prove`` has to find, by counting elements."""
    pairs = [(copy, *pair) for copy in plan.copies for pair in elements(copy)]
    sources = Counter((copy.source, source) for copy, source, _ in pairs)
    targets = Counter((copy.target, target) for copy, _, target in pairs)
    return all(
        counts
        == Counter((index, element) for index, tensor in enumerate(tensors) for element in range(tensor.elements))
        for counts, tensors in ((sources, plan.sources), (targets, plan.targets))
    )


def interlocks(copy: Copy) -> bool:
    """Whether an axis, on either end, steps into what the finer ones reach. Invariant I5 forbids it even if it fits."""
    for strides in (copy.source_strides, copy.target_strides):
        axes = sorted((s, e) for s, e in zip(strides, copy.extents, strict=True) if e > 1)
        if any(stride <= sum((e - 1) * s for s, e in axes[:k]) or not stride for k, (stride, _) in enumerate(axes)):
            return True
    return False


def numbered(tensors: tuple[TensorSpec, ...]) -> dict[str, torch.Tensor]:
    """Tensors whose elements are all different."""
    result, start = {}, 0
    for tensor in tensors:
        result[tensor.name] = torch.arange(start, start + tensor.elements).view(tensor.shape)
        start += tensor.elements
    return result


def by_hand(plan: Plan, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result = {tensor.name: torch.full((tensor.elements,), -1) for tensor in plan.targets}
    for copy in plan.copies:
        source = tensors[plan.sources[copy.source].name].reshape(-1)
        for read, written in elements(copy):
            result[plan.targets[copy.target].name][written] = source[read]
    return {tensor.name: result[tensor.name].view(tensor.shape) for tensor in plan.targets}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def random_interval(random: random.Random, size: int) -> tuple[int, int]:
    one, other = random.choices(range(size + 1), k=2)
    return min(one, other), max(one, other)


def random_box(random: random.Random, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    whole = random.choice([0.0, 0.5, 0.8])
    return tuple((0, size) if random.random() < whole else random_interval(random, size) for size in shape)


def slices(box: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


@FAST
@given(chains())
def test_generated_plans_are_proven_and_executed(chain: tuple[random.Random, list[Plan]]) -> None:
    (plan,) = chain[1]
    assert plan.verify().problems == ()
    assert plan.verify().bijective
    assert str(plan.verify()) == "bijective"
    tensors = numbered(plan.sources)
    assert equal(dict(execute(plan, tensors)), by_hand(plan, tensors))


@FAST
@given(chains())
def test_the_inverse_undoes_the_plan(chain: tuple[random.Random, list[Plan]]) -> None:
    (plan,) = chain[1]
    assert plan.inverse().inverse().to_json() == plan.to_json()
    tensors = numbered(plan.sources)
    assert equal(dict(execute(plan.inverse(), dict(execute(plan, tensors)))), tensors)
    assert all(
        (source, start) == (target, stop) for source, start, target, stop in relation(plan.compose(plan.inverse()))
    )


@FAST
@given(chains(length=3))
def test_composition_is_one_execution_after_the_other(chain: tuple[random.Random, list[Plan]]) -> None:
    first, second = chain[1]
    composed = first.compose(second)
    tensors = numbered(first.sources)
    assert equal(dict(execute(composed, tensors)), dict(execute(second, dict(execute(first, tensors)))))
    assert composed.verify().problems == ()
    assert composed.sources == first.sources
    assert composed.targets == second.targets


@FAST
@given(chains())
def test_restriction_is_slicing(chain: tuple[random.Random, list[Plan]]) -> None:
    random, (plan,) = chain
    tensors = numbered(plan.sources)
    full = dict(execute(plan, tensors))
    chosen = random.sample(plan.targets, random.randrange(len(plan.targets) + 1))
    boxes = {tensor.name: random_box(random, tensor.shape) for tensor in chosen}
    part = plan.restrict(targets=boxes)
    assert prove(part, ends=("target",)).problems == ()
    assert {tensor.name for tensor in part.targets} == boxes.keys()
    read = {tensor.name: tensors[tensor.name] for tensor in part.sources}
    assert equal(dict(execute(part, read)), {name: full[name][slices(box)] for name, box in boxes.items()})


@FAST
@given(chains())
def test_restriction_of_the_sources_is_slicing_them(chain: tuple[random.Random, list[Plan]]) -> None:
    random, (plan,) = chain
    boxes = {tensor.name: random_box(random, tensor.shape) for tensor in plan.sources}
    part = plan.restrict(sources=boxes)
    assert prove(part, ends=("source",)).problems == ()
    tensors = numbered(plan.sources)
    kept = {name: tensors[name][slices(box)] for name, box in boxes.items()}
    inside = {element for tensor in kept.values() for element in tensor.flatten().tolist()}
    full = by_hand(plan, tensors)
    expected = {
        tensor.name: torch.tensor([e if e in inside else -1 for e in full[tensor.name].flatten().tolist()])
        .to(torch.int64)
        .view(tensor.shape)
        for tensor in part.targets
    }
    assert equal(by_hand(part, kept), expected)
    gone = {tensor.name for tensor in plan.targets} - expected.keys()
    assert not any(element in inside for name in gone for element in full[name].flatten().tolist())


@FAST
@given(chains())
def test_restrictions_to_a_partition_partition_the_plan(chain: tuple[random.Random, list[Plan]]) -> None:
    """Boxes of a grid over one target, on both ends global again, hold each of its element pairs once."""
    random, (plan,) = chain
    target = random.choice(plan.targets)
    whole = {pair: n for pair, n in relation(plan).items() if pair[2] == target.name}
    parts: Counter[tuple[str, int, str, int]] = Counter()
    cuts = [sorted({0, size, random.randrange(size + 1)}) for size in target.shape]
    for box in itertools.product(*(list(itertools.pairwise(cut)) for cut in cuts)):
        index = torch.arange(target.elements).view(target.shape)[slices(box)].flatten().tolist()
        part = relation(plan.restrict(targets={target.name: box}))
        parts += Counter({(s, i, t, index[j]): n for (s, i, t, j), n in part.items()})
    assert parts == whole


def mutate(random: random.Random, plan: Plan) -> Plan:
    """One small mistake, which may happen to be none."""
    copies = list(plan.copies)
    index = random.randrange(len(copies))
    copy = copies[index]
    end = random.choice(["source", "target"])
    kind = random.choice(["drop", "double", "shift", "swap", "stride", "extent", "tensor", "exchange"])
    offset, strides = getattr(copy, f"{end}_offset"), list(getattr(copy, f"{end}_strides"))
    extents = list(copy.extents)
    change: dict[str, Any]
    if kind == "drop":
        del copies[index]
    elif kind == "double":
        copies.append(copy)
    elif kind == "shift":
        change = {f"{end}_offset": max(0, offset + random.choice([-7, -1, 1, 2, 5]))}
        copies[index] = copy._replace(**change)
    elif kind == "tensor":
        number = len(plan.sources if end == "source" else plan.targets)
        change = {end: random.randrange(number)}
        copies[index] = copy._replace(**change)
    elif kind == "exchange":
        # Two copies trade targets: still a bijection when they are alike.
        other_index = random.randrange(len(copies))
        other = copies[other_index]
        copies[index] = copy._replace(target=other.target, target_offset=other.target_offset)
        copies[other_index] = other._replace(target=copy.target, target_offset=copy.target_offset)
    elif extents:
        axis, second = random.randrange(len(extents)), random.randrange(len(extents))
        if kind == "swap":
            extents[axis], extents[second] = extents[second], extents[axis]
        elif kind == "extent":
            extents[axis] = max(1, extents[axis] + random.choice([-1, 1]))
        else:
            strides[axis] = max(0, strides[axis] + random.choice([-1, 1, strides[axis]]))
        change = {"extents": tuple(extents), f"{end}_strides": tuple(strides)}
        copies[index] = copy._replace(**change)
    return replace(plan, copies=tuple(copies))


@times(16)
@given(chains())
def test_prove_agrees_with_counting(chain: tuple[random.Random, list[Plan]]) -> None:
    random, (plan,) = chain
    for _ in range(random.randrange(1, 3)):
        if plan.copies:
            plan = mutate(random, plan)
    expected = is_bijection(plan) and not any(map(interlocks, plan.copies))
    assert plan.verify().ok == expected, plan.verify()


@FAST
@given(chains(length=3))
def test_prove_agrees_with_counting_after_composition(chain: tuple[random.Random, list[Plan]]) -> None:
    """Composition cuts copies in ways that no single layout explains."""
    random, (first, second) = chain
    plan = mutate(random, first.compose(second))
    assert plan.verify().ok == (is_bijection(plan) and not any(map(interlocks, plan.copies)))


@FAST
@given(chains())
def test_json_and_digest(chain: tuple[random.Random, list[Plan]]) -> None:
    random, (plan,) = chain
    assert Plan.from_json(plan.to_json()) == plan
    raw: list[RawCopy] = []
    for c in random.sample(plan.copies, len(plan.copies)):
        order = random.sample(range(len(c.extents)), len(c.extents))
        extents, reads, writes = (tuple(v[k] for k in order) for v in (c.extents, c.source_strides, c.target_strides))
        names = plan.sources[c.source].name, plan.targets[c.target].name
        raw.append((*names, extents, c.source_offset, reads, c.target_offset, writes, c.rule))
    sources, targets = (random.sample(tensors, len(tensors)) for tensors in (plan.sources, plan.targets))
    shuffled = make_plan(sources, targets, raw, plan.rules)
    assert shuffled == plan
    assert shuffled.digest == plan.digest


def test_the_generator_reaches_what_matters() -> None:
    """Interleaving, transposing, names and strides that do not divide one another do occur."""
    seen: Counter[str] = Counter()
    for seed in range(60):
        generator = random.Random(seed)
        families = [("F", ("a", "c")), ("G", ("a", "f")), ("H", ("a", "b", "d"))]
        layouts = [random_layout(generator, families, prefix) for prefix in "xy"]
        plan = connect(families, *layouts)
        for copy in plan.copies:
            seen["transposed"] += list(copy.source_strides) != sorted(copy.source_strides, reverse=True)
            seen["strided"] += bool(copy.target_strides) and copy.target_strides[-1] > 1
        outer = {copy.target_strides[0] for copy in plan.copies if copy.target_strides}
        seen["uneven"] += any(math.gcd(s, t) not in (s, t) for s in outer for t in outer)
        seen["named"] += len(plan.targets) > 3
    assert min(seen[kind] for kind in ("transposed", "strided", "uneven", "named")) > 5, seen
