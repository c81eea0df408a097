"""Configs that both accept, further: exported and read by the class again, as files of tensors, drawn from the native
side, and run beside the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from crosswalk.compiler.config.dialects import choose_dialects
from crosswalk.compiler.layout.scope import normalize
from crosswalk.compiler.pipeline import Imported, PlanOptions, import_checkpoint
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.values import same_value
from crosswalk.models.comparison import TOLERANCE
from crosswalk.models.comparison import differences as parts_apart
from crosswalk.reference import forward
from crosswalk.runtime import execute
from crosswalk.runtime.dtypes import dtype_name
from crosswalk.runtime.errors import CrosswalkError, shown
from crosswalk.runtime.plan.model import TensorSpec

from .findings import Proof, dotted
from .keys import Accepted
from .reading import differences, line_of_field, line_of_key, native_of, only_rounded, rounds, same_name, written
from .subject import ROUNDED, Behaviour, Subject
from .values import APART, Path, changed, has, leaves, others, without


def check_exported(
    mapping: CompiledMapping, subject: Subject | None, one: Accepted, dialects: Iterable[str | None], proof: Proof
) -> None:
    """Export a config: read again it must be the same model, for the mapping and, if there is one, for the class."""
    at = mapping.source.position
    for dialect in dialects:
        named = f" in dialect `{dialect.replace('_', '-')}`" if dialect else ""
        try:
            config = written(mapping, one.native, one.config, dialect)
        except CrosswalkError as error:
            if dialect is None:
                first = error.diagnostics[0]
                text = f"what was imported cannot be exported: {first.message}"
                proof.note("prove/export", text, first.place or at, first.hint, how=one.how)
            continue  # a dialect may have no place for it, and says so
        proof.tried["exported"] += 1
        what = f"the config that is exported{named}"
        _check_read_again(mapping, one.native, config, what, "prove/export", proof, one.how)
        if subject is not None:
            behaviour = subject.behaviour(config)
            if behaviour is None and named and one.how:
                continue  # not all that is new was there in an older form
            _check_class_reads(mapping, subject, one, config, behaviour, what, proof)


def _check_class_reads(
    mapping: CompiledMapping,
    subject: Subject,
    one: Accepted,
    config: Mapping[str, Any],
    behaviour: Behaviour | None,
    what: str,
    proof: Proof,
) -> None:
    at = mapping.source.position
    if behaviour is None:
        proof.note("prove/export", f"the class refuses {what}", at, how=one.how)
    elif one.behaviour is not None and not behaviour.same(one.behaviour):
        apart = _apart(subject, config, one.config)
        alike = any(same_name(mapping, path, *values) for path, values in apart.items())
        if (alike or rounds(mapping)) and behaviour.same(one.behaviour, ROUNDED):
            return
        apart = _felt(subject, config, apart, behaviour) or apart
        text = f"the class computes something else with {what}"
        text += f": it reads other values of {', '.join(f'`{dotted(path)}`' for path in apart)}" if apart else ""
        lines = [line_of_key(mapping, path) for path in apart]
        proof.note("prove/export", text, next((line for line in lines if line != at), at), how=one.how)


def _apart(subject: Subject, config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[Path, tuple[Any, Any]]:
    """The keys that the class reads as something else, with both values."""
    one, two = (dict(leaves(subject.read(each) or {})) for each in (config, other))
    pairs = {path: (one.get(path), two.get(path)) for path in {**one, **two}}
    apart = {path: pair for path, pair in pairs.items() if not same_value(*pair)}
    return {path: pair for path, pair in apart.items() if path[-1] not in ("transformers_version", "dtype")}


def _felt(
    subject: Subject, config: Mapping[str, Any], apart: Mapping[Path, tuple[Any, Any]], behaviour: Behaviour
) -> dict[Path, tuple[Any, Any]]:
    """Those of the keys with both values of which the class does not compute the same with the other value."""
    felt = {}
    for path, (read, other) in apart.items():
        other_config = without(config, path) if other is None and has(config, path) else changed(config, path, other)
        found = subject.behaviour(other_config)
        if found is None or not found.same(behaviour):
            felt[path] = (read, other)
    return felt


def _check_read_again(
    mapping: CompiledMapping,
    native: Mapping[str, Any],
    config: Mapping[str, Any],
    what: str,
    code: str,
    proof: Proof,
    how: str = "",
) -> None:
    back = native_of(mapping, config)
    if isinstance(back, CrosswalkError):
        found = back.diagnostics[0]
        at = found.place or mapping.source.position
        proof.note(code, f"{what} cannot be read again: {found.message}", at, found.hint, how=how)
        return
    apart = [found for found in differences(mapping, native, back, trained=False) if not only_rounded(mapping, found)]
    for where, was, read, _ in apart[:1]:
        text = f"{what} is read as another model: `{dotted(where)}` was {was}, and is {read}"
        proof.note(code, text, line_of_field(mapping, where), how=how)


def check_names(mapping: CompiledMapping, subject: Subject, one: Accepted, proof: Proof) -> Imported | None:
    """Save the model of a config: its tensors must be those of the mapping, and what is tied be stored once."""
    tensors = subject.saved(subject.model(one.config))
    specs = [TensorSpec(name, tuple(t.shape), dtype_name(t.dtype)) for name, t in sorted(tensors.items())]
    proof.tried["names"] += 1
    try:
        imported = import_checkpoint(mapping, one.config, specs, PlanOptions())
    except CrosswalkError as error:
        for found in error.diagnostics:
            proof.note("prove/names", found.message, found.place or mapping.source.position, found.hint, how=one.how)
        return None
    for name, of in imported.plan.ties.items():
        if name in tensors:
            text = f"`{name}` is tied to `{of}` by the mapping, and not by the class"
            hint = "see which key ties them in the class"
            proof.note("prove/names", text, mapping.source.position, hint, how=one.how)
    return imported


def check_own_names(mapping: CompiledMapping, one: Accepted, proof: Proof) -> None:
    """Without a class: by the names that the mapping has, every element of every tensor must have one place. Raises
    ``CrosswalkError`` where the trainer has no tensors of these sizes."""
    verdict = import_checkpoint(mapping, one.config, None, PlanOptions()).plan.verify()
    proof.tried["names"] += 1
    if str(verdict) != "bijective":
        proof.note("prove/names", f"the tensors are not a bijection: {verdict}", mapping.source.position, how=one.how)


def check_native(
    mapping: CompiledMapping, subject: Subject | None, one: Accepted, fields: Iterable[Path], proof: Proof
) -> None:
    """Change native fields: what can be exported must be read as it was, and be another model to the class too, if
    there is one."""
    values = dict(leaves(one.native))
    for path in fields:
        value = values[path]
        felt, idle = False, []
        for number, other in enumerate(others(value, _texts(mapping, value))[:3]):
            if felt and number == 2:
                break
            try:
                native = normalize(mapping.layout, changed(one.native, path, other), mapping.root.type.name)
                config = written(mapping, native, one.config)
            except CrosswalkError:
                continue  # there is no such model, or the format has no place for it
            proof.tried["native"] += 1
            what = f"the config that is exported with `{dotted(path)}` = {shown(other)}"
            _check_read_again(mapping, native, config, what, "prove/native", proof)
            behaviour = subject.behaviour(config) if subject is not None else None
            if (
                behaviour is None
                or one.behaviour is None
                or not differences(mapping, one.native, native, trained=False)
            ):
                continue
            felt = felt or not behaviour.same(one.behaviour)
            idle.append(f"the class computes the same with {what}, which is another model to the trainer")
        for text in () if felt else idle:
            proof.note("prove/native", text, line_of_field(mapping, path))


def _apart_only(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configs differ in nothing that a class looks at."""
    one, two = dict(leaves(config)), dict(leaves(other))
    return all(path[-1] in APART for path in {**one, **two} if shown(one.get(path)) != shown(two.get(path)))


