"""Parameters sharded by named axes: which indices of each dimension a shard of some axes is, by the layout's patterns.

An axis is cut wherever a pattern has it: in every branch of a sum for itself, in a product for every index of what
stands left of it, and where an axis that is made of it is written (``group`` in ``head``), unless that one is cut
itself. A module may call an axis by a name of its own (``width``), and an axis may be defined as another one (``output:
hidden``): each of its names means it. ``NAME[0]`` is no axis, but the first dimension of the parameters whose names end
so, cut whatever is in it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

from crosswalk.compiler.notation.axes import Axis, ParameterPattern, Product, Sum, Term, axes_of
from crosswalk.compiler.notation.expressions import Expression
from crosswalk.compiler.notation.templates import Template, join
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import CrosswalkError, Diagnostic
from crosswalk.runtime.records import Record, replace
from crosswalk.runtime.training.intervals import Interval, chunk, joined, within

from .cells import expand, native_shape, term_size
from .modules import AxisSizes, Present, parameters, walk
from .scope import Scope

#: Axis -> which shard of it, counted from 0, of how many.
AxisShards = Mapping[str, tuple[int, int]]
#: A dimension of parameters in the place of an axis.
_DIMENSION = re.compile(r"(?P<name>[^\[\]]+)\[(?P<number>\d+)\]")


class Held(Record, frozen=True):
    """What a rank holds of the parameter ``name`` of ``shape``: in each dimension some ``intervals``, which stand one
    after the other in its memory. ``cut`` are the axes that shard its dimensions, by the names that were given."""

    name: str
    pattern: ParameterPattern
    shape: tuple[int, ...]
    intervals: tuple[tuple[Interval, ...], ...]
    cut: tuple[str, ...]

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of what the rank holds."""
        return tuple(sum(stop - start for start, stop in dimension) for dimension in self.intervals)


def held_parameters(root: Scope, axes: AxisShards) -> dict[str, Held]:
    """What a rank holds of every parameter of the config at ``root``, if each of the ``axes`` is cut as ``torch.chunk``
    cuts a dimension. By the names that they have on the rank: where an axis that is cut is in the name, the rank counts
    its own from 0.

    Raises ``CrosswalkError`` (``shards/index``, ``shards/axis``) with everything that is wrong with ``axes``.
    """
    problems = {name: problem for name, shard in axes.items() if (problem := _check_index(name, shard))}
    valid = {name: shard for name, shard in axes.items() if name not in problems}
    cutters: dict[Scope, _Cutter] = {}
    held: dict[Scope, list[tuple[Template, Template, Held]]] = {}
    result: dict[str, Held] = {}
    for module, scope in walk(root):
        if scope not in held:
            cutter = cutters[scope] = _Cutter(scope, valid)
            held[scope] = [found for present in parameters(scope) for found in cutter.of(present)]
        result |= {
            str(join(module, local)): replace(found, name=str(join(module, name))) for local, name, found in held[scope]
        }
    cut = {axis for cutter in cutters.values() for axis in cutter.used}
    if problems or cut != axes.keys():
        there = {axis for scope, cutter in cutters.items() for p in parameters(scope) for axis in cutter.axes_of(p)}
        there |= {name for name in problems if _DIMENSION.fullmatch(name)}
        unused = (_unused(name, there, root) for name in axes if name not in cut | (problems.keys() & there))
        raise CrosswalkError((*problems.values(), *unused))
    return result


def _check_index(axis: str, shard: object) -> Diagnostic | None:
    match shard:
        case (int(index), int(count)) if 0 <= index < count:
            return None
    hint = "give the number of the shard, counted from 0, and how many there are: (0, 2) is the first half"
    return Diagnostic("shards/index", f"axis `{axis}`: {shard!r} is no shard of it", None, hint)


def _unused(axis: str, there: Iterable[str], root: Scope) -> Diagnostic:
    """``there``: the names of all axes of the parameters."""
    if axis in there:
        message = f"axis `{axis}` shards nothing: wherever it is, an axis that is made of it is sharded itself"
        return Diagnostic("shards/axis", message, None, "give the one or the other")
    listed = f"axes of its parameters: {', '.join(sorted(there))}"
    if (match := _DIMENSION.fullmatch(axis)) is not None:
        message = (
            f"no parameter of this config has a name that ends in `{match['name']}` and a dimension {match['number']}"
        )
        return Diagnostic("shards/axis", message, None, "name one as the layout does, without the number of a layer")
    if any(axis.rstrip("'") in kind.axes for kind in root.layout.all_types()):
        return Diagnostic("shards/axis", f"no parameter of this config has the axis `{axis}`", None, listed)
    message = f"layout `{root.layout.name}` has no axis `{axis}`"
    return Diagnostic("shards/axis", message, None, did_you_mean(axis, sorted(there)) or listed)


