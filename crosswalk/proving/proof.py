"""``prove``: everything that a class of transformers knows, held against a mapping."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from crosswalk.checkpoints.huggingface import CONFIG, parse_config, read_config_text
from crosswalk.checkpoints.key_positions import read_from
from crosswalk.compiler.catalog import Catalog
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.jobs.formats import DEFAULT_LAYOUT, folders, format_named
from crosswalk.models.comparison import inputs, windows_of
from crosswalk.runtime.errors import CrosswalkError, Position, fail, shown

from .findings import Proof, dotted
from .keys import Accepted, check_alone, check_changed, check_left_out, check_left_out_together, check_nothing_said
from .models import (
    check_exported,
    check_logits,
    check_names,
    check_native,
    check_own_names,
    dialects_to_read,
    is_moved,
)
from .reading import Native, differences, native_of, without_loss
from .subject import Subject
from .values import APART, changed, leaves
from .values import Path as Keys

#: Tokens that a tiny model is run on, more than its window where that is short; and most of them.
_TOKENS, _MOST = 19, 600
#: Most models of changed configs that are saved, and most that are run beside the reference too; most native fields
#: that are drawn.
_MODELS, _FIELDS = 24, 40


def prove(
    mapping: str | Path,
    source: str | Path,
    *,
    logits: bool = False,
    keys: int | Iterable[str] | None = None,
    seed: int = 0,
) -> Proof:
    """Hold a mapping (a file, or the name of a format) against the class that the config.json of ``source`` (a
    directory, or the file) names, in a tiny random model of it. ``logits``: run the models beside the reference too.
    ``keys``: try these keys alone (nested ones with dots, with all below them), or so many, drawn by ``seed`` as native
    fields are. A mapping whose class is code that comes with its checkpoints is proved as far as that goes without:
    what is exported is read again, other values of keys and fields too, and every tensor has one place.

    Raises ``CrosswalkError`` for a mapping that does not compile or does not hold this model, if transformers is not
    installed, and if it does not have the class.
    """
    compiled = compiled_mapping(mapping)
    file = Path(source)
    file = file / CONFIG if file.is_dir() else file
    if logits and compiled.layout.name != DEFAULT_LAYOUT:
        text = f"the reference is that of layout `{DEFAULT_LAYOUT}`, not of `{compiled.layout.name}`"
        raise fail("usage/prove", text, None, "leave out --logits")
    text = read_config_text(file)
    config = parse_config(text, file)
    if _comes_with_checkpoints(compiled, config):
        with read_from(file, text):
            return _prove_alone(compiled, config, keys, random.Random(seed))
    subject = Subject.of(config, str(file))
    with read_from(file, text):
        native, notes = _exact(compiled, subject)
    subject.tokens, subject.images = _inputs(native)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small for more
    try:
        proof = Proof(compiled.name, subject.name, notes=notes)
        _prove(compiled, subject, native, logits, keys, random.Random(seed), proof)
    finally:
        torch.set_num_threads(threads)
    return proof


def _comes_with_checkpoints(mapping: CompiledMapping, config: Mapping[str, Any]) -> bool:
    """Whether the class is code that comes with its checkpoints, so that nobody else has it."""
    own = mapping.source.config_class or ""
    return not own.startswith("transformers.") and mapping.source.architecture in (config.get("architectures") or ())


def _prove_alone(mapping: CompiledMapping, config: Mapping[str, Any], keys: Any, draw: random.Random) -> Proof:
    """Without the class, which leaves no reason to make the model small. Raises ``CrosswalkError`` where the mapping
    refuses the config."""
    native = native_of(mapping, config)
    if isinstance(native, CrosswalkError):
        raise native
    name = str(mapping.source.architecture)
    text = f"`{name}` comes with its checkpoints, and was not asked: what absent keys mean, which keys matter, names of"
    proof = Proof(mapping.name, name, notes=[f"{text} tensors and what is computed are not proved"], alone=True)
    base = Accepted(config, native, None)
    names = tuple(keys) if isinstance(keys, Iterable) else None
    paths = [path for path, _ in leaves(config) if path[-1] not in APART]
    _refuse_unknown(names, paths)
    accepted = check_alone(mapping, base, _chosen(paths, names, keys, draw))
    check_exported(mapping, None, base, dialects_to_read(mapping), proof)
    for one in accepted:
        check_exported(mapping, None, one, (None,), proof)
    check_own_names(mapping, base, proof)
    for one in accepted:
        with suppress(CrosswalkError):  # another size may be none
            check_own_names(mapping, one, proof)
    _draw_native(mapping, None, base, accepted, keys, draw, proof)
    return proof


def _exact(mapping: CompiledMapping, subject: Subject) -> tuple[Native, list[str]]:
    """The native config of the tiny model, and what had to be changed in that for nothing to be lost. Raises
    ``CrosswalkError`` where the mapping refuses it."""
    native = native_of(mapping, subject.base)
    notes: list[str] = []
    if isinstance(native, CrosswalkError):
        refused = native
        for path, (value, kept) in without_loss(mapping, subject.base, refused).items():
            subject.base, subject.second = (changed(one, path, kept) for one in (subject.base, subject.second))
            notes.append(f"`{dotted(path)}` is {shown(kept)} in the tiny model, as {shown(value)} loses something")
        native = native_of(mapping, subject.base) if notes else refused
        if isinstance(native, CrosswalkError):
            raise native
    return native, notes


def compiled_mapping(mapping: str | Path) -> CompiledMapping:
    """The mapping in a file, or of the name of a format."""
    path = Path(mapping)
    if not path.suffix:
        return format_named(str(mapping))
    return Catalog((path.resolve().parent, *folders())).compiled(path.stem)


def _prove(
    mapping: CompiledMapping,
    subject: Subject,
    native: Any,
    logits: bool,
    keys: int | Iterable[str] | None,
    draw: random.Random,
    proof: Proof,
) -> None:
    behaviour = subject.behaviour(subject.base)
    if behaviour is None:
        subject.trace(subject.model(subject.base))  # says why
        raise AssertionError("a model that could not be run can be run")
    base = Accepted(subject.base, native, behaviour)
    names = tuple(keys) if isinstance(keys, Iterable) else None
    configs = (subject.base, {**subject.keys(), **subject.base})
    stated, every = ([path for path, _ in leaves(config) if path[-1] not in APART] for config in configs)
    _refuse_unknown(names, every)
    stated, every = (_chosen(paths, names, keys, draw) for paths in (stated, every))
    check_left_out(mapping, subject, stated, proof)
    check_left_out_together(mapping, subject, stated, every, proof)
    if names is None:
        check_nothing_said(mapping, subject, proof)
    accepted = check_changed(mapping, subject, base, every, proof)
    other = [one for one in accepted if one.behaviour is not behaviour]
    dialects = dialects_to_read(mapping)
    check_exported(mapping, subject, base, dialects, proof)
    for one in other:
        check_exported(mapping, subject, one, dialects if is_moved(mapping, base, one) else (None,), proof)
    reshaped = [one for one in other if _shapes(one) != behaviour.shapes or "tie" in one.how]
    alike = [one for one in other if one not in reshaped] if logits else []
    for one in (base, *reshaped[:_MODELS], *alike[:_MODELS]):
        imported = check_names(mapping, subject, one, proof)
        if imported is not None and logits:
            check_logits(mapping, subject, one, imported, proof)
    _draw_native(mapping, subject, base, accepted, keys, draw, proof)


def _draw_native(
    mapping: CompiledMapping,
    subject: Subject | None,
    base: Accepted,
    accepted: Sequence[Accepted],
    keys: int | Iterable[str] | None,
    draw: random.Random,
    proof: Proof,
) -> None:
    """Change native fields: those that the keys decide which are tried, or some."""
    fields = [path for path, value in leaves(base.native) if not isinstance(value, Mapping)]
    if isinstance(keys, Iterable):
        apart = {found.where for one in accepted for found in differences(mapping, base.native, one.native)}
        fields = [path for path in fields if path in apart]
    count = keys if isinstance(keys, int) else _FIELDS
    check_native(mapping, subject, base, draw.sample(fields, min(count, len(fields))), proof)


def _shapes(one: Accepted) -> Mapping[str, tuple[int, ...]]:
    return one.behaviour.shapes if one.behaviour is not None else {}


def _chosen(paths: list[Keys], names: Sequence[str] | None, keys: Any, draw: random.Random) -> list[Keys]:
    if names is not None:
        return [path for path in paths if any(dotted(path[:depth]) in names for depth in range(1, len(path) + 1))]
    return paths if keys is None else draw.sample(paths, min(keys, len(paths)))


def _refuse_unknown(names: Sequence[str] | None, paths: list[Keys]) -> None:
    """Raise for a key that there is not: of it nothing would be tried, and so nothing found."""
    known = {dotted(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}
    for name in names or ():
        if name not in known:
            hint = did_you_mean(name, sorted(known)) or "name keys of config.json or its class, nested ones with dots"
            raise fail("usage/prove", f"there is no key `{name}` to try", Position("--keys"), hint)


def _inputs(native: Any) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """Tokens, and an image if the model takes one; of other layouts tokens that any vocabulary has."""
    if "embeddings" in native:
        return inputs(native, min(max([_TOKENS, *(window + 2 for window in windows_of(native["decoder"]))]), _MOST))
    return torch.arange(_TOKENS) * 7 % 53, ()
