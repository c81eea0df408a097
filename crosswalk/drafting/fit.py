"""How well a draft fits a checkpoint: what does not compile, which tensors differ, which keys nobody speaks of."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.mapping.model import MappingFile
from crosswalk.compiler.pipeline import read_config
from crosswalk.compiler.relations.rules import FieldRule
from crosswalk.compiler.relations.tree import CompiledMapping, rules_of
from crosswalk.compiler.tensors.bind import Bound, bind
from crosswalk.runtime.errors import CrosswalkError, Diagnostic
from crosswalk.runtime.records import Record, field

from .draft import Draft

Shapes = Mapping[str, tuple[int, ...]]
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
#: What a line that does not compile weighs against a name that does not fit, a key that nobody speaks of, and a field
#: whose key the class does not have.
_PROBLEM, _KEY, _FIELD = 4.0, 0.25, 0.125


class Fit(Record, frozen=True):
    """``missing`` and ``extra``: folded name -> shape of tensors that the draft and the file alone have; ``unknown``:
    keys that no line speaks of, or that ask for a feature that the format does not have; ``strange``: keys of the
    draft that the class does not have; ``unsaid``: keys that no section speaks of, at values that mean nothing."""

    compiled: CompiledMapping | None
    bound: Bound | None
    problems: Sequence[Diagnostic] = ()
    missing: Shapes = field(default_factory=dict)
    extra: Shapes = field(default_factory=dict)
    unknown: Sequence[str] = ()
    strange: Sequence[str] = ()
    unsaid: Sequence[str] = ()

    @property
    def cost(self) -> float:
        """How far the draft is from fitting: 0 if nothing is wrong, missing or left over."""
        names = len(self.missing) + len(self.extra)
        return _PROBLEM * len(self.problems) + names + _KEY * len(self.unknown) + _FIELD * len(self.strange)


class Fitting:
    """Drafts of one checkpoint onto a layout: its config.json, the shapes of its tensors, the keys of its class, and
    which of them change what that computes."""

    def __init__(
        self,
        catalog: Catalog,
        layout: str,
        config: Mapping[str, Any],
        shapes: Shapes,
        keys: Collection[str] = (),
        matters: Callable[[str], bool] = lambda key: False,
    ) -> None:
        self.catalog, self.layout, self.config, self.keys = catalog, layout, config, {*config, *keys}
        self.matters = cache(matters)
        self.shapes = folded(shapes)
        self._numbers = itertools.count(1)

    def other(self, config: Mapping[str, Any], shapes: Shapes) -> Fitting:
        """Drafts of another checkpoint of the same class."""
        found = Fitting(self.catalog, self.layout, config, shapes, self.keys, self.matters)
        found._numbers = self._numbers  # of names in the catalog
        return found

    @property
    def counts(self) -> set[Any]:
        """Numbers in the config, one of which is that of its layers."""
        return {value for value in self.config.values() if isinstance(value, int) and not isinstance(value, bool)}

    def of(self, draft: Draft) -> Fit:
        """Compile a draft and hold it against the checkpoint."""
        name = f"draft {next(self._numbers)}"
        self.catalog.texts[name] = draft.text()
        try:
            compiled = self.catalog.compiled(name)
        except CrosswalkError as error:
            return Fit(None, None, error.diagnostics, {}, self.shapes, [*self.config])
        finally:
            del self.catalog.texts[name]
        claimed = {path[0] for path in compiled.claims} | {"architectures", "auto_map", *compiled.source.encodings}
        moved = {move.old[0] for dialect in compiled.source.dialects.values() for move in dialect.config}
        unknown = [key for key in self.config if key not in claimed | moved]
        config = {key: value for key, value in self.config.items() if key not in unknown}
        related = {rule.theirs[0] for rule in rules_of(compiled.root) if isinstance(rule, FieldRule)}
        strange = sorted(related - self.keys)
        try:
            read = read_config(compiled, config)
            bound = bind(compiled, read.native, read.taken.cases)
        except CrosswalkError as error:
            return Fit(compiled, None, error.diagnostics, {}, self.shapes, unknown, strange)
        wanted = folded({name: shape for name, shape in bound.hf.items() if name not in bound.duplicates})
        ignored = folded(dict.fromkeys((*bound.ignored, *bound.duplicates), ()))
        missing = {name: shape for name, shape in wanted.items() if self.shapes.get(name) != shape}
        extra = {n: s for n, s in self.shapes.items() if wanted.get(n) != s and n not in ignored}
        refused = [found.path[0] for found in read.problems if found.code == "config/unsupported" and found.path]
        problems = [found for found in read.problems if not found.path or found.path[0] not in refused]
        unsaid = sorted(_unsaid(compiled.source) & self.config.keys() - {*refused})
        return Fit(compiled, bound, problems, missing, extra, [*unknown, *refused], strange, unsaid)


def _unsaid(mapping: MappingFile) -> set[str]:
    """Keys that are carried at harmless values, and that no section speaks of."""
    sections = [section for one in mapping.sections.values() for section in (one, *one.cases.values())]
    spoken = {entry.theirs[0] for section in sections for entry in section.config}
    return {entry.theirs[0] for entry in mapping.keeps if entry.values} - spoken


def folded(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Names with ``#`` for the number of a layer or an expert."""
    return {fold(name): shape for name, shape in shapes.items()}


def fold(name: str) -> str:
    """A name with ``#`` in the place of every index."""
    return _NUMBER.sub("#", name)
