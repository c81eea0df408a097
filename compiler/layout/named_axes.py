"""Parameters with an axis in their name: one tensor for each index of the axis, as ``experts.weight{expert}``.

A hole in the name of a parameter that its type does not count (``holes``) is an axis. Such a parameter means what one
tensor would that has the axis in front of all others: patterns, copies and shards are worked out for that one, and each
index of it is a tensor of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Sequence

from crosswalk.compiler.notation.axes import Axis, ParameterPattern
from crosswalk.compiler.notation.templates import Hole, Template
from crosswalk.runtime.records import replace

from .cells import AxisTable, atom_size, atoms_of


def axes_in_name(name: Template, counted: Container[str]) -> tuple[str, ...]:
    """The axes in the name of a parameter, from left to right; ``counted`` are the holes that its type counts."""
    return tuple(hole.name for hole in name.holes if isinstance(hole, Hole) and hole.name not in counted)


def stacked(pattern: ParameterPattern, axes: Sequence[str]) -> ParameterPattern:
    """The pattern of the one tensor that has the axes of the name in front, as outputs."""
    if not axes:
        return pattern
    number = len(axes)
    outputs = (*range(number), *(index + number for index in pattern.outputs))
    inputs = tuple(index + number for index in pattern.inputs)
    return replace(pattern, dims=(*map(Axis, axes), *pattern.dims), outputs=outputs, inputs=inputs)


def axis_size(axis: str, sizes: AxisTable) -> int:
    """How many indices an axis has, the product of those of what it is made of."""
    return math.prod(atom_size(atom, sizes) for atom in atoms_of(axis, sizes))


def names(name: Template, axes: Sequence[str], sizes: AxisTable) -> Iterator[Template]:
    """The names of the tensors, in the order of the one that has the axes in front."""
    if not axes:
        yield name
        return
    for indices in itertools.product(*(range(axis_size(axis, sizes)) for axis in axes)):
        yield name.render(dict(zip(axes, indices, strict=True)))
