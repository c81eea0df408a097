"""The tensor side of a compiled mapping, for one config: which copies relate native parameters to hf tensors.

The layout gives the modules and parameters of a config; the structs that reading or writing the config took give the
hf names. Equal layers are lowered once, and stay one where they are related.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from crosswalk.compiler.config.taken import Cases, Chosen
from crosswalk.compiler.layout.cells import AxisTable, PartedAxis
from crosswalk.compiler.layout.limit import WITHOUT_FILES, Limit, names_of
from crosswalk.compiler.layout.model import Child, ConfigType, Parameter
from crosswalk.compiler.layout.modules import (
    AxisSizes,
    alike,
    instances,
    number_counted,
    parameters,
)
from crosswalk.compiler.layout.scope import ASSUMED, Scope
from crosswalk.compiler.mapping.model import CutLine, TensorEntry
from crosswalk.compiler.notation.axes import labels_of
from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.notation.templates import Template, join
from crosswalk.compiler.relations.tensor_rules import ModuleRules, TensorRule, TensorRules, section_tensors
from crosswalk.compiler.relations.tree import alternatives
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail, shown
from crosswalk.runtime.records import Record, field, replace

from .lower import Source, Tensor, lower
from .pieces import Related, Repeated

EMPTY = Template.parse("")


class Weights(Record):
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


class _Speaker(Record, frozen=True):
    """A section whose lines speak of the current module by ``rules``. The hf names that they give are below ``prefix``,
    with the ``values`` of the holes of the modules between ``scope``, the object of the section, and this one."""

    chosen: Chosen
    scope: Scope
    prefix: Template
    rules: TensorRules
    cuts: Sequence[PartedAxis]
    values: Mapping[str, object] = field(default_factory=dict)

    def name(self, line: TensorEntry) -> Template:
        """The hf name of a line; holes that count no modules are left."""
        own = line.theirs.counted(partial(number_counted, self.scope))
        return join(self.prefix, own).render(self.values)

    def below(self, rules: TensorRules, values: Mapping[str, object]) -> _Speaker:
        """The same where the lines speak of a module further in."""
        return replace(self, rules=rules, values={**values, **self.values})


class _Given(Record, frozen=True):
    """What is the same for all modules of a config."""

    root: Scope
    cases: Cases
    lengths: Mapping[str, int]
    limit: Limit


def relate_weights(
    root: Scope, cases: Cases, lengths: Mapping[str, int] = MappingProxyType({}), limit: Limit = WITHOUT_FILES
) -> Weights:
    """The hf tensors for the config at ``root``; axes in ``lengths`` are that long on the hf side. Raises
    ``CrosswalkError`` with every parameter that no line speaks of and every line that cannot be lowered, or as soon as
    there are more than ``limit`` tensors."""
    weights = Weights()
    _Module(_Given(root, cases, lengths, limit), root, EMPTY, None, weights).relate()
    if weights.problems:
        raise CrosswalkError(dict.fromkeys(weights.problems))
    return weights


class _Module:
    """One module of a config. ``ours`` is its name; ``theirs`` the prefix of its tensors, None if nothing gives it one;
    ``outer`` are the sections around it that speak of it; ``around`` speaks for the nearest module around it that
    anything speaks for. What is found goes to ``out``."""

    def __init__(
        self,
        given: _Given,
        scope: Scope,
        ours: Template,
        theirs: Template | None,
        out: Weights,
        outer: Iterable[_Speaker] = (),
        around: Sequence[Chosen] = (),
    ) -> None:
        self.given, self.scope, self.ours, self.theirs, self.out = given, scope, ours, theirs, out
        self.speakers, self.around = list(outer), around
        found, kind = given.cases.get(scope.path, ()), scope.kind
        self.here = [c for c in found if c.struct.type == kind or c.struct.type.name in kind.bases]
        self.default = None if self.here else theirs  # the prefix of what no line speaks of

    def relate(self) -> None:
        """Relate the tensors of the module, and of all below it."""
        for chosen in self.here:
            self.listen(chosen)
        for child in self.scope.kind.children:
            self.children(child)
        self.parameters()

    def listen(self, chosen: Chosen) -> None:
        """Add a section that is about the module itself."""
        struct, scope = chosen.struct, self.scope
        whole = any(struct is root for root in alternatives(chosen.mapping.root))
        prefix = Template.parse(chosen.tensors) if whole else self.theirs
        as_is = struct.type is scope.kind
        rules = struct.tensors if as_is else section_tensors(scope.layout, scope.kind, struct.section)
        cuts = []
        for line in rules.cuts:
            try:
                cuts.append(_cut(line, scope))
            except CrosswalkError as error:
                self.out.problems += error.diagnostics
        speaker = _Speaker(chosen, scope, prefix or EMPTY, rules, cuts)
        self.speakers.append(speaker)
        if prefix is not None:
            self.out.ignored |= {str(speaker.name(line)): line for line in rules.ignored}
        if rules.same:
            self.default = prefix

    def children(self, child: Child) -> None:
        """The modules that a child of the layout stands for; those of one config are related once, if they may be."""
        scope, name, out = self.scope, child.name, self.out
        said = [(speaker, found) for speaker in self.speakers if (found := speaker.rules.below.get(str(name)))]
        known: dict[str, tuple[Template | None, list[tuple[_Speaker, TensorRules]]]] = {}
        repeated: dict[KeyPath, tuple[Weights, list[tuple[str, str]]]] = {}
        around = self.here or self.around
        for values, inner in instances(scope, child):
            if inner.kind.name not in known:
                known[inner.kind.name] = _said_of(said, inner.kind)
            exact, deeper = known[inner.kind.name]
            if out.number > self.given.limit.most:
                called = exact if exact is not None else join(self.default or self.ours, name)
                number = sum(number for number, _ in alike(scope, child))
                self.given.limit.check(out.number, number, str(called))
            prefix: Template | None = None
            if exact is not None:
                prefix = exact.render(values)
            elif self.default is not None:
                prefix = join(self.default, name.render(values))
            ours = join(self.ours, name.render(values))
            if deeper or not values:
                outer = [speaker.below(rules, values) for speaker, rules in deeper]
                _Module(self.given, inner, ours, prefix, out, outer, around).relate()
                continue
            if inner.path not in repeated:
                repeated[inner.path] = Weights(), []
                below = None if prefix is None else EMPTY
                _Module(self.given, inner, EMPTY, below, repeated[inner.path][0], (), around).relate()
            one, places = repeated[inner.path]
            places.append((f"{ours}.", "" if prefix is None else f"{prefix}."))
            out.number += one.number
        for one, places in repeated.values():
            out.repeat(one, places)

    def parameters(self) -> None:
        """The parameters of the module itself."""
        scope = self.scope
        present: dict[str, tuple[Parameter, Template, Source]] = {}
        for name, known_as, parameter, pattern, holes in parameters(scope):
            present[str(known_as)] = parameter, name, Source.of(join(self.ours, name), pattern, holes)
        sizes = AxisSizes(scope)
        axes = (sizes, AxisSizes(scope, self.given.lengths) if self.given.lengths else sizes)
        spoken: set[str] = set()
        said = [(speaker, rule) for speaker in self.speakers for rule in speaker.rules.own]
        # A line for `layer_1.weight` counts before one for `layer_1`, enclosing sections (they come first) before own.
        for speaker, rule in sorted(said, key=lambda one: -max(map(len, one[1].paths))):
            for one, values in _of_each(rule, scope):
                for end, names in one.held.items():
                    members = [name for name in names if name in present]
                    if not members or not spoken.isdisjoint(members):
                        continue
                    theirs = join(speaker.name(rule.line).render(values), Template.parse(end))
                    if len(members) < len(one.paths):
                        self.out.problems.append(_one_sided(one, theirs, end, members))
                        continue
                    spoken.update(members)
                    self.lower(theirs, rule.line, [present[name][2] for name in members], axes, speaker, end != "")
        at = self.here[0].struct.position if self.here else scope.kind.position
        for stored, (parameter, name, source) in present.items():
            if stored in spoken or parameter.same_as is not None:
                continue
            if self.default is None:
                self.unclaimed(source)
                continue
            line = TensorEntry(name, ((stored,),), None, None, at)
            self.lower(join(self.default, name), line, [source], axes)

    def lower(
        self,
        template: Template,
        line: TensorEntry,
        sources: list[Source],
        axes: tuple[AxisTable, AxisTable],
        speaker: _Speaker | None = None,
        in_group: bool = False,
    ) -> None:
        """The tensors of a line; ``axes``: our sizes and theirs. Without a ``speaker`` they are as ours."""
        sizes, lengths = axes
        number = names_of(template, sizes)
        self.given.limit.check(self.out.number + number, number, str(template), line.position)
        ways = [(line.dims, line.dims_at)] + ([(line.encoded, line.encoded_at)] if line.encoded is not None else [])
        bias = in_group and not any(source.pattern.inputs for source in sources)
        found: list[dict[str, Tensor]] = []
        for dims, at in ways:
            try:
                tensors = lower(
                    template,
                    sources,
                    sizes,
                    dims,
                    speaker is not None and speaker.chosen.struct.tensors.transposed,
                    "drop" if bias else "error",
                    at or line.position,
                    show_sizes=not self.given.root.assumes,
                    lengths=lengths,
                    cuts=[one for one in speaker.cuts if one.names & set(labels_of(dims or ()))] if speaker else (),
                )
            except CrosswalkError as error:
                self.out.problems += error.diagnostics
                return
            found.append({tensor.name: tensor for tensor in tensors})
        chosen = speaker.chosen if speaker else next(iter(self.here), None)
        mapping = chosen.mapping.name if chosen else ""
        encoded: dict[str, Tensor] = found[-1] if len(found) > 1 else {}
        self.out.add([Related(tensor, line, mapping, encoded.get(name)) for name, tensor in found[0].items()])

    def unclaimed(self, source: Source) -> None:
        """No line says which tensor holds a parameter; where the module has no name itself, no line gives it one."""
        around = self.around if self.theirs is None else ()
        speaks = next(iter(around or self.here), None)
        section = speaks.struct.section.name if speaks else str(self.scope.kind)
        message = f"no line of section `{section}` says which tensor holds `{source.name}` ({source.pattern})"
        hint = 'add it under `tensors:`, or `"*": same` if all others keep their names'
        if around:
            message = f"no line of section `{section}` names the module `{self.ours}`, which has `{source.name}`"
            hint = "add its name under `tensors:`"
        position = speaks.struct.position if speaks else self.scope.kind.position
        self.out.problems.append(Diagnostic("mapping/unclaimed-parameter", message, position, hint))


def _said_of(
    said: Iterable[tuple[_Speaker, Mapping[str, ModuleRules]]], kind: ConfigType
) -> tuple[Template | None, list[tuple[_Speaker, TensorRules]]]:
    """The name that the first line gives a module of this type, and the rules of its inside."""
    found = [(speaker, types[kind.name]) for speaker, types in said if kind.name in types]
    name = next((speaker.name(rules.line) for speaker, rules in found if rules.line is not None), None)
    return name, [(speaker, rules.inside) for speaker, rules in found if rules.inside is not None]


def _of_each(rule: TensorRule, scope: Scope) -> Iterator[tuple[TensorRule, dict[str, object]]]:
    """A rule, for each value of the hole that counts its parameters, with that value where it is in the name."""
    if rule.counted is None:
        yield rule, {}
        return
    for index in range(number_counted(scope, rule.counted) or 0):
        one = rule.at(index)
        yield one, {} if one.paths == rule.paths else {rule.counted: index}


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
            text = f"`cuts`: part `{name}` of `{line.axis}` is {shown(size)}, not a size"
            raise fail("axes/cut", text, line.position, "state a whole number, or an expression that gives one")
    rest = whole - sum(given.values())
    if rest < 0 or (rest and len(given) == len(line.parts)):
        sizes = " + ".join(map(str, given.values()))
        raise fail("axes/cut", f"`cuts`: axis `{line.axis}` is {whole} long, its parts are {sizes}", line.position)
    return PartedAxis(line.axis, tuple((name, given.get(name, rest)) for name, _ in line.parts))


def _one_sided(rule: TensorRule, theirs: Template, end: str, members: list[str]) -> Diagnostic:
    return Diagnostic(
        "mapping/one-sided",
        f"`{theirs}` is to hold {' and '.join('.'.join((*path, *filter(None, [end]))) for path in rule.paths)}, of"
        f" which this config has only {', '.join(members)}",
        rule.line.position,
        "either all parts of a fused tensor have it, or none",
    )
