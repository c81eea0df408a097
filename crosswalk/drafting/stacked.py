"""Experts of which files hold one tensor for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from crosswalk.models.tiny import WIDTHS

from .draft import Draft
from .fit import Fitting

#: The type of the layout that has experts, and where it stands in a block.
KIND, _PLACE = "moe", "mlp"
_FIRST, _SECOND = "layer_1.weight", "layer_2.weight"


def stack_experts(fitting: Fitting, draft: Draft) -> None:
    """Name the tensors of all experts, and of the router beside them, by their shapes: [experts, 2 sizes, width] and
    [experts, width, size], or transposed. The order of gate and up is the usual one: a wrong one computes something
    else."""
    width = next((fitting.config[key] for key in WIDTHS if isinstance(fitting.config.get(key), int)), None)
    for module, tensors in _modules(fitting.shapes).items():
        for first, second in ((one, two) for one in tensors for two in tensors if one != two):
            orders = _orders(tensors[first], tensors[second], width, fitting.counts)
            if orders is None:
                continue
            draft.put("block", "tensors", module, _PLACE)
            draft.put(KIND, "tensors", first, {"is": _FIRST, "axes": orders[0]}, "all experts; [gate|up] by its shape")
            draft.put(KIND, "tensors", second, {"is": _SECOND, "axes": orders[1]})
            routers = [name for name, shape in tensors.items() if shape == (tensors[first][0], width)]
            for name in routers[:1]:
                draft.put(KIND, "tensors", name.removesuffix(".weight"), "router")
            return


def _modules(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Tensors of a layer by the module that they are in: names below it, with their shapes."""
    result: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        module, _, inner = name.partition(".#.")[2].partition(".")
        if inner and "#" not in inner:
            result.setdefault(module, {})[inner] = shape
    return result


def _orders(first: tuple[int, ...], second: tuple[int, ...], width: Any, counts: set[Any]) -> tuple[str, str] | None:
    """The axes of both tensors; None if they are not those of experts."""
    if len(first) != 3 or len(second) != 3 or first[0] != second[0] or first[0] not in counts:
        return None
    return next((found for shapes, found in _known(width, second) if (first[1:], second[1:]) == shapes), None)


def _known(width: Any, second: tuple[int, ...]) -> Iterator[tuple[tuple[tuple[int, ...], tuple[int, ...]], Any]]:
    for size in second[1:]:
        yield (
            ((2 * size, width), (width, size)),
            ("expert ([gate|up] intermediate) hidden", "expert output intermediate"),
        )
        yield (
            ((width, 2 * size), (size, width)),
            ("expert hidden ([gate|up] intermediate)", "expert intermediate output"),
        )
