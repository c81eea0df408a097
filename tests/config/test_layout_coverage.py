"""Everything that the layout can say is in some format, or in a list of what no format has; and no format loses it.

The law: change one field of a config. Then a format either holds the change (exporting and importing gives it back), or
refuses to export it. Nothing else is silence.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from comparing import differences
from family_cases import CONFIGS as FAMILIES
from hypothesis import settings
from native_bases import BASES, LAYOUT, Config, changes, put, scope_of

import crosswalk
from crosswalk.compiler.layout.model import Field
from crosswalk.compiler.layout.scope import Scope
from crosswalk.compiler.relations.rules import FieldRule, OursFact
from crosswalk.compiler.relations.tree import CompiledMapping, Entries, Layers, PartNode, Struct, nodes_of, rules_of
from crosswalk.jobs.formats import catalog
from crosswalk.runtime.errors import CrosswalkError

#: Every change is tried with ``--hypothesis-profile=thorough``, every third one otherwise.
STRIDE = 1 if settings().max_examples > 100 else 3
FORMATS = [name for name in catalog().formats() if catalog().mapping(name).layout == "fast_llm"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"

_BIAS = {"bias": {"enabled": True}}
#: What no format has: a field of a type -> a value that says it is used. docs/formats.md says the same.
NOWHERE: dict[str, Any] = {
    "base_model.peft": {"type": "lora"},
    "multimodal_model.peft": {"type": "lora"},
    "gated_rms_norm.zero_centered": True,
    "convolution.activation": "relu",
    "moe.shared_experts": 1,
    "moe.routing": "sinkhorn",
    "moe.layer_1": _BIAS,
    "moe.layer_2": _BIAS,
    "hybrid_moe.pre_norm": {"type": "rms_norm"},
    "hybrid_moe.post_norm": {"type": "rms_norm"},
    **{f"mamba.{name}_layer": _BIAS for name in ("z", "x", "b", "c", "dt_input", "output")},
    **{f"gdn.{name}": _BIAS for name in ("qkv_projection_layer", "ba_projection_layer", "output_layer")},
    **{f"kda.{name}_projection_layer": _BIAS for name in ("q", "k", "v", "f_a", "f_b", "g_a", "g_b", "beta", "output")},
    "stochastic.predefined_layouts": [["a"]],
    "stochastic.predefined_layout_probabilities": [1.0],
    "patch_embeddings.patch_embeddings": _BIAS,
}
#: Types that no format has, with all their fields.
NO_TYPES = {"lora"}
#: Types without any field or parameter of the stored model.
TRAINING_TYPES = {"bare_linear", "image_normalization", "parameter"}
#: Parameters that no format has a tensor for.
NO_PARAMETERS = {
    "patch_embeddings.patch_embeddings.bias",
    "gdn.convolution.bias",
    "kda.q_conv.bias",
    "kda.k_conv.bias",
    "kda.v_conv.bias",
}
#: Those of a field that is in NOWHERE.
NO_BIASES = {
    *(f"gdn.{name}.bias" for name in ("in_proj_qkvz", "in_proj_ba", "out_proj")),
    *(f"kda.{name}_proj.bias" for name in ("q", "k", "v", "f_a", "f_b", "g_a", "g_b", "beta", "o")),
}


def _meaning(value: Any) -> Any:
    """What a native config says of the stored model: effective values by layer, without what only training uses, and
    numbers without their last digits, which arithmetic may round (``rounded``)."""
    if not isinstance(value, Scope):
        return float(f"{value:.12g}") if isinstance(value, float) else value
    if value.kind.stands_for:
        return value.field(value.kind.stands_for)
    result: Config = {"type": value.kind.name}
    for name, declared in value.kind.fields.items():
        if declared.group == "training":
            continue
        if declared.of in LAYOUT.families and LAYOUT.families[declared.of].sequence:
            result[name] = [_meaning(block) for _, block in value.blocks(name)]
        elif declared.kind == "dict" and value.raw(name) is not None:
            result[name] = {key: _meaning(value.entry(name, key)) for key in value.raw(name)}
        else:
            result[name] = _meaning(value.field(name))
    return result


def _trees(mapping: CompiledMapping) -> Iterator[CompiledMapping]:
    yield mapping
    for node in nodes_of(mapping.root):
        if isinstance(node, PartNode):
            for part in node.mappings:
                yield from _trees(part)


def _reached() -> tuple[set[str], set[str]]:
    """The types that some format reaches, and the fields (``type.field``) of which one says more than the default."""
    types: set[str] = set()
    fields: set[str] = set()
    for mapping in (tree for name in FORMATS for tree in _trees(catalog().compiled(name))):
        for node in nodes_of(mapping.root):
            if isinstance(node, Struct):
                types.add(node.type.name)
                for rule in node.rules:
                    says = isinstance(rule, FieldRule) or (isinstance(rule, OursFact) and not _default(rule))
                    if says and len(rule.ours) > len(node.ours):
                        fields.add(f"{node.type.name}.{rule.ours[len(node.ours)]}")
                for child in node.children:
                    if len(child.ours) > len(node.ours) and not _silent(child):
                        fields.add(f"{node.type.name}.{child.ours[len(node.ours)]}")
            if isinstance(node, (Layers, Entries)):
                fields.add(".".join(("*", node.ours[-1])))
    return types, fields


def _default(rule: OursFact) -> bool:
    return bool(rule.value == rule.field.default)


def _silent(node: Any) -> bool:
    """A sub-config of which every rule says that it is not used."""
    rules = [rule for rule in rules_of(node) if isinstance(rule, (FieldRule, OursFact))]
    return (
        isinstance(node, Struct)
        and not node.typed
        and bool(list(rules_of(node)))
        and all(isinstance(rule, OursFact) and _default(rule) for rule in rules)
        and not any(isinstance(rule, FieldRule) for rule in rules)
    )


def _all_fields() -> dict[str, Field]:
    """Every field of every type that is part of the stored model, by ``type.field``; sequences apart."""
    sequences = {kind.name for f in LAYOUT.families.values() if f.sequence for kind in f.types.values()}
    return {
        f"{kind.name}.{name}": declared
        for kind in LAYOUT.all_types()
        for name, declared in kind.fields.items()
        if declared.group != "training" and kind.name not in sequences
    }


@pytest.mark.parametrize("base", BASES)
def test_a_changed_field_is_held_or_refused(base: str) -> None:
    format, native = BASES[base]
    complete = dict(scope_of(format, native).config)
    held = refused = 0
    tried = [
        ((*path, name), value)
        for path, scope in scope_of(format, native).walk()
        for name, declared in scope.kind.fields.items()
        if declared.group != "training"
        for value in changes(declared, scope.raw(name))
    ]
    for path, value in tried[list(BASES).index(base) % STRIDE :: STRIDE]:
        changed = copy.deepcopy(complete)
        put(changed, path, value)
        try:
            expected = _meaning(scope_of(format, changed))
        except CrosswalkError:
            continue  # no such config
        try:
            exported = crosswalk.export_config(changed, format)
        except CrosswalkError:
            refused += 1
            continue
        again = scope_of(format, crosswalk.import_config(exported, format))
        assert differences(_meaning(again), expected) == [], f"{'.'.join(path)} = {value!r}"
        held += 1
    assert held > 10 / STRIDE
    assert refused > 10 / STRIDE


def test_the_bases_are_of_every_format() -> None:
    assert {format for format, _ in BASES.values()} == set(FORMATS)
    for format, native in BASES.values():
        again = crosswalk.import_config(crosswalk.export_config(native, format), format)
        assert differences(_meaning(scope_of(format, again)), _meaning(scope_of(format, native))) == []


def test_every_field_and_type_is_in_some_format_or_listed() -> None:
    types, fields = _reached()
    assert {kind.name for kind in LAYOUT.all_types()} - types == NO_TYPES | TRAINING_TYPES
    listed = set(NOWHERE) | {field for field in _all_fields() if field.split(".")[0] in NO_TYPES}
    assert sorted(_all_fields().keys() - fields) == sorted(listed)


@functools.cache
def _complete(base: str) -> Scope:
    return scope_of(*BASES[base])


def _objects(type: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Where the bases have an object of a type: name of the base, format, path."""
    for base, (format, _) in BASES.items():
        for path, scope in _complete(base).walk():
            if scope.kind.name == type:
                yield base, format, path


