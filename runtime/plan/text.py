"""Plans as JSON: the one text of a plan, and the digest of what it moves. docs/plan.md specifies both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from crosswalk.runtime.dtypes import DTYPES
from crosswalk.runtime.errors import fail

from . import regions as padding
from .form import check_form
from .model import Copy, Encoding, Exemption, Plan, Rule, TensorSpec

VERSION = 1
_quoted = json.encoder.encode_basestring


def write(plan: Plan) -> str:
    """Canonical JSON (sorted keys, no spaces), as validated by ``schema/plan.schema.json``."""
    return _json(_encode(plan))


def digest(plan: Plan) -> str:
    """sha256 over the canonical JSON of everything but provenance and metadata: what moves, not who said so."""
    # Written out: as lists to be encoded, 50,000 copies would take several times as long.
    tuples = _Numbers()
    parts = {
        "copies": [
            f"[{c.source},{c.target},{tuples[c.extents]},{c.source_offset},{tuples[c.source_strides]},"
            f"{c.target_offset},{tuples[c.target_strides]}]"
            for c in plan.copies
        ],
        "exemptions": [_json(dataclasses.astuple(exemption)) for exemption in plan.exemptions],
        "sources": [f"[{_quoted(t.name)},{tuples[t.shape]},{_quoted(t.dtype)}]" for t in plan.sources],
        "targets": [f"[{_quoted(t.name)},{tuples[t.shape]},{_quoted(t.dtype)}]" for t in plan.targets],
    }
    for key, regions in (("padded", plan.padded), ("truncated", plan.truncated)):
        if regions:
            parts[key] = [_json(entry[:-1]) for entry in padding.encode(regions)]
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


def read(text: str) -> Plan:
    """What :func:`write` wrote. Raises ``CrosswalkError`` for anything that is not a well-formed plan."""
    try:
        data = json.loads(text)
        if isinstance(data, dict) and data.get("crosswalk_plan", VERSION) != VERSION:
            raise fail("plan/version", f"plan version {data['crosswalk_plan']!a}, this is version {VERSION}")
        check_form(data)
        sources, targets = (tuple(_decode_tensor(*entry) for entry in data[end]) for end in ("sources", "targets"))
        encodings = tuple(_decode_encoding(*entry) for entry in data.get("encodings", ()))
        for tensor in (*sources, *targets, *(part for encoding in encodings for part in encoding.stored)):
            if tensor.dtype not in DTYPES:
                raise fail("plan/dtype", f"tensor `{tensor.name}` has the unknown dtype `{tensor.dtype}`")
        copies = tuple(
            Copy(s, t, tuple(e), so, tuple(ss), to, tuple(ts), r) for s, t, e, so, ss, to, ts, r in data["copies"]
        )
        return Plan(
            sources,
            targets,
            copies,
            tuple(Rule(*rule) for rule in data["rules"]),
            tuple(Exemption(*exemption) for exemption in data["exemptions"]),
            data["metadata"],
            padding.decode(data.get("padded", ())),
            padding.decode(data.get("truncated", ())),
            encodings,
        )
    except (ValueError, RecursionError) as error:
        raise fail("plan/malformed", f"this is not a plan: {error or type(error).__name__}") from error


def _encode(plan: Plan) -> dict[str, Any]:
    return {
        "crosswalk_plan": VERSION,
        "sources": [_encode_tensor(tensor) for tensor in plan.sources],
        "targets": [_encode_tensor(tensor) for tensor in plan.targets],
        "copies": [
            [
                c.source,
                c.target,
                list(c.extents),
                c.source_offset,
                list(c.source_strides),
                c.target_offset,
                list(c.target_strides),
                c.rule,
            ]
            for c in plan.copies
        ],
        "rules": [list(dataclasses.astuple(rule)) for rule in plan.rules],
        "exemptions": [list(dataclasses.astuple(exemption)) for exemption in plan.exemptions],
        "metadata": dict(plan.metadata),
        # Left out where there are none: such a plan has the bytes that it had before there were any.
        **({"padded": padding.encode(plan.padded)} if plan.padded else {}),
        **({"truncated": padding.encode(plan.truncated)} if plan.truncated else {}),
        **({"encodings": [_encode_encoding(encoding) for encoding in plan.encodings]} if plan.encodings else {}),
    }


def _encode_tensor(tensor: TensorSpec) -> list[Any]:
    return [tensor.name, list(tensor.shape), tensor.dtype]


def _decode_tensor(name: str, shape: list[int], dtype: str) -> TensorSpec:
    return TensorSpec(name, tuple(shape), dtype)


def _encode_encoding(encoding: Encoding) -> list[Any]:
    return [encoding.tensor, encoding.kind, [_encode_tensor(part) for part in encoding.stored], list(encoding.block)]


def _decode_encoding(tensor: str, kind: str, stored: list[Any], block: list[int]) -> Encoding:
    return Encoding(tensor, kind, tuple(_decode_tensor(*part) for part in stored), tuple(block))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
