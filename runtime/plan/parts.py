"""What a plan is made of: tensors, strided copies between them, and where each came from. Pure data, no torch.

A plan holds no choices, tables or expressions: those were decided by the compiler for one config. Every copy moves
``prod(extents)`` elements; element ``(i_0, i_1, ...)`` is read at ``source_offset + sum(i_k * source_strides[k])`` and
written at ``target_offset + sum(i_k * target_strides[k])``, both counted in elements of the flattened (row-major)
tensors. docs/plan.md states the invariants; :mod:`crosswalk.runtime.plan.proof` checks them.

Everything of this folder works on :class:`PlanParts`; :mod:`crosswalk.runtime.plan.model` puts it together as the
``Plan`` that others use.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, Self, TypeVar

from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.records import Record, field, replace

from .affine import Piece, make_piece


class TensorSpec(Record, frozen=True):
    """A tensor as a file or a model holds it; ``dtype`` is a safetensors name such as ``BF16``."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.elements * size_of(self.dtype)


class Copy(NamedTuple):
    """One strided copy. ``source``, ``target`` and ``rule`` are indices into the lists of the plan.

    Axes are in target order, outermost (largest target stride) first; neighbours that are contiguous on both ends are
    merged; an axis of extent 1 never appears. A scalar or single element has no axes. Copies of one form share their
    extents and strides.
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
        """How many elements it moves."""
        return math.prod(self.extents)

    @property
    def piece(self) -> Piece:
        """The copy as a piece whose ``here`` end is in the target."""
        axes = tuple(zip(self.extents, self.target_strides, self.source_strides, strict=True))
        return Piece(self.target_offset, self.source_offset, axes)


class Region(Record, frozen=True):
    """The elements ``offset + sum(i_k * strides[k])`` of the flattened (row-major) tensor ``tensor``, for ``i_k`` below
    ``extents[k]``. ``tensor`` and ``rule`` are indices into the lists of the plan.

    Axes are outermost (largest stride) first; contiguous neighbours are merged, and an axis of extent 1 never appears.
    """

    tensor: int
    extents: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    rule: int = 0

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.extents)

    @property
    def piece(self) -> Piece:
        """The elements as a piece whose other end is nowhere."""
        return make_piece(self.offset, self.strides, 0, (0,) * len(self.extents), self.extents)


class Rule(Record, frozen=True):
    """Provenance: the mapping, the rule as written, and its place ``file:line:column``."""

    mapping: str
    text: str
    position: str


class Exemption(Record, frozen=True):
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


class Encoding(Record, frozen=True):
    """How the source tensor ``tensor`` is stored: not as its elements, but as the tensors ``stored``, from which it is
    decoded. ``kind`` is one of ``runtime.plan.encodings``, which says what ``stored`` and ``block`` (sizes of
    a block, in elements along dimensions of the tensor) are. One way: no plan writes encoded tensors."""

    tensor: str
    kind: str
    stored: tuple[TensorSpec, ...]
    block: tuple[int, ...] = ()


#: A copy before it has its place in a plan: source name, target name, extents, source offset, source strides,
#: target offset, target strides, rule index.
RawCopy = tuple[str, str, tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...], int]
#: A region before it has its place in a plan: tensor name, extents, offset, strides, rule index.
RawRegion = tuple[str, tuple[int, ...], int, tuple[int, ...], int]


def raw_copy(source: str, target: str, piece: Piece, rule: int) -> RawCopy:
    """The copy that a piece is whose ``here`` end is in the target."""
    extents, strides, others = piece.columns
    return (source, target, extents, piece.there, others, piece.here, strides, rule)


class PlanParts(Record, frozen=True, dict=True):
    """What is read, what is written, and every copy between; ``padded`` are regions of targets that are zeros,
    ``truncated`` regions of sources that are not read. Make one with :meth:`made`, which brings the parts into the
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

    @classmethod
    def made(
        cls,
        sources: Iterable[TensorSpec],
        targets: Iterable[TensorSpec],
        copies: Iterable[RawCopy],
        rules: Iterable[Rule] = (),
        exemptions: Iterable[Exemption] = (),
        metadata: Mapping[str, Any] | None = None,
        padded: Iterable[RawRegion] = (),
        truncated: Iterable[RawRegion] = (),
        encodings: Iterable[Encoding] = (),
    ) -> Self:
        """Bring the parts into canonical form: tensors sorted by name, axes of each copy in target order and merged,
        copies sorted by target and target offset, regions by tensor and offset. The order of the rules is kept."""
        source_list = tuple(sorted(sources, key=attrgetter("name")))
        target_list = tuple(sorted(targets, key=attrgetter("name")))
        source_index = {tensor.name: index for index, tensor in enumerate(source_list)}
        target_index = {tensor.name: index for index, tensor in enumerate(target_list)}
        return cls(
            source_list,
            target_list,
            _placed(copies, source_index, target_index),
            tuple(rules),
            tuple(sorted(exemptions, key=attrgetter("kind", "tensor"))),
            dict(metadata or {}),
            _make_regions(padded, target_index),
            _make_regions(truncated, source_index),
            tuple(sorted(encodings, key=attrgetter("tensor"))),
        )

    @functools.cached_property
    def source_index(self) -> Mapping[str, int]:
        """The place of each source in the list, by name."""
        return {tensor.name: index for index, tensor in enumerate(self.sources)}

    @functools.cached_property
    def target_index(self) -> Mapping[str, int]:
        """The place of each target in the list, by name."""
        return {tensor.name: index for index, tensor in enumerate(self.targets)}

    @functools.cached_property
    def encoding_of(self) -> Mapping[str, Encoding]:
        """How the encoded among the sources are stored, by name."""
        return {encoding.tensor: encoding for encoding in self.encodings}

    @functools.cached_property
    def ties(self) -> Mapping[str, str]:
        """The sources that are copies of others -> those others."""
        return {found.tensor: found.of for found in self.exemptions if found.kind == "tied" and found.of is not None}

    def stored_for(self, source: TensorSpec) -> tuple[TensorSpec, ...]:
        """The tensors that are stored for a source: itself, or those that it is decoded from."""
        encoding = self.encoding_of.get(source.name)
        return encoding.stored if encoding is not None else (source,)

    def raw_copies(self) -> list[RawCopy]:
        """The copies with the names of their tensors, for another plan."""
        sources, targets = ([tensor.name for tensor in tensors] for tensors in (self.sources, self.targets))
        return [
            (sources[source], targets[target], extents, offset, strides, other_offset, other_strides, rule)
            for source, target, extents, offset, strides, other_offset, other_strides, rule in self.copies
        ]

    def with_dtypes(self, dtypes: Mapping[str, str]) -> Self:
        """The plan for sources that have these dtypes (name -> safetensors name). A target that the plan does not cast
        takes the dtype of its sources, if they have one; a cast stays what it is."""
        feeding: dict[int, list[tuple[str, str]]] = {}
        for copy in self.copies:
            before = self.sources[copy.source]
            feeding.setdefault(copy.target, []).append((before.dtype, dtypes.get(before.name, before.dtype)))
        sources = (replace(t, dtype=dtypes.get(t.name, t.dtype)) for t in self.sources)
        targets = []
        for index, tensor in enumerate(self.targets):
            now = {new for _, new in feeding.get(index, ())}
            kept = len(now) == 1 and all(old == tensor.dtype for old, _ in feeding[index])
            targets.append(replace(tensor, dtype=now.pop()) if kept else tensor)
        return replace(self, sources=tuple(sources), targets=tuple(targets))


