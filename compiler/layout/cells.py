"""Axes with sizes: atoms, and the cells of a pattern with their addresses.

An *atom* is an axis that is not made of others. Every choice of one label per sum gives a *cell*: a box over atoms,
whose element at some indices has the row-major address ``offset + sum(strides[atom] * index[atom])``. A product
multiplies the strides of what stands left of it; a sum adds the sizes of the segments before.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from crosswalk.compiler.notation.axes import Axis, Branch, One, ParameterPattern, Product, Sum, Term, axes_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.records import Record

#: Axis -> its size, or the axes that it is the product of, outermost first. Only unprimed names are looked up.
AxisTable: TypeAlias = Mapping[str, int | tuple[str, ...]]
#: Elements of a flattened tensor: extents, offset, strides.
Box: TypeAlias = tuple[tuple[int, ...], int, tuple[int, ...]]


class Cell(Record, frozen=True):
    """``strides`` are in elements, for exactly the atoms that the cell has, in the order of the pattern."""

    labels: frozenset[str]
    offset: int
    strides: Mapping[str, int]


class PartedAxis(Record, frozen=True):
    """An axis as parts that stand one after the other, each with its name and size."""

    axis: str
    parts: tuple[tuple[str, int], ...]

    @property
    def names(self) -> frozenset[str]:
        """The names of the parts."""
        return frozenset(name for name, _ in self.parts)


def cut(terms: Iterable[Term], cuts: Sequence[PartedAxis], sizes: AxisTable) -> tuple[Term, ...]:
    """The terms with the sum of its parts in the place of each axis that is cut; a part is a label and an axis."""
    parts = {one.axis: Sum(tuple(Branch(name, None, (Axis(name),)) for name in dict(one.parts))) for one in cuts}

    def visit(term: Term) -> Term:
        match term:
            case Axis(name):
                atoms = atoms_of(name, sizes) if name.rstrip("'") in sizes else (name,)
                if parts.keys().isdisjoint(atoms):
                    return term
                inner = tuple(parts[atom] if atom in parts else Axis(atom) for atom in atoms)
                return inner[0] if len(inner) == 1 else Product(inner)
            case Product(inner):
                return Product(tuple(map(visit, inner)))
            case Sum(branches, absent):
                seen = (None if branch.terms is None else tuple(map(visit, branch.terms)) for branch in branches)
                return Sum(tuple(Branch(b.label, b.condition, t) for b, t in zip(branches, seen, strict=True)), absent)
        return term

    return tuple(map(visit, terms))


def with_parts(sizes: AxisTable, cuts: Sequence[PartedAxis]) -> AxisTable:
    """The axes with those of the parts."""
    return {**sizes, **dict(part for one in cuts for part in one.parts)}


def atoms_of(axis: str, sizes: AxisTable, _within: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The atoms that an axis is made of, outermost first; those of a primed axis are primed. Raises
    ``CrosswalkError`` for one that is made of itself."""
    base = axis.rstrip("'")
    factors = sizes[base]
    if isinstance(factors, int):
        return (axis,)
    if base in _within:
        raise fail("axes/circular", f"axis `{base}` is made of itself: {' -> '.join((*_within, base))}")
    prime = axis[len(base) :]
    return tuple(atom for factor in factors for atom in atoms_of(factor + prime, sizes, (*_within, base)))


def atom_size(atom: str, sizes: AxisTable) -> int:
    """The size of an axis that is made of no others; primes, which tell repeated ones apart, do not count."""
    size = sizes[atom.rstrip("'")]
    assert isinstance(size, int)
    return size


def check_known(axes: Iterable[str], sizes: AxisTable, where: str, position: Position | None) -> list[Diagnostic]:
    """A diagnostic for every axis, factors included, that has no size. ``where`` says who names it."""
    problems = []
    pending = list(axes)
    seen: set[str] = set()
    while pending:
        axis = pending.pop(0).rstrip("'")
        if axis in seen:
            continue
        seen.add(axis)
        factors = sizes.get(axis)
        if factors is None:
            near = difflib.get_close_matches(axis, list(sizes), 1)
            hint = f"did you mean `{near[0]}`?" if near else f"axes here: {', '.join(sorted(sizes))}"
            problems.append(Diagnostic("axes/unknown-axis", f"{where} names the unknown axis `{axis}`", position, hint))
        elif not isinstance(factors, int):
            pending.extend(factors)
    return problems


