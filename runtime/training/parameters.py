"""The parameters of a model in memory: found, agreed on by the ranks that have different ones, and checked against a
plan."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from crosswalk.runtime import background
from crosswalk.runtime.dtypes import FLOATS
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, fail
from crosswalk.runtime.folding import fold
from crosswalk.runtime.plan.model import TensorSpec

from .placement import Placed, Shards, local_tensor, named, place
from .ranks import Step, Team

#: What wrappers put into the names of parameters.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module"}

#: A module, or what its ``state_dict`` returns; values may also be ``Shards``.
Model = torch.nn.Module | MutableMapping[str, Any]
#: What a user should do about a tensor of a model that a plan does not have; None if there is nothing to say.
Advice = Callable[[str], str | None]


class Values(dict[str, torch.Tensor | Shards]):
    """The tensors of a model by name, as they are while one thing is done with them."""

    @functools.cached_property
    @torch.no_grad()
    def placed(self) -> dict[str, Placed]:
        """Where each lies on this rank. Raises ``CrosswalkError`` with every value that no file can hold."""
        return _place(self)


def collect(model: Model) -> Values:
    """The parameters and persistent buffers of a module, or the tensors of a state dict, by name.

    Names are those of the bare model: without the parts that DistributedDataParallel, torch.compile and activation
    checkpointing put in. Entries that are no tensors (``_extra_state``) are left out. Raises ``CrosswalkError``
    (``live/model``) for what is no model.
    """
    if not isinstance(model, torch.nn.Module | Mapping):
        kind = f"the class `{model.__name__}`" if isinstance(model, type) else f"of the type `{type(model).__name__}`"
        hint = "pass a module, or a dict of its tensors by name: dict(module.named_parameters())"
        raise fail("live/model", f"what is given as the model is {kind}, and no module", None, hint)
    model = unwrapped(model)
    state: Mapping[str, Any] = model.state_dict(keep_vars=True) if isinstance(model, torch.nn.Module) else model
    return Values((bare(name), value) for name, value in state.items() if isinstance(value, torch.Tensor | Shards))


def unwrapped(model: Model) -> Model:
    """The module inside of torch.compile, and of what has one ``module`` and no parameters of its own
    (DistributedDataParallel, averages of weights), whichever is around the other."""
    while isinstance(model, torch.nn.Module):
        children = dict(model.named_children())
        alone = list(children) == ["module"] and not any(True for _ in model.parameters(recurse=False))
        inside = children.get("_orig_mod", children["module"] if alone else None)
        if inside is None:
            break
        model = inside
    return model


def own(model: Model) -> Values:
    """The same for filling. Where hooks of a module show others than its own tensors (one fused parameter as three),
    what is filled are its own: the others are copies."""
    values = collect(model)
    if not isinstance(model, torch.nn.Module) or _is_flattened(model):
        return values
    module = unwrapped(model)
    assert isinstance(module, torch.nn.Module)
    owned = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    kept = Values((name, value) for name, value in values.items() if id(value) in owned)
    if len(kept) == len(values):
        return values
    shown = {id(value) for value in kept.values()}
    kept.update((name, tensor) for name, tensor in _persistent(module) if id(tensor) not in shown)
    return kept


def _persistent(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and key not in module._non_persistent_buffers_set:
                yield bare(f"{prefix}.{key}" if prefix else key), tensor


def _is_flattened(model: torch.nn.Module) -> bool:
    """Whether parameters are parts of flat ones (FSDP1), so that only the state dict has their names and shapes."""
    return any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())


def bare(name: str) -> str:
    """The name of a parameter without what wrappers put in."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


@torch.no_grad()
def untied(values: Values) -> dict[str, TensorSpec]:
    """Name, global shape and dtype of each tensor, without those that share the memory of an earlier one. Raises
    ``CrosswalkError`` with every value that no file can hold."""
    placed = values.placed
    first = {_identity(value): name for name, value in reversed(list(values.items()))}
    return {name: TensorSpec(name, placed[name].shape, placed[name].dtype) for name in reversed(first.values())}