#: A plan of the kind that is given.
AnyPlan = TypeVar("AnyPlan", bound=PlanParts)


def _placed(
    copies: Iterable[RawCopy], source_index: Mapping[str, int], target_index: Mapping[str, int]
) -> tuple[Copy, ...]:
    """The copies in canonical form and order."""
    result = []
    merged: dict[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {}
    for source, target, extents, source_offset, source_strides, target_offset, target_strides, rule in copies:
        form = extents, source_strides, target_strides
        if form not in merged:  # there are few, and copies of one share them
            merged[form] = make_piece(0, target_strides, 0, source_strides, extents).columns
        extents, target_strides, source_strides = merged[form]
        place = (source_index[source], target_index[target])
        result.append(Copy(*place, extents, source_offset, source_strides, target_offset, target_strides, rule))
    # By target, its offset, source, its offset.
    result.sort(key=itemgetter(1, 5, 0, 3))
    return tuple(result)


def _make_regions(regions: Iterable[RawRegion], index: Mapping[str, int]) -> tuple[Region, ...]:
    """The regions in canonical form, sorted by tensor and offset. ``index``: tensor name -> place in its list."""
    made = []
    for name, extents, offset, strides, rule in regions:
        extents, strides, _ = make_piece(offset, strides, offset, strides, extents).columns
        made.append(Region(index[name], extents, offset, strides, rule))
    return tuple(sorted(made, key=lambda r: (r.tensor, r.offset, r.extents, r.strides, r.rule)))
