"""The kinds of encoded tensors: what stands in the files for one tensor, whether it fits, and the values it means.

A kind stores a tensor as a payload and scales. ``KINDS`` is the one table of them: shapes, checks, decoding and what
people read are all there. Torch is imported only to decode.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from crosswalk.runtime.dtypes import FLOATS
from crosswalk.runtime.errors import Diagnostic
from crosswalk.runtime.records import Record

from .parts import Encoding, PlanParts

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]


class Runs(NamedTuple):
    """Elements of a row-major tensor: ``number`` runs of ``length``, the first at ``start``, each ``step`` after the
    one before it."""

    start: int
    length: int
    number: int = 1
    step: int = 0


#: ``fetch(part, runs)``: elements of a stored tensor (0: payload, 1: scales), flat and in its own dtype.
Fetch = Callable[[int, Runs], "torch.Tensor"]
#: ``decode(shape, block, runs, limit, fetch)``: those elements of a tensor of this shape, as flat float32 tensors one
#: after the other. ``limit``: elements to decode at a time; several runs have no more together.
Decode = Callable[[Shape, Shape, Runs, int, Fetch], Iterator["torch.Tensor"]]

#: Elements that share a scale in MXFP4, two in a byte (OCP Microscaling Formats 1.0, section 5.2).
_GROUP = 32
#: The values of E2M1 by code: sign, two bits of exponent, one of mantissa (the same, table 5).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class EncodingKind(Record, frozen=True):
    """``payload`` and ``scales``: the dtypes that the two may have. ``shape(payload shape)``: that of the decoded
    tensor, None if there is none. ``grids(payload shape, block)``: the shapes that the scales may have. ``blocks``:
    how many sizes a block may have. ``block_of(shape, block)``: the size of a block along every dimension of the
    decoded tensor. ``packed``: elements of the payload that a block is packed in, 0 if it has one for each of its own.
    ``words(block)``: what such tensors are called."""

    name: str
    payload: tuple[str, ...]
    scales: tuple[str, ...]
    blocks: tuple[int, ...]
    shape: Callable[[Shape], Shape | None]
    grids: Callable[[Shape, Shape], tuple[Shape, ...]]
    block_of: Callable[[Shape, Shape], Shape]
    packed: int
    decode: Decode
    words: Callable[[Shape], str]


def misfits(encoding: Encoding) -> Iterator[str]:
    """What is wrong between the tensors that are stored for one: dtypes, shapes and sizes of the block."""
    kind = KINDS.get(encoding.kind)
    if kind is None:
        yield f"`{encoding.kind}` is no kind of encoding; there are {', '.join(KINDS)}"
        return
    if len(encoding.stored) != 2:
        yield f"a payload and scales are stored, not {len(encoding.stored)} tensors"
        return
    payload, scales = encoding.stored
    block = encoding.block
    if len(block) not in kind.blocks or not all(type(size) is int and size > 0 for size in block):
        yield f"a block of sizes {list(block)} is none of {kind.name}"
        return
    for part, dtypes in ((payload, kind.payload), (scales, kind.scales)):
        if part.dtype not in dtypes:
            yield f"`{part.name}` has the dtype {part.dtype}, not {' or '.join(dtypes)}"
    if not all(type(size) is int and size >= 0 for part in encoding.stored for size in part.shape):
        yield f"the shapes {[list(part.shape) for part in encoding.stored]} are none"
    elif kind.shape(payload.shape) is None or len(payload.shape) < len(block):
        yield f"`{payload.name}` has the shape {list(payload.shape)}, which no payload of {kind.words(block)} has"
    elif scales.shape not in (grids := kind.grids(payload.shape, block)):
        wanted = " or ".join(str(list(grid)) for grid in grids)
        yield f"`{scales.name}` has the shape {list(scales.shape)}; {kind.words(block)} have {wanted}"


def check_encodings(plan: PlanParts) -> Iterator[Diagnostic]:
    """Every problem of the encodings of a plan: what they name, and whether what is stored fits (docs/plan.md, I18)."""
    sources = {tensor.name: tensor for tensor in plan.sources}
    encoded = Counter(encoding.tensor for encoding in plan.encodings)
    stored = Counter(part.name for encoding in plan.encodings for part in encoding.stored)
    for name, number in encoded.items():
        if number > 1:
            yield Diagnostic("plan/encoding", f"source tensor `{name}` is encoded {number} times")
        if name not in sources:
            yield Diagnostic("plan/encoding", f"the encoded `{name}` is not a source tensor")
    for name, number in stored.items():
        if number > 1:
            yield Diagnostic("plan/encoding", f"the stored `{name}` belongs to {number} encodings")
        if name in sources and name not in encoded:
            yield Diagnostic("plan/encoding", f"`{name}` is stored for an encoded tensor, and a source itself")
    for encoding in plan.encodings:
        wrong = list(misfits(encoding))
        tensor = sources.get(encoding.tensor)
        if tensor is not None and not wrong:
            shape = KINDS[encoding.kind].shape(encoding.stored[0].shape)
            if tensor.shape != shape:
                wrong.append(f"it has the shape {list(tensor.shape)}, and decoding gives {list(shape or ())}")
            if tensor.dtype not in FLOATS:
                wrong.append(f"it is decoded to {tensor.dtype}, which is no float")
        for text in wrong:
            yield Diagnostic("plan/encoding", f"source tensor `{encoding.tensor}` is encoded: {text}")


def described(encodings: Sequence[Encoding]) -> list[str]:
    """``7 tensors decoded from FP8 blocks of 128 x 128``, for every kind and block."""
    counts = Counter((encoding.kind, encoding.block) for encoding in encodings)
    return [
        f"{number} tensor{'s' * (number > 1)} decoded from {KINDS[kind].words(block) if kind in KINDS else kind}"
        for (kind, block), number in sorted(counts.items())
    ]


# ---- FP8 ------------------------------------------------------------------------------------------------------------


def _fp8_grids(payload: Shape, block: Shape) -> tuple[Shape, ...]:
    if not block:
        return ((), (1,))
    outer = len(payload) - len(block)
    inner = tuple(-(-size // width) for size, width in zip(payload[outer:], block, strict=True))
    return ((*payload[:outer], *inner),)


def _decode_fp8(shape: Shape, block: Shape, runs: Runs, limit: int, fetch: Fetch) -> Iterator[torch.Tensor]:
    """``float32(payload) * float32(scale)``, where blocks tile the last two dimensions and may be cut at the ends. So
    does transformers (``integrations/finegrained_fp8.py``, ``Fp8Dequantize``)."""
    import torch

    rows, columns = (1, 1, *shape)[-2:]
    # No larger than the matrix: the same grid, and numbers that torch can hold.
    height, width = (max(1, min(pair)) for pair in zip(block or (rows, columns), (rows, columns), strict=True))
    grid_rows, grid_columns = (-(-rows // height), -(-columns // width)) if block else (0, 1)
    for top, count, left, right in _rectangles(runs, columns, limit):
        values = _widened(fetch(0, Runs(top * columns + left, right - left, count, columns))).view(count, -1)
        first, last = (row // rows * grid_rows + row % rows // height for row in (top, top + count - 1))
        at = left // width
        taken = Runs(first * grid_columns + at, -(-right // width) - at, last - first + 1, grid_columns)
        scales = fetch(1, taken).to(torch.float32).view(taken.number, -1)
        if taken.number > 1:
            below = torch.arange(top, top + count, device=values.device)
            scales = scales.index_select(0, below // rows * grid_rows + below % rows // height - first)
        head = min(-left % width, right - left)
        whole = (right - left - head) // width
        done = 0
        if head:
            values[:, :head].mul_(scales[:, :1])
            done = 1
        if whole:
            inner = values[:, head : head + whole * width].view(count, whole, width)
            inner.mul_(scales[:, done : done + whole].unsqueeze(2))
        if head + whole * width < right - left:
            values[:, head + whole * width :].mul_(scales[:, done + whole :])
        yield values.view(-1)


def _widened(payload: torch.Tensor) -> torch.Tensor:
    """E4M3 as float32, by a table: on a CPU torch takes five times as long for it."""
    import torch

    return _e4m3().to(payload.device).index_select(0, payload.view(torch.uint8).to(torch.int32))


@functools.cache
def _e4m3() -> torch.Tensor:
    """The value of every code."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)


