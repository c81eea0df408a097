"""Plans from plans: restriction to boxes, and composition. Both work on axes, never on elements."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from crosswalk.runtime.dtypes import cast_is_exact
from crosswalk.runtime.errors import CrosswalkError, Diagnostic

from .affine import Piece, clip, intersect, split_rows
from .joining import join
from .parts import AnyPlan, Copy, Exemption, PlanParts, RawCopy, RawRegion, Region, TensorSpec, raw_copy

#: ``(start, stop)`` per dimension of a tensor.
Box = tuple[tuple[int, int], ...]
_Entry = tuple[Piece, Copy | Region]


class Cut(NamedTuple):
    """One dimension of a box: the digit at ``stride`` of a flat index, kept from ``start`` to ``stop``."""

    start: int
    stop: int
    stride: int
    #: Stride of the same digit in the tensor that has the shape of the box.
    new_stride: int


def restrict(
    plan: AnyPlan, targets: Mapping[str, Box] | None = None, sources: Mapping[str, Box] | None = None
) -> AnyPlan:
    """The part of the plan that writes inside the boxes ``targets`` and reads inside the boxes ``sources``.

    A tensor named in one of them takes the shape of its box (which may be empty), and its copies count from the corner
    of the box; tensors of that end that are not named are left out. On an end that is None all keep their shapes, and
    tensors without copies are left out. An exemption stays while its tensors do and its contract holds for the boxes,
    an encoding while its tensor is whole: the sources of a plan are tensors as they are decoded.
    A region is on one end: it is cut to the boxes of that end, and left out where the other end is restricted.

    Raises ``CrosswalkError`` naming every unknown tensor and every box that does not fit its tensor.
    """
    wanted = (
        ("source", plan.source_index, plan.sources, sources),
        ("target", plan.target_index, plan.targets, targets),
    )
    problems = [
        problem
        for end, index, specs, boxes in wanted
        for name, box in (boxes or {}).items()
        for problem in _check_box(end, name, box, specs[index[name]] if name in index else None)
    ]
    if problems:
        raise CrosswalkError(problems)

    source_cuts, target_cuts = _cuts(plan.sources, sources), _cuts(plan.targets, targets)
    copies: list[RawCopy] = []
    for copy in plan.copies:
        source, target = plan.sources[copy.source].name, plan.targets[copy.target].name
        if (sources is not None and source not in sources) or (targets is not None and target not in targets):
            continue
        pieces = [copy.piece]
        if source in source_cuts:
            pieces = [part.swapped for piece in pieces for part in cut(piece.swapped, source_cuts[source])]
        if target in target_cuts:
            pieces = [part for piece in pieces for part in cut(piece, target_cuts[target])]
        copies += [raw_copy(source, target, piece, copy.rule) for piece in pieces]

    padded = _cut_regions(plan.padded, plan.targets, targets, target_cuts) if sources is None else []
    truncated = _cut_regions(plan.truncated, plan.sources, sources, source_cuts) if targets is None else []
    read = {copy[0] for copy in copies} | {region[0] for region in truncated}
    written = {copy[1] for copy in copies} | {region[0] for region in padded}
    new_sources = {tensor.name: tensor for tensor in _boxed(plan.sources, sources, read)}
    whole = {tensor.name for tensor in plan.sources if new_sources.get(tensor.name) == tensor}
    return plan.made(
        new_sources.values(),
        _boxed(plan.targets, targets, written),
        copies,
        plan.rules,
        [exemption for exemption in plan.exemptions if _still_holds(exemption, new_sources, sources or {})],
        plan.metadata,
        padded,
        truncated,
        [e for e in plan.encodings if e.tensor in whole],
    )


def _cut_regions(
    regions: Iterable[Region],
    tensors: Sequence[TensorSpec],
    boxes: Mapping[str, Box] | None,
    cuts: Mapping[str, list[Cut]],
) -> list[RawRegion]:
    """The part of the regions inside the boxes of their tensors."""
    result = []
    for region in regions:
        name = tensors[region.tensor].name
        if boxes is None or name in boxes:
            parts = cut(region.piece, cuts[name]) if name in cuts else [region.piece]
            result += [_raw_region(name, part, region.rule) for part in parts]
    return result


def _check_box(end: str, name: str, box: Box, tensor: TensorSpec | None) -> Iterator[Diagnostic]:
    if tensor is None:
        yield Diagnostic("plan/no-such-tensor", f"the plan has no {end} tensor `{name}`")
    elif len(box) != len(tensor.shape):
        yield Diagnostic("plan/box", f"the box of `{name}` has {len(box)} dimensions, the tensor {len(tensor.shape)}")
    elif not all(0 <= start <= stop <= size for (start, stop), size in zip(box, tensor.shape, strict=True)):
        yield Diagnostic(
            "plan/box",
            f"the box {[list(interval) for interval in box]} does not lie inside `{name}` (shape {list(tensor.shape)})",
            hint="a box is (start, stop) per dimension, with 0 <= start <= stop <= size",
        )


def _boxed(tensors: Iterable[TensorSpec], boxes: Mapping[str, Box] | None, used: set[str]) -> list[TensorSpec]:
    if boxes is None:
        return [tensor for tensor in tensors if tensor.name in used]
    return [
        TensorSpec(tensor.name, tuple(stop - start for start, stop in boxes[tensor.name]), tensor.dtype)
        for tensor in tensors
        if tensor.name in boxes
    ]


def _still_holds(exemption: Exemption, sources: Mapping[str, TensorSpec], boxes: Mapping[str, Box]) -> bool:
    names = [exemption.tensor] if exemption.of is None else [exemption.tensor, exemption.of]
    return all(name in sources for name in names) and len({boxes.get(name) for name in names}) == 1


def _cuts(tensors: Iterable[TensorSpec], boxes: Mapping[str, Box] | None) -> dict[str, list[Cut]]:
    """How to cut each boxed tensor that is not kept whole."""
    return {
        tensor.name: box_cuts(tensor.shape, boxes[tensor.name])
        for tensor in tensors
        if boxes is not None
        and tensor.name in boxes
        and any(interval != (0, size) for interval, size in zip(boxes[tensor.name], tensor.shape, strict=True))
    }


def box_cuts(shape: tuple[int, ...], box: Box) -> list[Cut]:
    """How to cut a tensor of this shape to a box. A dimension that is kept whole is one with the dimension outside it,
    which keeps copies in fewer pieces."""
    merged: list[tuple[int, int, int]] = []
    for (start, stop), size in zip(box, shape, strict=True):
        if merged and (start, stop) == (0, size):
            outer_start, outer_stop, outer_size = merged[-1]
            merged[-1] = (outer_start * size, outer_stop * size, outer_size * size)
        else:
            merged.append((start, stop, size))
    cuts: list[Cut] = []
    stride = new_stride = 1
    for start, stop, size in reversed(merged):
        cuts.append(Cut(start, stop, stride, new_stride))
        stride, new_stride = stride * size, new_stride * (stop - start)
    return cuts[::-1]


def cut(piece: Piece, cuts: list[Cut]) -> list[Piece]:
    """The part of a piece inside the box, counted from the corner of the box; outermost dimension first."""
    if not cuts:
        return [piece]
    (start, stop, stride, new_stride), inner = cuts[0], cuts[1:]
    if not inner:
        return [part._replace(here=part.here - start) for part in clip(piece, start, stop)]
    return [
        Piece(
            (band.here - start) * new_stride + part.here,
            band.there + part.there,
            tuple((extent, step * new_stride, other) for extent, step, other in band.axes) + part.axes,
        )
        for rows, columns in split_rows(piece, stride)
        for band in clip(rows, start, stop)
        for part in cut(columns, inner)
    ]


def compose(first: AnyPlan, second: AnyPlan) -> AnyPlan:
    """The plan from the sources of ``first`` to the targets of ``second``, without the tensors between.

    The targets of ``first`` must be the sources of ``second``, by name, shape and dtype; those that ``second`` exempts
    must not be there. A ``second`` that was compiled without files takes the dtypes of ``first``. The exemptions and
    encodings of ``first`` stay; those of ``second`` say how files hold what no file holds now. A copy carries the rule
    of ``second`` that wrote its target; the rules of ``second`` come first, so that their indices stay, and those of
    ``first`` follow. Copies of one rule that line up on both ends are joined. Zeros that ``second`` copies are padding
    of its targets, what it does not read of a copy is not read by the copy, and zeros that it does not read are
    nothing. Metadata is that of both, of ``second`` where they differ.

    Raises ``CrosswalkError`` with every tensor that is missing, unexpected or differs, and every pair of casts that
    loses more than the direct cast would.
    """
    metadata = {**first.metadata, **second.metadata}
    if second.metadata.get("dtypes") == "assumed":
        second = second.with_dtypes({tensor.name: tensor.dtype for tensor in first.targets})
    if first.metadata.get("dtypes") != second.metadata.get("dtypes"):
        del metadata["dtypes"]  # assumed on one side only: known after all
    exempt = {exemption.tensor for exemption in second.exemptions}
    problems = list(_mismatches(first, second, exempt))
    if problems:
        raise CrosswalkError(problems)

    readers, writers = _readers(second), _writers(first)
    copies: list[RawCopy] = []
    padded = [_named(region, second.targets) for region in second.padded]
    truncated = [_named(region, first.sources, len(second.rules)) for region in first.truncated]
    lossy: dict[tuple[str, str, str], None] = {}
    for name, pieces in writers.items():
        between = first.targets[first.target_index[name]].dtype
        for (left, one), (right, other) in _meeting(pieces, readers[name]):
            if isinstance(one, Region) or isinstance(other, Region):
                for part in intersect(left, right):
                    if isinstance(other, Copy):
                        padded.append(_raw_region(second.targets[other.target].name, part.swapped, other.rule))
                    elif isinstance(one, Copy):
                        truncated.append(_raw_region(first.sources[one.source].name, part, other.rule))
                continue
            source, target = first.sources[one.source], second.targets[other.target]
            if between != target.dtype and not cast_is_exact(source.dtype, between):
                lossy[source.name, name, target.name] = None
            copies += [raw_copy(source.name, target.name, part.swapped, other.rule) for part in intersect(left, right)]
    if lossy:
        raise CrosswalkError(
            Diagnostic(
                "plan/compose-cast",
                f"`{source}` loses precision in `{between}` on its way to `{target}`: no single cast does the same",
            )
            for source, between, target in lossy
        )
    return first.made(
        first.sources,
        second.targets,
        join(copies),
        (*second.rules, *first.rules),
        first.exemptions,
        metadata,
        _joined(padded),
        _joined(truncated),
        first.encodings,
    )


def _readers(plan: PlanParts) -> Mapping[str, list[_Entry]]:
    """What reads each source: copies, and regions that are truncated."""
    found: dict[str, list[_Entry]] = defaultdict(list)
    for copy in plan.copies:
        found[plan.sources[copy.source].name].append((copy.piece.swapped, copy))
    for region in plan.truncated:
        found[plan.sources[region.tensor].name].append((region.piece, region))
    return found


def _writers(plan: PlanParts) -> Mapping[str, list[_Entry]]:
    """What writes each target: copies, from their far end, and regions that are padded."""
    found: dict[str, list[_Entry]] = defaultdict(list)
    for copy in plan.copies:
        found[plan.targets[copy.target].name].append((copy.piece, copy))
    for region in plan.padded:
        found[plan.targets[region.tensor].name].append((region.piece, region))
    return found


def _mismatches(first: PlanParts, second: PlanParts, exempt: set[str]) -> Iterator[Diagnostic]:
    made = {tensor.name: tensor for tensor in first.targets}
    needed = {tensor.name: tensor for tensor in second.sources if tensor.name not in exempt}
    for name in sorted(needed.keys() - made.keys()):
        yield Diagnostic("plan/compose-missing", f"the second plan reads `{name}`, which the first does not write")
    for name in sorted(made.keys() - needed.keys()):
        why = "holds to be tied or dropped" if name in exempt else "does not read"
        yield Diagnostic("plan/compose-unexpected", f"the first plan writes `{name}`, which the second {why}")
    for name in sorted(made.keys() & needed.keys()):
        if made[name] != needed[name]:
            one, other = made[name], needed[name]
            yield Diagnostic(
                "plan/compose-differs",
                f"the first plan writes `{name}` as {one.dtype} {list(one.shape)}, the second reads it as "
                f"{other.dtype} {list(other.shape)}",
            )


def _meeting(left: list[_Entry], right: list[_Entry]) -> Iterator[tuple[_Entry, _Entry]]:
    """Pairs whose hulls meet."""
    right = sorted(right, key=lambda entry: entry[0].here)
    starts = [piece.here for piece, _ in right]
    reached = list(accumulate((piece.stop for piece, _ in right), max))
    for entry in left:
        piece = entry[0]
        for other in right[bisect_right(reached, piece.here) : bisect_left(starts, piece.stop)]:
            if other[0].stop > piece.here:
                yield entry, other


def _raw_region(name: str, piece: Piece, rule: int) -> RawRegion:
    """The end of a piece that is ``here``, as a region of the tensor ``name``."""
    extents, strides, _ = piece.columns
    return (name, extents, piece.here, strides, rule)


def _named(region: Region, tensors: Sequence[TensorSpec], rules: int = 0) -> RawRegion:
    """A region as it is in its plan, with ``rules`` more rules before its own."""
    return (tensors[region.tensor].name, region.extents, region.offset, region.strides, rules + region.rule)


def _joined(regions: Iterable[RawRegion]) -> list[RawRegion]:
    """The same elements in as few regions as join into one: they are joined as copies onto themselves."""
    onto = (
        (name, name, extents, offset, strides, offset, strides, rule)
        for name, extents, offset, strides, rule in regions
    )
    return [(name, extents, offset, strides, rule) for name, _, extents, offset, strides, _, _, rule in join(onto)]


def with_sources(plan: AnyPlan, sources: Iterable[TensorSpec], exemptions: Iterable[Exemption]) -> AnyPlan:
    """The plan with more source tensors, which are exempt: nothing is copied from them."""
    return plan.made(
        (*plan.sources, *sources), plan.targets, plan.raw_copies(), plan.rules, (*plan.exemptions, *exemptions),
        plan.metadata, [_named(region, plan.targets) for region in plan.padded],
        [_named(region, plan.sources) for region in plan.truncated], plan.encodings,
    )  # fmt: skip


def inverse(plan: AnyPlan) -> AnyPlan:
    """The plan that undoes another; see :meth:`.Plan.inverse`."""
    gone = {exemption.tensor for exemption in plan.exemptions}
    return plan.made(
        plan.targets,
        [tensor for tensor in plan.sources if tensor.name not in gone],
        [
            (target, source, extents, offset, strides, source_offset, source_strides, rule)
            for source, target, extents, source_offset, source_strides, offset, strides, rule in plan.raw_copies()
        ],
        rules=plan.rules,
        metadata=plan.metadata,
        padded=[_named(region, plan.sources) for region in plan.truncated],
        truncated=[_named(region, plan.targets) for region in plan.padded],
    )
