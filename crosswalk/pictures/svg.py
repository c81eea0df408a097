"""A picture as boxes and texts of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .blocks import Picture, columns_of
from .terminal import described

#: Where the matrix is drawn: from the left, its width and height.
_LEFT, _WIDTH, _HEIGHT = 46, 360, 200
_COLORS = ("#9ecbff", "#b3e6c3", "#ffd8a8", "#e0c3fc", "#ffc9c9", "#c5f6fa", "#ffec99", "#dee2e6")


def drawn(picture: Picture, axes: str) -> Mapping[str, Any]:
    """The figure of a tensor: ``boxes`` with what each is as a title, and ``marks`` with the names of the tensors."""
    rows = max(1, picture.tensor.shape[0] if picture.tensor.shape else 1)
    width = max(1, columns_of(picture.tensor))
    names = list(dict.fromkeys(block.other.name for block in picture.blocks))
    colors = {name: _COLORS[number % len(_COLORS)] for number, name in enumerate(names)}
    boxes: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = [{"x": 2, "y": 12, "text": "0"}, {"x": 2, "y": _HEIGHT + 2, "text": str(rows)}]
    for block in picture.blocks:
        top, height = block.rows.start / rows * _HEIGHT, (block.rows.stop - block.rows.start) / rows * _HEIGHT
        left = _LEFT + block.columns.start / width * _WIDTH
        breadth = (block.columns.stop - block.columns.start) / width * _WIDTH
        title = f"{block.other.name}: {described(block, picture)}"
        box = {"x": round(left, 1), "y": round(top + 2, 1), "w": round(breadth, 1), "h": round(height, 1)}
        boxes.append({**box, "fill": colors[block.other.name], "title": title})
    for number, name in enumerate(names):
        y = _HEIGHT + 20 + 16 * number
        boxes.append({"x": _LEFT, "y": y - 9, "w": 10, "h": 10, "fill": colors[name], "title": name})
        turned = any(block.transposed for block in picture.blocks if block.other.name == name)
        marks.append({"x": _LEFT + 16, "y": y, "text": name + (" (transposed)" if turned else "")})
    return {
        "name": picture.tensor.name, "shape": list(picture.tensor.shape), "axes": axes, "boxes": boxes, "marks": marks,
        "height": _HEIGHT + 20 + 16 * len(names),
    }  # fmt: skip
