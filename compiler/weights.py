"""The tensor side of a compiled mapping, for one config: which copies relate the trainer's parameters to theirs.

The layout gives the modules and parameters of a config; the structs that :mod:`.exporting` chose give the names on the
other side. Equal layers are lowered once and shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position

from .axes import resolve
from .cells import AxisTable
from .exported import Chosen
from .expressions import compile_expression
from .layout import Layout, Parameter
from .lowering import Piece, Source, Tensor, lower, ours_shape
from .mapping import TensorEntry
from .names import Hole, Template, join
from .relations import Path
from .scope import Scope

EMPTY = Template.parse("")


@dataclass(frozen=True, slots=True)
class Native:
    """A parameter of the trainer; ``tied_to`` is the one that has the storage."""

    name: str
    shape: tuple[int, ...]
    tied_to: str | None = None


@dataclass(frozen=True, slots=True)
class Related:
    """A tensor of theirs with the copies that relate it to parameters of ours, and the line that says so. ``encoded``:
    the same tensor as it is where it is stored encoded, if its dimensions are others then."""

    tensor: Tensor
    line: TensorEntry
    mapping: str
    encoded: Tensor | None = None


@dataclass
class Weights:
    """``natives``: every parameter; ``related``: every tensor of theirs, those of tied parameters included;
    ``ignored``: names that may be in a file and are not needed."""

    natives: dict[str, Native] = field(default_factory=dict)
    related: list[Related] = field(default_factory=list)
    ignored: dict[str, TensorEntry] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A line that speaks of ``ours`` below the current module; names below ``theirs`` are its left side."""

    ours: tuple[Path, ...]
    theirs: Template
    line: TensorEntry
    chosen: Chosen | None
    transposed: bool


def relate_weights(layout: Layout, root: Scope, chosen: Mapping[Path, list[Chosen]]) -> Weights:
    """The tensors of both sides for the config at ``root``. Raises ``CrosswalkError`` with every parameter that no line
    speaks of and every line that cannot be lowered."""
    weights = _Walk(layout, root, chosen).run()
    if weights.problems:
        raise CrosswalkError(dict.fromkeys(weights.problems))
    return weights