def _texts(mapping: CompiledMapping, value: Any) -> list[Any]:
    """The values beside a text of an enum."""
    return [other for values in mapping.layout.enums.values() if value in values for other in values]


@torch.no_grad()
def check_logits(mapping: CompiledMapping, subject: Subject, one: Accepted, imported: Imported, proof: Proof) -> None:
    """Run a model and its conversion: the reference must compute what the class computes."""
    model = subject.model(one.config)
    parameters = dict(execute(imported.plan, subject.saved(model)))
    proof.tried["logits"] += 1
    found = forward(imported.config, parameters, subject.tokens, subject.images)
    parts, logits = parts_apart(subject.trace(model), found)
    far = [(part, size) for part, size in {**parts, "logits": logits}.items() if not size <= TOLERANCE]
    if far:
        text = f"the reference computes something else than the class from `{far[0][0]}` on"
        hint = f"it is {far[0][1]:.1e} off there: hold the tensor lines and the values of that part against its formula"
        hint += " in docs/layouts/fast_llm.md"
        proof.note("prove/logits", text, mapping.source.position, hint, how=one.how)


def dialects_to_read(mapping: CompiledMapping) -> list[str | None]:
    """The dialects that are tried: what is written where nothing is asked, and each by itself."""
    usual = choose_dialects(mapping, None)
    return [None, *(name for name in (str(mapping.source.newest), *mapping.source.dialects) if (name,) != usual)]


def is_moved(mapping: CompiledMapping, base: Accepted, one: Accepted) -> bool:
    """Whether one config differs from another in a key that a dialect has in another place."""
    moves = (move.new for dialect in mapping.source.dialects.values() for move in dialect.config)
    places = {str(path[0]) for path in moves}
    before, after = (dict(leaves(config)) for config in (base.config, one.config))
    return any(path[0] in places and before.get(path) != after.get(path) for path in {**before, **after})
