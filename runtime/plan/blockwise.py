"""Encoded tensors moved as they are stored: the plan for payloads and scales, where every block stays whole.

Both ends keep the encoding, so nothing is decoded and nothing is lost. The copies of the scales follow from those of
the elements: a copy that moves whole blocks moves their scales in the same order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crosswalk.runtime.errors import CrosswalkError, Diagnostic
from crosswalk.runtime.records import replace

from .affine import dense
from .encodings import KINDS, EncodingKind, Shape
from .parts import AnyPlan, Copy, Encoding, Exemption, PlanParts, RawCopy, TensorSpec


class _Axis(NamedTuple):
    """An axis of a copy that stays in one dimension on each end: its extent, and the dimension and the step in it."""

    extent: int
    source_dim: int
    source_step: int
    target_dim: int
    target_step: int


class _Made(NamedTuple):
    """What one target becomes: payload and scales, and the copies into both."""

    stored: list[TensorSpec]
    copies: list[RawCopy]


#: Offset and strides in the source, offset and strides in the target.
Ends = tuple[int, tuple[int, ...], int, tuple[int, ...]]


def keep_encoded(plan: AnyPlan) -> AnyPlan:
    """The plan that moves what is stored for the encoded sources, without decoding it.

    A target that is made of encoded tensors becomes the tensors that are stored for them: ``a.weight`` and its scales
    ``a.weight_scale_inv`` become ``b`` and ``b_scale_inv``. Other tensors move as before.

    Raises ``CrosswalkError`` with every target that is not made of whole blocks of one encoding, is cast, or is padded,
    and every encoded source that is truncated, or tied to one that is stored otherwise.
    """
    copies: list[RawCopy] = []
    targets: list[TensorSpec] = []
    problems = [_refused(name, why) for name, why in _sources_that_cannot(plan)]
    feeding: dict[int, list[Copy]] = defaultdict(list)
    for copy in plan.copies:
        feeding[copy.target].append(copy)
    padded = {region.tensor for region in plan.padded}
    for number, target in enumerate(plan.targets):
        encodings = [plan.encoding_of.get(plan.sources[copy.source].name) for copy in feeding[number]]
        if not any(encodings):
            targets.append(target)
            copies += [_as_before(plan, copy) for copy in feeding[number]]
            continue
        found = "it is padded" if number in padded else _made(plan, target, feeding[number], encodings)
        if isinstance(found, str):
            problems.append(_refused(target.name, found))
            continue
        targets += found.stored
        copies += found.copies
    if problems:
        raise CrosswalkError(problems)
    sources = [part for tensor in plan.sources for part in plan.stored_for(tensor)]
    exemptions = [part for exemption in plan.exemptions for part in _of_stored(plan, exemption)]
    padding, left_out = (
        [(specs[r.tensor].name, r.extents, r.offset, r.strides, r.rule) for r in found]
        for specs, found in ((plan.targets, plan.padded), (plan.sources, plan.truncated))
    )
    return plan.made(sources, targets, copies, plan.rules, exemptions, plan.metadata, padding, left_out)


def _as_before(plan: PlanParts, c: Copy) -> RawCopy:
    source, target = plan.sources[c.source].name, plan.targets[c.target].name
    return source, target, c.extents, c.source_offset, c.source_strides, c.target_offset, c.target_strides, c.rule


def _refused(name: str, why: str) -> Diagnostic:
    hint = "execute the plan as it is: it decodes"
    return Diagnostic("plan/keep-encoded", f"`{name}` cannot keep its encoding: {why}", None, hint)


def _alike(encoding: Encoding | None) -> object:
    """Equal for tensors that are stored in the same way."""
    return encoding and (encoding.kind, encoding.block, *(part.dtype for part in encoding.stored))


def _sources_that_cannot(plan: PlanParts) -> Iterator[tuple[str, str]]:
    """Encoded sources of which not all that is stored can be moved, and why."""
    for number in sorted({region.tensor for region in plan.truncated}):
        if plan.sources[number].name in plan.encoding_of:
            yield plan.sources[number].name, "it is truncated"
    for exemption in plan.exemptions:
        own, other = (plan.encoding_of.get(name or "") for name in (exemption.tensor, exemption.of))
        if exemption.of is not None and _alike(own) != _alike(other):
            yield exemption.tensor, f"it is tied to `{exemption.of}`, which is stored in another way"


def _of_stored(plan: PlanParts, exemption: Exemption) -> Iterator[Exemption]:
    """The exemption of each tensor that is stored for the exempt one."""
    own, other = (plan.encoding_of.get(name or "") for name in (exemption.tensor, exemption.of))
    if own is None:
        yield exemption
        return
    owners = other.stored if other is not None else (None, None)
    for part, owner in zip(own.stored, owners, strict=True):
        yield replace(exemption, tensor=part.name, of=owner.name if owner is not None else None)


def _made(
    plan: PlanParts, target: TensorSpec, copies: Sequence[Copy], encodings: Sequence[Encoding | None]
) -> _Made | str:
    """What the target becomes, or why it cannot be kept."""
    known = [encoding for encoding in encodings if encoding is not None]
    first = known[0]
    if len({_alike(encoding) for encoding in encodings}) > 1:
        return "it is made of tensors that are stored in different ways"
    if {plan.sources[copy.source].dtype for copy in copies} != {target.dtype}:
        return f"it is cast to {target.dtype}"
    if not all(part.name.startswith(first.tensor) for part in first.stored):
        return f"`{first.tensor}` does not begin the names of what is stored for it"
    kind = KINDS[first.kind]
    block: dict[int, int] = {}
    cut: list[tuple[Copy, Encoding, Shape, list[_Axis]]] = []
    for copy, encoding in zip(copies, known, strict=True):
        shape = plan.sources[copy.source].shape
        axes = _in_dimensions(copy, shape, target.shape)
        own = kind.block_of(shape, encoding.block)
        if axes is None:
            return f"the elements of `{encoding.tensor}` do not stay in their dimensions"
        for axis in axes:
            size = own[axis.source_dim]
            if axis.source_step < size and block.setdefault(axis.target_dim, size) != size:
                return "its blocks would have different sizes"
        cut.append((copy, encoding, own, axes))
    sizes = tuple(block.get(dimension, 1) for dimension in range(len(target.shape)))
    grid = _grid(target.shape, sizes)
    shapes = (
        (*grid, kind.packed) if kind.packed else target.shape,
        first.stored[1].shape if math.prod(grid) == 1 else grid,
    )
    names = [target.name + part.name.removeprefix(first.tensor) for part in first.stored]
    parts = zip(names, shapes, first.stored, strict=True)
    payloads: list[RawCopy] = []
    scales: list[RawCopy] = []
    for copy, encoding, own, axes in cut:
        moved = _of_blocks(copy, axes, (plan.sources[copy.source].shape, target.shape), (own, sizes))
        if moved is None:
            return f"`{encoding.tensor}` is not moved in whole blocks of {' x '.join(map(str, own))}"
        ends = [(part.name, name) for part, name in zip(encoding.stored, names, strict=True)]
        payloads.append((*ends[0], *_of_payload(kind, copy, *moved), copy.rule))
        scales.append((*ends[1], moved[0], *moved[1], copy.rule))
    return _Made([TensorSpec(name, shape, part.dtype) for name, shape, part in parts], [*payloads, *scales])


def _of_payload(kind: EncodingKind, c: Copy, extents: tuple[int, ...], ends: Ends) -> tuple[tuple[int, ...], *Ends]:
    """The copy of the payload: that of the elements, or of what is packed for each of the blocks."""
    if not kind.packed:
        return c.extents, c.source_offset, c.source_strides, c.target_offset, c.target_strides
    (start, strides, place, others), width = ends, kind.packed
    packed = start * width, (*(s * width for s in strides), 1), place * width, (*(s * width for s in others), 1)
    return (*extents, width), *packed


def _grid(shape: Shape, block: Shape) -> Shape:
    """How many blocks there are along each dimension."""
    return tuple(-(-size // step) for size, step in zip(shape, block, strict=True))


def _digits(offset: int, shape: Shape) -> list[int]:
    """The index in each dimension of a flat offset."""
    result = []
    for step in dense(shape):
        digit, offset = divmod(offset, max(step, 1))
        result.append(digit)
    return result


def _in_dimensions(copy: Copy, source: Shape, target: Shape) -> list[_Axis] | None:
    """The axes of a copy, cut so that each stays in one dimension on both ends; None if that cannot be."""
    result = []
    waiting = list(zip(copy.extents, copy.source_strides, copy.target_strides, strict=True))
    while waiting:
        extent, stride, other = waiting.pop()
        read, written = _dimension(stride, source), _dimension(other, target)
        if read is None or written is None:
            return None
        room = min(-(-shape[dimension] // step) for shape, (dimension, step) in ((source, read), (target, written)))
        if extent <= room:
            result.append(_Axis(extent, *read, *written))
        elif extent % room:
            return None
        else:
            waiting.append((room, stride, other))
            waiting.append((extent // room, stride * room, other * room))
    return result


def _dimension(stride: int, shape: Shape) -> tuple[int, int] | None:
    """The dimension that a stride steps in, and how far; None if it is no whole number of steps."""
    for dimension, step in enumerate(dense(shape)):
        if shape[dimension] > 1 and stride >= step:
            return (dimension, stride // step) if stride % step == 0 else None
    return None


def _of_blocks(
    copy: Copy, axes: Sequence[_Axis], shapes: tuple[Shape, Shape], blocks: tuple[Shape, Shape]
) -> tuple[tuple[int, ...], Ends] | None:
    """The copy of one element for each block, from the shape and with the blocks of the source to those of the target;
    None if a block is cut."""
    (source, target), own = shapes, blocks[0]
    starts = _digits(copy.source_offset, source), _digits(copy.target_offset, target)
    if any(at % step for pair in zip(starts, blocks, strict=True) for at, step in zip(*pair, strict=True)):
        return None
    steps = [dense(_grid(shape, block)) for shape, block in zip(shapes, blocks, strict=True)]
    offsets = [
        sum(at // width * step for at, width, step in zip(*end, strict=True))
        for end in zip(starts, blocks, steps, strict=True)
    ]
    whole = {dimension for dimension, size in enumerate(source) if min(size, own[dimension]) == 1}
    extents, read, written = [], [], []
    for extent, from_dim, from_step, to_dim, to_step in axes:
        block, other = own[from_dim], blocks[1][to_dim]
        if block == other > 1 and from_step == to_step == 1:
            at_end = starts[0][from_dim] + extent == source[from_dim] and starts[1][to_dim] + extent == target[to_dim]
            if extent % block and not at_end:
                return None
            whole.add(from_dim)
            extents.append(-(-extent // block))
            apart = 1, 1
        elif from_step % block or to_step % other:
            return None
        else:
            extents.append(extent)
            apart = from_step // block, to_step // other
        read.append(apart[0] * steps[0][from_dim])
        written.append(apart[1] * steps[1][to_dim])
    if len(whole) < len(source):
        return None
    return tuple(extents), (offsets[0], tuple(read), offsets[1], tuple(written))
