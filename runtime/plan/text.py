"""Plans as JSON: the one text of a plan, and the digest of what it moves. docs/plan.md specifies both."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import fail
from crosswalk.runtime.records import astuple

from .folded import Patterns, fold, unfold
from .form import check_form
from .parts import AnyPlan, Copy, Encoding, Exemption, PlanParts, Region, Rule, TensorSpec

#: Of a text in which every tensor and copy is an entry of its own, which the digest is of.
VERSION = 1
#: Of one with folded entries.
FOLDED = 2
#: Items of a copy that may grow with the numbers in names: its offsets.
_OFFSETS = (3, 5)
_quoted = json.encoder.encode_basestring


def write(plan: PlanParts, folded: bool = True) -> str:
    """JSON with an entry a line and sorted keys, as validated by ``schema/plan.schema.json``. ``folded``: entries that
    differ only in the numbers in names are one."""
    document = _encode(plan)
    if folded and _can_fold(plan):
        folding = _fold(document, [t.name for t in plan.sources], [t.name for t in plan.targets])
        if any(isinstance(entry[-1], dict) for part in folding.values() for entry in part):
            document |= {**folding, "crosswalk_plan": FOLDED}
    return "{" + ",\n".join(f'"{key}":{_lines(document[key])}' for key in sorted(document)) + "}"


def _lines(value: Any) -> str:
    return "[" + ",\n".join(map(_json, value)) + "]" if isinstance(value, list | tuple) and value else _json(value)


def _order(copy: Copy) -> tuple[int, int, int, int]:
    return copy.target, copy.target_offset, copy.source, copy.source_offset


def _can_fold(plan: PlanParts) -> bool:
    """Whether the order of the entries follows from what they are, so that it need not be written, and no name has a
    brace in it, which would be read as a hole."""
    names = [tuple(tensor.name for tensor in tensors) for tensors in (plan.sources, plan.targets)]
    stored = [part.name for encoding in plan.encodings for part in encoding.stored]
    orders: list[tuple[Any, ...]] = [*names, tuple(map(_order, plan.copies))]
    orders.append(tuple(encoding.tensor for encoding in plan.encodings))
    ordered = all(one < following for order in orders for one, following in pairwise(order))
    return ordered and not any("{" in name for name in itertools.chain(*names, stored))


def _fold(document: dict[str, Any], sources: list[str], targets: list[str]) -> dict[str, list[Any]]:
    """The parts that can be folded. A folded copy has the names of tensors in place of their numbers."""
    copies: tuple[Copy, ...] = document["copies"]
    named = [(sources[copy[0]], targets[copy[1]], *copy[2:]) for copy in copies]
    plain = dict(zip(map(id, named), copies, strict=True))
    texts = Patterns()
    parts = {key: fold(document[key], texts=texts) for key in ("sources", "targets", "encodings") if key in document}
    return parts | {"copies": [plain.get(id(entry), entry) for entry in fold(named, _OFFSETS, texts)]}


def _unfold(document: dict[str, Any]) -> dict[str, Any]:
    """The same without folded entries. Raises ``ValueError``."""
    keys = [key for key in ("sources", "targets", "encodings") if key in document]
    parts = {key: sorted(unfold(document[key], (), key), key=_first_text) for key in keys}
    ends = [{_first_text(entry): number for number, entry in enumerate(parts.get(key, ()))} for key in keys[:2]]
    copies = []
    for entry in unfold(document.get("copies"), _OFFSETS, "copies"):
        if len(entry) > 5 and isinstance(entry[0], str) and isinstance(entry[1], str):
            if len(ends) < 2 or entry[0] not in ends[0] or entry[1] not in ends[1]:
                raise ValueError(f"a copy is from {entry[0]!a} to {entry[1]!a}, which are not both listed")
            entry = [ends[0][entry[0]], ends[1][entry[1]], *entry[2:]]
        copies.append(entry)
    if all(len(entry) > 5 and {type(entry[item]) for item in (0, 1, 3, 5)} == {int} for entry in copies):
        copies.sort(key=lambda entry: (entry[1], entry[5], entry[0], entry[3]))
    return document | parts | {"copies": copies, "crosswalk_plan": VERSION}


def _first_text(entry: list[Any]) -> str:
    if not entry or not isinstance(entry[0], str):
        raise ValueError("an entry does not begin with a name")
    return entry[0]


def digest(plan: PlanParts) -> str:
    """sha256 over the canonical JSON of everything but provenance and metadata: what moves, not who said so."""
    # Written out: as lists to be encoded, 50,000 copies would take several times as long.
    tuples = _Numbers()
    parts = {
        "copies": [
            f"[{source},{target},{tuples[extents]},{offset},{tuples[strides]},{other_offset},{tuples[other_strides]}]"
            for source, target, extents, offset, strides, other_offset, other_strides, _ in plan.copies
        ],
        "exemptions": [_json(astuple(exemption)) for exemption in plan.exemptions],
        "sources": [f"[{_quoted(t.name)},{tuples[t.shape]},{_quoted(t.dtype)}]" for t in plan.sources],
        "targets": [f"[{_quoted(t.name)},{tuples[t.shape]},{_quoted(t.dtype)}]" for t in plan.targets],
    }
    for key, regions in (("padded", plan.padded), ("truncated", plan.truncated)):
        if regions:
            parts[key] = [_json(entry[:-1]) for entry in _encode_regions(regions)]
    if plan.encodings:
        parts["encodings"] = [_json(_encode_encoding(encoding)) for encoding in plan.encodings]
    body = {key: f"[{','.join(entries)}]" for key, entries in parts.items()} | {"crosswalk_plan": str(VERSION)}
    text = ",".join(f'"{key}":{body[key]}' for key in sorted(body))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


class _Numbers(dict[tuple[int, ...], str]):
    """The JSON of tuples of numbers, of which there are few that are different."""

    def __missing__(self, numbers: tuple[int, ...]) -> str:
        self[numbers] = text = _json(numbers)
        return text


def read(text: str, kind: type[AnyPlan]) -> AnyPlan:
    """What :func:`write` wrote, as a plan of this kind. Raises ``CrosswalkError`` for anything that is not a
    well-formed plan."""
    try:
        data = json.loads(text)
        if isinstance(data, dict) and data.get("crosswalk_plan", VERSION) not in (VERSION, FOLDED):
            raise fail("plan/version", f"plan version {data['crosswalk_plan']!a}, this is version {FOLDED}")
        if isinstance(data, dict) and data.get("crosswalk_plan") == FOLDED:
            data = _unfold(data)
        check_form(data)
        sources, targets = (tuple(_decode_tensor(*entry) for entry in data[end]) for end in ("sources", "targets"))
        encodings = tuple(_decode_encoding(*entry) for entry in data.get("encodings", ()))
        for tensor in (*sources, *targets, *(part for encoding in encodings for part in encoding.stored)):
            if tensor.dtype not in DTYPES:
                raise fail("plan/dtype", f"tensor `{tensor.name}` has the unknown dtype `{tensor.dtype}`")
        copies = tuple(
            Copy(s, t, tuple(e), so, tuple(ss), to, tuple(ts), r) for s, t, e, so, ss, to, ts, r in data["copies"]
        )
        return kind(
            sources,
            targets,
            copies,
            tuple(Rule(*rule) for rule in data["rules"]),
            tuple(Exemption(*exemption) for exemption in data["exemptions"]),
            data["metadata"],
            _decode_regions(data.get("padded", ())),
            _decode_regions(data.get("truncated", ())),
            encodings,
        )
    except (ValueError, RecursionError) as error:
        raise fail("plan/malformed", f"this is not a plan: {error or type(error).__name__}") from error


def _encode(plan: PlanParts) -> dict[str, Any]:
    return {
        "crosswalk_plan": VERSION,
        "sources": [_encode_tensor(tensor) for tensor in plan.sources],
        "targets": [_encode_tensor(tensor) for tensor in plan.targets],
        "copies": plan.copies,
        "rules": [list(astuple(rule)) for rule in plan.rules],
        "exemptions": [list(astuple(exemption)) for exemption in plan.exemptions],
        "metadata": dict(plan.metadata),
        # Left out where there are none: such a plan has the bytes that it had before there were any.
        **({"padded": _encode_regions(plan.padded)} if plan.padded else {}),
        **({"truncated": _encode_regions(plan.truncated)} if plan.truncated else {}),
        **({"encodings": [_encode_encoding(encoding) for encoding in plan.encodings]} if plan.encodings else {}),
    }


def _encode_tensor(tensor: TensorSpec) -> tuple[str, tuple[int, ...], str]:
    return tensor.name, tensor.shape, tensor.dtype


def _decode_tensor(name: str, shape: list[int], dtype: str) -> TensorSpec:
    return TensorSpec(name, tuple(shape), dtype)


def _encode_encoding(encoding: Encoding) -> list[Any]:
    return [encoding.tensor, encoding.kind, [_encode_tensor(part) for part in encoding.stored], list(encoding.block)]


def _decode_encoding(tensor: str, kind: str, stored: list[Any], block: list[int]) -> Encoding:
    return Encoding(tensor, kind, tuple(_decode_tensor(*part) for part in stored), tuple(block))


def _encode_regions(regions: Iterable[Region]) -> list[list[Any]]:
    return [[r.tensor, list(r.extents), r.offset, list(r.strides), r.rule] for r in regions]


def _decode_regions(entries: Iterable[Any]) -> tuple[Region, ...]:
    return tuple(Region(tensor, tuple(e), offset, tuple(s), rule) for tensor, e, offset, s, rule in entries)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
