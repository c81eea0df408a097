"""What a layout says about one config: defaults, effective values, validity, axis sizes.

A :class:`Scope` is one object of a native config seen as its type. A field's *raw* value is what is stored (or its
default); its *effective* value resolves a null that stands for something else (``bias.enabled`` null means
``add_linear_biases``).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from crosswalk.compiler.notation.expressions import Expression, KeyPath
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail, shorten, shown

from .model import MISSING, ConfigType, Field, Layout
from .values import misfit, widened

#: Most layers of a sequence: an absurd number is an error, not a list that fills the memory.
MAX_BLOCKS = 100_000

#: Most unknown fields of an object that are problems of their own, and the length of a name that may be a misspelt one.
_LISTED, _NAME = 8, 100

#: Sizes and numbers that are not known, where they are assumed.
ASSUMED = 2


class Unresolved(Exception):
    """A name whose value is not known yet: it is itself to be computed from others."""


class Scope:
    """One config object. ``path`` is where it stands below the root; ``pending`` are paths not known yet. With
    ``assumes``, for checks before there is a config, all axes have some size and conditions that are not known hold."""

    def __init__(
        self,
        layout: Layout,
        kind: ConfigType,
        config: Mapping[str, Any],
        parent: Scope | None = None,
        path: KeyPath = (),
        arguments: Mapping[str, Callable[[], Any]] | None = None,
        pending: frozenset[KeyPath] | set[KeyPath] = frozenset(),
        axis_names: Mapping[str, str] | None = None,
        assumes: bool = False,
    ) -> None:
        self.layout, self.kind, self.config, self.parent, self.path = layout, kind, config, parent, path
        self.arguments = arguments or {}
        self.pending: frozenset[KeyPath] | set[KeyPath] = parent.pending if parent else pending
        self.assumes: bool = parent.assumes if parent else assumes
        self.axis_names = axis_names or {}
        self.root: Scope = parent.root if parent else self

    def raw(self, name: str) -> Any:
        """The stored value of a field, or its default; MISSING if it has neither. Raises ``Unresolved`` for an
        argument that is not known yet."""
        if self.pending and (*self.path, name) in self.pending:
            raise Unresolved(".".join((*self.path, name)))
        value = self.config.get(name, MISSING)
        return _default(self.kind.fields[name]) if value is MISSING else value

    def field(self, name: str) -> Any:
        """The effective value of a field; a :class:`Scope` for a sub-config."""
        declared = self.kind.fields[name]
        value = self.raw(name)
        if value is None and declared.null_means is not None:
            return self.evaluate(declared.null_means)
        if declared.is_config and value is not None:
            return self.sub(name)
        return value

    def sub(self, name: str) -> Scope:
        """The sub-config of a field, as its type. The field must not be null."""
        declared = self.kind.fields[name]
        value = self.raw(name)
        kind = config_type(self.layout, declared, value)
        arguments = {
            key: functools.partial(self.evaluate, e)
            for key, e in (declared.arguments.items() if kind.takes else ())
            if key in kind.takes
        }
        body = value if isinstance(value, Mapping) else {}
        return Scope(self.layout, kind, body, self, (*self.path, name), arguments)

    def entry(self, name: str, key: str) -> Scope:
        """One entry of a field that is a dict of configs."""
        declared = self.kind.fields[name]
        value = self.raw(name)[key]
        kind = config_type(self.layout, declared, value)
        return Scope(self.layout, kind, value, self, (*self.path, name, key))

    def resolve(self, path: KeyPath) -> Any:
        """The value of a dotted name in an expression: a field, an argument, an axis, or ``root.`` and one of those.
        Raises ``CrosswalkError`` for one that there is not."""
        if path[0] == "root":
            return self.root.resolve(path[1:]) if len(path) > 1 else self.root
        head: Any
        if path[0] in self.kind.fields:
            head = self.field(path[0])
        elif path[0] in self.arguments:
            head = self.arguments[path[0]]()
        else:
            head = self.axis(path[0])
        for name in path[1:]:
            if isinstance(head, Scope) and name in head.kind.fields:
                head = head.field(name)
            elif isinstance(head, Mapping) and name in head:
                head = head[name]
            elif head is None:
                return None
            else:
                raise fail("layout/name", f"`{'.'.join(path)}`: there is no `{name}` in {shown(head)}")
        return simple(head)

    def evaluate(self, expression: Expression) -> Any:
        """The value of an expression over the names of this object; a Scope if it names a sub-config."""
        if len(expression.names) == 1 and expression.text == ".".join(next(iter(expression.names))):
            (path,) = expression.names
            if len(path) == 1 and path[0] in self.kind.fields:
                return self.field(path[0])
        return expression.evaluate(self.resolve)

    def axis(self, name: str) -> int:
        """The size of an axis in scope here."""
        factors = self.axis_entry(name)
        if isinstance(factors, int):
            return factors
        size = 1
        for factor in factors:
            size *= self.axis(factor)
        return size

    def axis_entry(self, name: str, lengths: Mapping[str, int] = MappingProxyType({})) -> int | tuple[str, ...]:
        """An axis as the lowering wants it: its size, or the axes that it is made of. ``lengths``: axes of the root
        that have other sizes than its config says. Raises ``CrosswalkError`` for an axis that there is not."""
        if name in self.axis_names and self.parent is not None:
            return self.parent.axis_entry(self.axis_names[name], lengths)
        if self.parent is None and name in lengths:
            return lengths[name]
        value = self.kind.axes.get(name)
        if value is None:
            if self.parent is None:
                if self.assumes and any(name in kind.axes for kind in self.layout.all_types()):
                    return ASSUMED  # of a type around this one, where the check starts at a part
                raise fail("layout/no-axis", f"no axis `{name}` in scope of type `{self.kind}`")
            return self.parent.axis_entry(name, lengths)
        if isinstance(value, Expression):
            size = ASSUMED if self.assumes else value.evaluate(self.resolve)
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise fail("layout/axis", f"axis `{name}` = `{value.text}` is {shown(size)}, not a size")
            return size
        return value

    def holds(self, condition: Expression) -> bool:
        """Whether a condition holds; one that is not known does, where unknown values are assumed."""
        try:
            return bool(simple(self.evaluate(condition)))
        except Unresolved:
            if not self.assumes:
                raise
            return True

    def count(self, number: Expression) -> int:
        """A number of modules; ``ASSUMED`` if it is not known where unknown values are assumed."""
        try:
            found = self.evaluate(number)
        except Unresolved:
            if not self.assumes:
                raise
            return ASSUMED
        assert isinstance(found, int), number.text
        return found

    def blocks(self, name: str) -> list[tuple[KeyPath, Scope]]:
        """The layers of a sequence field: (path below this object, block) in order, patterns written out."""
        sequence = self.sub(name)
        count = sequence.raw("num_blocks")
        if "block" in sequence.kind.fields:
            block = sequence.sub("block")
            return [((name, "block"), block)] * count
        names = sequence.raw("pattern")
        entries = {key: ((name, "blocks", key), sequence.entry("blocks", key)) for key in set(names)}
        return [entries[names[index % len(names)]] for index in range(count)]

    def walk(self) -> Iterator[tuple[KeyPath, Scope]]:
        """This object and every sub-config below it that is not null."""
        yield self.path, self
        for name, declared in self.kind.fields.items():
            if declared.is_config and self.raw(name) is not None:
                yield from self.sub(name).walk()
            elif declared.kind == "dict":
                for key in self.raw(name) or {}:
                    yield from self.entry(name, key).walk()


def _default(declared: Field) -> Any:
    """What an absent field is; MISSING if it must be there."""
    if declared.default is MISSING and declared.kind == "type":
        return {}
    return None if declared.default is MISSING and declared.nullable else declared.default


def simple(value: Any) -> Any:
    """A sub-config that stands for one of its fields (an optional bias: ``enabled``) as that field's value."""
    if isinstance(value, Scope) and value.kind.stands_for:
        return value.field(value.kind.stands_for)
    return value


