"""Whether a draft computes what the class computes, and what of the shipped mappings makes it do so."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from crosswalk.compiler.pipeline import PlanOptions, import_checkpoint
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.models.classes import Trace, one_message
from crosswalk.models.comparison import TOLERANCE
from crosswalk.models.comparison import differences as parts_apart
from crosswalk.proving.subject import Subject
from crosswalk.reference import forward
from crosswalk.runtime import execute
from crosswalk.runtime.dtypes import dtype_name
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import TensorSpec
from crosswalk.runtime.records import Record

from .draft import Draft
from .fit import Fit, Fitting
from .kinds import other_kinds
from .search import facts_of, stated
from .words import Words


class Tiny(Record, dict=True):
    """A tiny model of the class, as files hold it, and what it computes."""

    subject: Subject

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the model, by name as files hold them."""
        return self.subject.saved(self._model)

    @cached_property
    def expected(self) -> Trace:
        """What the model computes, by place."""
        return self.subject.trace(self._model)

    @cached_property
    def _model(self) -> Any:
        return self.subject.model(self.subject.base)

    @torch.no_grad()
    def agrees(self, mapping: CompiledMapping) -> tuple[float, str | None]:
        """How many parts of the model are computed alike, infinite if all are; and the first that is not. Raises
        ``CrosswalkError`` where the mapping does not hold the tiny model."""
        specs = [TensorSpec(name, tuple(t.shape), dtype_name(t.dtype)) for name, t in sorted(self.tensors.items())]
        imported = import_checkpoint(mapping, self.subject.base, specs, PlanOptions())
        with one_message("the reference cannot be run", self.subject.where):  # a draft may say what makes no model
            found = forward(imported.config, dict(execute(imported.plan, self.tensors)), self.subject.tokens)
        parts, logits = parts_apart(self.expected, found)
        for number, (part, size) in enumerate({**parts, "logits": logits}.items()):
            if not size <= TOLERANCE:
                return number, part
        return float("inf"), None


def compute_alike(fitting: Fitting, draft: Draft, fit: Fit, words: Words, subject: Subject) -> tuple[Draft, Fit]:
    """State and name what makes the draft compute what the class computes, as far as a line of a shipped mapping does;
    ask where it still does not."""
    if fit.compiled is None or fit.missing or fit.extra or fit.problems:
        return draft, fit
    tiny = Tiny(subject)
    try:
        best, part = tiny.agrees(fit.compiled)
    except CrosswalkError as error:
        draft.open.append(f"what it computes could not be tried: {error.diagnostics[0].message.partition(chr(10))[0]}")
        return draft, fit
    while part is not None:
        tried = [(*_tried(tiny, found), changed, found) for changed, found in _changes(fitting, draft, fit, words)]
        score, after, changed, found = max(tried, key=lambda one: one[0], default=(best, part, draft, fit))
        if score <= best:
            break
        best, part, draft, fit = score, after, changed, found
    if part is not None:
        text = f"the trainer computes something else than the class from `{part}` on: hold the class against"
        draft.open.append(f"{text} docs/layouts/fast_llm.md")
    return draft, fit


def _tried(tiny: Tiny, fit: Fit) -> tuple[float, str | None]:
    assert fit.compiled is not None
    try:
        return tiny.agrees(fit.compiled)
    except CrosswalkError:
        return -1.0, ""


def _changes(fitting: Fitting, draft: Draft, fit: Fit, words: Words) -> Iterator[tuple[Draft, Fit]]:
    """Drafts of the same tensors with one fact more, or with the axes that a shipped mapping has for its lines."""
    assert fit.compiled is not None
    drafts = [stated(fitting, draft, words, *fact)[0] for fact in facts_of(fit, words)]
    for section, lines in words.orders:
        source = fit.compiled.source.sections.get(section)
        if source is not None and {str(line.theirs) for line in source.tensors}.issuperset(lines):
            changed = draft.copy()
            for hf, right in lines.items():
                changed.put(section, "tensors", hf, right, "as the class computes it")
            drafts.append(changed)
    drafts += other_kinds(fitting, draft, words)
    for changed in drafts:
        found = fitting.of(changed)
        if found.compiled is not None and found.cost <= fit.cost:
            yield changed, found
