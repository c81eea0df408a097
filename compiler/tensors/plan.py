"""From a mapping and one config to a flat plan, checked against what is really in the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from crosswalk.compiler.config.dialects import dialect_of_names, rename
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.dtypes import DTYPES, FLOATS, cast_is_exact, size_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.algebra import with_sources
from crosswalk.runtime.plan.model import Encoding, Exemption, Plan, RawCopy, Rule, TensorSpec, make_plan

from .bind import Bound
from .compare import compare_tensors

Direction = Literal["import", "export"]


def plan_import(
    bound: Bound,
    files: Mapping[str, TensorSpec] | None = None,
    dtype: str | None = None,
    default_dtype: str = "F32",
    protect: Sequence[str] = (),
    encodings: Sequence[Encoding] = (),
    unused: Mapping[str, str] = MappingProxyType({}),
    take_tied: bool = False,
) -> Plan:
    """The plan from Hugging Face tensors to the trainer's. ``files``: what the checkpoint holds, from its headers;
    without it, every tensor has ``default_dtype``. ``dtype`` casts all float tensors but those that ``protect`` names.
    ``encodings``: how some of ``files`` are stored; they are decoded to ``dtype`` at once. ``unused``: names in
    ``files`` that are not needed, and why. ``take_tied``: leave stored duplicates of tied tensors out, unread.

    Raises ``CrosswalkError`` listing every missing, unexpected and misshapen tensor.
    """
    moves: tuple[tuple[str, str], ...] = ()
    if files is not None:
        dialect = dialect_of_names(bound.mapping, files)
        moves = tuple((new, old) for old, new in dialect.tensors) if dialect else ()
    names = _renamed((*bound.theirs, *bound.duplicates, *bound.ignored), moves)
    bound = _as_encoded(bound, names, encodings)
    exemptions: list[Exemption] = []
    sources: dict[str, TensorSpec] = {}
    if files is None:
        sources = {names[name]: TensorSpec(names[name], shape, default_dtype) for name, shape in bound.theirs.items()}
    else:
        sources = dict(files)
        expected = {names[name]: shape for name, shape in bound.theirs.items()}
        for name, owner in bound.duplicates.items():
            if names[name] in files:
                left = Exemption("dropped", names[name], None, f"tied to `{names[owner]}`, which counts")
                exemptions.append(left if take_tied else Exemption("tied", names[name], names[owner]))
                expected[names[name]] = bound.theirs[owner]
        dropped = {names[name]: f"not needed ({line.position})" for name, line in bound.ignored.items()} | dict(unused)
        for name, reason in dropped.items():
            if name in files:
                exemptions.append(Exemption("dropped", name, None, reason))
                expected[name] = files[name].shape
        if dtype is not None:
            sources |= _decoded(bound, names, sources, encodings, dtype, protect)
        lines = {names[entry.tensor.name]: entry.line for entry in bound.related}
        hint = "another format may have it (--format); a mapping that should have it needs a line under `tensors:`"
        compare_tensors(expected, files, f"mapping `{bound.mapping.name}`", hint, lines, dropped, bound.mapping.source)
    feeding: dict[str, dict[str, None]] = {name: {} for name in bound.ours}
    for entry in bound.related:
        for piece in entry.tensor.pieces:
            feeding[piece.parameter][sources[names[entry.tensor.name]].dtype] = None
    made = ((name, shape, [*feeding[name]] or [default_dtype]) for name, shape in bound.ours.items())
    targets = _targets(made, dtype, protect)
    return _assemble(bound, names, list(sources.values()), targets, exemptions, "import", files is None, encodings)


def _renamed(names: Iterable[str], moves: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The names as a dialect writes them."""
    return {name: rename(name, moves) if moves else name for name in names}


def _as_encoded(bound: Bound, names: Mapping[str, str], encodings: Sequence[Encoding]) -> Bound:
    """The same with the dimensions that encoded tensors have where they differ."""
    if not encodings:
        return bound
    encoded = {encoding.tensor for encoding in encodings}
    related = [
        entry._replace(tensor=entry.encoded)
        if entry.encoded is not None and names[entry.tensor.name] in encoded
        else entry
        for entry in bound.related
    ]
    theirs = {**bound.theirs, **{entry.tensor.name: entry.tensor.shape for entry in related}}
    return dataclasses.replace(bound, related=related, theirs=theirs)


