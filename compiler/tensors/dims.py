"""The dimensions of an hf tensor, over atoms: as a mapping writes them, or as they follow from the layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from crosswalk.compiler.layout.cells import AxisTable, Cell, atoms_of, cells_of, expand
from crosswalk.compiler.layout.named_axes import stacked
from crosswalk.compiler.notation.axes import (
    Axis,
    Branch,
    One,
    ParameterPattern,
    Product,
    Sum,
    Term,
    absent_labels_of,
    axes_of,
)
from crosswalk.compiler.notation.templates import Template
from crosswalk.runtime.records import Record, replace


class Source(Record, frozen=True):
    """A native parameter, by its name relative to whatever the caller iterates, and its resolved pattern. ``axes`` are
    in the name, and ``template`` is that name: it is one tensor for each of their indices, and what is said of its
    dimensions is said of the one tensor that has these axes in front."""

    name: str
    pattern: ParameterPattern
    axes: tuple[str, ...] = ()
    template: Template | None = None

    @staticmethod
    def of(name: Template, pattern: ParameterPattern, axes: tuple[str, ...]) -> Source:
        """``pattern`` is that of each tensor."""
        return Source(str(name), stacked(pattern, axes), axes, name if axes else None)

    @property
    def lead(self) -> int:
        """The dimension that several parameters are put together along: the first output that is not in the name."""
        return self.pattern.outputs[len(self.axes)]


class Stored(Record, frozen=True):
    """A parameter over atoms. Its cells also carry a label that no mapping can write, ``tag``. ``apart``: the atoms in
    its name, which lead to another tensor and to no other place in one."""

    source: Source
    tag: str
    dims: tuple[Term, ...]
    cells: list[Cell]
    atoms: frozenset[str]
    apart: frozenset[str]

    @staticmethod
    def of(tag: str, source: Source, sizes: AxisTable) -> Stored:
        """A parameter with its axes taken apart into atoms."""
        dims = tuple(expand(dim, sizes) for dim in source.pattern.dims)
        apart = frozenset(atom for axis in source.axes for atom in atoms_of(axis, sizes))
        cells = [
            Cell(cell.labels | {tag}, cell.offset, {a: 0 if a in apart else n for a, n in cell.strides.items()})
            for cell in cells_of(dims, sizes)
        ]
        return Stored(source, tag, dims, cells, frozenset(axes_of(dims)), apart)


class Gone(Record, frozen=True):
    """What went into the name: atoms, the labels it tells apart, and those it has in the tensor at hand."""

    atoms: frozenset[str]
    labels: frozenset[str]
    chosen: frozenset[str]

    def strip(self, term: Term) -> Term | None:
        """The expanded term without what is gone, or None if nothing is left of it."""
        match term:
            case Axis(name):
                return None if name in self.atoms else term
            case Product(terms):
                kept = self.strip_all(terms)
                return Product(kept) if kept else None
            case Sum(branches):
                if self.labels.isdisjoint(branch.label for branch in branches):
                    return Sum(tuple(Branch(b.label, None, self.strip_all(b.terms or ())) for b in branches))
                return self.strip(Product(tuple(t for b in branches if b.label in self.chosen for t in b.terms or ())))
        return term

    def strip_all(self, terms: Sequence[Term]) -> tuple[Term, ...]:
        """The terms without what is gone; those of which nothing is left are left out."""
        return tuple(left for term in terms if (left := self.strip(term)) is not None)


def default_dims(sources: Sequence[Stored], gone: Gone, transposed: bool) -> tuple[Term, ...] | None:
    """The dims of the layout without what is gone, outputs first (inputs first if ``transposed``; as stored without an
    arrow). Several parameters are put together along their first output; None if they differ beside it."""
    orders = [_order(native.source.pattern, transposed) for native in sources]
    leads = [order.index(native.source.lead) for native, order in zip(sources, orders, strict=True)]
    columns = [[gone.strip(native.dims[i]) for i in order] for native, order in zip(sources, orders, strict=True)]
    dims, lead = columns[0], leads[0]
    if len(sources) > 1:
        around = [(column[:at], column[at + 1 :]) for column, at in zip(columns, leads, strict=True)]
        if any(other != around[0] for other in around):
            return None
        segments = [tuple(term for term in (column[lead],) if term is not None) for column in columns]
        joined = Sum(tuple(Branch(native.tag, None, terms) for native, terms in zip(sources, segments, strict=True)))
        dims = [*dims[:lead], joined, *dims[lead + 1 :]]
    return tuple(dim for dim in dims if dim is not None)


def _order(pattern: ParameterPattern, transposed: bool) -> tuple[int, ...]:
    if pattern.arrow is None:
        return tuple(range(len(pattern.dims)))
    return pattern.inputs + pattern.outputs if transposed else pattern.outputs + pattern.inputs


def written_dims(
    dims: tuple[Term, ...], stored: list[Stored], sizes: AxisTable, gone: Gone, drop: bool
) -> tuple[Term, ...]:
    """The dims of a mapping over atoms, with bare labels filled in. Of a sum that the name tells apart, what is written
    for the label at hand is left."""
    own = {b.label: b.terms or () for native in stored for b in branches_of(native.dims)}
    absent = {label for native in stored for label in absent_labels_of(native.source.pattern.dims)}
    tree = _Filling(own, absent, sizes, gone).terms(dims, frozenset())
    if not drop:
        return tree
    had = frozenset[str]().union(*(native.atoms for native in stored))
    if not any(isinstance(dim, One) for native in stored for dim in native.dims):
        tree = tuple(dim for dim in tree if not isinstance(dim, One))
    return Gone(frozenset(axes_of(tree)) - had, frozenset(), frozenset()).strip_all(tree)


class _Filling(Record, frozen=True):
    """Terms of a mapping over atoms. ``own``: what the layout has under each label; ``absent``: labels without axes."""

    own: Mapping[str, tuple[Term, ...]]
    absent: Set[str]
    sizes: AxisTable
    gone: Gone

    def terms(self, terms: Sequence[Term], outside: frozenset[str]) -> tuple[Term, ...]:
        """``outside``: the atoms that are written around these terms."""
        beside = [_plain_atoms(term, self.sizes) for term in terms]
        return tuple(
            self.term(term, outside.union(*beside[:index], *beside[index + 1 :])) for index, term in enumerate(terms)
        )

    def term(self, term: Term, outside: frozenset[str]) -> Term:
        if isinstance(term, Product):
            return Product(self.terms(term.terms, outside))
        if not isinstance(term, Sum):
            return expand(term, self.sizes)
        kept = [self.branch(branch, outside) for branch in term.branches if branch.label not in self.absent]
        if self.gone.labels.isdisjoint(branch.label for branch in kept):
            return Sum(tuple(kept))
        return Product(tuple(t for b in kept if b.label in self.gone.chosen for t in b.terms or ()))

    def branch(self, branch: Branch, outside: frozenset[str]) -> Branch:
        if branch.terms is not None:
            return Branch(branch.label, None, self.terms(branch.terms, outside))
        bare = replace(self.gone, atoms=self.gone.atoms | outside)
        return Branch(branch.label, None, bare.strip_all(self.own[branch.label]))


def branches_of(terms: Sequence[Term]) -> Iterator[Branch]:
    """Every branch of every sum, nested ones included."""
    for term in terms:
        if isinstance(term, Product):
            yield from branches_of(term.terms)
        elif isinstance(term, Sum):
            for branch in term.branches:
                yield branch
                yield from branches_of(branch.terms or ())


def _plain_atoms(term: Term, sizes: AxisTable) -> frozenset[str]:
    """The atoms of a term that are in no brackets."""
    if isinstance(term, Product):
        return frozenset[str]().union(*(_plain_atoms(inner, sizes) for inner in term.terms))
    return frozenset(atoms_of(term.name, sizes)) if isinstance(term, Axis) else frozenset()