def _rectangles(runs: Runs, columns: int, limit: int) -> Iterator[tuple[int, int, int, int]]:
    """``(row, rows, column, column after)`` of the parts of at most ``limit`` elements, in order: whole rows, a part of
    one, or the same part of neighbours."""
    start, length, number, step = runs
    if number > 1 and step == columns and start % columns + length <= columns:
        row, column = divmod(start, columns)
        yield row, number, column, column + length
        return
    for index in range(number):
        at, stop = start + index * step, start + index * step + length
        while at < stop:
            row, column = divmod(at, columns)
            most = min(limit, stop - at)
            if column or columns > most:
                end = min(columns, column + most)
                yield row, 1, column, end
                at += end - column
            else:
                yield row, most // columns, 0, columns
                at += most // columns * columns


def _fp8_words(block: Shape) -> str:
    return f"FP8 blocks of {' x '.join(map(str, block))}" if block else "FP8 with one scale each"


# ---- MXFP4 ----------------------------------------------------------------------------------------------------------


def _mxfp4_shape(payload: Shape) -> Shape | None:
    return (*payload[:-2], payload[-2] * _GROUP) if len(payload) > 1 and payload[-1] == _GROUP // 2 else None


def _decode_mxfp4(shape: Shape, block: Shape, runs: Runs, limit: int, fetch: Fetch) -> Iterator[torch.Tensor]:
    """The value of a code times ``2 ** (scale - 127)``, low half of a byte first. So does transformers
    (``integrations/mxfp4.py``, ``convert_moe_packed_tensors``), with a scale of 255 like any other."""
    start, length, number, step = runs
    together = max(1, limit // (length + 2 * _GROUP)) if step % _GROUP == 0 else 1
    strip = max(_GROUP, limit // _GROUP * _GROUP)
    for first in range(0, number, together):
        count, at = min(together, number - first), start + first * step
        for begin in range(at // _GROUP * _GROUP, at + length, strip):
            end = min(begin + strip, -(-(at + length) // _GROUP) * _GROUP)
            values = _mxfp4_groups(Runs(begin, end - begin, count, step), fetch).view(count, -1)
            yield values[:, max(at - begin, 0) : at + length - begin].reshape(-1)


def _mxfp4_groups(runs: Runs, fetch: Fetch) -> torch.Tensor:
    """Whole groups."""
    import torch

    codes = fetch(0, Runs(runs.start // 2, runs.length // 2, runs.number, runs.step // 2)).to(torch.int32)
    exponents = fetch(1, Runs(runs.start // _GROUP, runs.length // _GROUP, runs.number, runs.step // _GROUP))
    pairs, powers = (table.to(codes.device) for table in _mxfp4_tables())
    factors = powers.index_select(0, exponents.to(torch.int32)).unsqueeze(1)
    return pairs.index_select(0, codes).view(-1, _GROUP).mul_(factors)


@functools.cache
def _mxfp4_tables() -> tuple[torch.Tensor, torch.Tensor]:
    """The two values in each byte, doubled, and half the factor that each scale stands for: 2 ** 128 is no float32."""
    import torch

    values = [2 * value for value in (*_E2M1, *(-value for value in _E2M1))]
    pairs = [[values[byte % 16], values[byte // 16]] for byte in range(256)]
    powers = [2.0 ** (scale - 128) for scale in range(256)]
    return torch.tensor(pairs, dtype=torch.float32), torch.tensor(powers, dtype=torch.float32)


KINDS: Mapping[str, EncodingKind] = {
    kind.name: kind
    for kind in (
        EncodingKind(
            "fp8_blocks",
            payload=("F8_E4M3",),
            scales=("F32", "BF16"),
            blocks=(0, 2),
            shape=lambda payload: payload,
            grids=_fp8_grids,
            block_of=lambda shape, block: (1,) * (len(shape) - len(block)) + block if block else shape,
            packed=0,
            decode=_decode_fp8,
            words=_fp8_words,
        ),
        EncodingKind(
            "mxfp4",
            payload=("U8",),
            scales=("U8",),
            blocks=(0,),
            shape=_mxfp4_shape,
            grids=lambda payload, block: (payload[:-1],),
            block_of=lambda shape, block: (1,) * (len(shape) - 1) + (_GROUP,),
            packed=_GROUP // 2,
            decode=_decode_mxfp4,
            words=lambda block: f"MXFP4 groups of {_GROUP}",
        ),
    )
}
