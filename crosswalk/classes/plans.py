"""The plans between the files of a class and a live model of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crosswalk.runtime.dtypes import FLOATS, cast_is_exact
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.affine import Piece, make_piece, tiling_faults
from crosswalk.runtime.plan.model import Exemption, Plan, RawCopy, Rule, TensorSpec, make_plan
from crosswalk.runtime.plan.parts import RawRegion, raw_copy
from crosswalk.runtime.records import replace

from .conversion import Relations, ignored, kept_alias, of_files, tied_patterns, to_files
from .tracing import Moved

#: By every name of a tensor in memory, the one that plans have for it.
Aliases = Mapping[str, str]


def import_plan(
    model: Any, files: Sequence[TensorSpec], memory: Mapping[str, TensorSpec], aliases: Aliases, allow_lossy: bool
) -> Plan:
    """From files to memory. ``model`` is of the class; ``memory``: what it holds, each tied tensor once.

    Raises ``CrosswalkError`` with every tensor that files lack, that no parameter takes, or that has another shape.
    """
    relations = of_files(model, files, aliases)
    sources = {spec.name: spec for spec in files}
    made: dict[str, tuple[str, list[Moved]]] = {}
    exemptions: list[Exemption] = []
    unused: dict[str, str] = {}
    problems: list[Diagnostic] = []
    for name, (shape, moved) in relations.items():
        canonical = aliases.get(name)
        if canonical is None:
            unused |= {root: name for root, _ in moved if root is not None}
        elif canonical in made and (tie := _tie(made[canonical][1], moved, sources)) is not None:
            exemptions.append(tie)
        elif shape != memory[canonical].shape:
            text = f"`{name}` is {list(memory[canonical].shape)} in the model, and the files make it {list(shape)}"
            problems.append(Diagnostic("class/shape", text, None, "build the model from the config beside the files"))
        else:
            made.setdefault(canonical, (name, moved))
    used = {root for _, moved in made.values() for root, _ in moved} | {e.tensor for e in exemptions}
    left = [root for root in sources if root in unused and root not in used]
    surplus = [n for n in left if not ignored(model, "_keys_to_ignore_on_load_unexpected", unused[n])]
    if not allow_lossy:
        hint = "allow_lossy=True leaves it behind; a class with a place for it loads it too"
        problems += [
            Diagnostic(
                "class/unexpected", f"the files hold `{pattern}`, which `{_name(model)}` has no place for", None, hint
            )
            for pattern, _ in fold(surplus)
        ]
    for name in memory:  # zeros, until the class computes it
        if name not in made and ignored(model, "_keys_to_ignore_on_save", name):
            made[name] = (name, _zeros(memory[name].shape))
    missing = [name for name in memory if name not in made and name not in _shaped(problems)]
    hint = "the checkpoint is of another class: build the model that its config.json names under `architectures`"
    problems += [
        Diagnostic("class/missing", f"the files hold nothing for `{pattern}` of `{_name(model)}`", None, hint)
        for pattern, _ in fold(missing)
    ]
    if problems:
        raise CrosswalkError(problems)
    exemptions += [Exemption("dropped", name, None, f"`{_name(model)}` has no place for it") for name in left]
    targets = {name: (memory[name].shape, moved) for name, (_, moved) in made.items()}
    return _plan(model, sources, targets, exemptions, None, "import")


def leads_back(loaded: Plan, memory: Mapping[str, TensorSpec]) -> bool:
    """Whether a model is still what a plan has loaded, so that files go back as they came."""
    return {s.name: s.shape for s in loaded.targets} == {n: s.shape for n, s in memory.items()}


def export_plan(
    model: Any, memory: Mapping[str, TensorSpec], aliases: Aliases, dtype: str | None, loaded: Plan | None
) -> Plan:
    """From memory to files: those that the model was ``loaded`` from (:func:`leads_back`), or those that the class
    writes. ``dtype`` casts all floats. Raises ``CrosswalkError`` for what the class cannot write."""
    if loaded is not None:
        back = loaded.inverse().with_dtypes({name: spec.dtype for name, spec in memory.items()})
        targets = [replace(t, dtype=dtype) if dtype is not None and t.dtype in FLOATS else t for t in back.targets]
        return replace(back, targets=tuple(targets), metadata={**back.metadata, "direction": "export"})
    groups: dict[str, list[str]] = defaultdict(list)
    for alias, canonical in aliases.items():
        groups[canonical].append(alias)
    patterns = tied_patterns(model)
    kept = {kept_alias(patterns, groups.get(name, [name])): spec for name, spec in memory.items()}
    written = {a: s for a, s in kept.items() if not ignored(model, "_keys_to_ignore_on_save", a)}
    relations = to_files(model, [replace(spec, name=alias) for alias, spec in written.items()])
    own = {alias: spec.name for alias, spec in kept.items()}
    relations = {
        name: (shape, [Moved(own[root] if root is not None else None, piece) for root, piece in moved])
        for name, (shape, moved) in relations.items()
    }
    gone = [
        Exemption("dropped", spec.name, None, f"`{_name(model)}` saves no `{alias}`")
        for alias, spec in kept.items()
        if alias not in written
    ]
    return _plan(model, dict(memory), relations, gone, dtype, "export")


def file_copies(
    model: Any, memory: Mapping[str, TensorSpec], groups: Sequence[Sequence[str]], plan: Plan
) -> dict[str, str]:
    """Under which names the class would save tied tensors that it saves once (``groups``: the names in memory of each)
    -> what the ``plan`` writes for them. Raises ``CrosswalkError`` (``publisher/ties``) for what it writes under other
    names."""
    own: dict[str, str] = {}
    for names in groups:
        there = [name for name in names if name in memory]
        own |= {name: there[0] for name in names if len(there) == 1}
    relations = to_files(model, [replace(memory[of], name=name) for name, of in own.items()])
    made: dict[Any, list[str]] = defaultdict(list)
    for file, (_, moved) in relations.items():
        made[repr([(own[root] if root is not None else None, piece) for root, piece in moved])].append(file)
    result: dict[str, str] = {}
    for files in made.values():
        written = [file for file in files if file in plan.target_index]
        if len(files) > 1 and not written:
            text = f"`{_name(model)}` saves a tied tensor as {' or '.join(f'`{one}`' for one in files)}"
            raise fail(
                "publisher/ties", f"{text}, and the files have neither", None, "ties='once' sends what they have"
            )
        result |= {file: written[0] for file in files if file not in written}
    return result


def _zeros(shape: Sequence[int]) -> list[Moved]:
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return [Moved(None, make_piece(0, strides, 0, (0,) * len(shape), tuple(shape)))]


def _name(model: Any) -> str:
    return type(model).__name__


def _shaped(problems: Iterable[Diagnostic]) -> set[str]:
    return {d.message.split("`")[1] for d in problems if d.code == "class/shape"}


def _tie(first: Sequence[Moved], second: Sequence[Moved], sources: Mapping[str, TensorSpec]) -> Exemption | None:
    """That a tensor of the files is a copy of another, both whole."""
    if len(first) == len(second) == 1 and first[0].piece == second[0].piece:
        one, other = first[0].root, second[0].root
        if one is not None and other is not None and one != other and sources[one].shape == sources[other].shape:
            return Exemption("tied", other, one)
    return None


def _plan(
    model: Any,
    sources: Mapping[str, TensorSpec],
    relations: Relations,
    exemptions: Sequence[Exemption],
    dtype: str | None,
    direction: str,
) -> Plan:
    copies: list[RawCopy] = []
    padded: list[RawRegion] = []
    read: dict[str, list[Piece]] = defaultdict(list)
    targets = []
    for name, (shape, moved) in relations.items():
        feeding = [sources[root].dtype for root, _ in moved if root is not None]
        targets.append(TensorSpec(name, shape, _widest(name, feeding or ["F32"], dtype)))
        for root, piece in moved:
            if root is None:
                extents, strides, _ = piece.columns
                padded.append((name, extents, piece.here, strides, 0))
            else:
                copies.append(raw_copy(root, name, piece, 0))
                axes = sorted(((extent, step, 0) for extent, _, step in piece.axes), key=lambda axis: -axis[1])
                read[root].append(Piece(piece.there, 0, tuple(axes)))
    left = {exemption.tensor for exemption in exemptions}
    truncated: list[RawRegion] = []
    if direction == "import":  # rows that the class cuts off
        for name, spec in sources.items():
            if name not in left and name in read:
                truncated += [
                    (name, (fault.stop - fault.start,), fault.start, (1,), 0)
                    for fault in tiling_faults(read[name], 0, spec.elements)
                    if fault.places == 1 and not fault.copies
                ]
    metadata = {"mapping": "transformers", "layout": _name(model), "direction": direction}
    rule = Rule("transformers", f"the conversion of {_name(model)}", "transformers.conversion_mapping")
    return make_plan(sources.values(), targets, copies, [rule], exemptions, metadata, padded, truncated)


def _widest(name: str, feeding: Sequence[str], dtype: str | None) -> str:
    """The dtype asked for, or the one among those of what a tensor is made of that holds all others."""
    if dtype is not None and feeding[0] in FLOATS:
        return dtype
    found = next((one for one in feeding if all(cast_is_exact(other, one) for other in feeding)), None)
    if found is None:
        text = (
            f"`{name}` is made from tensors of {' and '.join(sorted(set(feeding)))}, and none holds the others exactly"
        )
        raise CrosswalkError(Diagnostic("plan/mixed-dtypes", text, None, "ask for one dtype"))
    return found
