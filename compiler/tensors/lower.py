"""From axes to strided copies: one name template against the parameters it stands for.

Every choice of labels (cells) and of hole values is one box. Its address is linear in the indices of its atoms on both
ends, so a box is one strided copy, and no element is ever looked at. Neighbouring boxes that line up on both ends
become one.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence, Set
from typing import Literal

from crosswalk.compiler.layout.cells import (
    AxisTable,
    Cell,
    PartedAxis,
    atom_size,
    atoms_of,
    cells_of,
    check_known,
    cut,
    expand,
    native_shape,
    term_size,
    with_parts,
)
from crosswalk.compiler.notation.axes import (
    ParameterPattern,
    Product,
    Term,
    absent_labels_of,
    axes_of,
    format_terms,
    labels_of,
)
from crosswalk.compiler.notation.templates import Choice, Hole, Template
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.plan.affine import make_piece
from crosswalk.runtime.records import Record, replace

from .dims import Gone, Source, Stored, branches_of, default_dims, written_dims
from .pieces import Tensor, TensorPiece, Unplaced, coalesced

__all__ = ["AxisTable", "Source", "Tensor", "TensorPiece", "lower", "native_shape"]


def lower(
    template: Template,
    parameters: Sequence[Source],
    sizes: AxisTable,
    dims: tuple[Term, ...] | None = None,
    transposed: bool = False,
    missing_axes: Literal["error", "drop"] = "error",
    position: Position | None = None,
    show_sizes: bool = True,
    lengths: AxisTable | None = None,
    cuts: Sequence[PartedAxis] = (),
) -> list[Tensor]:
    """The hf tensors that ``template`` names, with the pieces of ``parameters`` that they consist of.

    The holes of the template are axes and choices of labels; indices and keys are filled in by the caller. Without
    ``dims``, a tensor has the dimensions of the layout, outputs first (inputs first if ``transposed``; as stored for a
    parameter without an arrow), minus what went into the name; several parameters are concatenated along their first
    output dimension. With ``dims``, a bare label stands for those of its axes that are not written elsewhere; a label
    that went into the name has there the axes of its own tensor.
    ``lengths`` are the sizes of the axes on their end, by default ``sizes``: of an axis that is shorter there, only the
    first elements are related. ``cuts``: axes that are sums of parts, on both ends. ``missing_axes="drop"`` lowers a
    bias with the dims of its weight: axes that it lacks vanish. Conditions count as fulfilled, so an unresolved pattern
    with any positive sizes serves as a check before there is a config.

    The result depends on the arguments alone, and all names in it are relative to what the caller passed. So lower once
    for all equal layers, with templates and parameter names below the layer, and put the prefixes of a layer in front
    of ``tensor.name`` and ``piece.parameter`` where the plan is written; everything else is shared.

    Raises ``CrosswalkError`` with every problem found: ``axes/...`` and ``names/...`` at ``position`` (where ``dims``
    was written; default: where the template was). Messages give sizes if ``show_sizes``.
    """
    request = _asked(template, parameters, sizes, lengths or sizes, dims, position, show_sizes, cuts)
    sizes, parameters, dims, lengths = request.sizes, request.parameters, request.dims, request.lengths
    named = tuple(dict.fromkeys(hole.name for hole in template.holes if isinstance(hole, Hole)))
    if problems := _unknown_names(request, named):
        raise CrosswalkError(problems)
    stored = [Stored.of(f"#{index}", source, sizes) for index, source in enumerate(parameters)]
    named_atoms = frozenset(atom for axis in named for atom in atoms_of(axis, sizes))
    if problems := _misplaced(request, stored, named, named_atoms, missing_axes == "drop"):
        raise CrosswalkError(problems)

    tensors: list[Tensor] = []
    choices = [hole for hole in template.holes if isinstance(hole, Choice)]
    named_labels = frozenset(label for choice in choices for _, label in choice.options)
    for texts, labels, members in _families(request, stored, choices):
        gone = Gone(named_atoms, named_labels, labels)
        if dims is None:
            tree = _default_dims(request, members, gone, transposed)
        else:
            tree = written_dims(dims, stored, sizes, gone, missing_axes == "drop")
        drafts = _match(request, members, tree, named_atoms)
        shape = tuple(term_size(dim, lengths) for dim in tree)
        tensors += _enumerate(template, texts, named, shape, coalesced(drafts), sizes)
    _check_distinct(request, tensors)
    return tensors


class _Request(Record, frozen=True):
    """What was asked for, to speak of it. ``parts`` are labels that may stand in several branches."""

    template: Template
    parameters: tuple[Source, ...]
    sizes: AxisTable
    lengths: AxisTable
    dims: tuple[Term, ...] | None
    position: Position | None
    show_sizes: bool
    parts: frozenset[str] = frozenset()

    def problem(self, code: str, message: str, hint: str | None = None) -> Diagnostic:
        rows = [
            ("native:", str(source.pattern), _sizes_text(source.pattern, self.sizes) if self.show_sizes else "")
            for source in self.parameters
        ]
        if self.dims is not None:
            rows.append(("hf:", format_terms(self.dims), ""))
        width = max((len(row[1]) for row in rows), default=0)
        lines = [f"  {end:7} {text:{width}}  {size}".rstrip() for end, text, size in rows]
        return Diagnostic(f"axes/{code}", "\n".join([f"`{self.template}`: {message}", *lines]), self.position, hint)


def _asked(
    template: Template,
    parameters: Sequence[Source],
    sizes: AxisTable,
    lengths: AxisTable,
    dims: tuple[Term, ...] | None,
    position: Position | None,
    show_sizes: bool,
    cuts: Sequence[PartedAxis],
) -> _Request:
    """What was asked for, with the axes of ``cuts`` written as the sums of their parts."""
    if cuts:
        sizes, lengths = with_parts(sizes, cuts), with_parts(lengths, cuts)
        parameters = [replace(p, pattern=replace(p.pattern, dims=cut(p.pattern.dims, cuts, sizes))) for p in parameters]
        dims = None if dims is None else cut(dims, cuts, sizes)
    parts = frozenset(name for one in cuts for name in one.names)
    at = position or template.position
    return _Request(template, tuple(parameters), sizes, lengths, dims, at, show_sizes, parts)


def _unknown_names(request: _Request, named: tuple[str, ...]) -> list[Diagnostic]:
    """Axes without a size and labels without a branch, wherever they are written."""
    sizes, position = request.sizes, request.position
    problems = []
    for source in request.parameters:
        problems += check_known(axes_of(source.pattern.dims), sizes, f"the layout of `{source.name}`", None)
    problems += check_known(named, sizes, f"the name `{request.template}`", request.template.position)
    problems += check_known(axes_of(request.dims or ()), sizes, f"`{format_terms(request.dims or ())}`", position)

    present = [label for source in request.parameters for label in labels_of(source.pattern.dims)]
    known = {*present, *(label for source in request.parameters for label in absent_labels_of(source.pattern.dims))}
    in_name = [label for hole in request.template.holes if isinstance(hole, Choice) for _, label in hole.options]
    in_dims = labels_of(request.dims or ())
    # A bare label that is in the name too says nothing; with axes of its own it says where those of its tensor are.
    bare = [branch.label for branch in branches_of(request.dims or ()) if branch.terms is None]
    for label in dict.fromkeys([*in_name, *in_dims]):
        if label not in known:
            near = difflib.get_close_matches(label, sorted(known), 1)
            hint = f"did you mean `{near[0]}`?" if near else f"labels here: {', '.join(sorted(known)) or 'none'}"
            problems.append(request.problem("unknown-label", f"there is no branch `{label}`", hint))
        elif label in in_name and label in bare:
            problems.append(request.problem("twice", f"label `{label}` is both in the name and in the axes"))
        elif present.count(label) > 1 and label not in request.parts:
            owners = " and ".join(f"`{s.name}`" for s in request.parameters if label in labels_of(s.pattern.dims))
            problems.append(request.problem("ambiguous-label", f"label `{label}` is a branch of {owners}"))
    return problems


def _misplaced(
    request: _Request, stored: list[Stored], named: tuple[str, ...], named_atoms: frozenset[str], drop: bool
) -> list[Diagnostic]:
    """Axes that a parameter does not have, and axes both in the name and in the dims."""
    problems = []
    owners = " and ".join(f"`{source.name}`" for source in request.parameters)
    for index, axis in enumerate(named):
        atoms = set(atoms_of(axis, request.sizes))
        for native in stored:
            if any(atom_size(atom, request.lengths) != atom_size(atom, request.sizes) for atom in atoms):
                message = f"`{{{axis}}}` in the name has another size there: it would name other tensors"
                problems.append(request.problem("padded", message))
            if any(not atoms <= cell.strides.keys() for cell in native.cells):
                message = f"`{{{axis}}}` in the name is not an axis of `{native.source.name}`"
                problems.append(request.problem("not-an-axis", message))
        if any(atoms & set(atoms_of(other, request.sizes)) for other in named[:index]):
            problems.append(request.problem("twice", f"axis `{axis}` is twice in the name"))
    everything = frozenset[str]().union(*(native.atoms for native in stored))
    for axis in axes_of(request.dims or ()):
        atoms = set(atoms_of(axis, request.sizes))
        if atoms & named_atoms:
            problems.append(request.problem("twice", f"axis `{axis}` is both in the name and in the axes"))
        elif not drop and not atoms <= everything:
            problems.append(request.problem("not-an-axis", f"`{axis}` is not an axis of {owners}"))
    return problems


_Member = tuple[Stored, Cell]


def _families(
    request: _Request, stored: list[Stored], choices: list[Choice]
) -> list[tuple[tuple[str, ...], frozenset[str], list[_Member]]]:
    """The cells by what the choices in the name say about them: (texts, labels, cells), in the order of the name."""
    families: dict[tuple[int, ...], list[_Member]] = {}
    problems = []
    for native in stored:
        for cell in native.cells:
            key = []
            for choice in choices:
                fits = [index for index, (_, label) in enumerate(choice.options) if label in cell.labels]
                if len(fits) != 1:
                    count = "no name" if not fits else "several names"
                    message = f"`{choice}` has {count} for {_spoken(cell.labels, native)}"
                    problems.append(request.problem("labels", message, "every branch needs one text: {text=label|...}"))
                key += fits[:1]
            families.setdefault(tuple(key), []).append((native, cell))
    if problems:
        raise CrosswalkError(problems)
    result = []
    for indices, members in sorted(families.items(), key=lambda family: family[0]):
        options = [choice.options[index] for choice, index in zip(choices, indices, strict=True)]
        result.append((tuple(text for text, _ in options), frozenset(label for _, label in options), members))
    return result


def _default_dims(request: _Request, members: list[_Member], gone: Gone, transposed: bool) -> tuple[Term, ...]:
    sources = list({native.tag: native for native, _ in members}.values())
    dims = default_dims(sources, gone, transposed)
    if dims is None:
        names = " and ".join(f"`{native.source.name}`" for native in sources)
        message = f"{names} differ beside the axes that are put together"
        raise CrosswalkError(request.problem("disagree", message, "say with `axes:` where each axis is"))
    return dims


def _match(
    request: _Request, members: list[_Member], tree: tuple[Term, ...], named_atoms: frozenset[str]
) -> list[Unplaced]:
    """Pair the cells of both sides one to one, over the same atoms."""
    try:
        others = cells_of(tree, request.lengths)
    except CrosswalkError as error:
        raise CrosswalkError([request.problem("twice", d.message) for d in error.diagnostics]) from None
    pairs: dict[int, _Member] = {}
    problems = []
    for native, cell in members:
        fits = [index for index, other in enumerate(others) if other.labels <= cell.labels]
        if len(fits) == 1 and fits[0] not in pairs:
            pairs[fits[0]] = (native, cell)
            continue
        beside = pairs[fits[0]][1].labels if fits and fits[0] in pairs else frozenset()
        spoken = _spoken(cell.labels - beside, native)
        hint = "name every branch of a sum: in the axes as [a|b], or in the name as {a|b}"
        problems.append(request.problem("labels", f"{spoken} has no place of its own", hint))
    if not problems and len(pairs) < len(others):
        empty = sorted(label for index, other in enumerate(others) if index not in pairs for label in other.labels)
        problems.append(request.problem("labels", f"no parameter fills `{empty[0]}`"))
    for index, (native, cell) in pairs.items():
        problems += _unequal(request, native, cell, cell.strides.keys() - named_atoms, others[index].strides.keys())
    if problems:
        raise CrosswalkError({problem.message: problem for problem in problems}.values())

    drafts = []
    for index, (native, cell) in pairs.items():
        other = others[index]
        inside = [atom for atom in other.strides if atom not in native.apart]
        extents = tuple(atom_size(atom, request.lengths) for atom in inside)
        if all(extents):
            own, far = (tuple(end.strides[atom] for atom in inside) for end in (cell, other))
            piece = TensorPiece(native.source.name, make_piece(cell.offset, own, other.offset, far, extents))
            steps = {atom: cell.strides[atom] for atom in named_atoms}
            apart = {atom: other.strides.get(atom, 0) for atom in native.apart}
            drafts.append(Unplaced(piece, steps, native.source if apart else None, apart))
    return drafts


def _unequal(request: _Request, native: Stored, cell: Cell, needed: Set[str], found: Set[str]) -> list[Diagnostic]:
    """Diagnostics for the atoms that only one end of a cell has, by the names that were written."""
    problems = []
    for axis in _by_name(needed - found, axes_of(native.source.pattern.dims), request.sizes):
        everywhere = all(atom in other.strides for atom in atoms_of(axis, request.sizes) for other in native.cells)
        owner = _spoken(frozenset() if everywhere else cell.labels, native)
        hint = f"add `{axis}` to the axes, or {{{axis}}} to the name"
        problems.append(request.problem("missing", f"axis `{axis}` of {owner} is missing", hint))
    for axis in _by_name(found - needed, axes_of(request.dims or ()), request.sizes):
        message = f"{_spoken(cell.labels, native)} has no axis `{axis}`, which is written outside of the brackets"
        problems.append(request.problem("not-an-axis", message, "write it in the branches that have it"))
    return problems


def _spoken(labels: Set[str], native: Stored) -> str:
    """The owner of a cell, for messages: the labels, then the parameter."""
    shown = " ".join(f"`{label}`" for label in sorted(labels - {native.tag}))
    return f"{shown} of `{native.source.name}`" if shown else f"`{native.source.name}`"


def _by_name(atoms: Set[str], axes: tuple[str, ...], sizes: AxisTable) -> list[str]:
    """The atoms by the names of the written axes that they make up, and by their own where they do not."""
    whole = [axis for axis in axes if set(atoms_of(axis, sizes)) <= atoms]
    return whole + sorted(atoms - {atom for axis in whole for atom in atoms_of(axis, sizes)})


def _enumerate(
    template: Template,
    texts: tuple[str, ...],
    named: tuple[str, ...],
    shape: tuple[int, ...],
    drafts: list[Unplaced],
    sizes: AxisTable,
) -> Iterator[Tensor]:
    """One tensor for each value of the axes in the name: only offsets on the native end differ between them."""
    choice = iter(texts)
    parts: list[str | tuple[int, int]] = []
    for segment in template.segments:
        if isinstance(segment, Hole):
            if isinstance(segment.plus, str):
                text = f"`{segment}`: no number is known of `{segment.plus}` here"
                raise fail("names/not-an-index", text, template.position)
            parts.append((named.index(segment.name), segment.plus))
        else:
            parts.append(segment if isinstance(segment, str) else next(choice))
    tables = [list(_indices(axis, sizes)) for axis in named]
    for values in itertools.product(*map(enumerate, tables)):
        name = "".join([part if isinstance(part, str) else str(values[part[0]][0] + part[1]) for part in parts])
        given = {atom: index for _, indices in values for atom, index in indices.items()}
        yield Tensor(name, shape, tuple(piece for draft in drafts for piece in draft.placed(sizes, given)))


def _indices(axis: str, sizes: AxisTable) -> Iterator[dict[str, int]]:
    """The indices of the atoms that an axis is made of, for each of its own."""
    atoms = atoms_of(axis, sizes)
    for indices in itertools.product(*(range(atom_size(atom, sizes)) for atom in atoms)):
        yield dict(zip(atoms, indices, strict=True))


def _check_distinct(request: _Request, tensors: list[Tensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            message = f"`{request.template}` names two tensors `{tensor.name}`"
            raise fail("names/collide", message, request.template.position, "put a text between the holes")
        seen.add(tensor.name)


def _sizes_text(pattern: ParameterPattern, sizes: AxisTable) -> str:
    if any(check_known([axis], sizes, "", None) for axis in axes_of(pattern.dims)):
        return ""
    return "size " + " x ".join(_size_text(expand(dim, sizes), sizes) for dim in pattern.dims)


def _size_text(term: Term, sizes: AxisTable) -> str:
    if isinstance(term, Product):
        return "(" + " * ".join(_size_text(inner, sizes) for inner in term.terms) + ")"
    return str(term_size(term, sizes))
