"""A layout: the trainer's config types and the parameters that a config gives rise to, as frozen data.

``load_layout`` reads a layout document (``mappings/layouts/*.yaml``); what it says of one config is in :mod:`.scope`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from crosswalk.compiler.notation.axes import ParameterPattern, axes_of, bias_of, parse_parameter
from crosswalk.compiler.notation.expressions import Expression, compile_expression
from crosswalk.compiler.notation.templates import Template
from crosswalk.compiler.text.positioned import Map, did_you_mean
from crosswalk.compiler.text.scalars import scalar_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.records import Record

from .named_axes import axes_in_name

Group = Literal["fields", "features", "training"]
Kind = Literal["scalar", "enum", "type", "family", "dict", "list"]
Types = dict[str, "ConfigType"]
GROUPS: tuple[Group, ...] = ("fields", "features", "training")
SCALARS = ("int", "float", "bool", "str", "list", "dict", "any")


class _Missing:
    """The absence of a value: a field without a default, or a key that is not in a file. Not the same as null."""

    def __repr__(self) -> str:
        return "absent"

    def __bool__(self) -> bool:
        return False


MISSING = _Missing()


class Field(Record, frozen=True):
    """One field of a config type. ``of`` is the scalar, enum, type or family; for ``dict``, what the entries are."""

    name: str
    kind: Kind
    of: str
    group: Group
    nullable: bool
    default: Any
    null_means: Expression | None
    bound: tuple[str, float] | None
    arguments: Mapping[str, Expression]
    position: Position

    @property
    def is_config(self) -> bool:
        """Whether its value is an object with a type of its own."""
        return self.kind in ("type", "family")


class Child(Record, frozen=True):
    """A module below a module: its config is at ``config`` (a path with holes), ``axes`` renames axes for it."""

    name: Template
    config: tuple[str, ...]
    axes: Mapping[str, str]


class Parameter(Record, frozen=True):
    """A tensor of the trainer; present if ``condition`` holds (None: always), never stored if ``same_as`` and its
    condition hold. It has the first name of ``called`` whose condition holds, else ``name``, by which mappings know
    it."""

    name: Template
    pattern: ParameterPattern
    group: str
    condition: Expression | None = None
    same_as: str | None = None
    called: tuple[tuple[Template, Expression], ...] = ()


class Tie(Record, frozen=True):
    parameter: str
    same_as: str
    condition: Expression


class Check(Record, frozen=True):
    expression: Expression
    message: str


class ConfigType(Record, frozen=True):
    """A config type, with what it inherits already in it. ``family`` is None for one without a ``type`` key, unless
    ``registered`` gives it one of its own. ``pads``: axes that may be longer than in a checkpoint. ``stored_as``: types
    that this one extends, and when a config of it is stored as one of them."""

    name: str
    registered: str | None
    family: str | None
    bases: tuple[str, ...]
    takes: tuple[str, ...]
    stands_for: str | None
    fields: Mapping[str, Field]
    axes: Mapping[str, int | Expression | tuple[str, ...]]
    holes: Mapping[str, str]
    children: tuple[Child, ...]
    parameters: tuple[Parameter, ...]
    ties: tuple[Tie, ...]
    checks: tuple[Check, ...]
    model: str | None
    position: Position
    pads: tuple[str, ...] = ()
    stored_as: tuple[tuple[str, Expression], ...] = ()

    def __str__(self) -> str:
        return self.name


class Family(Record, frozen=True):
    """A typed choice: the ``type`` key of a config says which of ``types`` it is, ``default`` if it is absent."""

    name: str
    default: str
    sequence: bool
    types: Mapping[str, ConfigType]
    aliases: Mapping[str, str]


class Layout(Record, frozen=True):
    """A layout: its types and families, the type of its root, and how its trainer keeps checkpoints."""

    name: str
    root: str
    enums: Mapping[str, tuple[str, ...]]
    types: Mapping[str, ConfigType]
    families: Mapping[str, Family]
    file: str
    directory: str = "safetensors"  # the kind that the trainer keeps its checkpoints in
    stacked: Mapping[str, str] | None = None  # parts of names there -> parts of names here
    extra_states: Sequence[str] | None = None  # modules that have one there
    saved: Mapping[str, Mapping[str, str]] | None = None  # training fields -> value here -> value there
    forms: Sequence[Mapping[str, Any]] = ()  # other forms of a config
    idle: Mapping[str, Any] | None = None  # features -> value at which there are parameters that are zeros

    def type_of(self, name: str) -> ConfigType | None:
        """A type by the name of its section: a plain type, or one that is in exactly one family."""
        found = [family.types[name] for family in self.families.values() if name in family.types]
        return self.types.get(name, found[0] if len(found) == 1 else None)

    def all_types(self) -> Iterator[ConfigType]:
        """Every type of configs: those that stand alone, then those of families."""
        yield from (*self.types.values(), *(t for f in self.families.values() for t in f.types.values()))

    def roots(self) -> dict[str, str]:
        """Model name (``gpt``) -> the type that its base model is."""
        return {t.model: t.name for t in self.types.values() if t.model}


_FIELD = re.compile(
    r"^(?P<container>dict of |list of )?(?P<of>\w+)(?:\((?P<arguments>[^)]*)\))?(?P<nullable>\?)?"
    r"(?:\s*(?P<relation>>=|>)\s*(?P<bound>-?\d+(?:\.\d+)?))?(?:\s*=\s*(?P<default>.*?))?(?:\s+else\s+(?P<null>.*))?$"
)


def load_layout(document: Map) -> Layout:
    """The layout that a document declares. Raises ``CrosswalkError`` with every problem found."""
    reader = _Reader(document)
    layout = reader.read()
    if reader.problems:
        raise CrosswalkError(reader.problems)
    return layout


class _Reader:
    """One pass over the document; problems are collected."""

    def __init__(self, document: Map) -> None:
        self.document = document
        self.problems: list[Diagnostic] = []
        self.enums = {name: tuple(values) for name, values in document.get("enums", {}).items()}
        self.family_names = set(document.get("families", {}))
        self.type_names = set(document["types"])

    def read(self) -> Layout:
        types: Types = {}
        for name, body in self.document["types"].items():
            self._attempt(types, name, body, None, types, self.document["types"].key_position(name))
        families = {}
        for name, body in self.document.get("families", {}).items():
            members: Types = {}
            aliases: dict[str, str] = {}
            for member, member_body in body["types"].items():
                position = body["types"].key_position(member)
                self._attempt(members, member, member_body or Map(), name, {**types, **members}, position)
                aliases |= dict.fromkeys((member_body or {}).get("aliases", ()), member)
            families[name] = Family(name, body["default"], bool(body.get("sequence")), members, aliases)
        doc, words = self.document, ("directory", "stacked", "extra_states", "saved", "forms", "idle")
        rest = {word: doc[word] for word in words if word in doc}
        made = Layout(doc["layout"], doc["root"], self.enums, types, families, doc.position.file, **rest)
        self.problems += (*_unpaddable(made), *_unnameable(made))
        return made

    def _attempt(self, into: Types, name: str, body: Map, family: str | None, known: Types, at: Position) -> None:
        try:
            into[name] = self._type(name, body, family, known, at)
        except CrosswalkError as error:
            self.problems.extend(error.diagnostics)

    def _type(self, name: str, body: Map, family: str | None, known: Types, at: Position) -> ConfigType:
        base: ConfigType | None = None
        if "extends" in body:
            base = known.get(body["extends"])
            if base is None:
                text = f"type `{name}` extends `{body['extends']}`, which is not declared above it"
                raise fail("layout/extends", text, body.value_position("extends"))
        fields = dict(base.fields) if base else {}
        for group in GROUPS:
            for key, text in body.get(group, {}).items():
                fields[key] = self._field(key, text, group, body[group].value_position(key))
        own = self._parameters(body)
        replaced = {parameter.group for parameter in own}
        inherited = [p for p in (base.parameters if base else ()) if p.group not in replaced]
        children = {str(c.name): c for c in (base.children if base else ())}
        children |= {str(c.name): c for c in self._children(body, fields)}
        return ConfigType(
            name=name,
            registered=name if family else body.get("name"),
            family=family,
            bases=(*base.bases, base.name) if base else (),
            takes=tuple(body.get("takes", base.takes if base else ())),
            stands_for=body.get("stands_for", base.stands_for if base else None),
            fields=fields,
            axes={**(base.axes if base else {}), **self._axes(body)},
            holes={**(base.holes if base else {}), **body.get("holes", {})},
            children=tuple(children.values()),
            parameters=(*inherited, *own),
            ties=(*(base.ties if base else ()), *self._ties(body)),
            checks=(*(base.checks if base else ()), *self._checks(body)),
            model=body.get("model"),
            position=at,
            pads=tuple(dict.fromkeys((*(base.pads if base else ()), *body.get("pads", ())))),
            stored_as=self._stored_as(name, body, (*base.bases, base.name) if base else ()),
        )

    def _field(self, name: str, text: str, group: Group, position: Position) -> Field:
        match = _FIELD.match(text)
        if match is None:
            raise fail("layout/field", f"`{text}` is no field: TYPE [?] [> N] [= DEFAULT] [else EXPRESSION]", position)
        of, container = match["of"], match["container"]
        if container:
            kind: Kind = "dict" if container.startswith("dict") else "list"
        elif of in SCALARS:
            kind = "scalar"
        elif of in self.enums:
            kind = "enum"
        elif of in self.family_names:
            kind = "family"
        elif of in self.type_names or any(of in body["types"] for body in self.document.get("families", {}).values()):
            kind = "type"
        else:
            raise fail("layout/type", f"field `{name}`: there is no type, family or enum `{of}`", position)
        default: Any = MISSING
        if (text_default := match["default"]) is not None:
            try:
                default = (json.loads if text_default[:1] in ("[", "{") else scalar_of)(text_default)
            except (ValueError, RecursionError):
                raise fail("layout/field", f"the default of `{name}` is no JSON", position) from None
        pairs = (item.partition("=") for item in filter(None, (match["arguments"] or "").split(",")))
        arguments = {key.strip(): compile_expression(value.strip(), position) for key, _, value in pairs}
        bound = (match["relation"], float(match["bound"])) if match["relation"] else None
        null = compile_expression(match["null"], position) if match["null"] else None
        return Field(name, kind, of, group, bool(match["nullable"]), default, null, bound, arguments, position)

    def _axes(self, body: Map) -> dict[str, int | Expression | tuple[str, ...]]:
        axes: dict[str, int | Expression | tuple[str, ...]] = {}
        for name, value in body.get("axes", {}).items():
            if isinstance(value, int):
                axes[name] = value
            elif value.startswith("("):
                axes[name] = tuple(value.strip("()").split())
            else:
                axes[name] = compile_expression(value, body["axes"].value_position(name))
        return axes

    def _children(self, body: Map, fields: Mapping[str, Field]) -> list[Child]:
        result = []
        for name, value in body.get("children", {}).items():
            position = body["children"].key_position(name)
            options = dict(value) if isinstance(value, Mapping) else {"is": value}
            config = tuple(options.pop("is").split("."))
            if config[0] not in fields:
                text = f"module `{name}` is made from `{config[0]}`, which is no field of this type"
                raise fail("layout/name", text, position, did_you_mean(config[0], sorted(fields)))
            result.append(Child(Template.parse(name, position), config, options))
        return result

    def _parameters(self, body: Map) -> list[Parameter]:
        result = []
        for name, value in body.get("parameters", {}).items():
            position = body["parameters"].value_position(name)
            if not isinstance(value, Map):
                group, pattern = name.removesuffix(".weight"), parse_parameter(str(value), position)
                result.append(Parameter(Template.parse(name, position), pattern, group))
            elif "axes" in value:
                condition = compile_expression(value["if"], value.value_position("if")) if "if" in value else None
                pattern = parse_parameter(str(value["axes"]), value.value_position("axes"))
                template, called = Template.parse(name, position), self._called(value.get("called", Map()))
                result.append(Parameter(template, pattern, name, condition, value.get("same_as"), called))
            else:
                pattern = parse_parameter(str(value["weight"]), value.value_position("weight"))
                result.append(Parameter(Template.parse(f"{name}.weight", position), pattern, name))
                if "bias" in value:
                    flag = compile_expression(f"{value['bias']}.bias", value.value_position("bias"))
                    result.append(Parameter(Template.parse(f"{name}.bias", position), bias_of(pattern), name, flag))
        return result

    def _called(self, names: Map) -> tuple[tuple[Template, Expression], ...]:
        return tuple(
            (Template.parse(name, names.key_position(name)), compile_expression(text, names.value_position(name)))
            for name, text in names.items()
        )

    def _ties(self, body: Map) -> list[Tie]:
        return [
            Tie(name, value["same_as"], compile_expression(value["if"], value.value_position("if")))
            for name, value in body.get("ties", {}).items()
        ]

    def _checks(self, body: Map) -> list[Check]:
        checks = body.get("checks", Map())
        return [Check(compile_expression(text, checks.key_position(text)), message) for text, message in checks.items()]

    def _stored_as(self, name: str, body: Map, bases: tuple[str, ...]) -> tuple[tuple[str, Expression], ...]:
        stored = body.get("stored_as", Map())
        for other in stored:
            if other not in bases:
                message = f"type `{name}` cannot be stored as `{other}`, which it does not extend"
                raise fail("layout/stored-as", message, stored.key_position(other))
        return tuple((other, compile_expression(text, stored.value_position(other))) for other, text in stored.items())


def _unpaddable(layout: Layout) -> Iterator[Diagnostic]:
    """Axes that a type declares to be padded and whose size is not one field of its config."""
    for kind in layout.all_types():
        for axis in kind.pads:
            size = kind.axes.get(axis)
            if size is None:
                reason = f"the type has no such axis; its axes are {', '.join(kind.axes) or 'none'}"
            elif not isinstance(size, Expression) or size.text not in map(".".join, size.names):
                reason = "its size is not one field of the config"
            elif not _is_size(layout, kind, size.text.split(".")):
                reason = f"its size `{size.text}` is no field of whole numbers"
            else:
                continue
            yield Diagnostic("layout/pads", f"axis `{axis}` of type `{kind}` cannot be padded: {reason}", kind.position)


def _is_size(layout: Layout, kind: ConfigType, path: list[str]) -> bool:
    """Whether a path of fields, none of them a choice, ends at a whole number that is never null."""
    declared = kind.fields.get(path[0])
    if declared is None or declared.nullable:
        return False
    if len(path) == 1:
        return (declared.kind, declared.of) == ("scalar", "int")
    inner = layout.type_of(declared.of) if declared.kind == "type" else None
    return inner is not None and _is_size(layout, inner, path[1:])


def _unnameable(layout: Layout) -> Iterator[Diagnostic]:
    """Holes in names of parameters that are no axes, or axes that cannot be there; names that lack them."""
    known = {axis for kind in layout.all_types() for axis in kind.axes}
    padded = {axis for kind in layout.all_types() for axis in kind.pads}
    for kind in layout.all_types():
        for parameter in kind.parameters:
            named = axes_in_name(parameter.name, kind.holes)
            for axis in dict.fromkeys(named):
                hint = None
                if axis not in known:
                    reason = "it is neither under `holes` nor an axis"
                    hint = did_you_mean(axis, sorted(known | kind.holes.keys()))
                elif named.count(axis) > 1 or axis in axes_of(parameter.pattern.dims):
                    reason = "the parameter has this axis already"
                elif axis in padded:
                    reason = "it may be padded, and its padding would be whole tensors"
                else:
                    continue
                message = f"`{parameter.name}` of type `{kind}` cannot have `{{{axis}}}` in its name: {reason}"
                yield Diagnostic("layout/hole", message, parameter.name.position, hint)
            for name, _ in parameter.called:
                if sorted(map(str, name.holes)) != sorted(map(str, parameter.name.holes)):
                    message = f"`{name}` must have the holes of `{parameter.name}`, which it is another name of"
                    yield Diagnostic("layout/hole", message, name.position)