def _decoded(
    bound: Bound,
    names: Mapping[str, str],
    sources: Mapping[str, TensorSpec],
    encodings: Sequence[Encoding],
    dtype: str,
    protect: Sequence[str],
) -> dict[str, TensorSpec]:
    """The encoded sources, decoded to ``dtype``; as they are where all that is made of them is protected. A duplicate
    is decoded to the dtype of the tensor that it is compared with."""
    made = {names[entry.tensor.name]: {p.parameter for p in entry.tensor.pieces} for entry in bound.related}
    owners = {names[name]: names[owner] for name, owner in bound.duplicates.items()}
    encoded = {e.tensor for e in encodings}
    decoded = {
        name: dataclasses.replace(sources[name], dtype=dtype)
        for name in encoded - owners.keys()
        if not made.get(name) or not all(protects(protect, parameter) for parameter in made[name])
    }
    for name in encoded & owners.keys():
        owner = decoded.get(owners[name], sources.get(owners[name]))
        if owner is not None:
            decoded[name] = dataclasses.replace(sources[name], dtype=owner.dtype)
    return decoded


def plan_export(
    bound: Bound,
    files: Mapping[str, TensorSpec] | None = None,
    dtype: str | None = None,
    default_dtype: str = "F32",
    protect: Sequence[str] = (),
    tensor_dialect: str | None = None,
) -> Plan:
    """The plan from the trainer's tensors to Hugging Face's; see :func:`plan_import`. ``files``: as ``check_stored``
    found them right; ``tensor_dialect``: names as that dialect writes them."""
    moves: tuple[tuple[str, str], ...] = ()
    if tensor_dialect is not None:
        moves = tuple((new, old) for old, new in bound.mapping.source.dialects[tensor_dialect].tensors)
    names = _renamed(bound.theirs, moves)
    if files is None:
        sources = [TensorSpec(name, shape, default_dtype) for name, shape in bound.ours.items()]
    else:
        sources = list(files.values())
    dtypes = {tensor.name: tensor.dtype for tensor in sources}
    made = (
        (names[t.name], t.shape, [dtypes[piece.parameter] for piece in t.pieces] or [default_dtype])
        for t in (entry.tensor for entry in bound.related)
    )
    targets = _targets(made, dtype, protect)
    return _assemble(bound, names, sources, targets, [], "export", files is None)


def _assemble(
    bound: Bound,
    names: Mapping[str, str],
    sources: list[TensorSpec],
    targets: list[TensorSpec],
    exemptions: list[Exemption],
    direction: Direction,
    assumed: bool,
    encodings: Sequence[Encoding] = (),
) -> Plan:
    rules: dict[Position, int] = {}
    numbers: dict[int, int] = {}  # by the identity of lines, which many tensors share
    listed: list[Rule] = []
    copies: list[RawCopy] = []
    lines: dict[str, int] = {}
    for tensor, line, mapping, _ in bound.related:
        index = numbers.get(id(line), -1)
        if index < 0:
            index = numbers[id(line)] = rules.setdefault(line.position, len(listed))
            if index == len(listed):
                listed.append(Rule(mapping, str(line), str(line.position)))
        name = names[tensor.name]
        for ours, extents, at, strides, their_at, their_strides in tensor.pieces:
            lines.setdefault(ours, index)
            if direction == "import":
                copies.append((name, ours, extents, their_at, their_strides, at, strides, index))
            else:
                copies.append((ours, name, extents, at, strides, their_at, their_strides, index))
    metadata = {"mapping": bound.mapping.name, "layout": bound.mapping.layout.name, "direction": direction}
    if assumed:
        metadata["dtypes"] = "assumed"  # from the config: the tensors may have others
    padding = [(name, *box, lines[name]) for name, boxes in bound.padding.items() for box in boxes]
    padded, truncated = (padding, []) if direction == "import" else ([], padding)
    return make_plan(sources, targets, copies, listed, exemptions, metadata, padded, truncated, encodings)