def expand(term: Term, sizes: AxisTable) -> Term:
    """The term over atoms, with the axes of every branch spelled out (a bare label has none)."""
    match term:
        case Axis(name):
            atoms = tuple(Axis(atom) for atom in atoms_of(name, sizes))
            return atoms[0] if len(atoms) == 1 else Product(atoms)
        case Product(terms):
            return Product(tuple(expand(t, sizes) for t in terms))
        case Sum(branches, absent):
            return Sum(
                tuple(Branch(b.label, None, tuple(expand(t, sizes) for t in b.terms or ())) for b in branches), absent
            )
    return term


def term_size(term: Term, sizes: AxisTable) -> int:
    """How many elements an expanded term is long."""
    match term:
        case Axis(name):
            return atom_size(name, sizes)
        case Product(terms):
            return math.prod(term_size(t, sizes) for t in terms)
        case Sum(branches):
            return sum(math.prod(term_size(t, sizes) for t in b.terms or ()) for b in branches)
    return 1


def native_shape(pattern: ParameterPattern, sizes: AxisTable) -> tuple[int, ...]:
    """The shape of a parameter as the layout stores it, one entry per dimension of its (resolved) pattern.

    Raises ``CrosswalkError`` (``axes/unknown-axis``, ``axes/circular``)."""
    if problems := check_known(axes_of(pattern.dims), sizes, f"`{pattern}`", None):
        raise CrosswalkError(problems)
    return tuple(term_size(expand(dim, sizes), sizes) for dim in pattern.dims)


def cells_of(dims: Iterable[Term], sizes: AxisTable) -> list[Cell]:
    """The cells of a row-major tensor with these expanded dimensions. Raises ``CrosswalkError`` (``axes/twice``) if a
    cell has an atom twice."""
    cells = _cells(Product(tuple(dims)), 1, sizes)
    return [Cell(frozenset(labels), offset, strides) for labels, offset, strides in cells]


def outside(dims: Iterable[Term], sizes: AxisTable, inner: AxisTable) -> list[Box]:
    """The elements of a row-major tensor with these dimensions for which the index of some atom is not below the size
    that it has in ``inner`` (which is nowhere larger): disjoint boxes."""
    boxes = []
    for cell in cells_of([expand(dim, sizes) for dim in dims], sizes):
        whole = [atom_size(atom, sizes) for atom in cell.strides]
        kept = [atom_size(atom, inner) for atom in cell.strides]
        for place, (atom, stride) in enumerate(cell.strides.items()):
            extents = (*kept[:place], whole[place] - kept[place], *whole[place + 1 :])
            if all(extents):
                offset = cell.offset + atom_size(atom, inner) * stride
                boxes.append((extents, offset, tuple(cell.strides.values())))
    return boxes


def _cells(term: Term, stride: int, sizes: AxisTable) -> list[tuple[tuple[str, ...], int, dict[str, int]]]:
    match term:
        case Axis(name):
            return [((), 0, {name: stride})]
        case Product(terms):
            result: list[tuple[tuple[str, ...], int, dict[str, int]]] = [((), 0, {})]
            for inner in reversed(terms):
                left = _cells(inner, stride, sizes)
                for _, _, strides in left:
                    for _, _, others in result:
                        if both := strides.keys() & others.keys():
                            raise fail("axes/twice", f"axis `{min(both)}` is written twice")
                result = [(a + x, b + y, {**c, **z}) for a, b, c in left for x, y, z in result]
                stride *= term_size(inner, sizes)
            return result
        case Sum(branches):
            result, offset = [], 0
            for branch in branches:
                segment = Product(branch.terms or ())
                result += [((branch.label, *a), b + offset * stride, c) for a, b, c in _cells(segment, stride, sizes)]
                offset += term_size(segment, sizes)
            return result
        case One():
            return [((), 0, {})]
