"""The tensors that files hold against those that a config has: names, shapes and dtypes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from crosswalk.compiler.layout.limit import Limit
from crosswalk.compiler.layout.natives import natives_of
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.mapping.model import MappingFile, TensorEntry
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.runtime.dtypes import FLOATS
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.model import TensorSpec

from .advice import of_adapter, other_prefix
from .quantised import looks_quantised, quantised_marks

_Shapes = Mapping[str, tuple[int, ...]]
_Lines = Callable[[], Mapping[str, TensorEntry]]
#: Among so many names a missing one is looked for that is spelt otherwise.
_CLOSE = 5_000


def check_stored(mapping: CompiledMapping, native: Mapping[str, Any], files: Mapping[str, TensorSpec]) -> None:
    """Raise ``CrosswalkError`` unless the files hold the parameters of a complete native config, each of its shape, and
    nothing else."""
    scope = Scope(mapping.layout, mapping.root.type, native)
    natives = natives_of(scope, limit=Limit.of(files))
    stored = {name: native.shape for name, native in natives.items() if native.tied_to is None}
    hint = "the config of this checkpoint says that there is no such parameter"
    compare_tensors(stored, files, f"layout `{mapping.layout.name}`", hint)


def compare_tensors(
    expected: _Shapes,
    found: Mapping[str, TensorSpec],
    who: str,
    unexpected_hint: str,
    lines: _Lines = dict,
    ignored: Container[str] = (),
    mapping: MappingFile | None = None,
) -> None:
    """Every tensor is there, with its shape and of floats (unless ``ignored``), and nothing else is. ``lines``
    finds the rule of each tensor that has one. ``mapping``: of files that may be quantised.

    Raises ``CrosswalkError`` with all differences, layers folded.
    """
    if (misnamed := other_prefix(expected, found, who)) is not None:
        raise CrosswalkError(misnamed)
    problems = []
    marks, modules = quantised_marks(mapping, (name for name in found if name not in expected))
    if marks:
        problems.append(looks_quantised(marks))
        known = {name for name in (*expected, *found) if name in marks or name.rpartition(".")[0] in modules}
        expected = {name: shape for name, shape in expected.items() if name not in known}
        found = {name: spec for name, spec in found.items() if name not in known}
    problems += _names(expected, found, who, unexpected_hint, lines)
    problems += _forms(expected, found, lines, ignored)
    if problems:
        raise CrosswalkError(problems)


def _names(
    expected: _Shapes, found: Mapping[str, TensorSpec], who: str, unexpected_hint: str, lines: _Lines
) -> Iterator[Diagnostic]:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    alike = {name.casefold(): name for name in unexpected}
    for pattern, names in fold(missing, expected.__getitem__):
        near = alike.get(names[0].casefold())
        if near is None:
            near = next(iter(difflib.get_close_matches(names[0], unexpected[:_CLOSE], 1, 0.8)), None)
        yield Diagnostic(
            "tensors/missing",
            f"tensor `{pattern}` {list(expected[names[0]])} is missing ({len(names)} in all): {who} needs it",
            hint=f"there is `{near}`, which nothing needs" if near else None,
            rule=_rule(lines, names[0]),
        )
    for pattern, names in fold(unexpected, lambda name: found[name].shape):
        shape = list(found[names[0]].shape)
        yield Diagnostic(
            "tensors/unexpected",
            f"tensor `{pattern}` {shape} has no counterpart in {who} ({len(names)} in all)",
            None,
            of_adapter(names[0]) or unexpected_hint,
        )


def _forms(
    expected: _Shapes, found: Mapping[str, TensorSpec], lines: _Lines, ignored: Container[str]
) -> Iterator[Diagnostic]:
    pairs = [(name, shape, spec) for name, shape in expected.items() if (spec := found.get(name)) is not None]
    wrong = [name for name, shape, spec in pairs if spec.shape != shape]
    no_floats = [name for name, _, spec in pairs if spec.dtype not in FLOATS and name not in ignored]
    for pattern, names in fold(wrong, lambda name: (found[name].shape, expected[name])):
        shapes = f"{list(found[names[0]].shape)} in the file, {list(expected[names[0]])} by the config"
        yield Diagnostic("tensors/shape", f"tensor `{pattern}` is {shapes}", rule=_rule(lines, names[0]))
    for pattern, names in fold(no_floats, lambda name: found[name].dtype):
        yield Diagnostic(
            "tensors/dtype",
            f"tensor `{pattern}` has the dtype {found[names[0]].dtype}, parameters are floats",
            hint="a checkpoint that is quantised in another way has to be dequantised first",
            rule=_rule(lines, names[0]),
        )


def _rule(lines: _Lines, name: str) -> Position | None:
    line = lines().get(name)
    return line.position if line is not None else None