def config_type(layout: Layout, declared: Field, value: Any) -> ConfigType:
    """The type of a sub-config: by its ``type`` key in a family, fixed otherwise. A string is the name of a type."""
    if declared.of in layout.families:
        family = layout.families[declared.of]
        name = value if isinstance(value, str) else value.get("type")
        name = family.default if name is None else name  # a null is an absent `type`, to the trainer too
        return family.types[family.aliases.get(name, name)]
    kind = layout.type_of(declared.of)
    assert kind is not None, declared.of
    return kind


def normalize(layout: Layout, config: Mapping[str, Any], root: str | None = None) -> dict[str, Any]:
    """The config with every default filled in, checked: unknown fields, types, bounds, choices, the layout's checks.

    ``root``: the type of the config, by default that of the layout. Raises ``CrosswalkError`` with all problems, each
    naming the dotted path of the field.
    """
    problems: list[Diagnostic] = []
    kind = layout.types.get(root or layout.root)
    if kind is None:
        roots = sorted(layout.roots().values())
        hint = did_you_mean(str(root), roots) or f"there are {', '.join(roots)}"
        raise fail("native/root", f"layout `{layout.name}` has no type `{root}`", None, hint)
    if said := _hugging_face(config, kind):
        text = f"this is a config of Hugging Face ({said}), not one of layout `{layout.name}`"
        raise fail("native/hugging-face", text, None, "crosswalk.import_config(config) makes the native one")
    if not isinstance(config, Mapping):
        raise fail("native/type", f"a config must be an object, it is {shown(config)}")
    result = _fill(layout, kind, config, (), problems)
    if problems:
        raise CrosswalkError(problems)
    for path, scope in Scope(layout, kind, result).walk():
        _check(path, scope, problems)
    if problems:
        raise CrosswalkError(problems)
    return result


