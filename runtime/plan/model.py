"""The flat converter plan: tensors, strided copies between them, and where each came from. Pure data, no torch.

A plan holds no choices, tables or expressions: those were decided by the compiler for one config. Every copy moves
``prod(extents)`` elements; element ``(i_0, i_1, ...)`` is read at ``source_offset + sum(i_k * source_strides[k])`` and
written at ``target_offset + sum(i_k * target_strides[k])``, both counted in elements of the flattened (row-major)
tensors. docs/plan.md states the invariants; :mod:`crosswalk.runtime.plan.proof` checks them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.errors import fail

from .regions import RawRegion, Region, make_regions

if TYPE_CHECKING:
    from .verdict import Verdict


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as a file or a model holds it; ``dtype`` is a safetensors name such as ``BF16``."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * size_of(self.dtype)


@dataclass(frozen=True, slots=True)
class Copy:
    """One strided copy. ``source``, ``target`` and ``rule`` are indices into the lists of the plan.

    Axes are in target order, outermost (largest target stride) first; neighbours that are contiguous on both ends are
    merged; an axis of extent 1 never appears. A scalar or single element has no axes.
    """

    source: int
    target: int
    extents: tuple[int, ...]
    source_offset: int
    source_strides: tuple[int, ...]
    target_offset: int
    target_strides: tuple[int, ...]
    rule: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.extents)


@dataclass(frozen=True, slots=True)
class Rule:
    """Provenance: the mapping, the rule as written, and its place ``file:line:column``."""

    mapping: str
    text: str
    position: str


@dataclass(frozen=True, slots=True)
class Exemption:
    """A declared exception to the bijection, with its own contract.

    ``kind`` is one of
    ``tied``      source tensor ``tensor`` is a stored duplicate of source tensor ``of``: compared, not copied;
    ``dropped``   source tensor ``tensor`` has no counterpart and follows from the config (``reason``): not copied.
    A copy between tensors of different dtype is a cast; it needs no exemption and is reported by the verdict.
    """

    kind: str
    tensor: str
    of: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the source tensor ``tensor`` is stored: not as its elements, but as the tensors ``stored``, from which it is
    decoded. ``kind`` is one of ``runtime.plan.encodings``, which says what ``stored`` and ``block`` (sizes of
    a block, in elements along dimensions of the tensor) are. One way: no plan writes encoded tensors."""

    tensor: str
    kind: str
    stored: tuple[TensorSpec, ...]
    block: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is read, what is written, and every copy between; ``padded`` are regions of targets that are zeros,
    ``truncated`` regions of sources that are not read. Build with :func:`make_plan`, which brings the parts into the
    canonical form, so that equal plans have equal bytes and one digest."""

    sources: tuple[TensorSpec, ...]
    targets: tuple[TensorSpec, ...]
    copies: tuple[Copy, ...]
    rules: tuple[Rule, ...] = ()
    exemptions: tuple[Exemption, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    padded: tuple[Region, ...] = ()
    truncated: tuple[Region, ...] = ()
    encodings: tuple[Encoding, ...] = ()

    @functools.cached_property
    def source_index(self) -> Mapping[str, int]:
        return {tensor.name: index for index, tensor in enumerate(self.sources)}

    @functools.cached_property
    def target_index(self) -> Mapping[str, int]:
        return {tensor.name: index for index, tensor in enumerate(self.targets)}

    @functools.cached_property
    def encoding_of(self) -> Mapping[str, Encoding]:
        """How the encoded among the sources are stored, by name."""
        return {encoding.tensor: encoding for encoding in self.encodings}

    def stored_for(self, source: TensorSpec) -> tuple[TensorSpec, ...]:
        """The tensors that are stored for a source: itself, or those that it is decoded from."""
        encoding = self.encoding_of.get(source.name)
        return encoding.stored if encoding is not None else (source,)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over the canonical JSON of everything but provenance and metadata: what moves, not who said so."""
        from . import text as plan_json

        return plan_json.digest(self)

    def verify(self) -> Verdict:
        """Prove bounds, disjointness and coverage of both ends; see :mod:`crosswalk.runtime.plan.proof`. Done once."""
        return self._verdict

    @functools.cached_property
    def _verdict(self) -> Verdict:
        from .proof import prove

        return prove(self)

    def with_dtypes(self, dtypes: Mapping[str, str]) -> Plan:
        """The plan for sources that have these dtypes (name -> safetensors name). A target that the plan does not cast
        takes the dtype of its sources, if they have one; a cast stays what it is."""
        feeding: dict[int, list[tuple[str, str]]] = {}
        for copy in self.copies:
            before = self.sources[copy.source]
            feeding.setdefault(copy.target, []).append((before.dtype, dtypes.get(before.name, before.dtype)))
        sources = (dataclasses.replace(t, dtype=dtypes.get(t.name, t.dtype)) for t in self.sources)
        targets = []
        for index, tensor in enumerate(self.targets):
            now = {new for _, new in feeding.get(index, ())}
            kept = len(now) == 1 and all(old == tensor.dtype for old, _ in feeding[index])
            targets.append(dataclasses.replace(tensor, dtype=now.pop()) if kept else tensor)
        return dataclasses.replace(self, sources=tuple(sources), targets=tuple(targets))

    def inverse(self) -> Plan:
        """The plan that undoes this one: padding is cut off, and what was cut off is padded. Tied duplicates and
        dropped tensors are not re-created, and nothing is encoded again: what was decoded is written as it was
        decoded."""
        gone = {exemption.tensor for exemption in self.exemptions}
        return make_plan(
            self.targets,
            [tensor for tensor in self.sources if tensor.name not in gone],
            [
                (
                    self.targets[c.target].name,
                    self.sources[c.source].name,
                    c.extents,
                    c.target_offset,
                    c.target_strides,
                    c.source_offset,
                    c.source_strides,
                    c.rule,
                )
                for c in self.copies
            ],
            rules=self.rules,
            metadata=self.metadata,
            padded=_raw(self.truncated, self.sources),
            truncated=_raw(self.padded, self.targets),
        )

    def keep_encoded(self) -> Plan:
        """The plan that moves encoded sources as they are stored, in whole blocks, instead of decoding them."""
        from .blockwise import keep_encoded

        return keep_encoded(self)

    def compose(self, other: Plan) -> Plan:
        """The plan that does this one and then ``other``, without the stop between."""
        from .algebra import compose

        return compose(self, other)

    def restrict(
        self,
        targets: Mapping[str, tuple[tuple[int, int], ...]] | None = None,
        sources: Mapping[str, tuple[tuple[int, int], ...]] | None = None,
    ) -> Plan:
        """Only what fills the given boxes (``(start, stop)`` per dimension) of the named tensors; a restricted tensor
        takes the shape of its box. Tensors of a restricted end that are not named are left out."""
        from .algebra import restrict

        return restrict(self, targets, sources)

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
        moved: dict[int, int] = {}
        for copy in self.copies:
            moved[copy.source] = moved.get(copy.source, 0) + copy.elements
        read = [(self.sources[index], elements) for index, elements in moved.items()]
        return sum(
            sum(part.nbytes for part in self.stored_for(tensor)) * elements // max(tensor.elements, 1)
            for tensor, elements in read
        )

    def explain(self, name: str) -> list[dict[str, Any]]:
        """Every copy that writes or reads the tensor ``name``, with its rule; an error names the nearest tensors. A
        region of padding has the ``source`` None, one that is not read the ``target`` None. A tensor that is stored for
        an encoded one is explained as that one."""
        name = next((e.tensor for e in self.encodings for part in e.stored if part.name == name), name)
        target, source = self.target_index.get(name), self.source_index.get(name)
        if target is None and source is None:
            import difflib

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
        from . import text as plan_json

        return plan_json.write(self, folded)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read :meth:`to_json`'s output. Raises ``CrosswalkError`` for anything that is not a well-formed plan."""
        from . import text as plan_json

        return plan_json.read(text)