@torch.no_grad()
def same_memory(values: Mapping[str, torch.Tensor | Shards]) -> dict[str, str]:
    """By each name, the first of those that are the same memory: the one that :func:`untied` has."""
    found = {name: _identity(value) for name, value in values.items()}
    first = {identity: name for name, identity in reversed(list(found.items()))}
    return {name: first[identity] for name, identity in found.items()}


def of_all_ranks(collected: Callable[[], Values], team: Team, doing: str) -> dict[str, TensorSpec]:
    """:func:`untied` for the whole model, of which a rank may have a part only, as with pipeline stages: what any of
    the ranks has. ``collected`` finds that of this rank; ``doing`` is what it is for. Raises ``CrosswalkError`` for
    each tensor that is not the same on all that have it; and for earlier work in the background that failed, if nobody
    has been told."""
    what = f"{doing}, comparing what the ranks have"
    failed = background.untold()
    step = Step()
    try:
        with team.step(what) as step:
            step.value = (list(failed), "")
            if failed:
                raise CrosswalkError(problem for problems in failed.values() for problem in problems)
            specs = untied(collected())
            listed = [(spec.name, spec.shape, spec.dtype) for spec in specs.values()]
            step.value = ([], hashlib.sha256(repr(listed).encode()).hexdigest())
    finally:
        background.tell(key for keys, _ in step.values for key in keys)
    if len({digest for _, digest in step.values}) == 1:
        return specs
    with team.step(what) as step:
        step.value = listed
    found: dict[str, TensorSpec] = {}
    seen: dict[str, dict[tuple[Any, str], list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, theirs in enumerate(step.values):
        for name, shape, dtype in theirs:
            seen[name][shape, dtype].append(rank)
            found.setdefault(name, TensorSpec(name, shape, dtype))
    different = {name: kinds for name, kinds in seen.items() if len(kinds) > 1}
    problems = []
    for pattern, names in fold(different, lambda name: str(different[name])):
        said = "; ".join(
            f"{dtype} {list(shape)} on rank {', '.join(map(str, ranks))}"
            for (shape, dtype), ranks in different[names[0]].items()
        )
        problems.append(Diagnostic("live/differs", f"parameter `{pattern}` is not the same on all ranks: {said}"))
    if problems:
        raise CrosswalkError(problems)
    return found


@torch.no_grad()
def place_all(
    values: Values,
    expected: Sequence[TensorSpec],
    given_memory: bool = False,
    elsewhere: Mapping[str, TensorSpec] | None = None,
    advice: Advice | None = None,
) -> dict[str, Placed]:
    """Where the expected tensors lie on this rank. Raises ``CrosswalkError`` with all that are missing, unexpected, of
    another shape, of a dtype that cannot be cast, or on the meta device, unless they are ``given_memory`` later. Names
    tied to an expected one are left out. ``elsewhere``: what other ranks have, which may be absent here; ``advice``
    knows more about a name than is known here."""
    placed = dict(values.placed)
    wanted = {spec.name: spec for spec in expected}
    others = elsewhere or {}
    absent = [name for name in wanted if name not in placed]
    problems = _differing(placed, wanted, [name for name in absent if name not in others], advice)
    on_meta = [
        name
        for name in wanted
        if name in placed
        and not (given_memory and isinstance(values[name], torch.Tensor))
        and any(part.tensor.is_meta for part in placed[name].parts)
    ]
    for pattern, _ in fold(on_meta):
        text = f"parameter `{pattern}` is on the meta device, where nothing can be read or written"
        hint = "load it first (crosswalk.load), or bring back what keeps its values elsewhere"
        hint = "give it memory first: torch.empty_like" if given_memory else hint
        problems.append(Diagnostic("live/meta", text, None, hint))
    identities = {_identity(values[name]) for name in wanted if name in values}
    unexpected = [n for n, value in values.items() if n not in wanted and _identity(value) not in identities]
    for (pattern, names), advised in _advised(unexpected, lambda name: placed[name].shape, advice):
        text = f"the model has a parameter `{pattern}` {list(placed[names[0]].shape)}, which the plan does not have"
        problems.append(Diagnostic("live/unexpected", text, None, advised or "leave it out of what is passed: a dict"))
    if problems:
        raise CrosswalkError(problems)
    for name in absent:
        placed[name] = Placed(wanted[name].shape, others[name].dtype, ())
    return {name: placed[name] for name in wanted}


def _differing(
    placed: Mapping[str, Placed], wanted: Mapping[str, TensorSpec], missing: Sequence[str], advice: Advice | None
) -> list[Diagnostic]:
    """What is ``missing``, and what is there and not as it is wanted; names that differ in numbers only as one."""
    problems = []
    for (pattern, names), hint in _advised(missing, lambda name: wanted[name].shape, advice):
        text = f"the model has no parameter `{pattern}` {list(wanted[names[0]].shape)}, which the plan has"
        problems.append(Diagnostic("live/missing", text, None, hint))
    there = [name for name in wanted if name in placed]
    wrong = [name for name in there if placed[name].shape != wanted[name].shape]
    for (pattern, names), hint in _advised(wrong, lambda n: (placed[n].shape, wanted[n].shape), advice):
        found, spec = placed[names[0]], wanted[names[0]]
        text = f"parameter `{pattern}` has the shape {list(found.shape)}, the plan says {list(spec.shape)}"
        problems.append(Diagnostic("live/shape", text, None, hint))
    uncast = [name for name in there if not _is_cast(placed[name].dtype, wanted[name].dtype)]
    for pattern, names in fold(uncast, lambda n: (placed[n].dtype, wanted[n].dtype)):
        found, spec = placed[names[0]], wanted[names[0]]
        text = f"parameter `{pattern}` is {found.dtype}, the plan says {spec.dtype}: only floats are cast"
        problems.append(Diagnostic("live/dtype", text))
    return problems


def _is_cast(found: str, wanted: str) -> bool:
    return found == wanted or {found, wanted} <= set(FLOATS)


def _advised(
    names: Sequence[str], key: Callable[[str], object], advice: Advice | None
) -> Iterator[tuple[tuple[str, list[str]], str | None]]:
    """Folded names with what is to be done about them."""
    hints = {name: advice(name) if advice is not None else None for name in names}
    for pattern, members in fold(names, lambda name: (key(name), hints[name])):
        yield (pattern, members), hints[members[0]]


def _place(values: Mapping[str, torch.Tensor | Shards]) -> dict[str, Placed]:
    placed: dict[str, Placed] = {}
    problems: list[Diagnostic] = []
    for name, value in values.items():
        try:
            placed[name] = place(value)
        except CrosswalkError as error:
            problems += named(name, error).diagnostics
    if problems:
        raise CrosswalkError(problems)
    return placed


def _identity(value: torch.Tensor | Shards) -> Any:
    """Equal for tensors that are the same memory."""
    if isinstance(value, Shards):
        return tuple((box, _identity(tensor)) for box, tensor in value.parts) or id(value)
    local = local_tensor(value) if isinstance(value, DTensor) else value
    if local.is_meta or not local.numel():
        return id(value)
    return local.data_ptr(), tuple(local.shape), local.stride(), local.device


def check_owned(model: Model, values: Mapping[str, torch.Tensor | Shards]) -> None:
    """Raise for what hooks of a module put into its state dict and that is no tensor of the module: filling it would
    change nothing."""
    if not isinstance(model, torch.nn.Module) or not _is_flattened(model):
        return  # :func:`own` has left such entries out
    owned = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    made = [name for name, value in values.items() if id(value) not in owned]
    hint = "the parameters of FullyShardedDataParallel are parts of flat ones: use fully_shard (FSDP2)"
    if made:
        raise CrosswalkError(
            Diagnostic(
                "live/not-owned",
                f"`{pattern}` is made by a hook of the state dict and is no parameter of the model",
                None,
                hint,
            )
            for pattern, _ in fold(made)
        )


def check_writable(placed: Mapping[str, Placed]) -> None:
    """Raise for tensors whose elements share memory: they cannot hold what is read."""
    shared = [
        name
        for name, value in placed.items()
        for part in value.parts
        if any(size > 1 and step == 0 for size, step in zip(part.tensor.shape, part.tensor.stride(), strict=True))
    ]
    if shared:
        raise CrosswalkError(
            Diagnostic("live/layout", f"parameter `{pattern}` is an expanded tensor, whose elements share memory")
            for pattern, _ in fold(dict.fromkeys(shared))
        )
