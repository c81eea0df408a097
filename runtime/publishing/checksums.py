"""Checksums of tensors, by the names that receivers have for them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable

import torch
import xxhash

from crosswalk.runtime.errors import fail

#: Names beside those of ``hashlib``.
_OTHERS: dict[str, Callable[[bytes], str]] = {
    "adler32": lambda data: f"{zlib.adler32(data):08x}",
    **dict.fromkeys(("xxh3", "xxh3-128"), lambda data: str(xxhash.xxh3_128(data).hexdigest())),
}


def digest_of(algorithm: str) -> Callable[[bytes], str]:
    """What makes the hexadecimal digest of bytes. Raises ``CrosswalkError`` (``publisher/checksum``) if there is no
    such algorithm."""
    if algorithm in _OTHERS:
        return _OTHERS[algorithm]
    if algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
        hint = f"one of {', '.join([*_OTHERS, 'sha256'])}, or another name of hashlib"
        raise fail("publisher/checksum", f"there is no checksum `{algorithm}`", None, hint)
    return lambda data: hashlib.new(algorithm, data).hexdigest()


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor, row-major, as files have them."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
