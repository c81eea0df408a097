"""Checksums of tensors that are written in pieces, in any order, by several workers.

SHA-256 is that of a tensor's bytes, as any other tool computes it: a tensor that several workers write is hashed once
is complete. XXH3 of 128 bits is the hash of the hashes of consecutive chunks of 1 MiB (the last one may be shorter):
of their raw digests, one after the other, so that every worker hashes what passes by.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import xxhash

#: Bytes that are hashed together where a checksum is made of those of chunks.
CHUNK = 1 << 20

_HASHES: dict[str, Callable[..., Any]] = {"xxh3": xxhash.xxh3_128, "sha256": hashlib.sha256}
KINDS = ("none", *_HASHES)
_OF_CHUNKS = frozenset(["xxh3"])


class Checksums:
    """Chunk digests of tensors of the given sizes in bytes; without ``in_chunks``, a tensor is one chunk. Safe to use
    from several threads."""

    def __init__(self, kind: str, sizes: Sequence[int]):
        self.new = _HASHES[kind]
        self.in_chunks = kind in _OF_CHUNKS
        self._sizes = sizes
        self._digests: dict[int, list[bytes | None]] = {}
        self._parts: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()

    def stream(self, tensor: int, start: int, stop: int) -> Stream:
        """For the bytes ``start`` to ``stop`` of a tensor, which come in order."""
        return Stream(self, tensor, start, stop)

    def chunk_size(self, tensor: int) -> int:
        """Bytes of a chunk, the last one of a tensor excepted."""
        return CHUNK if self.in_chunks else max(self._sizes[tensor], 1)

    def bounds(self, tensor: int, chunk: int) -> tuple[int, int]:
        """First byte of a chunk, and the byte after its last."""
        size = self.chunk_size(tensor)
        return chunk * size, min((chunk + 1) * size, self._sizes[tensor])

    def touched(self, tensor: int, places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """``(chunk, bytes)`` of a tensor that stretches of it, ``(offset, length)``, are parts of."""
        parts: Counter[int] = Counter()
        size = self.chunk_size(tensor)
        for start, length in places:
            stop = start + length
            for chunk in range(start // size, -(-stop // size)):
                parts[chunk] += min(stop, (chunk + 1) * size) - max(start, chunk * size)
        return list(parts.items())

    def set(self, tensor: int, chunk: int, digest: bytes) -> None:
        """Note the digest of a chunk."""
        with self._lock:
            digests = self._digests.setdefault(tensor, [None] * -(-self._sizes[tensor] // self.chunk_size(tensor)))
        digests[chunk] = digest

    def part(self, tensor: int, chunk: int, nbytes: int) -> bool:
        """Note that ``nbytes`` of a chunk have been written; whether it is now complete and has to be read back."""
        start, stop = self.bounds(tensor, chunk)
        with self._lock:
            written = self._parts.pop((tensor, chunk), 0) + nbytes
            if written < stop - start:
                self._parts[tensor, chunk] = written
        return written == stop - start

    def pop(self, tensor: int) -> str:
        """The checksum of a tensor that is complete, in hexadecimal; its chunk digests are let go."""
        digests = [digest for digest in self._digests.pop(tensor, []) if digest is not None]
        assert len(digests) == -(-self._sizes[tensor] // self.chunk_size(tensor))
        if digests and not self.in_chunks:
            return digests[0].hex()
        return str(self.new(b"".join(digests)).hexdigest())


class Stream:
    """Hashes a stretch of a tensor as it passes by. Chunks that it holds only a part of are left in ``parts``, as
    ``(chunk, bytes)``."""

    def __init__(self, checksums: Checksums, tensor: int, start: int, stop: int):
        self._checksums, self._tensor = checksums, tensor
        self._position = start
        self._size = size = checksums.chunk_size(tensor)
        self._first = -(-start // size) * size
        self._last = stop if stop == checksums.bounds(tensor, (stop - 1) // size)[1] else stop // size * size
        self._current = checksums.new()
        self.parts: list[tuple[int, int]] = []
        if self._first > self._last:
            self.parts.append((start // size, stop - start))
        else:
            if start < self._first:
                self.parts.append((start // size, self._first - start))
            if self._last < stop:
                self.parts.append((stop // size, stop - self._last))

    def update(self, block: memoryview) -> None:
        """The next bytes."""
        end = self._position + len(block)
        place = self._position
        while place < end:
            chunk_end = place // self._size * self._size + self._size
            piece = block[place - self._position : min(chunk_end, end) - self._position]
            if self._first <= place < self._last:
                self._current.update(piece)
                place += len(piece)
                if place == chunk_end or place == self._last:
                    self._checksums.set(self._tensor, (place - 1) // self._size, self._current.digest())
                    self._current = self._checksums.new()
            else:
                place += len(piece)
        self._position = end