def _hugging_face(config: object, kind: ConfigType) -> str | None:
    """The model type of a config, or of the object of one, if it is no native one but that of a Hugging Face class."""
    name = config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)
    return f"model_type `{name}`" if isinstance(name, str) and "model_type" not in kind.fields else None


def stored_type(layout: Layout, kind: ConfigType, config: Mapping[str, Any]) -> ConfigType:
    """The type as which the trainer stores a complete config of type ``kind``."""
    scope = Scope(layout, kind, config)
    return next((layout.types[name] for name, condition in kind.stored_as if scope.holds(condition)), kind)


def as_stored(layout: Layout, kind: ConfigType, config: Mapping[str, Any]) -> dict[str, Any]:
    """A complete config of type ``kind`` as it is read again: without what its stored type has no field for."""
    stored = stored_type(layout, kind, config)
    if stored is kind:
        return dict(config)
    kept = {"type", *stored.fields}
    return normalize(layout, {name: value for name, value in config.items() if name in kept}, kind.name)


def _check(path: KeyPath, scope: Scope, problems: list[Diagnostic]) -> None:
    for check in scope.kind.checks:
        if not scope.holds(check.expression):
            where = ".".join(path) or str(scope.kind)
            text = f"`{where}`: {check.message} ({check.expression.text})"
            problems.append(Diagnostic("layout/check", text, path=path))
    for name, declared in scope.kind.fields.items():
        if declared.of in scope.layout.families and scope.layout.families[declared.of].sequence:
            sequence = scope.raw(name)
            if sequence.get("num_blocks", 0) > MAX_BLOCKS:
                at = (*path, name, "num_blocks")
                text = f"`{'.'.join(at)}` must be at most {MAX_BLOCKS}, it is {sequence['num_blocks']}"
                problems.append(Diagnostic("layout/blocks", text, path=at))
            unknown = sorted(set(sequence.get("pattern", ())) - set(sequence.get("blocks", ())))
            where = ".".join((*path, name))
            if "pattern" in sequence and not sequence["pattern"]:
                problems.append(Diagnostic("layout/pattern", f"`{where}.pattern` is empty", path=(*path, name)))
            elif unknown:
                known = ", ".join(sequence["blocks"])
                problems.append(
                    Diagnostic(
                        "layout/pattern",
                        f"`{where}.pattern` names {unknown}, the blocks are: {known}",
                        path=(*path, name, "pattern"),
                    )
                )


