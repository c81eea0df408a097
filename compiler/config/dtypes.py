"""The dtype that a config.json names for the tensors beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from crosswalk.runtime.dtypes import DTYPES, FLOATS, size_of
from crosswalk.runtime.plan.model import TensorSpec

#: Any of them may say it; the first is written where none is there.
DTYPE_KEYS = ("dtype", "torch_dtype")


def stated_dtype(config: Mapping[str, Any], default: str = "F32") -> str:
    """The dtype that a config.json names for its tensors; ``default`` if it names none that is a float."""
    stated = config.get("dtype") or config.get("torch_dtype")
    by_name = {attribute: name for name, (_, attribute) in DTYPES.items() if name in FLOATS}
    return by_name.get(str(stated).removeprefix("torch."), default)


def state_dtype(config: dict[str, Any], dtype: str) -> None:
    """Say in a config.json which dtype its tensors have."""
    for key in [key for key in DTYPE_KEYS if key in config] or [DTYPE_KEYS[0]]:
        config[key] = DTYPES[dtype][1]


def main_dtype(tensors: Iterable[TensorSpec]) -> str:
    """The dtype that most bytes have; what a config's ``dtype`` says."""
    counts: Counter[str] = Counter()
    alike = Counter((tensor.dtype, tensor.shape) for tensor in tensors)
    for (dtype, shape), number in alike.items():
        counts[dtype] += number * math.prod(shape) * size_of(dtype)
    return counts.most_common(1)[0][0] if counts else "F32"