@pytest.mark.parametrize("field", NOWHERE)
def test_what_no_format_has_is_refused_by_name(field: str) -> None:
    type, name = field.split(".")
    found = False
    for base, format, path in _objects(type):
        changed = dict(copy.deepcopy(_complete(base).config))
        put(changed, (*path, name), NOWHERE[field])
        try:
            meaning = _meaning(scope_of(format, changed))
        except CrosswalkError as error:
            found = found or name in str(error)
            continue  # the layout itself excludes it there
        if meaning == _meaning(_complete(base)):
            continue  # what it says is so already
        with pytest.raises(CrosswalkError, match=name):
            crosswalk.export_config(changed, format)
        found = True
    assert found, f"no base has an object of type {type}"


@pytest.mark.parametrize("base", sorted(BASES.keys() - FAMILIES.keys()))
def test_layer_norms_are_refused_by_name(base: str) -> None:
    format, _ = BASES[base]
    for path, scope in _complete(base).walk():
        for name, declared in scope.kind.fields.items():
            if declared.of == "Norm":
                changed = dict(copy.deepcopy(_complete(base).config))
                put(changed, (*path, name), {"type": "layer_norm"})
                with pytest.raises(CrosswalkError, match=name):
                    crosswalk.export_config(changed, format)


def _parameters(format: str, native: Mapping[str, Any]) -> set[str]:
    """The parameters that a config has, as ``type.parameter``."""
    return {
        f"{scope.kind.name}.{parameter.name}"
        for _, scope in scope_of(format, native).walk()
        for parameter in scope.kind.parameters
        if parameter.condition is None or scope.holds(parameter.condition)
    }


def test_every_parameter_is_in_some_format_or_listed() -> None:
    every = {f"{kind.name}.{parameter.name}" for kind in LAYOUT.all_types() for parameter in kind.parameters}
    seen = set().union(*(_parameters(format, native) for format, native in BASES.values()))
    for format, native in BASES.values():
        crosswalk.compile_plan(native, format=format, to="hf")  # every parameter has a tensor
    assert sorted(every - seen) == sorted(NO_PARAMETERS | NO_BIASES)


def test_the_document_lists_what_no_format_has() -> None:
    text = DOCUMENT.read_text()
    for name in (*NOWHERE, *NO_TYPES, *NO_PARAMETERS):
        assert f"`{name}`" in text, name
