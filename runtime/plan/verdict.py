"""What a proof found, and how it is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from crosswalk.runtime.errors import Diagnostic, Position
from crosswalk.runtime.records import Record

from .affine import Fault
from .encodings import described
from .parts import Copy, Encoding, Exemption, PlanParts, Region, TensorSpec

#: What the regions of an end are called.
REGIONS = {"source": "truncated", "target": "padded"}


class Cast(Record, frozen=True):
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


class Amount(Record, frozen=True):
    """How many tensors have regions, and how many elements these are."""

    tensors: int = 0
    elements: int = 0

    @staticmethod
    def of(regions: Sequence[Region]) -> Amount:
        """The amount of some regions."""
        return Amount(len({region.tensor for region in regions}), sum(region.elements for region in regions))


class Verdict(Record, frozen=True):
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def entry_of(plan: PlanParts, end: str, index: int) -> Copy | Region:
    """What meets elements of one end: the copies count first, then the regions of that end."""
    regions = plan.truncated if end == "source" else plan.padded
    return plan.copies[index] if index < len(plan.copies) else regions[index - len(plan.copies)]


def name_of(plan: PlanParts, index: int, end: str = "target") -> str:
    """A copy, or a region of an end, as messages call it."""
    copy = entry_of(plan, end, index)
    if isinstance(copy, Region):
        tensor = (plan.sources if end == "source" else plan.targets)[copy.tensor]
        return f"{REGIONS[end]} region {index - len(plan.copies)} of `{tensor.name}`"
    return f"copy {index} from `{plan.sources[copy.source].name}` to `{plan.targets[copy.target].name}`"


def exempt_but_moved(plan: PlanParts, tensor: TensorSpec, piece: int) -> Diagnostic:
    """That something, of the number ``piece``, reads an exempt tensor."""
    moved = entry_of(plan, "source", piece)
    how = "truncated" if isinstance(moved, Region) else "copied"
    return diagnose(plan, "plan/exemption", f"source tensor `{tensor.name}` is exempt, and {how} all the same", [moved])


def explain_fault(plan: PlanParts, end: str, tensor: TensorSpec, fault: Fault) -> Diagnostic:
    """Which elements of a tensor are in no piece, or in two, and in which."""
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
    pair = [entry_of(plan, end, index) for index in fault.copies]
    one, two = (_other_end(plan, end, entry) for entry in pair)
    message = f"{_range(tensor.shape, fault)} of {name}: {moved} twice, {one} and {two}"
    return diagnose(plan, "plan/overlap", message, pair)


def _other_end(plan: PlanParts, end: str, moved: Copy | Region) -> str:
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


def diagnose(
    plan: PlanParts, code: str, message: str, moved: Iterable[Copy | Region], hint: str | None = None
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
