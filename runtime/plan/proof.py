"""Proves that a plan moves every element exactly once, on strides alone: the cost depends on the copies, not on the
sizes of the tensors. docs/plan.md numbers the invariants that are checked here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from crosswalk.runtime.dtypes import DTYPES, FLOATS, cast_is_exact
from crosswalk.runtime.errors import Diagnostic, Position

from .affine import Fault, Piece, is_nested, make_piece, tiling_faults
from .encodings import check_encodings, described
from .model import Copy, Encoding, Exemption, Plan, TensorSpec
from .regions import Region

#: Problems named per tensor; one wrong rule can leave a gap in every row.
_FAULTS_PER_TENSOR = 3
_ENDS = ("source", "target")
_REGIONS = {"source": "truncated", "target": "padded"}


@dataclass(frozen=True, slots=True)
class Cast:
    """Tensors whose elements change dtype; ``exact`` when every value survives."""

    source: str
    target: str
    tensors: int
    exact: bool

    def __str__(self) -> str:
        return (
            f"{_count(self.tensors, 'tensor')} cast {self.source} -> {self.target}"
            f" ({'exact' if self.exact else 'lossy'})"
        )


@dataclass(frozen=True, slots=True)
class Amount:
    """How many tensors have regions, and how many elements these are."""

    tensors: int = 0
    elements: int = 0

    @staticmethod
    def of(regions: Sequence[Region]) -> Amount:
        return Amount(len({region.tensor for region in regions}), sum(region.elements for region in regions))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What :func:`prove` found: problems, and what is declared to differ from a bijection."""

    problems: tuple[Diagnostic, ...]
    casts: tuple[Cast, ...]
    exemptions: tuple[Exemption, ...]
    padded: Amount = Amount()
    truncated: Amount = Amount()
    encodings: tuple[Encoding, ...] = ()

    @property
    def ok(self) -> bool:
        """No problem: every element is moved once, or is exempt by a declaration that holds together."""
        return not self.problems

    @property
    def bijective(self) -> bool:
        """Nothing but copies, exact casts at most: the inverse undoes the plan, and the plan its inverse."""
        return self.reversible and not self.padded.tensors

    @property
    def reversible(self) -> bool:
        """No problem, no exemption, nothing truncated or decoded, no lossy cast: the inverse brings every byte back. A
        plan that pads is reversible and not bijective."""
        given_up = self.exemptions or self.truncated.tensors or self.encodings
        return self.ok and not given_up and all(cast.exact for cast in self.casts)

    def __str__(self) -> str:
        if self.problems:
            return f"not bijective: {_count(len(self.problems), 'problem')}, first: {self.problems[0].message}"
        kinds = Counter(exemption.kind for exemption in self.exemptions)
        but = [_count(number, f"{kind} tensor") for kind, number in sorted(kinds.items(), reverse=True)]
        for how, amount in (("padded with", self.padded), ("truncated by", self.truncated)):
            if amount.tensors:
                elements = f"{amount.elements:,} element{'s' * (amount.elements != 1)}"
                but.append(f"{_count(amount.tensors, 'tensor')} {how} {elements}")
        but += described(self.encodings)
        but += [str(cast) for cast in self.casts if not cast.exact]
        exact = [str(cast) for cast in self.casts if cast.exact]
        return "; ".join([f"bijective but for {', '.join(but)}" if but else "bijective", *exact])


def prove(plan: Plan, ends: Sequence[str] = _ENDS) -> Verdict:
    """Check every invariant of the plan, with coverage on the given ends.

    A plan restricted to boxes of its targets covers those, but no longer its sources: prove it with
    ``ends=("target",)``. Never raises for a wrong plan; the problems are in the verdict.
    """
    problems = [*_check_tensors(plan), *_check_exemptions(plan), *check_encodings(plan)]
    sizes = {
        "source": [tensor.elements if _well_formed(tensor) else None for tensor in plan.sources],
        "target": [tensor.elements if _well_formed(tensor) else None for tensor in plan.targets],
    }
    pieces: dict[str, list[list[Piece]]] = {end: [[] for _ in sizes[end]] for end in _ENDS}
    broken: dict[str, set[int]] = {end: set() for end in _ENDS}
    moved: set[tuple[int, int]] = set()
    for index, copy in enumerate(plan.copies):
        found = _check_numbers(plan, index, copy) or _check_cast(plan, index, copy)
        if found is None:
            # The other end of a piece is the index of the copy, with strides of 0, so that all its parts keep it.
            zeros = (0,) * len(copy.extents)
            source = make_piece(copy.source_offset, copy.source_strides, index, zeros, copy.extents)
            target = make_piece(copy.target_offset, copy.target_strides, index, zeros, copy.extents)
            found = _check_piece(plan, "source", source, sizes["source"][copy.source]) or _check_piece(
                plan, "target", target, sizes["target"][copy.target]
            )
        if found is None:
            pieces["source"][copy.source].append(source)
            pieces["target"][copy.target].append(target)
            moved.add((copy.source, copy.target))
        else:
            problems.append(found)
            for end, number in (("source", copy.source), ("target", copy.target)):
                if type(number) is int:
                    broken[end].add(number)
    for end, regions in (("source", plan.truncated), ("target", plan.padded)):
        for index, region in enumerate(regions, len(plan.copies)):
            found = _check_region(plan, end, index, region)
            if found is None:
                piece = region.piece._replace(there=index)
                found = _check_piece(plan, end, piece, sizes[end][region.tensor])
            if found is None:
                pieces[end][region.tensor].append(piece)
            else:
                problems.append(found)
                if type(region.tensor) is int:
                    broken[end].add(region.tensor)
    exempt = {exemption.tensor for exemption in plan.exemptions}
    for end in ends:
        for index, tensor in enumerate(plan.sources if end == "source" else plan.targets):
            # A tensor with a malformed number or copy has had its diagnostic; its gaps would only repeat it.
            size = sizes[end][index]
            if index in broken[end] or size is None:
                continue
            if end == "source" and tensor.name in exempt:
                if pieces[end][index]:
                    problems.append(_exempt_but_copied(plan, tensor, pieces[end][index]))
                continue
            faults = tiling_faults(pieces[end][index], 0, size)
            problems += [_explain(plan, end, tensor, fault) for fault in islice(faults, _FAULTS_PER_TENSOR)]
    padded, truncated = (Amount() if problems else Amount.of(regions) for regions in (plan.padded, plan.truncated))
    return Verdict(tuple(problems), _casts(plan, moved), plan.exemptions, padded, truncated, plan.encodings)


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
    return all(type(size) is int and size >= 0 for size in tensor.shape)


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


def _check_numbers(plan: Plan, index: int, copy: Copy) -> Diagnostic | None:
    numbers = (
        copy.source,
        copy.target,
        copy.source_offset,
        copy.target_offset,
        *copy.extents,
        *copy.source_strides,
        *copy.target_strides,
    )
    where = f"copy {index}"
    if {*map(type, numbers)} != {int} or min(numbers) < 0:
        return _diagnose(plan, "plan/number", f"{where} has a number that is not a natural number", [copy])
    if copy.source >= len(plan.sources) or copy.target >= len(plan.targets):
        return _diagnose(plan, "plan/index", f"{where} names a tensor that the plan does not list", [copy])
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
