"""Objects and values below an object of a native config, by path."""

from __future__ import annotations

from typing import Any

from crosswalk.compiler.layout.differences import same_config
from crosswalk.compiler.layout.model import Field
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.notation.expressions import KeyPath
from crosswalk.compiler.text.values import same_value
from crosswalk.runtime.errors import shown


def below(scope: Scope, path: KeyPath, raw: bool = False) -> Any:
    """The effective value at a path below an object (``raw``: the last one as stored); null if an object is null."""
    value: Any = scope
    for index, name in enumerate(path):
        if value is None:
            return None
        value = value.raw(name) if raw and index == len(path) - 1 else value.field(name)
    return value


def object_at(scope: Scope, path: KeyPath) -> Scope:
    """The native object at a path, which there is."""
    result = below(scope, path)
    assert isinstance(result, Scope)
    return result


def is_default(scope: Scope, path: KeyPath, declared: Field, default: Any) -> bool:
    """Whether the field at a path means the same as its default would there."""
    parent = below(scope, path[:-1])
    if not isinstance(parent, Scope):
        return True
    config = {**parent.config, path[-1]: default}
    other = Scope(parent.layout, parent.kind, config, parent.parent, parent.path, parent.arguments)
    other.root = parent.root
    return same_config(parent.field(path[-1]), other.field(path[-1]))


def shown_native(value: Any) -> str:
    """A native value as a message has it; of an object its type and what differs from the defaults."""
    if isinstance(value, Scope):
        settings = {
            name: value.config[name]
            for name, declared in value.kind.fields.items()
            if name in value.config
            and declared.group != "training"
            and not same_value(value.config[name], declared.default)
        }
        return f"{value.kind} {shown(settings)}" if settings else str(value.kind)
    return shown(value)


def scope_at(scope: Scope, path: KeyPath) -> Scope:
    """The object at a path below the root config."""
    names = list(path)
    while names:
        name = names.pop(0)
        scope = scope.entry(name, names.pop(0)) if scope.kind.fields[name].kind == "dict" else scope.sub(name)
    return scope
