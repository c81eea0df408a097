"""Element types by their safetensors names. Sizes are in bytes. No torch import: plans are handled without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: safetensors name -> (size in bytes, attribute of torch), in the order in which that library ranks them (version 0.8).
DTYPES: dict[str, tuple[int, str]] = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E5M2": (1, "float8_e5m2"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "I16": (2, "int16"),
    "U16": (2, "uint16"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I32": (4, "int32"),
    "U32": (4, "uint32"),
    "F32": (4, "float32"),
    "F64": (8, "float64"),
    "I64": (8, "int64"),
    "U64": (8, "uint64"),
}
FLOATS = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")

#: Floats that hold every value of another one, so that a cast there and back changes nothing.
_WIDENS = {
    "F8_E4M3": ("F16", "BF16", "F32", "F64"),
    "F8_E5M2": ("F16", "BF16", "F32", "F64"),
    "F16": ("F32", "F64"),
    "BF16": ("F32", "F64"),
    "F32": ("F64",),
}


def size_of(dtype: str) -> int:
    """Bytes per element of a safetensors dtype name; KeyError for an unknown one."""
    return DTYPES[dtype][0]


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name."""
    import torch

    result = getattr(torch, DTYPES[dtype][1])
    assert isinstance(result, torch.dtype)
    return result


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype; KeyError for one that safetensors cannot store."""
    return {attribute: name for name, (_, attribute) in DTYPES.items()}[str(dtype).removeprefix("torch.")]


def cast_is_exact(source: str, target: str) -> bool:
    """Whether every value of ``source`` is a value of ``target``."""
    return source == target or target in _WIDENS.get(source, ())
