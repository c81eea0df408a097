"""Print plans: every relation between tensors of both sides, and all that is known of one tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from crosswalk.jobs.prepare import Prepared
from crosswalk.jobs.report import Report
from crosswalk.pictures.blocks import axes_of_natives, picture
from crosswalk.pictures.terminal import drawing
from crosswalk.runtime.dtypes import size_of
from crosswalk.runtime.folding import number_range
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.plan.parts import Region
from crosswalk.runtime.records import Record, field

from .configs import show_native_config
from .lines import bytes_text, echo, related, short, show_report

#: The place of a layer or an expert: a number that is a whole part of a name, or that numbers the weights of one module
#: (``weight0``). ``1`` in ``norm_1`` is none.
_PLACE = re.compile(r"(?<![^.])\d+(?![^.])|(?<=\.weight)\d+$|(?<=\.bias)\d+$")


class Pair(Record, frozen=True):
    """A tensor of each side, or words in the place of one, and what moves between them."""

    hf: str
    native: str
    order: tuple[int, int]
    nbytes: int
    rule: int | None


class Relation(Record):
    """Pairs that differ in places of layers and experts only, and in those alike on both sides."""

    pairs: list[Pair] = field(default_factory=list)

    @property
    def hf(self) -> str:
        """The names of the hf side, with places folded into ranges."""
        return _folded([pair.hf for pair in self.pairs])

    @property
    def native(self) -> str:
        """The names of the native side, with places folded into ranges."""
        return _folded([pair.native for pair in self.pairs])

    @property
    def nbytes(self) -> int:
        """Bytes of all pairs."""
        return sum(pair.nbytes for pair in self.pairs)


def show_plan(prepared: Prepared, workers: int | None, verbose: bool = False) -> None:
    """Costs and verdict, then a line for each relation, in the order of the model. ``verbose``: with the line of the
    mapping that makes it, and the native config."""
    from crosswalk.runtime.files.workers import peak_memory

    threads = workers or min(4, os.cpu_count() or 1)
    show_report(Report.of(prepared))
    echo((f" {'memory':<11}{bytes_text(peak_memory(threads))} with {threads} workers, whatever the model", ""))
    echo(plan_lines(prepared.plan, prepared.to == "hf", list(prepared.bound.native), verbose))
    if verbose:
        show_native_config(prepared)


def plan_lines(plan: Plan, export: bool, natives: Iterable[str], verbose: bool = False) -> Iterator[str]:
    """A line for each relation of a plan, the Hugging Face side on the left; ``natives``: the names of the native
    tensors in the order of the model."""
    arrow = "<-" if export else "->"
    relations = relations_of(plan, export, natives)
    rows = [(each.hf, each.native, bytes_text(each.nbytes) if each.nbytes else "") for each in relations]
    for lines, relation in zip(related(rows, arrow), relations, strict=True):
        yield from lines
        for rule in sorted({pair.rule for pair in relation.pairs if pair.rule is not None}) if verbose else ():
            yield f"    {plan.rules[rule].mapping}: {plan.rules[rule].text}  {short(plan.rules[rule].position)}"


def relations_of(plan: Plan, export: bool, natives: Iterable[str]) -> list[Relation]:
    """The relations of a plan, in the order of the model."""
    return list(_relations(_pairs(plan, export, {name: index for index, name in enumerate(natives)})))


def _pairs(plan: Plan, export: bool, place: dict[str, int]) -> list[Pair]:
    """Every pair of tensors that the plan moves between, and what has no other side, in the order of the model."""
    sums: dict[tuple[str, str, int | None], list[tuple[int, int]]] = {}

    def add(source: str, target: str, offset: int, nbytes: int, rule: int | None) -> None:
        hf, native = (target, source) if export else (source, target)
        sums.setdefault((hf, native, rule), []).append((offset, nbytes))

    for copy in plan.copies:
        source = plan.sources[copy.source]
        offset = copy.source_offset if export else copy.target_offset
        add(source.name, plan.targets[copy.target].name, offset, copy.elements * size_of(source.dtype), copy.rule)
    for region in plan.padded:
        target = plan.targets[region.tensor]
        add("zeros", target.name, region.offset, region.elements * size_of(target.dtype), region.rule)
    for region in plan.truncated:
        source = plan.sources[region.tensor]
        add(source.name, "left out", region.offset, region.elements * size_of(source.dtype), region.rule)
    for exemption in plan.exemptions:
        what = f"equal to {exemption.of}" if exemption.of else exemption.reason
        add(exemption.tensor, f"{exemption.kind}: {what}", 0, 0, None)
    pairs = [
        Pair(
            hf,
            native,
            (place.get(native, len(place)), min(offset for offset, _ in moved)),
            sum(n for _, n in moved),
            rule,
        )
        for (hf, native, rule), moved in sums.items()
    ]
    return sorted(pairs, key=lambda pair: (pair.order, pair.hf))


def _relations(pairs: Iterable[Pair]) -> Iterable[Relation]:
    """Pairs of equal pattern as one, where the places of both sides run alike."""
    groups: dict[tuple[str, str, tuple[int, ...]], Relation] = {}
    for pair in pairs:
        hf, native = _places(pair.hf), _places(pair.native)
        apart = tuple(left - right for left, right in zip(hf, native, strict=False))
        key = (_PLACE.sub("#", pair.hf), _PLACE.sub("#", pair.native), apart)
        groups.setdefault(key, Relation()).pairs.append(pair)
    return groups.values()


def _places(name: str) -> list[int]:
    return [int(place) for place in _PLACE.findall(name)]


def _folded(names: list[str]) -> str:
    columns = iter([number_range(sorted(set(column))) for column in zip(*map(_places, names), strict=True)])
    return _PLACE.sub(lambda found: next(columns), names[0])


def show_explanation(prepared: Prepared, tensor: str) -> None:
    """The copies of one tensor: extents and strides on both ends, and the line of the mapping."""
    found = prepared.plan.explain(tensor)
    for end in ("target", "source"):
        spec = next((item[end] for item in found if item[end] and item[end].name == tensor), None)
        if spec is not None:
            echo([f"{spec.name}  {list(spec.shape)}  {spec.dtype}  ({end})"])
            break
    for exemption in prepared.plan.exemptions:
        if tensor in (exemption.tensor, exemption.of):
            echo([f"{exemption.tensor} is {exemption.kind}: {exemption.of or exemption.reason}"])
    for name in dict.fromkeys(item["source"].name for item in found if item["source"]):
        encoding = prepared.plan.encoding_of.get(name)
        if encoding is not None:
            stored = " and ".join(f"{part.name} ({part.dtype} {list(part.shape)})" for part in encoding.stored)
            echo([f"{name} is stored as {stored}"])
    _show_picture(prepared, tensor)
    echo([""])
    rows = [(item["source"].name if item["source"] else "zeros", _target(item["target"]), "") for item in found]
    for lines, item in zip(related(rows, "->"), found, strict=True):
        echo((*lines, *_moved(item)))


def _show_picture(prepared: Prepared, tensor: str) -> None:
    """The tensor as blocks, with the axes of the native parameters that it has to do with."""
    drawn = picture(prepared.plan, tensor)
    if drawn is None:
        return
    names = [tensor, *dict.fromkeys(block.other.name for block in drawn.blocks)]
    for name, axes in axes_of_natives(prepared.mapping, prepared.config, names).items():
        echo([f"{name}: {axes}"])
    echo(["", *drawing(drawn, tensor in prepared.plan.target_index)])


def _target(spec: TensorSpec | None) -> str:
    return spec.name if spec else "left out"


def _moved(item: Mapping[str, Any]) -> Iterator[str]:
    """Where the elements of one copy, or of padding, are in the tensors of both ends, and which line says so."""
    source, target, moved, rule = item["source"], item["target"], item["copy"], item["rule"]
    if isinstance(moved, Region):
        at = {"source": (moved.offset, moved.strides), "target": (moved.offset, moved.strides)}
    else:
        at = {
            "source": (moved.source_offset, moved.source_strides),
            "target": (moved.target_offset, moved.target_strides),
        }
    yield f"    extents {list(moved.extents)}"
    for end, spec in (("source", source), ("target", target)):
        if spec is not None:
            yield f"    {end} {list(spec.shape)} at {at[end][0]} + {list(at[end][1])}"
    if rule:
        yield f"    {rule.mapping}: {rule.text}  {short(rule.position)}"