def _unknown_fields(layout: Layout, kind: ConfigType, names: list[str], path: KeyPath) -> Iterator[Diagnostic]:
    """A problem for each of a few, or one for all of many."""
    what = f"type `{kind}` of layout `{layout.name}` has no field"
    if len(names) > _LISTED:
        listed = ", ".join(f"`{shorten(name)}`" for name in names[:_LISTED])
        text = f"`{'.'.join(path) or kind}` has {len(names)} unknown fields: {what} {listed}, and so on"
        yield Diagnostic("native/unknown-field", text, path=(*path, names[0]))
        return
    for name in names:
        near = difflib.get_close_matches(name, kind.fields, 1) if len(name) < _NAME else []
        text = f"`{'.'.join((*path, shorten(name)))}`: {what} `{shorten(name)}`"
        hint = f"did you mean `{near[0]}`?" if near else None
        yield Diagnostic("native/unknown-field", text, None, hint, path=(*path, name))


def _fill(
    layout: Layout, kind: ConfigType, config: Mapping[str, Any], path: KeyPath, problems: list[Diagnostic]
) -> dict[str, Any]:
    result: dict[str, Any] = {"type": kind.registered} if kind.registered else {}
    unknown = [str(key) for key in config if key not in kind.fields and not (key == "type" and kind.registered)]
    problems += _unknown_fields(layout, kind, unknown, path)
    for name, declared in kind.fields.items():
        value = config.get(name, MISSING)
        if value is MISSING:
            value = _default(declared)
        if value is MISSING:
            problems.append(Diagnostic("native/missing-field", f"`{'.'.join((*path, name))}` is required", path=path))
            continue
        result[name] = _fill_value(layout, declared, value, (*path, name), problems)
    return result


def _fill_value(layout: Layout, declared: Field, value: Any, path: KeyPath, problems: list[Diagnostic]) -> Any:
    def wrong(expected: str) -> Any:
        text = f"`{'.'.join(path)}` must be {expected}, it is {shown(value)}"
        problems.append(Diagnostic("native/type", text, path=path))
        return value

    if value is None:
        return None if declared.nullable or declared.of == "any" else wrong(f"{declared.of}, not null")
    if declared.kind == "dict":
        if not isinstance(value, Mapping) or not value:
            return wrong(f"a dict of {declared.of} with at least one entry")
        return {
            str(key): _fill_config(layout, declared, body, (*path, str(key)), problems) for key, body in value.items()
        }
    if declared.is_config:
        return _fill_config(layout, declared, value, path, problems)
    if declared.kind == "enum":
        choices = layout.enums[declared.of]
        return value if value in choices else wrong(f"one of {', '.join(choices)}")
    value = widened(declared, value)
    if (wanted := misfit(declared, value)) is not None:
        return wrong(wanted)
    return list(value) if isinstance(value, tuple) else value


def _fill_config(layout: Layout, declared: Field, value: Any, path: KeyPath, problems: list[Diagnostic]) -> Any:
    named = isinstance(value, str) and declared.of in layout.families and value == declared.default
    if not isinstance(value, Mapping) and not named:
        text = f"`{'.'.join(path)}` must be an object, it is {shown(value)}"
        problems.append(Diagnostic("native/type", text, path=path))
        return value
    name = value if isinstance(value, str) else value.get("type")
    if declared.of in layout.families:
        family = layout.families[declared.of]
        known = {*family.types, *family.aliases}
    else:
        kind = config_type(layout, declared, {})
        known = {kind.registered} if kind.registered else set()
    if name is not None and (not isinstance(name, str) or name not in known):
        problems.append(
            Diagnostic(
                "native/type",
                f"`{'.'.join(path)}.type` must be one of {', '.join(sorted(known)) or 'nothing'}, it is {shown(name)}",
                path=(*path, "type"),
            )
        )
        return value
    body = value if isinstance(value, Mapping) else {}
    return _fill(layout, config_type(layout, declared, value), body, path, problems)
