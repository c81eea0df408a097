"""Proves that a plan moves every element exactly once, on strides alone: the cost depends on the copies, not on the
sizes of the tensors. docs/plan.md numbers the invariants that are checked here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from crosswalk.runtime.dtypes import DTYPES, FLOATS, cast_is_exact
from crosswalk.runtime.errors import Diagnostic

from .affine import Axis, Piece, is_nested, make_piece, span, tiling_faults
from .encodings import check_encodings
from .parts import Copy, PlanParts, Region, TensorSpec
from .verdict import REGIONS, Amount, Cast, Verdict, diagnose, entry_of, exempt_but_moved, explain_fault, name_of

#: Problems named per tensor; one wrong rule can leave a gap in every row.
_FAULTS_PER_TENSOR = 3
_ENDS = ("source", "target")


def prove(plan: PlanParts, ends: Sequence[str] = _ENDS) -> Verdict:
    """Check every invariant of the plan, with coverage on the given ends.

    A plan restricted to boxes of its targets covers those, but no longer its sources: prove it with
    ``ends=("target",)``. Never raises for a wrong plan; the problems are in the verdict.

    Layers and experts repeat. So the forms of copies are looked at once each, and so are the tensors that copies cut
    alike; what is left for every copy is to say which of them it has.
    """
    found = _Found(plan)
    problems = [*_check_tensors(plan, found), *_check_exemptions(plan), *check_encodings(plan)]
    _check_numbers(plan, found)
    _check_casts(plan, found)
    cuts = {end: _Cuts.of(plan, end, found) for end in _ENDS}
    for end in _ENDS:
        _check_ends(plan, cuts[end], found)
    problems += found.listed()
    for end in ends:
        problems += _check_tilings(plan, cuts[end], found)
    padded, truncated = (Amount() if problems else Amount.of(regions) for regions in (plan.padded, plan.truncated))
    return Verdict(tuple(problems), _casts(plan, found), plan.exemptions, padded, truncated, plan.encodings)


class _End(NamedTuple):
    """One end of copies of one form: its axes, and the elements from the first to the last; -1 if axes interlock."""

    axes: tuple[Axis, ...]
    reach: int

    @staticmethod
    def of(extents: tuple[int, ...], strides: tuple[int, ...]) -> _End:
        axes = make_piece(0, strides, 0, (0,) * len(extents), extents).axes
        return _End(axes, span(axes) if is_nested(axes) else -1)


#: What copies of one form share: the very tuples that are their extents and strides. Equal ones may hold numbers of
#: other types, as true is 1.
_Form = tuple[int, int, int]


class _Found:
    """What is known of a plan: the ``sizes`` of tensors by end, None where nobody knows; the ``forms`` of its copies,
    and the ``ends`` of those that are well-formed; and what is ``wrong`` with copies and with regions of an end.
    Copies are known by their number, and so are regions of one end, which count on after them."""

    def __init__(self, plan: PlanParts) -> None:
        self.sizes = {end: _sizes(tensors) for end, tensors in zip(_ENDS, (plan.sources, plan.targets), strict=True)}
        self.forms = [(id(c.extents), id(c.source_strides), id(c.target_strides)) for c in plan.copies]
        self.ends: dict[_Form, tuple[_End, _End]] = {}
        self.wrong: dict[str, dict[int, Diagnostic]] = {"copy": {}, "source": {}, "target": {}}

    def add(self, end: str, number: int, problem: Diagnostic | None) -> None:
        """Note the first problem of a copy or of a region of an end."""
        if problem is not None:
            self.wrong["copy" if number < len(self.forms) else end].setdefault(number, problem)

    def listed(self) -> list[Diagnostic]:
        """The problems of copies, then those of regions, each in their order."""
        return [found[number] for found in self.wrong.values() for number in sorted(found)]


class _Cuts(NamedTuple):
    """How copies and regions cut the tensors of one end. ``alike``: what tensors that are cut alike share, which is
    their size and the place of each piece, to those tensors. ``pieces``: of each tensor, by number. ``places``: where
    a piece begins, and which of the ``ends`` it is."""

    end: str
    alike: Mapping[tuple[Any, ...], Sequence[int]]
    pieces: Sequence[Sequence[int]]
    places: Sequence[tuple[int, int]]
    ends: Sequence[_End]

    @staticmethod
    def of(plan: PlanParts, end: str, found: _Found) -> _Cuts:
        """What is wrong by now is left out."""
        which = _ENDS.index(end)
        numbers: dict[_End, int] = {}
        known = {form: numbers.setdefault(both[which], len(numbers)) for form, both in found.ends.items()}
        offsets = [copy.target_offset if which else copy.source_offset for copy in plan.copies]
        places = [(offset, known.get(form, -1)) for offset, form in zip(offsets, found.forms, strict=True)]
        owners = [copy.target if which else copy.source for copy in plan.copies]
        regions = plan.padded if which else plan.truncated
        wrong = found.wrong["copy"].keys() | found.wrong[end].keys()
        for number, region in enumerate(regions, len(plan.copies)):
            own = _End((), 0) if number in wrong else _End.of(region.extents, region.strides)
            places.append((region.offset, numbers.setdefault(own, len(numbers))))
            owners.append(region.tensor)
        pieces: list[list[int]] = [[] for _ in found.sizes[end]]
        for number, owner in enumerate(owners):
            if number not in wrong:
                pieces[owner].append(number)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for tensor, (size, numbered) in enumerate(zip(found.sizes[end], pieces, strict=True)):
            alike.setdefault((size, *[places[number] for number in numbered]), []).append(tensor)
        return _Cuts(end, alike, pieces, places, list(numbers))

    def of_tensor(self, tensor: int) -> list[Piece]:
        """The pieces of a tensor. The other end of each is its number, with strides of 0, so that all its parts keep
        it."""
        return [Piece(self.places[n][0], n, self.ends[self.places[n][1]].axes) for n in self.pieces[tensor]]


def _sizes(tensors: Iterable[TensorSpec]) -> list[int | None]:
    """The elements of each tensor; None where its shape is none. Many tensors share the tuple that is their shape."""
    shapes = {id(tensor.shape): tensor for tensor in tensors}
    known = {shape: tensor.elements if _well_formed(tensor) else None for shape, tensor in shapes.items()}
    return [known[id(tensor.shape)] for tensor in tensors]


def _check_numbers(plan: PlanParts, found: _Found) -> None:
    """That numbers are natural, indices those of tensors, and forms ones of copies; and that of regions."""
    columns = list(zip(*plan.copies, strict=True)) or [()] * len(Copy._fields)
    limits = ((0, len(plan.sources)), (1, len(plan.targets)), (3, None), (5, None))
    if not all(_all_natural(columns[item], limit) for item, limit in limits):
        for number, copy in enumerate(plan.copies):
            found.add("copy", number, _check_copy(plan, number, copy))
    for number, (copy, form) in enumerate(zip(plan.copies, found.forms, strict=True)):
        if form in found.ends or number in found.wrong["copy"]:
            continue
        problem = _check_form(plan, number, copy)
        found.add("copy", number, problem)
        if problem is None:
            ends = _End.of(copy.extents, copy.source_strides), _End.of(copy.extents, copy.target_strides)
            found.ends[form] = ends
    for end, regions in zip(_ENDS, (plan.truncated, plan.padded), strict=True):
        for number, region in enumerate(regions, len(plan.copies)):
            found.add(end, number, _check_region(plan, end, number, region))


def _all_natural(column: Sequence[Any], limit: int | None) -> bool:
    """Whether all are natural numbers, below the limit if there is one."""
    if not column:
        return True
    return {*map(type, column)} == {int} and min(column) >= 0 and (limit is None or max(column) < limit)


def _check_casts(plan: PlanParts, found: _Found) -> None:
    if any(not {source, target} <= {*FLOATS} for source, target in _cast_by(plan, found).values()):
        for number, copy in enumerate(plan.copies):
            if number not in found.wrong["copy"]:
                found.add("copy", number, _check_cast(plan, number, copy))


def _cast_by(plan: PlanParts, found: _Found) -> dict[int, tuple[str, str]]:
    """The dtypes of the copies, of those that are right, that are between tensors of different ones."""
    sources, targets = [tensor.dtype for tensor in plan.sources], [tensor.dtype for tensor in plan.targets]
    if len({*sources, *targets}) < 2:
        return {}
    wrong = found.wrong["copy"]
    right = [(number, copy) for number, copy in enumerate(plan.copies) if number not in wrong]
    return {
        number: (sources[copy.source], targets[copy.target])
        for number, copy in right
        if sources[copy.source] != targets[copy.target]
    }


def _check_ends(plan: PlanParts, cuts: _Cuts, found: _Found) -> None:
    """Bounds and nesting of all pieces."""
    for (size, *places), tensors in cuts.alike.items():
        ends = [(offset, cuts.ends[end].reach) for offset, end in places]
        if all(reach >= 0 and (size is None or offset + reach <= size) for offset, reach in ends):
            continue
        for tensor in tensors:
            for piece in cuts.of_tensor(tensor):
                found.add(cuts.end, piece.there, _check_piece(plan, cuts.end, piece, size))


def _check_tilings(plan: PlanParts, cuts: _Cuts, found: _Found) -> list[Diagnostic]:
    """That every element of a tensor is in one piece, and in one only; of an exempt tensor, in none. Where a piece is
    wrong itself, gaps would only repeat it."""
    end, tensors = cuts.end, plan.sources if cuts.end == "source" else plan.targets
    moved = (entry_of(plan, end, number) for number in (*found.wrong["copy"], *found.wrong[end]))
    owners = (entry.tensor if isinstance(entry, Region) else entry[_ENDS.index(end)] for entry in moved)
    broken = {owner for owner in owners if type(owner) is int}
    names = {exemption.tensor for exemption in plan.exemptions} if end == "source" else set()
    exempt = {index for index, tensor in enumerate(tensors) if tensor.name in names} if names else set()
    problems: dict[int, list[Diagnostic]] = {}
    for (size, *places), alike in cuts.alike.items():
        if size is None:
            continue
        left = [tensor for tensor in alike if tensor not in broken] if broken else alike
        for tensor in (tensor for tensor in left if places and tensor in exempt):
            problems[tensor] = [exempt_but_moved(plan, tensors[tensor], cuts.pieces[tensor][0])]
        left = [tensor for tensor in left if tensor not in exempt] if exempt else left
        if not left or not any(True for _ in tiling_faults(cuts.of_tensor(left[0]), 0, size)):
            continue
        for tensor in left:
            faults = islice(tiling_faults(cuts.of_tensor(tensor), 0, size), _FAULTS_PER_TENSOR)
            problems[tensor] = [explain_fault(plan, end, tensors[tensor], fault) for fault in faults]
    return [problem for tensor in sorted(problems) for problem in problems[tensor]]


def _check_tensors(plan: PlanParts, found: _Found) -> Iterator[Diagnostic]:
    for end, tensors in (("source", plan.sources), ("target", plan.targets)):
        names = [tensor.name for tensor in tensors]
        if len(set(names)) < len(names):
            for name, number in Counter(names).items():
                if number > 1:
                    yield Diagnostic("plan/duplicate-tensor", f"{end} tensor `{name}` is listed {number} times")
        known = {dtype: dtype in DTYPES for dtype in {tensor.dtype for tensor in tensors}}
        if None not in found.sizes[end] and all(known.values()):
            continue
        for tensor, size in zip(tensors, found.sizes[end], strict=True):
            if size is None:
                yield Diagnostic("plan/shape", f"{end} tensor `{tensor.name}` has the shape {list(tensor.shape)}")
            if not known[tensor.dtype]:
                yield Diagnostic("plan/dtype", f"{end} tensor `{tensor.name}` has the unknown dtype `{tensor.dtype}`")


def _well_formed(tensor: TensorSpec) -> bool:
    return all(type(size) is int and size >= 0 for size in tensor.shape)


def _check_exemptions(plan: PlanParts) -> Iterator[Diagnostic]:
    sources = {tensor.name: tensor for tensor in plan.sources}
    listed = Counter(exemption.tensor for exemption in plan.exemptions)
    for name, number in listed.items():
        if number > 1:
            yield Diagnostic("plan/exemption", f"source tensor `{name}` is exempt {number} times")
    for exemption in plan.exemptions:
        tensor = sources.get(exemption.tensor)
        if exemption.kind not in ("tied", "dropped"):
            yield Diagnostic(
                "plan/exemption", f"`{exemption.tensor}` is exempt as `{exemption.kind}`, which is no kind"
            )
        if tensor is None:
            yield Diagnostic("plan/exemption", f"the exempt `{exemption.tensor}` is not a source tensor")
        elif exemption.kind == "tied":
            of = sources.get(exemption.of or "")
            if of is None:
                yield Diagnostic(
                    "plan/tie", f"`{tensor.name}` is tied to `{exemption.of}`, which is not a source tensor"
                )
            elif of.name in listed:
                yield Diagnostic("plan/tie", f"`{tensor.name}` is tied to `{of.name}`, which is exempt itself")
            elif (tensor.shape, tensor.dtype) != (of.shape, of.dtype):
                yield Diagnostic(
                    "plan/tie",
                    f"`{tensor.name}` ({tensor.dtype} {list(tensor.shape)}) is tied to `{of.name}` "
                    f"({of.dtype} {list(of.shape)}): tied tensors have one shape and dtype",
                )


def _check_copy(plan: PlanParts, index: int, copy: Copy) -> Diagnostic | None:
    """The numbers of a copy without those of its form."""
    numbers = copy.source, copy.target, copy.source_offset, copy.target_offset
    where = f"copy {index}"
    if {*map(type, numbers)} != {int} or min(numbers) < 0:
        return diagnose(plan, "plan/number", f"{where} has a number that is not a natural number", [copy])
    if copy.source >= len(plan.sources) or copy.target >= len(plan.targets):
        return diagnose(plan, "plan/index", f"{where} names a tensor that the plan does not list", [copy])
    return None


def _check_form(plan: PlanParts, index: int, copy: Copy) -> Diagnostic | None:
    """Extents and strides of a copy."""
    numbers = (*copy.extents, *copy.source_strides, *copy.target_strides)
    if numbers and ({*map(type, numbers)} != {int} or min(numbers) < 0):
        return diagnose(plan, "plan/number", f"copy {index} has a number that is not a natural number", [copy])
    if not len(copy.extents) == len(copy.source_strides) == len(copy.target_strides):
        return diagnose(
            plan, "plan/axes", f"{name_of(plan, index)} has extents and strides of different lengths", [copy]
        )
    if 0 in copy.extents:
        return diagnose(plan, "plan/axes", f"{name_of(plan, index)} moves nothing: an extent is 0", [copy])
    return None


def _check_region(plan: PlanParts, end: str, index: int, region: Region) -> Diagnostic | None:
    where = f"{REGIONS[end]} region {index - len(plan.copies)}"
    numbers = (region.tensor, region.offset, *region.extents, *region.strides)
    if {*map(type, numbers)} != {int} or min(numbers) < 0:
        return diagnose(plan, "plan/number", f"{where} has a number that is not a natural number", [region])
    if region.tensor >= len(plan.sources if end == "source" else plan.targets):
        return diagnose(plan, "plan/index", f"{where} names a tensor that the plan does not list", [region])
    if len(region.extents) != len(region.strides):
        text = f"{name_of(plan, index, end)} has extents and strides of different lengths"
        return diagnose(plan, "plan/axes", text, [region])
    if 0 in region.extents:
        return diagnose(plan, "plan/axes", f"{name_of(plan, index, end)} has no element: an extent is 0", [region])
    return None


def _check_cast(plan: PlanParts, index: int, copy: Copy) -> Diagnostic | None:
    source, target = plan.sources[copy.source].dtype, plan.targets[copy.target].dtype
    if source == target or (source in FLOATS and target in FLOATS):
        return None
    message = f"{name_of(plan, index)} casts {source} to {target}: only floats are cast"
    return diagnose(plan, "plan/cast", message, [copy])


def _check_piece(plan: PlanParts, end: str, piece: Piece, size: int | None) -> Diagnostic | None:
    """Bounds and nesting of a region or one end of a copy, in a tensor of ``size`` elements (None: unknown)."""
    axes, index = piece.axes, piece.there
    moved = entry_of(plan, end, index)
    number, strides = (
        (moved.tensor, moved.strides)
        if isinstance(moved, Region)
        else ((moved.source, moved.source_strides) if end == "source" else (moved.target, moved.target_strides))
    )
    if size is not None and piece.stop > size:
        tensor = (plan.sources if end == "source" else plan.targets)[number]
        return diagnose(
            plan,
            "plan/bounds",
            f"{name_of(plan, index, end)} reaches element {piece.stop - 1} of {end} tensor `{tensor.name}`, which has "
            f"{size} (shape {list(tensor.shape)})",
            [moved],
        )
    if axes and not (len(axes) == 1 and axes[0][1] > 0) and not is_nested(axes):
        return diagnose(
            plan,
            "plan/axes",
            f"{name_of(plan, index, end)} has interlocking axes on its {end}: extents {list(moved.extents)} at strides "
            f"{list(strides)}",
            [moved],
            hint="each stride must step over everything that the finer axes reach",
        )
    return None


def _casts(plan: PlanParts, found: _Found) -> tuple[Cast, ...]:
    """One entry per pair of dtypes, counting target tensors."""
    cast = {(*dtypes, plan.copies[number].target) for number, dtypes in _cast_by(plan, found).items()}
    numbers = Counter((source, target) for source, target, _ in cast)
    return tuple(
        Cast(source, target, number, cast_is_exact(source, target))
        for (source, target), number in sorted(numbers.items())
    )
