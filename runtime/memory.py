"""Execute a plan on tensors in memory, one target at a time, on whatever device they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from crosswalk.runtime.checkpoint.decoding import decode
from crosswalk.runtime.plan.model import Copy, Plan
from crosswalk.runtime.plan.parts import Region
from crosswalk.runtime.plan.proof import prove

from .dtypes import DTYPES, dtype_name, torch_dtype
from .errors import CrosswalkError, Diagnostic


def execute(
    plan: Plan, tensors: Mapping[str, torch.Tensor], device: torch.device | str | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ``(name, tensor)`` for each target, in plan order.

    ``tensors`` are the sources; for an encoded one the tensors that are stored for it, from which it is decoded.

    Each tensor is new, contiguous and on ``device``, by default where its first source is. Nothing is kept between two
    targets but what had to be made of a source, decoded or contiguous, until its last use. Copies are issued
    without synchronising with the device; only comparing tied tensors does.

    A plan that was compiled without files (its metadata says ``dtypes: assumed``) takes the dtypes of the tensors.

    Raises ``CrosswalkError`` at once, before the first target: for a plan that leaves part of a target unwritten or
    writes it twice; with every source that is missing, unexpected, or of another shape or dtype; with every tied tensor
    that differs from the one it is tied to.
    """
    if plan.metadata.get("dtypes") == "assumed":
        plan = plan.with_dtypes({name: _name(t) for name, t in tensors.items() if _name(t) in DTYPES})
    problems = prove(plan, ends=("target",)).problems or (*_mismatches(plan, tensors),)
    problems = problems or (*_broken_ties(plan, tensors),)
    if problems:
        raise CrosswalkError(problems)
    return _run(plan, tensors, device)


def _mismatches(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> Iterator[Diagnostic]:
    needed = {part.name: part for spec in plan.sources for part in plan.stored_for(spec)}
    for spec in needed.values():
        tensor = tensors.get(spec.name)
        if tensor is None:
            yield Diagnostic("execute/missing", f"the plan needs the tensor `{spec.name}`, which is not given")
            continue
        if tuple(tensor.shape) != spec.shape:
            yield Diagnostic(
                "execute/shape", f"`{spec.name}` has the shape {list(tensor.shape)}, the plan says {list(spec.shape)}"
            )
        if tensor.dtype != torch_dtype(spec.dtype):
            yield Diagnostic("execute/dtype", f"`{spec.name}` has dtype {_name(tensor)}, the plan says {spec.dtype}")
    for name in tensors:
        if name not in needed:
            yield Diagnostic("execute/unexpected", f"the plan does not use the given tensor `{name}`")


def _name(tensor: torch.Tensor) -> str:
    try:
        return dtype_name(tensor.dtype)
    except KeyError:
        return str(tensor.dtype)


def _broken_ties(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> Iterator[Diagnostic]:
    for pair in plan.ties.items():
        one, other = (_bits(_source(plan, name, tensors)) for name in pair)
        if not torch.equal(one, other.to(one.device)):
            yield Diagnostic(
                "execute/tie",
                "`{}` differs from `{}`, which it is tied to".format(*pair),
                hint="the two must be equal bit for bit; untie them in the config to keep both",
            )


def _source(plan: Plan, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A source tensor, contiguous."""
    encoding = plan.encoding_of.get(name)
    if encoding is not None:
        return decode(plan.sources[plan.source_index[name]], encoding, tensors)
    return tensors[name].detach().contiguous()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _run(
    plan: Plan, tensors: Mapping[str, torch.Tensor], device: torch.device | str | None
) -> Iterator[tuple[str, torch.Tensor]]:
    by_target: list[list[Copy]] = [[] for _ in plan.targets]
    padding: list[list[Region]] = [[] for _ in plan.targets]
    for region in plan.padded:
        padding[region.tensor].append(region)
    last_use: dict[int, int] = {}
    for copy in plan.copies:
        by_target[copy.target].append(copy)
        last_use[copy.source] = max(copy.target, last_use.get(copy.source, 0))
    # Only what was decoded or copied to be contiguous is worth dropping early; the caller holds the rest anyway.
    flat: dict[int, torch.Tensor] = {}
    for index, (spec, copies) in enumerate(zip(plan.targets, by_target, strict=True)):
        place = device
        if place is None and copies:
            place = tensors[plan.stored_for(plan.sources[copies[0].source])[0].name].device
        result = torch.empty(spec.shape, dtype=torch_dtype(spec.dtype), device=place)
        for region in padding[index]:
            torch.as_strided(result, region.extents, region.strides, region.offset).zero_()
        for copy in copies:
            if copy.source not in flat:
                flat[copy.source] = _source(plan, plan.sources[copy.source].name, tensors)
            source = flat[copy.source]
            start = source.storage_offset() + copy.source_offset
            torch.as_strided(result, copy.extents, copy.target_strides, copy.target_offset).copy_(
                torch.as_strided(source, copy.extents, copy.source_strides, start)
            )
        flat = {source: tensor for source, tensor in flat.items() if last_use[source] > index}
        yield spec.name, result
