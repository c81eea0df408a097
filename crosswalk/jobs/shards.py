"""Parameters that a trainer shards by hand: which boxes of each a rank holds, from the axes that the layout names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from crosswalk.compiler.layout.axis_shards import Held, held_parameters
from crosswalk.compiler.layout.scope import Scope, normalize
from crosswalk.compiler.layout.variants import fitting
from crosswalk.compiler.notation.axes import axes_of
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, system_limits
from crosswalk.runtime.folding import fold
from crosswalk.runtime.training.parameters import Model, collect
from crosswalk.runtime.training.placement import Shards

from .formats import DEFAULT_LAYOUT, catalog


@system_limits()
def shards(
    model: Model,
    native_config: Mapping[str, Any],
    axes: Mapping[str, tuple[int, int]],
    root: str | None = None,
    layout: str = DEFAULT_LAYOUT,
) -> dict[str, torch.Tensor | Shards]:
    """The state of a model whose tensors are this rank's shards of some axes, as :func:`crosswalk.load`, ``save`` and
    ``stream`` take it. Tensors are not copied.

    ``model`` is a module or a state dict with native names. ``axes``: name of an axis of the layout -> ``(index,
    count)``, this rank has shard ``index`` of ``count``. Several ranks may have the same one: with 2 groups of heads on
    8 ranks, ``{"head": (rank, 8), "group": (rank // 4, 2)}``. An axis of size n is cut as ``torch.chunk`` does: every
    shard has ceil(n / count) indices, the last ones fewer or none.

    Every dimension is cut by the pattern that the layout gives it: each branch of a sum such as ``[gate|up]`` for
    itself, and an axis inside a product for every index of what stands left of it; the local tensor has what is left,
    in the same order. Where an axis is written that is made of others, as ``head`` is of ``group`` and ``per_group``,
    it is cut by itself if it is in ``axes``, else by those of the others that are. Parameters without these axes are
    whole on this rank. An axis in the name of a parameter (``experts.weight{expert}``) is cut as well: the rank's
    tensors are numbered from 0, and get the names that they have in the whole model. ``NAME[0]`` in the place of an
    axis is the first dimension of the parameters whose names end so, cut whatever is in it: rows that a trainer shards
    evenly. To shard a part of a model otherwise, call this for each part of its state.

    A ``DTensor`` and ``Shards`` say themselves what they hold, and stay as they are; so do names that are not the
    layout's. A ``DTensor`` of local shards (FSDP over tensor parallelism by hand) has no global shape and is not
    supported: make it one ``DTensor`` over both meshes. ``root`` is the type of the config, such as ``base_model`` or
    ``multimodal_model``, by default that of the layout.

    Fields of ``training`` that decide how parameters are stored are as the names in ``model`` show them.

    Raises ``CrosswalkError`` with every axis that shards no parameter of the config; or with every tensor that has
    another shape than the axes make it.
    """
    found, state = catalog().layout(layout), collect(model)
    config = normalize(found, native_config, root)
    kind = found.types[root or found.root]
    # What the axes leave of a parameter is not known yet: names alone show how the model stores its parameters.
    whole = Scope(found, kind, fitting(found, kind, config, dict.fromkeys(state), part=True))
    held = held_parameters(whole, axes)
    result: dict[str, torch.Tensor | Shards] = {}
    wrong: dict[str, tuple[Held, tuple[int, ...]]] = {}
    others = {name for name in state if name not in held}
    for name, value in state.items():
        mine = held.get(name)
        if mine is None or isinstance(value, DTensor | Shards):
            result[name if mine is None else mine.name] = value
        elif tuple(value.shape) != mine.local_shape:
            wrong[name] = (mine, tuple(value.shape))
        else:
            result[mine.name] = Shards.of_intervals(mine.shape, mine.intervals, value) if mine.cut else value
    if others and (beyond := [name for name in held_parameters(whole, {}) if name in others]):
        raise CrosswalkError(_beyond(name) for name, _ in fold(beyond))
    if wrong:
        folded = fold(wrong, lambda name: (wrong[name][0].pattern, wrong[name][0].local_shape, wrong[name][1]))
        raise CrosswalkError(_misshapen(pattern, *wrong[names[0]], axes) for pattern, names in folded)
    return result


def _beyond(name: str) -> Diagnostic:
    message = f"`{name}` is none of this rank's: where an axis in the name is sharded, a rank has its tensors from 0 on"
    return Diagnostic("shards/name", message, None, "number the tensors as the rank does, or leave the axis out")


def _misshapen(name: str, held: Held, found: tuple[int, ...], axes: Mapping[str, tuple[int, int]]) -> Diagnostic:
    cut = " and ".join(f"shard {axes[axis][0]} of {axes[axis][1]} of `{axis}`" for axis in held.cut)
    needed = f"with {cut} it must be {list(held.local_shape)}, of {list(held.shape)} in all"
    if not cut:
        needed = f"with none of its axes sharded it must be {list(held.shape)}"
        hint = f"say in `axes` which of them is: {', '.join(axes_of(held.pattern.dims))}"
    elif found == held.shape:
        hint = "it is the whole parameter: pass what this rank holds of it, or leave out the axis where it is whole"
    else:
        hint = "each branch is cut for itself, as torch.chunk cuts; ranks with the same shard give the same index"
    message = f"the local tensor of `{name}` is {list(found)}: {needed}, by its pattern `{held.pattern}`"
    return Diagnostic("shards/shape", message, None, hint)