class _Walk:
    def __init__(self, layout: Layout, root: Scope, chosen: Mapping[Path, list[Chosen]]) -> None:
        self.layout, self.root, self.chosen = layout, root, chosen

    def run(self) -> Weights:
        out = Weights()
        self.module(self.root, EMPTY, None, (), out, [])
        ties = {tie.parameter: tie.same_as for tie in self.root.kind.ties if self.root.holds(tie.condition)}
        for name, native in list(out.natives.items()):
            owner = ties.get(native.tied_to or name, native.tied_to)
            if owner is not None:
                out.natives[name] = Native(name, native.shape, owner)
        return out

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
            for c in self.chosen.get(scope.path, ())
            if c.struct.type == scope.kind or c.struct.type.name in scope.kind.bases
        ]
        own: list[_Claim] = []
        default: Template | None = None if here else theirs
        for chosen in here:
            section = chosen.struct.section
            whole = chosen.struct is chosen.mapping.root
            prefix = Template.parse(chosen.tensors) if whole else theirs
            for line in section.tensors:
                name = line.theirs if prefix is None else join(prefix, line.theirs)
                if line.ours and (line.types is None or self.fits(scope, line)):
                    own.append(_Claim(line.ours, name, line, chosen, bool(section.transposed)))
                elif not line.ours and prefix is not None:
                    out.ignored[str(name)] = line
            if section.same_names or not section.has_tensors:
                default = prefix
        claims = (*outer, *own)
        for child in scope.kind.children:
            self.children(scope, child.name, child.config, child.axes, ours, claims, default, out, here or around)
        self.parameters(scope, ours, claims, default, here, out, () if theirs is not None else around)

    def fits(self, scope: Scope, line: TensorEntry) -> bool:
        """Whether the child of a line like ``mixer(attention|mamba)`` or ``mixer.query(attention)`` has one of these
        types."""
        names = ((child, tuple(str(child.name).split("."))) for child in scope.kind.children)
        child = next((child for child, name in names if line.ours[0][: len(name)] == name), None)
        found = self.config_of(scope, child.config, {}) if child else None
        return found is not None and line.types is not None and found.kind.name in line.types

    def children(
        self,
        scope: Scope,
        name: Template,
        config: Path,
        axes: Mapping[str, str],
        ours: Template,
        claims: tuple[_Claim, ...],
        default: Template | None,
        out: Weights,
        around: list[Chosen],
    ) -> None:
        own = tuple(str(name).split("."))
        exact = next((c for c in claims if own in c.ours), None)
        deeper = tuple(
            _Claim((path[len(own) :],), c.theirs, c.line, c.chosen, c.transposed)
            for c in claims
            for path in c.ours
            if len(path) > len(own) and path[: len(own)] == own and len(c.ours) == 1
        )
        cache: dict[Path, Weights] = {}
        for values, child in self.instances(scope, name, config):
            if axes:
                child = Scope(
                    child.layout, child.kind, child.config, scope, child.path, child.arguments, axis_names=axes
                )
            if exact is not None:
                prefix: Template | None = exact.theirs.render(values)
            else:
                prefix = None if default is None else join(default, name.render(values))
            relative = bool(values) and not deeper
            if not relative:
                filled = tuple(_Claim(c.ours, c.theirs.render(values), c.line, c.chosen, c.transposed) for c in deeper)
                self.module(child, join(ours, name.render(values)), prefix, filled, out, around)
                continue
            if child.path not in cache:
                cache[child.path] = Weights()
                below = None if prefix is None else EMPTY
                self.module(child, EMPTY, below, (), cache[child.path], around)
            _add_prefixed(out, cache[child.path], str(join(ours, name.render(values))), prefix)

    def instances(self, scope: Scope, name: Template, config: Path) -> Iterator[tuple[dict[str, object], Scope]]:
        """The modules of a child template: hole values, and the config of each."""
        holes = [hole.name for hole in name.holes if isinstance(hole, Hole)]
        if not holes:
            found = self.config_of(scope, config, {})
            if found is not None:
                yield {}, found
            return
        (hole,) = holes
        domain = scope.kind.holes[hole]
        declared = scope.kind.fields.get(domain)
        if declared is not None and declared.kind == "dict":
            for key in scope.raw(domain):
                yield {hole: key}, scope.entry(domain, key)
        elif declared is not None:
            for index, (_, block) in enumerate(scope.blocks(domain)):
                yield {hole: index}, block
        else:
            for index in range(scope.count(compile_expression(domain, None))):
                found = self.config_of(scope, config, {hole: index})
                if found is not None:
                    yield {hole: index}, found

    def config_of(self, scope: Scope, config: Path, values: Mapping[str, object]) -> Scope | None:
        """The config that a child is made from: a path of fields; ``decoder.{last}`` is the last layer."""
        if config[-1] == "{last}":
            blocks = scope.blocks(config[0])
            return blocks[-1][1] if blocks else None
        value: object = scope
        for name in config:
            if not isinstance(value, Scope):
                return None
            value = value.field(name)
        return value if isinstance(value, Scope) else None

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
        sizes = _Sizes(scope)
        for parameter in scope.kind.parameters:
            for name in self.names(scope, parameter):
                if parameter.condition is not None and not scope.holds(parameter.condition):
                    continue
                pattern = resolve(parameter.pattern, lambda text: scope.holds(compile_expression(text, None)))
                source = Source(str(join(ours, name)), pattern)
                present[str(name)] = (parameter, source)
                tied = parameter.same_as
                out.natives[source.name] = Native(source.name, ours_shape(pattern, sizes), tied)
        spoken: set[str] = set()
        # A line for `layer_1.weight` counts before one for `layer_1`, enclosing lines (they come first) before own.
        for claim in sorted(claims, key=lambda claim: -max(map(len, claim.ours))):
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
                self.lower(claim, suffix, [present[name][1] for name in members], sizes, out)
        for stored, (parameter, source) in present.items():
            if stored in spoken or parameter.same_as is not None:
                continue
            if default is None:
                self.unclaimed(source, ours, here, scope, out, around)
                continue
            same = Template.parse(stored)
            line = TensorEntry(same, ((stored,),), None, None, self.position(scope, here))
            self.lower(
                _Claim(((stored,),), join(default, same), line, here[0] if here else None, False),
                "",
                [source],
                sizes,
                out,
            )

    def names(self, scope: Scope, parameter: Parameter) -> Iterator[Template]:
        """The names of a parameter: one, or one for each value of the hole in it."""
        holes = [hole.name for hole in parameter.name.holes if isinstance(hole, Hole)]
        if not holes:
            yield parameter.name
            return
        for index in range(scope.count(compile_expression(scope.kind.holes[holes[0]], None))):
            yield parameter.name.render({holes[0]: index})

    def leaves(self, path: Path, present: Mapping[str, tuple[Parameter, Source]]) -> dict[str, str]:
        """The parameters that a path names: itself, or as a group all below it, by what is added to its name."""
        name = ".".join(path)
        if name in present:
            return {"": name}
        return {key[len(name) + 1 :]: key for key in present if key.startswith(name + ".")}

    def lower(self, claim: _Claim, suffix: str, sources: list[Source], sizes: AxisTable, out: Weights) -> None:
        template = join(claim.theirs, Template.parse(suffix))
        is_bias = suffix != "" and not any(source.pattern.inputs for source in sources)
        line = claim.line
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
                )
            except CrosswalkError as error:
                out.problems += error.diagnostics
                return
            found.append({tensor.name: tensor for tensor in tensors})
        mapping = claim.chosen.mapping.name if claim.chosen else ""
        encoded: dict[str, Tensor] = found[-1] if len(found) > 1 else {}
        out.related += [Related(tensor, line, mapping, encoded.get(name)) for name, tensor in found[0].items()]

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


