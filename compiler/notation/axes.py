"""The notation of axes: how a parameter is stored (layouts) and where each axis is in a file (mappings).

    pattern   := term+  |  term+ "<-" term+  |  term+ "->" term+        one term is one tensor dimension
    term      := axis  |  "1"  |  "(" term+ ")"  |  "[" branch ("|" branch)* "]"
    branch    := label ["if" condition] [":" term+]

``( )`` is a product, row-major. ``[ ]`` is a sum: segments one after the other, each with axes of its own. The arrow
says which side a linear layer reads; both sides stand in storage order. ``channel'`` is a second axis with the size of
``channel``. Arrows and conditions belong to layouts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.records import Record, replace

from .operators import MAX_DEPTH


class Axis(Record, frozen=True):
    """A dimension, or a part of one, by the name of an axis."""

    name: str


class One(Record, frozen=True):
    """A dimension of size 1 that has no name."""


class Product(Record, frozen=True):
    """Axes in one dimension, ``(group per_group)``: the last one runs fastest."""

    terms: tuple[Term, ...]


class Branch(Record, frozen=True):
    """A segment of a sum. ``terms`` is None for a bare label: no axes of its own in a layout; in a mapping, those of
    its axes in the layout that are not written elsewhere."""

    label: str
    condition: str | None = None
    terms: tuple[Term, ...] | None = None


class Sum(Record, frozen=True):
    """``absent`` lists the labels that :func:`resolve` took out: they may still be named, and take no room."""

    branches: tuple[Branch, ...]
    absent: tuple[str, ...] = ()


Term: TypeAlias = Axis | One | Product | Sum


class ParameterPattern(Record, frozen=True):
    """How a layout stores a parameter: one term per dimension, in storage order. ``outputs`` and ``inputs`` are the
    indices of the dimensions on either side of the arrow; without one, the first is the output and the rest inputs."""

    dims: tuple[Term, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    arrow: Literal["<-", "->"] | None = None

    def __str__(self) -> str:
        if self.arrow is None:
            return format_terms(self.dims)
        left, right = (self.outputs, self.inputs) if self.arrow == "<-" else (self.inputs, self.outputs)
        return f"{format_terms(self.dims[i] for i in left)} {self.arrow} {format_terms(self.dims[i] for i in right)}"


def parse_dims(text: str, position: Position | None = None) -> tuple[Term, ...]:
    """The ``axes:`` of a mapping: one term per dimension of their tensor, outermost first.

    ``position`` is where the text begins. Raises ``CrosswalkError`` (``axes/...``) at the column of the mistake.
    """
    parser = _Parser(text, position, layout=False)
    dims = parser.side()
    parser.finish()
    return dims


def parse_parameter(text: str, position: Position | None = None) -> ParameterPattern:
    """The pattern of a layout parameter, such as ``[q: head head_dim] <- hidden``.

    ``position`` is where the text begins. Raises ``CrosswalkError`` (``axes/...``) at the column of the mistake.
    """
    parser = _Parser(text, position, layout=True)
    left = parser.side()
    arrow = parser.arrow()
    right = parser.side() if arrow else ()
    parser.finish()
    dims = left + right
    split = len(left) if arrow else 1
    outputs, inputs = tuple(range(split)), tuple(range(split, len(dims)))
    if arrow == "->":
        outputs, inputs = inputs, outputs
    return ParameterPattern(dims, outputs, inputs, arrow)


def resolve(pattern: ParameterPattern, holds: Callable[[str], bool]) -> ParameterPattern:
    """The pattern without the branches whose condition does not hold. A sum stays a sum, however few are left."""

    def visit(term: Term) -> Term:
        match term:
            case Product(terms):
                return Product(tuple(map(visit, terms)))
            case Sum(branches, absent):
                present = tuple(b for b in branches if b.condition is None or holds(b.condition))
                gone = tuple(b.label for b in branches if b not in present)
                return Sum(
                    tuple(
                        Branch(b.label, None, None if b.terms is None else tuple(map(visit, b.terms))) for b in present
                    ),
                    absent + gone,
                )
        return term

    return replace(pattern, dims=tuple(map(visit, pattern.dims)))


def bias_of(pattern: ParameterPattern) -> ParameterPattern:
    """The pattern of the bias that belongs to a weight: its outputs alone."""
    return ParameterPattern(tuple(pattern.dims[i] for i in pattern.outputs), tuple(range(len(pattern.outputs))), ())


def axes_of(terms: Iterable[Term]) -> tuple[str, ...]:
    """The names of all axes, each once, in order of appearance."""
    return tuple(dict.fromkeys(term.name for term in _walk(terms) if isinstance(term, Axis)))


def labels_of(terms: Iterable[Term]) -> tuple[str, ...]:
    """The labels of all sums, in order of appearance, without the absent ones."""
    return tuple(branch.label for term in _walk(terms) if isinstance(term, Sum) for branch in term.branches)


def absent_labels_of(terms: Iterable[Term]) -> tuple[str, ...]:
    """The labels that :func:`resolve` took out."""
    return tuple(label for term in _walk(terms) if isinstance(term, Sum) for label in term.absent)


def conditions_of(terms: Iterable[Term]) -> tuple[str, ...]:
    """The conditions of all branches, as written."""
    return tuple(
        branch.condition
        for term in _walk(terms)
        if isinstance(term, Sum)
        for branch in term.branches
        if branch.condition is not None
    )


def format_terms(terms: Iterable[Term]) -> str:
    """The notation of some terms, as it is parsed."""
    return " ".join(map(_format, terms))


def _format(term: Term) -> str:
    match term:
        case Axis(name):
            return name
        case One():
            return "1"
        case Product(terms):
            return f"({format_terms(terms)})"
        case Sum(branches):
            bare = all(branch.terms is None and branch.condition is None for branch in branches)
            return "[" + ("|" if bare else " | ").join(map(_format_branch, branches)) + "]"


def _format_branch(branch: Branch) -> str:
    condition = "" if branch.condition is None else f" if {branch.condition}"
    return branch.label + condition + ("" if branch.terms is None else f": {format_terms(branch.terms)}")


def _walk(terms: Iterable[Term]) -> Iterator[Term]:
    for term in terms:
        yield term
        match term:
            case Product(inner):
                yield from _walk(inner)
            case Sum(branches):
                for branch in branches:
                    yield from _walk(branch.terms or ())


_TOKEN = re.compile(r"(?P<arrow><-|->)|(?P<name>[A-Za-z_]\w*'*)|(?P<number>\d+)|(?P<mark>\S)")


class _Parser:
    """Recursive descent. ``written`` holds the axes that the cell being read already has: an axis may be in several
    branches of a sum, since no element is in two of them, but not both in a branch and beside the sum. The same goes
    for ``labels`` in a mapping; in a layout each stands once."""

    def __init__(self, text: str, position: Position | None, layout: bool):
        self.text, self.position, self.layout = text, position, layout
        self.tokens = [(m.lastgroup or "", m.group(), m.start()) for m in _TOKEN.finditer(text)]
        self.tokens.append(("end", "", len(text.rstrip())))
        self.index = 0
        self.written: set[str] = set()
        self.labels: set[str] = set()
        self.problems: list[Diagnostic] = []
        depth = 0
        for number, (_, value, _) in enumerate(self.tokens):
            depth += (value in {"(", "["}) - (value in {")", "]"})
            if depth > MAX_DEPTH:
                self.index = number
                raise self.error(f"nested more than {MAX_DEPTH} levels deep")

    def side(self) -> tuple[Term, ...]:
        """One or more terms."""
        terms = [self.term()]
        while self.tokens[self.index][1] not in ("", ")", "]", "|", "<-", "->"):
            terms.append(self.term())
        return tuple(terms)

    def arrow(self) -> Literal["<-", "->"] | None:
        value = self.tokens[self.index][1]
        if value == "<-" or value == "->":
            self.index += 1
            return "<-" if value == "<-" else "->"
        return None

    def finish(self) -> None:
        kind, value, _ = self.tokens[self.index]
        if kind == "arrow":
            hint = "one arrow is enough" if self.layout else "name the axes of their tensor, outermost first"
            raise self.error(f"`{value}` cannot stand here", hint)
        if kind != "end":
            raise self.error(f"`{value}` closes nothing" if value in ")]" else f"unexpected `{value}`")
        if self.problems:
            raise CrosswalkError(self.problems)

    def term(self) -> Term:
        kind, value, column = self.tokens[self.index]
        if kind == "name" and value != "if":
            self.index += 1
            if value in self.written:
                hint = f"use `{value}'` for a second axis of its size"
                self.note("duplicate-axis", f"axis `{value}` is written twice", column, hint)
            self.written.add(value)
            return Axis(value)
        if kind == "number":
            if value != "1":
                raise self.error(f"a dimension of size {value} needs a name", "give it one under `axes:` of the layout")
            self.index += 1
            return One()
        if value == "(":
            self.index += 1
            terms = self.side()
            self.expect(")", column)
            return terms[0] if len(terms) == 1 else Product(terms)
        if value == "[":
            return self.sum(column)
        raise self.error(f"expected an axis, `1`, `(` or `[`, found {f'`{value}`' if value else 'the end'}")

    def sum(self, column: int) -> Sum:
        branches: list[Branch] = []
        before, after = self.written, set(self.written)
        labels, own = set(self.labels), set(self.labels)
        while not branches or self.tokens[self.index][1] == "|":
            self.index += 1
            self.written = set(before)
            self.labels = self.labels if self.layout else set(own)
            branches.append(self.branch())
            after |= self.written
            own.add(branches[-1].label)
            labels |= self.labels
        self.written, self.labels = after, labels
        self.expect("]", column)
        return Sum(tuple(branches))

    def branch(self) -> Branch:
        kind, label, column = self.tokens[self.index]
        if kind != "name" or label == "if":
            raise self.error(f"expected the label of a branch, found {f'`{label}`' if label else 'the end'}")
        if label in self.labels:
            self.note("duplicate-label", f"label `{label}` is written twice", column)
        self.labels.add(label)
        self.index += 1
        condition = self.condition() if self.tokens[self.index][1] == "if" else None
        terms = None
        if self.tokens[self.index][1] == ":":
            self.index += 1
            terms = self.side()
        elif self.tokens[self.index][1] not in ("|", "]", ""):
            raise self.error(f"expected `:`, `|` or `]` after the label `{label}`")
        return Branch(label, condition, terms)

    def condition(self) -> str:
        """Everything up to the ``:``, ``|`` or ``]`` outside of brackets, as written."""
        if not self.layout:
            raise self.error("only a layout has conditions", "name the branch: where it is absent it takes no room")
        self.index += 1
        start, depth = self.tokens[self.index][2], 0
        while (value := self.tokens[self.index][1]) and (depth or value not in (":", "|", "]")):
            depth += (value in ("(", "[")) - (value in (")", "]"))
            self.index += 1
        condition = self.text[start : self.tokens[self.index][2]].strip()
        if not condition:
            raise self.error("a condition is missing after `if`")
        return condition

    def expect(self, mark: str, opened: int) -> None:
        if self.tokens[self.index][1] != mark:
            found = self.tokens[self.index][1]
            raise self.error(
                f"expected `{mark}`, found {f'`{found}`' if found else 'the end'}",
                f"it closes the `{self.text[opened]}` at character {opened + 1}",
            )
        self.index += 1

    def note(self, code: str, message: str, column: int, hint: str | None = None) -> None:
        self.problems.append(Diagnostic(f"axes/{code}", message, shifted(self.position, column), hint))

    def error(self, message: str, hint: str | None = None) -> CrosswalkError:
        return fail("axes/syntax", message, shifted(self.position, self.tokens[self.index][2]), hint)


def shifted(position: Position | None, columns: int) -> Position | None:
    """The place ``columns`` characters to the right, on the same line."""
    if position is None or not position.line:
        return position
    return replace(position, column=position.column + columns)