#: A copy before it has its place in a plan: source name, target name, extents, source offset, source strides,
#: target offset, target strides, rule index.
RawCopy = tuple[str, str, tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...], int]


def make_plan(
    sources: Iterable[TensorSpec],
    targets: Iterable[TensorSpec],
    copies: Iterable[RawCopy],
    rules: Iterable[Rule] = (),
    exemptions: Iterable[Exemption] = (),
    metadata: Mapping[str, Any] | None = None,
    padded: Iterable[RawRegion] = (),
    truncated: Iterable[RawRegion] = (),
    encodings: Iterable[Encoding] = (),
) -> Plan:
    """Bring the parts into canonical form: tensors sorted by name, axes of each copy in target order and merged, copies
    sorted by target and target offset, regions by tensor and offset. The order of the rules is kept."""
    source_list = tuple(sorted(sources, key=lambda tensor: tensor.name))
    target_list = tuple(sorted(targets, key=lambda tensor: tensor.name))
    source_index = {tensor.name: index for index, tensor in enumerate(source_list)}
    target_index = {tensor.name: index for index, tensor in enumerate(target_list)}
    result = []
    merged: dict[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]] = {}
    for source, target, extents, source_offset, source_strides, target_offset, target_strides, rule in copies:
        form = extents, source_strides, target_strides
        if form not in merged:  # there are few, and copies of one share them
            axes = merge_axes(*form)
            merged[form] = tuple(tuple(axis[column] for axis in axes) for column in range(3))
        extents, source_strides, target_strides = merged[form]
        result.append(
            Copy(
                source_index[source],
                target_index[target],
                extents,
                source_offset,
                source_strides,
                target_offset,
                target_strides,
                rule,
            )
        )
    result.sort(key=lambda c: (c.target, c.target_offset, c.source, c.source_offset))
    return Plan(
        source_list,
        target_list,
        tuple(result),
        tuple(rules),
        tuple(sorted(exemptions, key=lambda exemption: (exemption.kind, exemption.tensor))),
        dict(metadata or {}),
        make_regions(padded, target_index),
        make_regions(truncated, source_index),
        tuple(sorted(encodings, key=lambda encoding: encoding.tensor)),
    )


def _raw(regions: Iterable[Region], tensors: tuple[TensorSpec, ...]) -> list[RawRegion]:
    return [(tensors[r.tensor].name, r.extents, r.offset, r.strides, r.rule) for r in regions]


def merge_axes(
    extents: tuple[int, ...], source_strides: tuple[int, ...], target_strides: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """``(extent, source stride, target stride)`` per axis, outermost first in target order, neighbours merged."""
    axes = [axis for axis in zip(extents, source_strides, target_strides, strict=True) if axis[0] != 1]
    axes.sort(key=lambda axis: (-axis[2], -axis[1]))
    merged: list[tuple[int, int, int]] = []
    for extent, source, target in axes:
        if merged:
            outer_extent, outer_source, outer_target = merged[-1]
            if outer_source == extent * source and outer_target == extent * target:
                merged[-1] = (outer_extent * extent, source, target)
                continue
        merged.append((extent, source, target))
    return merged
