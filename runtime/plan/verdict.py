"""What a proof found, and how it is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from crosswalk.runtime.errors import Diagnostic

from .encodings import described
from .model import Encoding, Exemption
from .regions import Region


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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
