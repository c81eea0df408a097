"""The one equality of values of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def same_value(left: Any, right: Any) -> bool:
    """Equality of JSON values: 1 and 1.0 are the same number, true and 1 are not, and NaN is itself. Containers are
    compared by what they hold, whatever class of Python they are."""
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in left)
    return isinstance(left, bool) == isinstance(right, bool) and bool(
        left == right or (left != left and right != right)
    )