class _Cutter:
    """Cuts the patterns of one module. ``cut``: the given axes that the last pattern has; ``used``: that any has."""

    def __init__(self, scope: Scope, axes: AxisShards) -> None:
        self.scope, self.axes = scope, axes
        found = ((key, _DIMENSION.fullmatch(key)) for key in axes)
        self.dimensions = [(key, f".{match['name']}", int(match["number"])) for key, match in found if match]
        self.sizes = AxisSizes(scope)
        self.cut: dict[str, None] = {}
        self.used: set[str] = set()

    def of(self, present: Present) -> Iterator[tuple[Template, Template, Held]]:
        """The tensors of a parameter that are held: the name on the rank, the name in the whole model, and what."""
        self.cut = {}
        shape = native_shape(present.pattern, self.sizes)
        intervals = tuple(tuple(self.dimension(present, number, shape[number])) for number in range(len(shape)))
        cut = tuple(self.cut)
        numbers = [[n for begin, end in self.axis(axis) for n in range(begin, end)] for axis in present.axes]
        self.used |= self.cut.keys()
        for place in itertools.product(*map(enumerate, numbers)):
            local, name = (
                present.name.render({axis: pair[side] for axis, pair in zip(present.axes, place, strict=True)})
                for side in (0, 1)
            )
            yield local, name, Held(str(name), present.pattern, shape, intervals, cut)

    def dimension(self, present: Present, number: int, size: int) -> list[Interval]:
        """What is held of a dimension: a part of it as it stands, or what the cuts of its axes leave."""
        for key, name, wanted in self.dimensions:
            if number == wanted and f".{present.name}".endswith(name):
                self.cut[key] = None
                return chunk(joined([(0, size)]), *self.axes[key])
        return self.intervals(present.pattern.dims[number])

    def axes_of(self, present: Present) -> Iterator[str]:
        """The names of all axes of a parameter."""
        yield from self.all_names((*map(Axis, present.axes), *present.pattern.dims))

    def intervals(self, term: Term) -> list[Interval]:
        """What is held of a term, in the order of its elements."""
        match term:
            case Axis(name):
                return self.axis(name)
            case Product(terms):
                return self.product(terms)
            case Sum(branches):
                found: list[Interval] = []
                begin = 0
                for branch in branches:
                    terms = branch.terms or ()
                    found += [(begin + start, begin + stop) for start, stop in self.product(terms)]
                    begin += self.size(Product(terms))
                return joined(found)
        return [(0, 1)]

    def axis(self, name: str) -> list[Interval]:
        whole = joined([(0, self.size(Axis(name)))])
        for called in self.names(name):
            if called in self.axes:
                self.cut[called] = None
                return chunk(whole, *self.axes[called])
        made_of = self.made_of(name)
        return self.product(map(Axis, made_of)) if made_of else whole

    def product(self, terms: Iterable[Term]) -> list[Interval]:
        found: list[Interval] = [(0, 1)]
        for term in terms:
            found = within(found, self.intervals(term), self.size(term))
        return found

    def size(self, term: Term) -> int:
        return term_size(expand(term, self.sizes), self.sizes)

    def made_of(self, axis: str) -> tuple[str, ...]:
        """The axes that an axis is the product of; none for an atom."""
        factors = self.sizes[axis]
        return () if isinstance(factors, int) else tuple(factor + _primes(axis) for factor in factors)

    def names(self, axis: str) -> Iterator[str]:
        """What an axis is called: by the module, by those around it, and by what it is defined as."""
        yield axis
        name, scope = axis.rstrip("'"), self.scope
        while scope.parent is not None or name in scope.kind.axes:
            value = scope.kind.axes.get(name)
            if scope.parent is not None and name in scope.axis_names:
                name, scope = scope.axis_names[name], scope.parent
            elif isinstance(value, Expression) and value.names == {(value.text,)} and _is_axis(value.text, scope):
                name = value.text
            elif value is None and scope.parent is not None:
                scope = scope.parent
                continue
            else:
                return
            yield name + _primes(axis)

    def all_names(self, terms: Iterable[Term]) -> Iterator[str]:
        """The names of all axes of some terms, and of those that they are made of."""
        for axis in axes_of(terms):
            yield from self.names(axis)
            yield from self.all_names(map(Axis, self.made_of(axis)))


def _primes(axis: str) -> str:
    return axis[len(axis.rstrip("'")) :]


def _is_axis(name: str, scope: Scope) -> bool:
    """Whether a name in a formula is an axis, and no field or argument."""
    return name not in scope.kind.fields and name not in scope.arguments