def _one_sided(claim: _Claim, suffix: str, members: list[str]) -> Diagnostic:
    return Diagnostic(
        "mapping/one-sided",
        f"`{claim.theirs}.{suffix}` is to hold {' and '.join('.'.join((*path, suffix)) for path in claim.ours)}, of"
        f" which this config has only {', '.join(members)}",
        claim.line.position,
        "either all parts of a fused tensor have it, or none",
    )


class _Sizes(Mapping[str, "int | tuple[str, ...]"]):
    """The axes in scope of a module, looked up when needed."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.known: dict[str, int | tuple[str, ...]] = {}

    def __getitem__(self, name: str) -> int | tuple[str, ...]:
        if name not in self.known:
            try:
                self.known[name] = self.scope.axis_entry(name.rstrip("'"))
            except CrosswalkError as error:
                if error.diagnostics[0].code != "layout/no-axis":
                    raise
                raise KeyError(name) from None
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        scope: Scope | None = self.scope
        while scope is not None:
            yield from scope.kind.axes
            scope = scope.parent

    def __len__(self) -> int:
        return len(set(iter(self)))


def _add_prefixed(out: Weights, below: Weights, ours: str, theirs: Template | None) -> None:
    """Put the prefixes of one layer in front of the names of a shared result."""
    prefix = "" if theirs is None else f"{theirs}."
    for native in below.natives.values():
        name = f"{ours}.{native.name}"
        out.natives[name] = Native(name, native.shape, native.tied_to)
    for related in below.related:
        encoded = None if related.encoded is None else _prefixed(related.encoded, ours, prefix)
        out.related.append(Related(_prefixed(related.tensor, ours, prefix), related.line, related.mapping, encoded))
    for name, line in below.ignored.items():
        out.ignored[prefix + name] = line
    out.problems += below.problems


def _prefixed(tensor: Tensor, ours: str, prefix: str) -> Tensor:
    pieces = tuple(
        Piece(f"{ours}.{p.parameter}", p.extents, p.ours_offset, p.ours_strides, p.theirs_offset, p.theirs_strides)
        for p in tensor.pieces
    )
    return Tensor(prefix + tensor.name, tensor.shape, pieces)
