"""Proves that a plan moves every element exactly once, on strides alone: the cost depends on the copies, not on the
sizes of the tensors. docs/plan.md numbers the invariants that are checked here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from crosswalk.runtime.dtypes import DTYPES, FLOATS, cast_is_exact
from crosswalk.runtime.errors import Diagnostic, Position

from .affine import Axis, Fault, Piece, is_nested, make_piece, span, tiling_faults
from .encodings import check_encodings
from .model import Copy, Plan, TensorSpec
from .regions import Region
from .verdict import Amount, Cast, Verdict

#: Problems named per tensor; one wrong rule can leave a gap in every row.
_FAULTS_PER_TENSOR = 3
_ENDS = ("source", "target")
_REGIONS = {"source": "truncated", "target": "padded"}


def prove(plan: Plan, ends: Sequence[str] = _ENDS) -> Verdict:
    """Check every invariant of the plan, with coverage on the given ends.

    A plan restricted to boxes of its targets covers those, but no longer its sources: prove it with
    ``ends=("target",)``. Never raises for a wrong plan; the problems are in the verdict.
    """
    problems = [*_check_tensors(plan), *_check_exemptions(plan), *check_encodings(plan)]
    met, forms = _Met.nothing(plan), _Forms()
    problems += [*_check_copies(plan, forms, met), *_check_regions(plan, met)]
    exempt = {exemption.tensor for exemption in plan.exemptions}
    for end in ends:
        for index, tensor in enumerate(plan.sources if end == "source" else plan.targets):
            size, pieces = met.sizes[end][index], met.pieces[end][index]
            if size is None or index in met.broken[end]:
                continue
            if end == "source" and tensor.name in exempt:
                if pieces:
                    problems.append(_exempt_but_copied(plan, tensor, pieces))
            elif not forms.tile(pieces, size):
                faults = tiling_faults(pieces, 0, size)
                problems += [_explain(plan, end, tensor, fault) for fault in islice(faults, _FAULTS_PER_TENSOR)]
    padded, truncated = (Amount() if problems else Amount.of(regions) for regions in (plan.padded, plan.truncated))
    return Verdict(tuple(problems), _casts(plan, met.casts), plan.exemptions, padded, truncated, plan.encodings)


class _End(NamedTuple):
    """One end of copies of one form: its axes, and the elements from the first to the last; -1 if axes interlock."""

    axes: tuple[Axis, ...]
    reach: int


class _Forms:
    """The forms of the copies of one plan, as they are met: what copies are but for the tensors that they are between.
    Layers and experts repeat, and so do those, and the tilings of tensors: each is worked out once."""

    def __init__(self) -> None:
        self._ends: dict[tuple[tuple[int, ...], ...], tuple[Copy, _End, _End]] = {}
        self._tiled: set[tuple[object, ...]] = set()

    def known(self, copy: Copy) -> tuple[_End, _End] | None:
        """The ends of a copy, if its extents and strides are the very numbers of one that was :meth:`learnt`."""
        found = self._ends.get((copy.extents, copy.source_strides, copy.target_strides))
        if found is None:
            return None
        first, source, target = found
        # Equal numbers may be of other types, as true is 1.
        same = first.extents is copy.extents and first.source_strides is copy.source_strides
        return (source, target) if same and first.target_strides is copy.target_strides else None

    def learnt(self, copy: Copy) -> tuple[_End, _End]:
        """The ends of a well-formed copy, for those that follow it."""
        ends = _end(copy.extents, copy.source_strides), _end(copy.extents, copy.target_strides)
        self._ends[copy.extents, copy.source_strides, copy.target_strides] = (copy, *ends)
        return ends

    def tile(self, pieces: Sequence[Piece], size: int) -> bool:
        """Whether every element of a tensor is in one of the pieces, and in one only."""
        tiling: tuple[object, ...] = (size, *[(piece.here, piece.axes) for piece in pieces])
        if tiling in self._tiled:
            return True
        if any(True for _ in tiling_faults(pieces, 0, size)):
            return False
        self._tiled.add(tiling)
        return True


def _end(extents: tuple[int, ...], strides: tuple[int, ...]) -> _End:
    axes = make_piece(0, strides, 0, (0,) * len(extents), extents).axes
    return _End(axes, span(axes) if is_nested(axes) else -1)


@dataclass(frozen=True, slots=True)
class _Met:
    """What the copies meet, for each end: the ``sizes`` of its tensors, None where nobody knows; the ``pieces`` of each
    that are well-formed; the numbers of tensors with others, whose gaps would only repeat what is said of those. And
    the pairs (source, target) of tensors of different dtypes."""

    sizes: Mapping[str, Sequence[int | None]]
    pieces: Mapping[str, list[list[Piece]]]
    broken: Mapping[str, set[int]]
    casts: set[tuple[int, int]]

    @staticmethod
    def nothing(plan: Plan) -> _Met:
        sizes = {
            end: [tensor.elements if _well_formed(tensor) else None for tensor in tensors]
            for end, tensors in (("source", plan.sources), ("target", plan.targets))
        }
        pieces: dict[str, list[list[Piece]]] = {end: [[] for _ in sizes[end]] for end in _ENDS}
        return _Met(sizes, pieces, {end: set() for end in _ENDS}, set())


def _check_copies(plan: Plan, forms: _Forms, met: _Met) -> Iterator[Diagnostic]:
    sources, targets = plan.sources, plan.targets
    (rooms, spaces), (reading, writing) = met.sizes.values(), met.pieces.values()
    for index, copy in enumerate(plan.copies):
        ends = forms.known(copy)
        found = _check_numbers(plan, index, copy, ends is None)
        if found is None:
            (axes, reach), (other_axes, other_reach) = ends or forms.learnt(copy)
            # The other end of a piece is the number of the copy, with strides of 0, so that all its parts keep it.
            source = Piece(copy.source_offset, index, axes)
            target = Piece(copy.target_offset, index, other_axes)
            room, space = rooms[copy.source], spaces[copy.target]
            casts = sources[copy.source].dtype != targets[copy.target].dtype
            if casts:
                found = _check_cast(plan, index, copy)
            if (
                room is None
                or space is None
                or min(reach, other_reach) < 0
                or (source.here + reach > room or target.here + other_reach > space)
            ):
                found = (
                    found or _check_piece(plan, "source", source, room) or _check_piece(plan, "target", target, space)
                )
        if found is None:
            reading[copy.source].append(source)
            writing[copy.target].append(target)
            if casts:
                met.casts.add((copy.source, copy.target))
            continue
        yield found
        for end, number in (("source", copy.source), ("target", copy.target)):
            if type(number) is int:
                met.broken[end].add(number)


def _check_tensors(plan: Plan) -> Iterator[Diagnostic]:
    for end, tensors in (("source", plan.sources), ("target", plan.targets)):
        for name, number in Counter(tensor.name for tensor in tensors).items():
            if number > 1:
                yield Diagnostic("plan/duplicate-tensor", f"{end} tensor `{name}` is listed {number} times")
        for tensor in tensors:
            if not _well_formed(tensor):
                yield Diagnostic("plan/shape", f"{end} tensor `{tensor.name}` has the shape {list(tensor.shape)}")
            if tensor.dtype not in DTYPES:
                yield Diagnostic("plan/dtype", f"{end} tensor `{tensor.name}` has the unknown dtype `{tensor.dtype}`")


def _well_formed(tensor: TensorSpec) -> bool:
    for size in tensor.shape:  # noqa: SIM110  # a generator would take most of the time of a proof
        if type(size) is not int or size < 0:
            return False
    return True


def _check_exemptions(plan: Plan) -> Iterator[Diagnostic]:
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


def _check_regions(plan: Plan, met: _Met) -> Iterator[Diagnostic]:
    for end, regions in (("source", plan.truncated), ("target", plan.padded)):
        for index, region in enumerate(regions, len(plan.copies)):
            found = _check_region(plan, end, index, region)
            if found is None:
                piece = region.piece._replace(there=index)
                found = _check_piece(plan, end, piece, met.sizes[end][region.tensor])
            if found is None:
                met.pieces[end][region.tensor].append(piece)
                continue
            yield found
            if type(region.tensor) is int:
                met.broken[end].add(region.tensor)


def _check_numbers(plan: Plan, index: int, copy: Copy, whole: bool) -> Diagnostic | None:
    """``whole``: with its extents and strides, which are otherwise known to be right."""
    numbers: tuple[int, ...] = copy.source, copy.target, copy.source_offset, copy.target_offset
    if whole:
        numbers += (*copy.extents, *copy.source_strides, *copy.target_strides)
    where = f"copy {index}"
    if {*map(type, numbers)} != {int} or min(numbers) < 0:
        return _diagnose(plan, "plan/number", f"{where} has a number that is not a natural number", [copy])
    if copy.source >= len(plan.sources) or copy.target >= len(plan.targets):
        return _diagnose(plan, "plan/index", f"{where} names a tensor that the plan does not list", [copy])
    if not whole:
        return None
    if not len(copy.extents) == len(copy.source_strides) == len(copy.target_strides):
        return _diagnose(
            plan, "plan/axes", f"{_name(plan, index)} has extents and strides of different lengths", [copy]
        )
    if 0 in copy.extents:
        return _diagnose(plan, "plan/axes", f"{_name(plan, index)} moves nothing: an extent is 0", [copy])
    return None


def _check_region(plan: Plan, end: str, index: int, region: Region) -> Diagnostic | None:
    where = f"{_REGIONS[end]} region {index - len(plan.copies)}"
    numbers = (region.tensor, region.offset, *region.extents, *region.strides)
    if {*map(type, numbers)} != {int} or min(numbers) < 0:
        return _diagnose(plan, "plan/number", f"{where} has a number that is not a natural number", [region])
    if region.tensor >= len(plan.sources if end == "source" else plan.targets):
        return _diagnose(plan, "plan/index", f"{where} names a tensor that the plan does not list", [region])
    if len(region.extents) != len(region.strides):
        text = f"{_name(plan, index, end)} has extents and strides of different lengths"
        return _diagnose(plan, "plan/axes", text, [region])
    if 0 in region.extents:
        return _diagnose(plan, "plan/axes", f"{_name(plan, index, end)} has no element: an extent is 0", [region])
    return None


def _check_cast(plan: Plan, index: int, copy: Copy) -> Diagnostic | None:
    source, target = plan.sources[copy.source].dtype, plan.targets[copy.target].dtype
    if source == target or (source in FLOATS and target in FLOATS):
        return None
    message = f"{_name(plan, index)} casts {source} to {target}: only floats are cast"
    return _diagnose(plan, "plan/cast", message, [copy])


def _check_piece(plan: Plan, end: str, piece: Piece, size: int | None) -> Diagnostic | None:
    """Bounds and nesting of a region or one end of a copy, in a tensor of ``size`` elements (None: unknown)."""
    axes, index = piece.axes, piece.there
    moved = _entry(plan, end, index)
    number, strides = (
        (moved.tensor, moved.strides)
        if isinstance(moved, Region)
        else ((moved.source, moved.source_strides) if end == "source" else (moved.target, moved.target_strides))
    )
    if size is not None and piece.stop > size:
        tensor = (plan.sources if end == "source" else plan.targets)[number]
        return _diagnose(
            plan,
            "plan/bounds",
            f"{_name(plan, index, end)} reaches element {piece.stop - 1} of {end} tensor `{tensor.name}`, which has "
            f"{size} (shape {list(tensor.shape)})",
            [moved],
        )
    if axes and not (len(axes) == 1 and axes[0][1] > 0) and not is_nested(axes):
        return _diagnose(
            plan,
            "plan/axes",
            f"{_name(plan, index, end)} has interlocking axes on its {end}: extents {list(moved.extents)} at strides "
            f"{list(strides)}",
            [moved],
            hint="each stride must step over everything that the finer axes reach",
        )
    return None


def _entry(plan: Plan, end: str, index: int) -> Copy | Region:
    """What meets elements of one end: the copies count first, then the regions of that end."""
    regions = plan.truncated if end == "source" else plan.padded
    return plan.copies[index] if index < len(plan.copies) else regions[index - len(plan.copies)]


def _name(plan: Plan, index: int, end: str = "target") -> str:
    copy = _entry(plan, end, index)
    if isinstance(copy, Region):
        tensor = (plan.sources if end == "source" else plan.targets)[copy.tensor]
        return f"{_REGIONS[end]} region {index - len(plan.copies)} of `{tensor.name}`"
    return f"copy {index} from `{plan.sources[copy.source].name}` to `{plan.targets[copy.target].name}`"


def _exempt_but_copied(plan: Plan, tensor: TensorSpec, pieces: list[Piece]) -> Diagnostic:
    moved = _entry(plan, "source", pieces[0].there)
    how = "truncated" if isinstance(moved, Region) else "copied"
    return _diagnose(
        plan, "plan/exemption", f"source tensor `{tensor.name}` is exempt, and {how} all the same", [moved]
    )


def _explain(plan: Plan, end: str, tensor: TensorSpec, fault: Fault) -> Diagnostic:
    moved = "read" if end == "source" else "written"
    name = f"{end} tensor `{tensor.name}` (shape {list(tensor.shape)})"
    if not fault.places:
        message = (
            f"{name}: the strides of its copies share no grid, so it is not proved that each element is {moved} once"
        )
        return Diagnostic("plan/tangled", message, None, "a plan that was compiled has none of these: compile it again")
    if not fault.copies:
        if (fault.start, fault.stop) == (0, tensor.elements):
            return Diagnostic("plan/gap", f"{name} is {moved} by no copy")
        return Diagnostic("plan/gap", f"{_range(tensor.shape, fault)} of {name}: {moved} by no copy")
    pair = [_entry(plan, end, index) for index in fault.copies]
    one, two = (_other_end(plan, end, entry) for entry in pair)
    message = f"{_range(tensor.shape, fault)} of {name}: {moved} twice, {one} and {two}"
    return _diagnose(plan, "plan/overlap", message, pair)


def _other_end(plan: Plan, end: str, moved: Copy | Region) -> str:
    if isinstance(moved, Region):
        return "to be left out" if end == "source" else "as padding"
    return (
        f"for `{plan.targets[moved.target].name}`" if end == "source" else f"from `{plan.sources[moved.source].name}`"
    )


def _range(shape: tuple[int, ...], fault: Fault) -> str:
    """``elements 8 to 11 ([2, 0] to [2, 3])``, in a tensor of the given shape."""
    ends = [fault.start] if fault.stop - fault.start == 1 else [fault.start, fault.stop - 1]
    text = f"element{'s' * (len(ends) - 1)} {' to '.join(map(str, ends))}"
    if len(shape) > 1:
        text += f" ({' to '.join(str(_unravel(shape, element)) for element in ends)})"
    return text if fault.places == 1 else f"{text} and {_count(fault.places - 1, 'more such range')}"


def _unravel(shape: tuple[int, ...], element: int) -> list[int]:
    result = []
    for size in reversed(shape):
        element, digit = divmod(element, size)
        result.append(digit)
    return result[::-1]


def _diagnose(
    plan: Plan, code: str, message: str, moved: Iterable[Copy | Region], hint: str | None = None
) -> Diagnostic:
    """A diagnostic at the rule of the first of the copies and regions, naming the rules of all."""
    indices = sorted({entry.rule for entry in moved})
    rules = [plan.rules[index] for index in indices if type(index) is int and 0 <= index < len(plan.rules)]
    if not rules:
        return Diagnostic(code, message, None, hint)
    named = "; ".join(f"`{rule.text}` at {rule.position}" for rule in rules)
    file, *place = rules[0].position.rsplit(":", 2)
    known = len(place) == 2 and all(part.isdigit() for part in place)
    position = Position(file, *map(int, place)) if known else Position(rules[0].position)
    return Diagnostic(code, f"{message} ({_count(len(rules), 'rule')}: {named})", position, hint)


def _casts(plan: Plan, moved: Iterable[tuple[int, int]]) -> tuple[Cast, ...]:
    """One entry per pair of dtypes, counting target tensors."""
    sources, targets = [tensor.dtype for tensor in plan.sources], [tensor.dtype for tensor in plan.targets]
    pairs = {
        (sources[source], targets[target], target) for source, target in moved if sources[source] != targets[target]
    }
    numbers = Counter((source, target) for source, target, _ in pairs)
    return tuple(
        Cast(source, target, number, cast_is_exact(source, target))
        for (source, target), number in sorted(numbers.items())
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
