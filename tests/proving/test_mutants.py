"""Every entry of the mappings of families is needed: without it, renamed, or swapped with its neighbour, the class of
transformers shows it.

The second opinion is the class alone: which config it reads, its tensors by name and shape, what it computes beside
what the reference computes on the conversion, and what ``prove`` finds where keys are left out and changed. By default
a sample of the mutants is tried; all of them with ``--hypothesis-profile=thorough``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from comparing import shapes
from family_cases import CONFIGS as FAMILIES
from family_cases import format_of, glm4
from golden_cases import read_yaml
from hypothesis import settings
from mutants import Mutant, MutantCatalog, mutants

from crosswalk.compiler.pipeline import PlanOptions, import_checkpoint
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.jobs.options import Options
from crosswalk.jobs.plans import plan_for
from crosswalk.models.comparison import TOLERANCE, inputs
from crosswalk.models.comparison import differences as parts_apart
from crosswalk.proving.findings import Proof
from crosswalk.proving.keys import Accepted, check_changed, check_left_out, check_nothing_said
from crosswalk.proving.models import check_exported, dialects_to_read
from crosswalk.proving.reading import native_of
from crosswalk.proving.subject import Subject
from crosswalk.proving.values import APART, leaves
from crosswalk.reference import forward
from crosswalk.runtime import execute
from crosswalk.runtime.dtypes import dtype_name
from crosswalk.runtime.errors import CrosswalkError
from crosswalk.runtime.plan.model import TensorSpec

pytestmark = pytest.mark.skipif(oracles.TRANSFORMERS_MAJOR < 5, reason="classes of transformers 5")

THOROUGH = settings().max_examples > 100
STRIDE = 1 if THOROUGH else 151
#: Families that use a file that is no format.
USERS = {"llama_partial": ("nemotron", "phi3", "stablelm", "glm4")}
CONFIGS = {**FAMILIES, "glm4-half": glm4(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})}
FORMATS = dict.fromkeys(format_of(name) for name in CONFIGS)
FILES = [*FORMATS, *USERS]


class Known:
    """A tiny model of a family: what its class says of it, asked once for all mutants."""

    def __init__(self, name: str) -> None:
        self.format = format_of(name)
        self.subject = Subject.of(CONFIGS[name], name)
        mapping = MutantCatalog().compiled(self.format)
        native = native_of(mapping, self.subject.base)
        assert not isinstance(native, CrosswalkError), native
        self.subject.tokens, _ = inputs(native, 19)
        model = self.subject.model(self.subject.base)
        self.tensors = self.subject.saved(model)
        self.specs = [TensorSpec(n, tuple(t.shape), dtype_name(t.dtype)) for n, t in sorted(self.tensors.items())]
        self.expected = self.subject.trace(model)

    @functools.cached_property
    def usual(self) -> frozenset[str]:
        """What is found in the mapping as it is shipped: warnings."""
        return frozenset(self.findings(MutantCatalog().compiled(self.format)))

    @torch.no_grad()
    def computes_something_else(self, mapping: CompiledMapping) -> bool:
        """Whether the tensors have no place each, or the reference computes something else on them."""
        try:
            imported = import_checkpoint(mapping, self.subject.base, self.specs, PlanOptions())
        except CrosswalkError:
            return True
        if self.tensors.keys() & imported.plan.ties.keys():
            return True
        found = forward(imported.config, dict(execute(imported.plan, self.tensors)), self.subject.tokens)
        parts, logits = parts_apart(self.expected, found)
        return not max(*parts.values(), logits) <= TOLERANCE

    def findings(self, mapping: CompiledMapping) -> Iterator[str]:
        """What is found where the config is exported, and keys are left out and changed."""
        native, behaviour = native_of(mapping, self.subject.base), self.subject.behaviour(self.subject.base)
        if isinstance(native, CrosswalkError):
            yield "refused"
            return
        base, proof = Accepted(self.subject.base, native, behaviour), Proof(self.format, "")
        paths = [path for path, _ in leaves({**self.subject.keys(), **self.subject.base}) if path[-1] not in APART]
        check_nothing_said(mapping, self.subject, proof)
        check_exported(mapping, self.subject, base, dialects_to_read(mapping), proof)
        check_left_out(mapping, self.subject, paths, proof)
        if not proof.findings:
            check_changed(mapping, self.subject, base, paths, proof)
        yield from (str(found.message) for found in proof.findings)
        if "in_memory" in mapping.source.dialects:
            plan = plan_for(mapping, native, Options(to="hf", dialect="in-memory"))
            if shapes(plan.targets) != oracles.names_and_shapes(self.subject.base, in_memory=True):
                yield "names in memory"


@functools.cache
def known(format: str) -> list[Known]:
    return [Known(name) for name in CONFIGS if format_of(name) == format]


def _documents() -> Iterator[tuple[str, dict[str, Any]]]:
    folder = Path(str(resources.files("crosswalk.mappings")))
    yield from ((name, read_yaml(folder / f"{name}.yaml")) for name in FILES)


DOCUMENTS = dict(_documents())
EVERY = [(name, mutant) for name, document in DOCUMENTS.items() for mutant in mutants(document)]


def survives(name: str, mutant: Mutant) -> bool:
    for format in USERS.get(name, (name,)):
        try:
            mapping = MutantCatalog(texts={name: mutant.text}).compiled(format)
        except CrosswalkError:
            return False
        cases = known(format)
        if any(case.computes_something_else(mapping) for case in cases):
            return False
        asked = cases if THOROUGH else cases[:1]
        if any(found not in case.usual for case in asked for found in case.findings(mapping)):
            return False
    return True


_RESTATED = "says again what the file that it extends says"
_DEFAULT = "says the default of the trainer, which silence means as well"
_STRANGE = "a key of released files, which the class does not have, or does not look at"
_REFUSED = "refused either way, but not for this reason: see tests/field/test_refusals.py"
_TOGETHER = "a combination of keys, of which prove changes one alone"
_FILES = "names of old files, which the class does not write: see tests/project/test_example.py"
_EXPORT = "one of two names for the same"

_EVEN = "head_size * rotary.partial_rotary_factor == round(head_size * rotary.partial_rotary_factor) // 2 * 2"

#: Entries that may go, because they mean the same or other tests hold them: (file, or ``*``, and entry) -> the reason.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("*", "Sequence.count"): _RESTATED,
    ("*", "mlp.sets.add_linear_biases"): _RESTATED,
    ("*", "attention.sets.add_linear_biases"): _RESTATED,
    ("starcoder2", "base_model.config.mlp_type"): _STRANGE,
    ("starcoder2", "base_model.config.norm_type"): _STRANGE,
    ("qwen3_moe", "Sequence.kinds.dense.block.sets.mlp"): _RESTATED,
    ("qwen3_moe", "attention.cases.False.config.sliding_window"): _STRANGE,
    ("qwen3_moe", "attention.cases.False.sets.window_size"): _DEFAULT,
    ("qwen3_moe", "moe.sets.routing"): _DEFAULT,
    ("smollm3", "base_model.config.use_sliding_window"): _STRANGE,
    ("smollm3", "base_model.config.sliding_window"): _STRANGE,
    ("smollm3", "base_model.checks.'sliding_attention' not in config.layer_types"): _TOGETHER,
    ("smollm3", "Sequence.kinds.0.attention.config.rope_parameters"): _RESTATED,
    ("granite", "rms_norm.config.rms_norm_eps"): _RESTATED,
    ("nemotron", "mlp.tensors.up_proj"): _RESTATED,
    ("nemotron", "mlp.tensors.down_proj"): _RESTATED,
    ("arcee", "mlp.tensors.up_proj"): _RESTATED,
    ("arcee", "mlp.tensors.down_proj"): _RESTATED,
    ("phi3", "Rotary.cases.default"): _REFUSED,
    ("phi3", "Rotary.cases.default.config.long_factor"): _REFUSED,
    ("phi3", "Rotary.cases.default.config.short_factor"): _REFUSED,
    ("phi3", "Rotary.cases.longrope"): _REFUSED,
    ("phi3", "Rotary.cases.su"): _REFUSED,
    ("phi3", "Rotary.cases.yarn"): _REFUSED,
    ("stablelm", "base_model.config.qk_layernorm"): _REFUSED,
    ("stablelm", "base_model.config.use_parallel_residual"): _REFUSED,
    ("stablelm", "attention.sets.head_size"): _RESTATED,
    ("ministral3", "attention.config.rope_parameters"): _REFUSED,
    ("ministral3", "Rotary.by"): _RESTATED,
    ("ministral3", "Rotary.cases.default"): _REFUSED,
    ("ministral3", "Rotary.cases.yarn.config.max_position_embeddings"): _STRANGE,
    ("gpt2", "enums.activation.gelu_new"): _EXPORT,
    ("gpt2", "base_model.config.add_cross_attention"): _REFUSED,
    ("gpt2", "base_model.config.scale_attn_by_inverse_layer_idx"): _REFUSED,
    ("gpt2", "attention.tensors.bias"): _FILES,
    ("gpt2", "attention.tensors.masked_bias"): _FILES,
    ("helium", "attention.config.attention_bias"): _RESTATED,
    ("helium", "attention.checks.heads * head_size == hidden"): _REFUSED,
    ("exaone4", "base_model.checks.config.sliding_window != null"): _TOGETHER,
    ("exaone4", "Sequence.config.num_hidden_layers"): _RESTATED,
    ("exaone4", "Sequence.config.sliding_window"): _TOGETHER,
    ("exaone4", "Sequence.kinds.full_attention.attention.sets.window_size"): _DEFAULT,
    ("ernie4_5", "attention.config.attention_dropout"): _STRANGE,
    ("cwm", "Sequence.kinds.full_attention.attention.sets.window_size"): _DEFAULT,
    ("ministral", "Sequence.config.sliding_window"): _TOGETHER,
    ("ministral", "Sequence.kinds.sliding_attention.attention.config.sliding_window"): _RESTATED,
    ("granitemoe", "moe.sets.routing"): _DEFAULT,
    ("granitemoe", "moe.sets.add_linear_biases"): _RESTATED,
    ("hyperclovax", "base_model.checks.config.residual_multiplier == 1.0 or not config.use_post_norm"): _TOGETHER,
    ("gemma", "base_model.config.hidden_activation"): _STRANGE,
    ("gemma", "base_model.config.use_bidirectional_attention"): _STRANGE,
    ("gpt_bigcode", "base_model.config.scale_attn_by_inverse_layer_idx"): _STRANGE,
    ("gpt_bigcode", "base_model.config.reorder_and_upcast_attn"): _STRANGE,
    ("gpt_bigcode", "attention.cases.True.tensors.c_attn"): _RESTATED,
    ("gpt_bigcode", "attention.cases.False.sets.head_groups"): _RESTATED,
    ("gpt_bigcode", "mlp.config.activation_function"): _RESTATED,
    ("gemma3_text", "base_model.config.attn_logit_softcapping"): _REFUSED,
    ("gemma3_text", "Sequence.kinds.full_attention.attention.sets.window_size"): _DEFAULT,
    ("gemma3_text", "attention.config.rope_parameters"): _RESTATED,
    ("llama_partial", f"attention.checks.{_EVEN}"): _REFUSED,
}


def may_go(file: str, name: str) -> bool:
    """Whether a mutant is one of an entry that may go."""
    entry = name.partition(" ")[2].partition(" with ")[0]
    return (
        any((which, entry) in EQUIVALENT for which in (file, "*"))
        or entry.startswith("dialects.")  # their names are tried where they are written
    )


@pytest.mark.parametrize("format", FORMATS if THOROUGH else [])
def test_the_mappings_themselves_pass_every_check(format: str) -> None:
    mapping = MutantCatalog().compiled(format)
    assert not any(case.computes_something_else(mapping) for case in known(format))


@pytest.mark.parametrize("name", FILES if THOROUGH else ["every"])
def test_no_entry_of_a_mapping_can_change_unnoticed(name: str) -> None:
    sample = [(file, mutant) for file, mutant in EVERY if name in (file, "every")][::STRIDE]
    survivors = [(file, mutant.name) for file, mutant in sample if survives(file, mutant)]
    assert [one for one in survivors if not may_go(*one)] == []
