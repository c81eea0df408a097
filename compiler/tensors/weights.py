"""The tensor side of a compiled mapping, for one config: which copies relate native parameters to hf tensors.

The layout gives the modules and parameters of a config; the structs that reading or writing the config took give the
hf names. Equal layers are lowered once, and stay one where they are related.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from crosswalk.compiler.config.taken import Cases, Chosen
from crosswalk.compiler.layout.cells import AxisTable, PartedAxis
from crosswalk.compiler.layout.limit import WITHOUT_FILES, Limit, names_of
from crosswalk.compiler.layout.model import Child, Layout, Parameter
from crosswalk.compiler.layout.modules import (
    AxisSizes,
    alike,
    config_of,
    counted_hole,
    instances,
    number_counted,
    parameters,
)
from crosswalk.compiler.layout.scope import ASSUMED, Scope
from crosswalk.compiler.mapping.model import CutLine, Section, TensorEntry
from crosswalk.compiler.notation.axes import labels_of
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.notation.templates import Template, join
from crosswalk.compiler.relations.tree import alternatives
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail

from .lower import Source, Tensor, lower
from .pieces import Related, Repeated

EMPTY = Template.parse("")


@dataclass
class Weights:
    """``groups``: every hf tensor, those of tied parameters included, ``number`` in all; ``ignored``: names that
    may be in a file and are not needed."""

    groups: list[Repeated] = field(default_factory=list)
    number: int = 0
    ignored: dict[str, TensorEntry] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)

    def add(self, related: list[Related]) -> None:
        """Tensors that are not repeated."""
        self.groups.append(Repeated(related))
        self.number += len(related)

    def repeat(self, below: Weights, places: Sequence[tuple[str, str]]) -> None:
        """What is ``below`` a module, in all modules whose names begin with ``places``; counted before."""
        self.groups += [group.below(places) for group in below.groups]
        self.ignored |= {theirs + name: line for _, theirs in places for name, line in below.ignored.items()}
        self.problems += below.problems


@dataclass(frozen=True, slots=True)
class _Claim:
    """A line that speaks of ``ours`` below the current module; names below ``theirs`` are its left side."""

    ours: tuple[KeyPath, ...]
    theirs: Template
    line: TensorEntry
    chosen: Chosen | None
    transposed: bool
    cuts: tuple[PartedAxis, ...] = ()


def relate_weights(
    layout: Layout,
    root: Scope,
    cases: Cases,
    lengths: Mapping[str, int] = MappingProxyType({}),
    limit: Limit = WITHOUT_FILES,
) -> Weights:
    """The hf tensors for the config at ``root``; axes in ``lengths`` are that long on the hf side. Raises
    ``CrosswalkError`` with every parameter that no line speaks of and every line that cannot be lowered, or as soon as
    there are more than ``limit`` tensors."""
    weights = Weights()
    _Walk(layout, root, cases, lengths, limit).module(root, EMPTY, None, (), weights, [])
    if weights.problems:
        raise CrosswalkError(dict.fromkeys(weights.problems))
    return weights


class _Walk:
    def __init__(self, layout: Layout, root: Scope, cases: Cases, lengths: Mapping[str, int], limit: Limit) -> None:
        self.layout, self.root, self.cases, self.lengths, self.limit = layout, root, cases, lengths, limit

    # ---- modules ----------------------------------------------------------------------------------------------------

    def module(
        self,
        scope: Scope,
        ours: Template,
        theirs: Template | None,
        outer: tuple[_Claim, ...],
        out: Weights,
        around: list[Chosen],
    ) -> None:
        """One module: ``theirs`` is the prefix of its tensors, None if nothing gives it one; ``around`` speaks for the
        nearest module around it that anything speaks for."""
        here = [
            c
            for c in self.cases.get(scope.path, ())
            if c.struct.type == scope.kind or c.struct.type.name in scope.kind.bases
        ]
        own: list[_Claim] = []
        default: Template | None = None if here else theirs
        for chosen in here:
            section = chosen.struct.section
            whole = any(chosen.struct is root for root in alternatives(chosen.mapping.root))
            prefix = Template.parse(chosen.tensors) if whole else theirs
            cuts = self.cuts(section, scope, out)
            for line in section.tensors:
                own_name = line.theirs.counted(partial(number_counted, scope))
                name = own_name if prefix is None else join(prefix, own_name)
                if line.ours and (line.types is None or self.fits(scope, line)):
                    own.append(_Claim(line.ours, name, line, chosen, bool(section.transposed), cuts))
                elif not line.ours and prefix is not None:
                    out.ignored[str(name)] = line
            if section.same_names or not section.has_tensors:
                default = prefix
        claims = (*outer, *own)
        for child in scope.kind.children:
            self.children(scope, child, ours, claims, default, out, here or around)
        self.parameters(scope, ours, claims, default, here, out, () if theirs is not None else around)

    def cuts(self, section: Section, scope: Scope, out: Weights) -> tuple[PartedAxis, ...]:
        """The axes that a section cuts and that its lines name parts of."""
        named = {label for line in section.tensors for label in labels_of((*(line.dims or ()), *(line.encoded or ())))}
        result = []
        for line in section.cuts.values():
            if named.isdisjoint(name for name, _ in line.parts):
                continue
            try:
                result.append(_cut(line, scope))
            except CrosswalkError as error:
                out.problems += error.diagnostics
        return tuple(result)

    def fits(self, scope: Scope, line: TensorEntry) -> bool:
        """Whether the child of a line like ``mixer(attention|mamba)`` or ``mixer.query(attention)`` has one of these
        types."""
        names = ((child, tuple(str(child.name).split("."))) for child in scope.kind.children)
        child = next((child for child, name in names if line.ours[0][: len(name)] == name), None)
        found = config_of(scope, child.config) if child else None
        return found is not None and line.types is not None and found.kind.name in line.types

    def children(
        self,
        scope: Scope,
        child: Child,
        ours: Template,
        claims: tuple[_Claim, ...],
        default: Template | None,
        out: Weights,
        around: list[Chosen],
    ) -> None:
        name = child.name
        own = tuple(str(name).split("."))
        exact = next((c for c in claims if own in c.ours), None)
        deeper = tuple(
            replace(c, ours=tuple(path[len(own) :] for path in c.ours))
            for c in claims
            if all(len(path) > len(own) and path[: len(own)] == own for path in c.ours)
        )
        repeated: dict[KeyPath, tuple[Weights, list[tuple[str, str]]]] = {}
        for values, inner in instances(scope, child):
            if out.number > self.limit.most:
                called = exact.theirs if exact is not None else join(default or ours, name)
                number = sum(number for number, _ in alike(scope, child))
                self.limit.check(out.number, number, str(called))
            if exact is not None:
                prefix: Template | None = exact.theirs.render(values)
            else:
                prefix = None if default is None else join(default, name.render(values))
            relative = bool(values) and not deeper
            if not relative:
                filled = tuple(replace(c, theirs=c.theirs.render(values)) for c in deeper)
                self.module(inner, join(ours, name.render(values)), prefix, filled, out, around)
                continue
            if inner.path not in repeated:
                repeated[inner.path] = Weights(), []
                below = None if prefix is None else EMPTY
                self.module(inner, EMPTY, below, (), repeated[inner.path][0], around)
            one, places = repeated[inner.path]
            places.append((f"{join(ours, name.render(values))}.", "" if prefix is None else f"{prefix}."))
            out.number += one.number
        for one, places in repeated.values():
            out.repeat(one, places)

    # ---- parameters -------------------------------------------------------------------------------------------------

    def parameters(
        self,
        scope: Scope,
        ours: Template,
        claims: tuple[_Claim, ...],
        default: Template | None,
        here: list[Chosen],
        out: Weights,
        around: Sequence[Chosen],
    ) -> None:
        present: dict[str, tuple[Parameter, Source]] = {}
        named: dict[str, Template] = {}
        sizes = AxisSizes(scope)
        lengths = AxisSizes(scope, self.lengths) if self.lengths else sizes
        for name, known_as, parameter, pattern, axes in parameters(scope):
            present[str(known_as)] = (parameter, Source.of(join(ours, name), pattern, axes))
            named[str(known_as)] = name
        spoken: set[str] = set()
        # A line for `layer_1.weight` counts before one for `layer_1`, enclosing lines (they come first) before own.
        for claim in sorted(_of_each(claims, scope), key=lambda claim: -max(map(len, claim.ours))):
            groups = [self.leaves(path, present) for path in claim.ours]
            leaves = {suffix for group in groups for suffix in group}
            for suffix in sorted(leaves):
                members = [group[suffix] for group in groups if suffix in group]
                if any(name in spoken for name in members):
                    continue
                if len(members) < len(groups):
                    out.problems.append(_one_sided(claim, suffix, members))
                    continue
                spoken.update(members)
                self.lower(claim, suffix, [present[name][1] for name in members], sizes, lengths, out)
        for stored, (parameter, source) in present.items():
            if stored in spoken or parameter.same_as is not None:
                continue
            if default is None:
                self.unclaimed(source, ours, here, scope, out, around)
                continue
            same = named[stored]
            line = TensorEntry(same, ((stored,),), None, None, self.position(scope, here))
            self.lower(
                _Claim(((stored,),), join(default, same), line, here[0] if here else None, False),
                "",
                [source],
                sizes,
                lengths,
                out,
            )

    def leaves(self, path: KeyPath, present: Mapping[str, tuple[Parameter, Source]]) -> dict[str, str]:
        """The parameters that a path names: itself, or as a group all below it, by what is added to its name."""
        name = ".".join(path)
        if name in present:
            return {"": name}
        return {key[len(name) + 1 :]: key for key in present if key.startswith(name + ".")}

    def lower(
        self,
        claim: _Claim,
        suffix: str,
        sources: list[Source],
        sizes: AxisTable,
        lengths: AxisTable,
        out: Weights,
    ) -> None:
        template = join(claim.theirs, Template.parse(suffix))
        is_bias = suffix != "" and not any(source.pattern.inputs for source in sources)
        line = claim.line
        number = names_of(template, sizes)
        self.limit.check(out.number + number, number, str(template), line.position)
        ways = [(line.dims, line.dims_at)] + ([(line.encoded, line.encoded_at)] if line.encoded is not None else [])
        found: list[dict[str, Tensor]] = []
        for dims, at in ways:
            try:
                tensors = lower(
                    template,
                    sources,
                    sizes,
                    dims,
                    claim.transposed,
                    "drop" if is_bias else "error",
                    at or line.position,
                    show_sizes=not self.root.assumes,
                    lengths=lengths,
                    cuts=[one for one in claim.cuts if one.names & set(labels_of(dims or ()))],
                )
            except CrosswalkError as error:
                out.problems += error.diagnostics
                return
            found.append({tensor.name: tensor for tensor in tensors})
        mapping = claim.chosen.mapping.name if claim.chosen else ""
        encoded: dict[str, Tensor] = found[-1] if len(found) > 1 else {}
        out.add([Related(tensor, line, mapping, encoded.get(name)) for name, tensor in found[0].items()])

    def position(self, scope: Scope, here: list[Chosen]) -> Position:
        return here[0].struct.position if here else scope.kind.position

    def unclaimed(
        self,
        source: Source,
        ours: Template,
        here: list[Chosen],
        scope: Scope,
        out: Weights,
        around: Sequence[Chosen],
    ) -> None:
        """``around``: where the module has no name itself, what could give it one."""
        section = (around or here)[0].struct.section.name if around or here else str(scope.kind)
        position = around[0].struct.position if around else self.position(scope, here)
        message = f"no line of section `{section}` says which tensor holds `{source.name}` ({source.pattern})"
        hint = 'add it under `tensors:`, or `"*": same` if all others keep their names'
        if around:
            message = f"no line of section `{section}` names the module `{ours}`, which has `{source.name}`"
            hint = "add its name under `tensors:`"
        out.problems.append(Diagnostic("mapping/unclaimed-parameter", message, position, hint))


def _of_each(claims: Iterable[_Claim], scope: Scope) -> Iterator[_Claim]:
    """The claims, one for each value of a hole that counts parameters of this module."""
    counted = {hole for parameter in scope.kind.parameters if (hole := counted_hole(scope.kind, parameter))}
    for claim in claims:
        held = next((hole for path in claim.ours for hole in counted if f"{{{hole}}}" in path), None)
        if held is None:
            yield claim
            continue
        for index in range(number_counted(scope, held) or 0):
            ours = tuple(tuple(str(index) if part == f"{{{held}}}" else part for part in path) for path in claim.ours)
            yield replace(claim, ours=ours, theirs=claim.theirs.render({held: index}))


def _cut(line: CutLine, scope: Scope) -> PartedAxis:
    """The parts of an axis with their sizes in one config. Raises ``CrosswalkError`` (``axes/cut``)."""
    whole = scope.axis_entry(line.axis)
    if not isinstance(whole, int):
        message = f"`cuts`: axis `{line.axis}` is made of {' and '.join(whole)}"
        raise fail("axes/cut", message, line.position, "cut one of those")
    if scope.assumes:
        return PartedAxis(line.axis, tuple((name, ASSUMED) for name, _ in line.parts))
    given = {name: scope.evaluate(s) if isinstance(s, Expression) else s for name, s in line.parts if s is not None}
    for name, size in given.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise fail("axes/cut", f"`cuts`: part `{name}` of `{line.axis}` is {size!r}, not a size", line.position)
    rest = whole - sum(given.values())
    if rest < 0 or (rest and len(given) == len(line.parts)):
        sizes = " + ".join(map(str, given.values()))
        raise fail("axes/cut", f"`cuts`: axis `{line.axis}` is {whole} long, its parts are {sizes}", line.position)
    return PartedAxis(line.axis, tuple((name, given.get(name, rest)) for name, _ in line.parts))


def _one_sided(claim: _Claim, suffix: str, members: list[str]) -> Diagnostic:
    return Diagnostic(
        "mapping/one-sided",
        f"`{claim.theirs}.{suffix}` is to hold {' and '.join('.'.join((*path, suffix)) for path in claim.ours)}, of"
        f" which this config has only {', '.join(members)}",
        claim.line.position,
        "either all parts of a fused tensor have it, or none",
    )
