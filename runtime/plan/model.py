"""The flat converter plan: its parts, and all that can be asked of them and made of them.

What a plan is made of is in :mod:`.parts`; this is the one class that the rest of the package uses.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import fail

from . import algebra, blockwise
from . import text as plan_json
from .parts import (
    Copy,
    Encoding,
    Exemption,
    PlanParts,
    RawCopy,
    RawRegion,
    Region,
    Rule,
    TensorSpec,
    raw_copy,
)
from .proof import prove
from .verdict import Verdict

__all__ = [
    "Copy",
    "Encoding",
    "Exemption",
    "Plan",
    "RawCopy",
    "RawRegion",
    "Region",
    "Rule",
    "TensorSpec",
    "make_plan",
    "raw_copy",
]


class Plan(PlanParts, frozen=True, dict=True):
    """A plan. Build with :func:`make_plan`, which brings the parts into the canonical form."""

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over the canonical JSON of everything but provenance and metadata: what moves, not who said so."""
        return plan_json.digest(self)

    def verify(self) -> Verdict:
        """Prove bounds, disjointness and coverage of both ends; see :mod:`crosswalk.runtime.plan.proof`. Done once."""
        return self._verdict

    @functools.cached_property
    def _verdict(self) -> Verdict:
        return prove(self)

    def inverse(self) -> Plan:
        """The plan that undoes this one: padding is cut off, and what was cut off is padded. Tied duplicates and
        dropped tensors are not re-created, and nothing is encoded again: what was decoded is written as it was
        decoded."""
        return algebra.inverse(self)

    def keep_encoded(self) -> Plan:
        """The plan that moves encoded sources as they are stored, in whole blocks, instead of decoding them."""
        return blockwise.keep_encoded(self)

    def compose(self, other: Plan) -> Plan:
        """The plan that does this one and then ``other``, without the stop between."""
        return algebra.compose(self, other)

    def restrict(
        self,
        targets: Mapping[str, tuple[tuple[int, int], ...]] | None = None,
        sources: Mapping[str, tuple[tuple[int, int], ...]] | None = None,
    ) -> Plan:
        """Only what fills the given boxes (``(start, stop)`` per dimension) of the named tensors; a restricted tensor
        takes the shape of its box. Tensors of a restricted end that are not named are left out."""
        return algebra.restrict(self, targets, sources)

    def summary(self) -> dict[str, Any]:
        """Counts and costs: tensors, copies, bytes read and written, and the verdict of :meth:`verify`."""
        return {
            "sources": len(self.sources),
            "targets": len(self.targets),
            "copies": len(self.copies),
            "bytes_read": self._bytes_read(),
            "bytes_written": sum(tensor.nbytes for tensor in self.targets),
            "verdict": str(self.verify()),
            "digest": self.digest,
        }

    def _bytes_read(self) -> int:
        """What the copies read, of encoded tensors the part that is stored for it."""
        dtypes = [tensor.dtype for tensor in self.sources]
        encoded = {index for index, tensor in enumerate(self.sources) if tensor.name in self.encoding_of}
        alike = Counter((dtypes[copy.source], copy.extents) for copy in self.copies if copy.source not in encoded)
        plain = sum(number * math.prod(extents) * size_of(dtype) for (dtype, extents), number in alike.items())
        decoded: Counter[int] = Counter()
        for copy in self.copies if encoded else ():
            if copy.source in encoded:
                decoded[copy.source] += copy.elements
        read = [(self.sources[index], elements) for index, elements in decoded.items()]
        return plain + sum(
            sum(part.nbytes for part in self.stored_for(tensor)) * elements // max(tensor.elements, 1)
            for tensor, elements in read
        )

    def explain(self, name: str) -> list[dict[str, Any]]:
        """Every copy that writes or reads the tensor ``name``, with its rule. A region of padding has the
        ``source`` None, one that is not read the ``target`` None. A tensor that is stored for an encoded one is
        explained as that one. Raises ``CrosswalkError``, with the nearest names, if there is none."""
        name = next((e.tensor for e in self.encodings for part in e.stored if part.name == name), name)
        target, source = self.target_index.get(name), self.source_index.get(name)
        if target is None and source is None:
            near = difflib.get_close_matches(name, [*self.target_index, *self.source_index], 3, 0.5)
            raise fail(
                "plan/no-such-tensor",
                f"the plan has no tensor `{name}`",
                hint=f"did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else None,
            )

        def explained(before: TensorSpec | None, after: TensorSpec | None, moved: Copy | Region) -> dict[str, Any]:
            rule = self.rules[moved.rule] if moved.rule < len(self.rules) else None
            return {"source": before, "target": after, "copy": moved, "rule": rule}

        return [
            *(
                explained(self.sources[c.source], self.targets[c.target], c)
                for c in self.copies
                if c.target == target or (target is None and c.source == source)
            ),
            *(explained(None, self.targets[r.tensor], r) for r in self.padded if r.tensor == target),
            *(
                explained(self.sources[r.tensor], None, r)
                for r in self.truncated
                if target is None and r.tensor == source
            ),
        ]

    def to_json(self, folded: bool = True) -> str:
        """The text of the plan, as validated by ``schema/plan.schema.json``. ``folded``: layers and experts that repeat
        are written once; otherwise every tensor and copy is an entry of its own."""
        return plan_json.write(self, folded)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read :meth:`to_json`'s output. Raises ``CrosswalkError`` for anything that is not a well-formed plan."""
        return plan_json.read(text, Plan)


#: Brings the parts of a plan into canonical form; see :meth:`.PlanParts.made`.
make_plan = Plan.made