def _targets(
    made: Iterable[tuple[str, tuple[int, ...], Sequence[str]]], dtype: str | None, protect: Sequence[str]
) -> list[TensorSpec]:
    """The tensors ``made`` (name, shape, dtypes of what they are made from), each of the dtype asked for, or else of
    the one among its own that holds all the others exactly."""
    targets: list[TensorSpec] = []
    mixed: dict[tuple[str, ...], list[str]] = {}
    for name, shape, feeding in made:
        if dtype is not None and not protects(protect, name):
            targets.append(TensorSpec(name, shape, dtype))
            continue
        widest = next((w for w in feeding if all(cast_is_exact(other, w) for other in feeding)), None)
        if widest is None:
            mixed.setdefault(tuple(sorted(set(feeding))), []).append(name)
        else:
            targets.append(TensorSpec(name, shape, widest))
    if mixed:
        raise CrosswalkError(
            Diagnostic(
                "plan/mixed-dtypes",
                f"`{pattern}` is made from tensors of {' and '.join(dtypes)}, and none holds the others exactly",
                hint="ask for one dtype with --dtype",
            )
            for dtypes, names in mixed.items()
            for pattern, _ in fold(names)
        )
    return targets


def protects(protect: Sequence[str], name: str) -> bool:
    """Whether a tensor is among names and prefixes (``PREFIX*``)."""
    return any(name == p or (p.endswith("*") and name.startswith(p.rstrip("*"))) for p in protect)


def check_protected(protect: Sequence[str], plan: Plan) -> None:
    """Raise for protected names that are no tensors: with a typo in one, its tensor would be cast."""
    problems = []
    names = [tensor.name for tensor in plan.targets]
    for pattern in protect:
        if not any(protects((pattern,), name) for name in names):
            hint = did_you_mean(pattern, names) or "name a tensor of the output, or a prefix as PREFIX*"
            problems.append(Diagnostic("usage/protect", f"no tensor of the output is called `{pattern}`", None, hint))
    if problems:
        raise CrosswalkError(problems)


def check_dtype(dtype: str | None) -> str | None:
    """A dtype as users write it (``bfloat16``, ``BF16``, ``torch.bfloat16``) by its safetensors name; floats only."""
    if dtype is None:
        return None
    by_name = {name.lower(): name for name in DTYPES} | {attribute: name for name, (_, attribute) in DTYPES.items()}
    found = by_name.get(str(dtype).lower().removeprefix("torch."))
    hint = "one of float32, bfloat16, float16, float64"
    if found not in FLOATS:
        raise fail("usage/dtype", f"`{dtype}` is no float dtype", hint=hint)
    if size_of(found) == 1:
        text = f"`{dtype}` needs scales beside the tensors, which are not made: nothing could load a mere cast"
        raise fail("usage/dtype", text, hint=f"{hint}; quantise what is written with the tool of your engine")
    return found


def check_published(tensors: Iterable[TensorSpec], dtype: str | None) -> None:
    """Raise for parameters of 8 bits, which would be published without the scales that make sense of them, unless
    ``dtype`` casts them."""
    small = {tensor.name: tensor.dtype for tensor in tensors if tensor.dtype in FLOATS and size_of(tensor.dtype) == 1}
    if small and dtype is None:
        raise CrosswalkError(
            Diagnostic(
                "live/dtype",
                f"parameter `{pattern}` is {small[names[0]]}: it cannot be published without scales",
                None,
                'dtype="bfloat16" casts it, if its values are what the model computes with',
            )
            for pattern, names in fold(small, small.__getitem__)
        )


def tensor_dialect(mapping: CompiledMapping, dialects: Sequence[str]) -> str | None:
    """The one among the dialects to write that has tensor names of its own."""
    known = mapping.source.dialects
    named = [name for name in dialects if name in known and (known[name].tensors or known[name].sections)]
    if len(named) > 1:
        raise fail("usage/dialect", f"tensors have one name each: choose one of {', '.join(named)}")
    return named[0] if named else None


def with_copies(
    plan: Plan, specs: Mapping[str, TensorSpec], copies: Mapping[str, str], take_tied: bool = False
) -> Plan:
    """A plan out of a layout with tied tensors among its sources: compared with what they are tied to, or left out
    unread (``take_tied``). ``copies``: each of them -> what it is tied to."""
    if not copies:
        return plan
    if take_tied:
        exemptions = [Exemption("dropped", name, None, f"tied to `{of}`, which counts") for name, of in copies.items()]
    else:
        exemptions = [Exemption("tied", name, of) for name, of in copies.items()]
    return with_sources(plan, map(specs.__getitem__, copies), exemptions)
