"""From a mapping and one config to a flat plan, checked against what is really in the files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from crosswalk.compiler.mapping.model import Dialect
from crosswalk.compiler.relations.tree import CompiledMapping
from crosswalk.compiler.text.positioned import did_you_mean
from crosswalk.runtime.dtypes import DTYPES, FLOATS, cast_is_exact, size_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position, fail
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.algebra import with_sources
from crosswalk.runtime.plan.model import (
    Encoding,
    Exemption,
    Plan,
    RawCopy,
    RawRegion,
    Rule,
    TensorSpec,
    make_plan,
    raw_copy,
)
from crosswalk.runtime.records import replace

from .bind import Bound
from .compare import compare_tensors
from .pieces import Repeated

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
    dialect: Dialect | None = None,
) -> Plan:
    """The plan from Hugging Face tensors to the trainer's. ``files``: what the checkpoint holds, from its headers, with
    names in the ``dialect``; without it, every tensor has ``default_dtype``. ``dtype`` casts all float tensors but
    those that ``protect`` names. ``encodings``: how some of ``files`` are stored; they are decoded to ``dtype`` at
    once. ``unused``: names in ``files`` that are not needed, and why. ``take_tied``: leave stored duplicates of tied
    tensors out, unread.

    Raises ``CrosswalkError`` listing every missing, unexpected and misshapen tensor.
    """
    if files is not None:
        bound = bound.renamed([(new, old) for old, new in dialect.tensors] if dialect else ())
    bound = _as_encoded(bound, encodings)
    exemptions: list[Exemption] = []
    if files is None:
        sources = {name: TensorSpec(name, shape, default_dtype) for name, shape in bound.hf.items()}
    else:
        sources = dict(files)
        beside: dict[str, tuple[int, ...]] = {}
        for name, owner in bound.duplicates.items():
            if name in files:
                left = Exemption("dropped", name, None, f"tied to `{owner}`, which counts")
                exemptions.append(left if take_tied else Exemption("tied", name, owner))
                beside[name] = bound.hf[owner]
        dropped = {name: f"not needed ({line.position})" for name, line in bound.ignored.items()} | dict(unused)
        for name, reason in dropped.items():
            if name in files:
                exemptions.append(Exemption("dropped", name, None, reason))
                beside[name] = files[name].shape
        expected = {**bound.hf, **beside} if beside else bound.hf
        if dtype is not None and encodings:
            sources |= _decoded(bound, sources, encodings, dtype, protect)
        hint = "another format may have it (--format); a mapping that should have it needs a line under `tensors:`"
        who = f"mapping `{bound.mapping.name}`"
        compare_tensors(expected, files, who, hint, bound.lines, dropped, bound.mapping.source)
    parts = _Parts.of(bound)
    targets = _targets(bound.native.items(), parts.copies, sources.values(), dtype, default_dtype, protect)
    made = (list(sources.values()), targets, parts.copies, parts.rules, exemptions)
    return make_plan(*made, _metadata(bound, "import", files is None), parts.padding, (), encodings)


def _as_encoded(bound: Bound, encodings: Sequence[Encoding]) -> Bound:
    """The same with the dimensions that encoded tensors have where they differ."""
    if not encodings or all(entry.encoded is None for group in bound.groups for entry in group.related):
        return bound
    stored = {encoding.tensor for encoding in encodings}
    groups: list[Repeated] = []
    hf = dict(bound.hf)
    for group in bound.groups:
        if all(entry.encoded is None for entry in group.related):
            groups.append(group)
            continue
        related = []
        for entry in group.alone:
            if entry.encoded is not None and entry.tensor.name in stored:
                entry = entry._replace(tensor=entry.encoded)
                hf[entry.tensor.name] = entry.tensor.shape
            related.append(entry)
        groups.append(Repeated(related))
    return replace(bound, groups=groups, hf=hf)


def _decoded(
    bound: Bound, sources: Mapping[str, TensorSpec], encodings: Sequence[Encoding], dtype: str, protect: Sequence[str]
) -> dict[str, TensorSpec]:
    """The encoded sources, decoded to ``dtype``; as they are where all that is made of them is protected. A duplicate
    is decoded to the dtype of the tensor that it is compared with."""
    made: dict[str, set[str]] = {}
    for hf, native, *_ in _Parts.of(bound).copies:
        made.setdefault(hf, set()).add(native)
    owners = bound.duplicates
    encoded = {e.tensor for e in encodings}
    decoded = {
        name: replace(sources[name], dtype=dtype)
        for name in encoded - owners.keys()
        if not made.get(name) or not all(protects(protect, parameter) for parameter in made[name])
    }
    for name in encoded & owners.keys():
        owner = decoded.get(owners[name], sources.get(owners[name]))
        if owner is not None:
            decoded[name] = replace(sources[name], dtype=owner.dtype)
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
    bound = written_in(bound, tensor_dialect)
    if files is None:
        sources = [TensorSpec(name, shape, default_dtype) for name, shape in bound.native.items()]
    else:
        sources = list(files.values())
    parts = _Parts.of(bound)
    copies = [(native, hf, e, o, s, at, strides, rule) for hf, native, e, at, strides, o, s, rule in parts.copies]
    targets = _targets(bound.hf.items(), copies, sources, dtype, default_dtype, protect)
    metadata = _metadata(bound, "export", files is None)
    return make_plan(sources, targets, copies, parts.rules, (), metadata, (), parts.padding)


def written_in(bound: Bound, tensor_dialect: str | None) -> Bound:
    """The same with the names that a dialect writes."""
    if tensor_dialect is None:
        return bound
    return bound.renamed([(new, old) for old, new in bound.mapping.source.dialects[tensor_dialect].tensors])


class _Parts(NamedTuple):
    """What a plan does in one direction or the other: ``copies``, as to the trainer, the ``rules`` that they come from,
    and the ``padding`` of native tensors."""

    copies: list[RawCopy]
    rules: list[Rule]
    padding: list[RawRegion]

    @staticmethod
    def of(bound: Bound) -> _Parts:
        numbers: dict[Position, int] = {}
        rules: list[Rule] = []
        copies: list[RawCopy] = []
        for group in bound.groups:
            forms: list[RawCopy] = []
            for tensor, line, mapping, _ in group.related:
                rule = numbers.setdefault(line.position, len(rules))
                if rule == len(rules):
                    rules.append(Rule(mapping, str(line), str(line.position)))
                forms += [raw_copy(tensor.name, parameter, piece, rule) for parameter, piece in tensor.pieces]
            for native, hf in group.places:
                copies += [(hf + form[0], native + form[1], *form[2:]) for form in forms]
        lines: dict[str, int] = {}
        for copy in copies if bound.padding else ():
            lines.setdefault(copy[1], copy[-1])
        return _Parts(
            copies, rules, [(name, *box, lines[name]) for name, boxes in bound.padding.items() for box in boxes]
        )


def _metadata(bound: Bound, direction: Direction, assumed: bool) -> dict[str, str]:
    """``assumed``: the dtypes are from the config, and tensors may have others."""
    named = {"mapping": bound.mapping.name, "layout": bound.mapping.layout.name, "direction": direction}
    return named | {"dtypes": "assumed"} if assumed else named


def _targets(
    shapes: Iterable[tuple[str, tuple[int, ...]]],
    copies: Sequence[RawCopy],
    sources: Iterable[TensorSpec],
    dtype: str | None,
    default_dtype: str,
    protect: Sequence[str],
) -> list[TensorSpec]:
    """The tensors to make, each of the dtype asked for, or else of the one among those it is made from that holds all
    the others exactly; of the default if it is made from nothing."""
    dtypes = {tensor.name: tensor.dtype for tensor in sources}
    feeding: dict[str, list[str]] = {}
    for name, found in dict.fromkeys([(copy[1], dtypes[copy[0]]) for copy in copies]):
        feeding.setdefault(name, []).append(found)
    targets: list[TensorSpec] = []
    mixed: dict[tuple[str, ...], list[str]] = {}
    for name, shape in shapes:
        if dtype is not None and not protects(protect, name):
            targets.append(TensorSpec(name, shape, dtype))
            continue
        among = feeding.get(name, [default_dtype])
        widest = next((w for w in among if all(cast_is_exact(other, w) for other in among)), None)
        if widest is None:
            mixed.setdefault(tuple(sorted(among)), []).append(name)
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
    """A dtype as users write it (``bfloat16``, ``BF16``, ``torch.bfloat16``) by its safetensors name; floats only.
    Raises ``CrosswalkError`` for any other."""
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
    """The one among the dialects to write that has tensor names of its own. Raises ``CrosswalkError`` if there are
    two."""
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
